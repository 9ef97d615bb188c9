"""A folded chain on a CPU, evaluated by `chain.cpp` tile by tile inside the processor's first-level cache."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eugen3d.layers import EUGenFeatures
from eugen3d.layers.features import Phi
from eugen3d.layers.maps import is_features
from eugen3d.layers.structure import is_affine_map
from eugen3d.runtime.chains import flat_maps, replace_runs
from eugen3d.runtime.library import NativeUnavailable, Step, load_library
from eugen3d.runtime.steps import activation_of, why_no_step

ACTIVATION_NUMBERS: dict[Phi, int] = {
    "identity": 0,
    "relu": 1,
    "gelu": 2,
    "softplus": 3,
    "sine": 4,
    "softplus-100": 5,
}
"""`Activation` of chain.cpp."""


def make_native(chain: nn.Sequential, dtype: torch.dtype | None = None) -> nn.Module:
    """A chain with native chains in the place of its maps, as long runs of them as can be had (see `replace_runs`).

    Raises:
        NativeUnavailable: when native chains cannot be had here at all.
        ValueError: when no map has a native step, a map cannot be cast, or the chain has hooks.
    """
    return replace_runs(chain, _why_not, lambda run: NativeChain(run, dtype), dtype)


class NativeChain(nn.Module):
    """A chain of dense layers, EUGen features and activations, evaluated without gradients on a CPU.

    The weights are copied into the order that the products read them in: later changes to the chain are not seen.

    Args:
        chain: its maps in order; `nn.Linear`, `EUGenFeatures`, layers of every kind, and after any of them at most one
            of `nn.ReLU`, `nn.GELU` and `nn.Softplus` with torch's default settings, `nn.Softplus(beta=100)`, and `Sine`
            with ω₀ = 1.
        dtype: float32 or, where the processor has bfloat16 products, bfloat16; sums are float32 in both. By default
            that of the chain's parameters.
        concatenates: indices, among the chain's maps as `chain_maps` lists them, of the dense layers and features that
            see [input of the chain, what comes before], as a skip connection has it.

    Raises:
        NativeUnavailable: when the library cannot be built, or the chain holds what it has no step for.

    Shape: (..., in_features) → (..., out_features), in the input's dtype.
    """

    tiles_itself = True

    def __init__(
        self, chain: nn.Sequential, dtype: torch.dtype | None = None, concatenates: Sequence[int] = ()
    ) -> None:
        super().__init__()
        try:
            maps = flat_maps(chain)
        except ValueError as error:
            raise NativeUnavailable(str(error)) from None
        for index, module in enumerate(maps):
            if (reason := _why_not(module, maps[:index])) is not None:
                raise NativeUnavailable(reason)
        if not maps:
            raise NativeUnavailable("a chain has no maps")
        self.dtype = dtype or next(chain.parameters()).dtype
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise NativeUnavailable(f"{self.dtype} parameters, expected torch.float32 or torch.bfloat16")
        self.library = load_library()
        if self.dtype == torch.bfloat16 and not self.library.chain_has_bfloat16():
            raise NativeUnavailable("this processor has no bfloat16 products, expected AVX512-BF16")
        self._held: list[Tensor] = []
        steps = self._steps(maps, concatenates)
        self._step_array = (Step * len(steps))(*steps)
        self.in_features = steps[0].in_features
        self.out_features = steps[-1].order * steps[-1].num_features
        self._run = getattr(self.library, f"chain_run_{str(self.dtype).removeprefix('torch.')}")

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input has {x.shape[-1]} columns, expected {self.in_features}")
        if x.device.type != "cpu" or not x.is_floating_point():
            raise ValueError(f"the input is {x.dtype} on {x.device}, expected floating point on a CPU")
        count = x.shape[:-1].numel()
        rows = x.to(self.dtype).reshape(count, self.in_features).contiguous()
        y = torch.empty(count, self.out_features, dtype=self.dtype)
        if count and self._run(
            ctypes.addressof(self._step_array),
            len(self._step_array),
            rows.data_ptr(),
            count,
            self.in_features,
            y.data_ptr(),
            torch.get_num_threads(),
        ):
            raise MemoryError("the native chain found no memory for its buffers")
        return y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features} to {self.out_features}, {len(self._step_array)} steps, {self.dtype}"

    def __reduce__(self):
        raise TypeError("a NativeChain points into memory and cannot be copied or pickled; build it anew")

    def _steps(self, maps: list[nn.Module], concatenates: Sequence[int]) -> list[Step]:
        steps: list[Step] = []
        for index, module in enumerate(maps):
            if is_affine_map(module):
                steps.append(self._linear(module, index in concatenates))
            elif is_features(module):
                steps.append(self._features(module, index in concatenates))
            elif (phi := activation_of(module)) is not None:
                steps[-1].activation = ACTIVATION_NUMBERS[phi]
        return steps

    def _linear(self, linear: nn.Linear, concatenates: bool) -> Step:
        return Step(
            in_features=linear.in_features,
            out_features=linear.out_features,
            concatenates_input=concatenates,
            num_features=linear.out_features,
            order=1,
            shared=1,
            weight=self._packed(linear.weight),
            bias=self._padded(linear.bias, linear.out_features),
        )

    def _features(self, features: EUGenFeatures, concatenates: bool) -> Step:
        step = self._linear(features.projection, concatenates)
        step.num_features, step.order, step.shared = features.num_features, features.order, features.shared
        step.activation = ACTIVATION_NUMBERS[features.phi]
        if features.norm_weight is not None:
            step.norm_weight = self._padded(features.norm_weight, step.out_features)
            if features.norm_factor is not None:
                step.norm_rank = features.norm_factor.out_features
                step.norm_factor = self._packed(features.norm_factor.weight)
                step.norm_offset = self._padded(features.norm_factor.bias, step.norm_rank)
        return step

    def _packed(self, weight: Tensor) -> int:
        """The weights (out, in) in panels, as chain.cpp reads them."""
        lanes, panel = self.library.chain_lanes(), self.library.chain_panel()
        outputs, inputs = weight.shape
        pair = 2 if self.dtype == torch.bfloat16 else 1
        whole = weight.new_zeros(-(-outputs // lanes) * lanes, -(-inputs // pair) * pair)
        whole[:outputs, :inputs] = weight.detach()
        panels = [part.reshape(len(part), -1, pair).transpose(0, 1).flatten() for part in whole.split(panel)]
        return self._hold(torch.cat(panels).to(self.dtype))

    def _padded(self, vector: Tensor | None, size: int) -> int:
        lanes = self.library.chain_lanes()
        whole = torch.zeros(-(-size // lanes) * lanes)
        if vector is not None:
            whole[:size] = vector.detach()
        return self._hold(whole)

    def _hold(self, tensor: Tensor) -> int:
        """Keep a tensor alive as long as the steps point at it."""
        self._held.append(tensor.contiguous())
        return self._held[-1].data_ptr()


def _why_not(module: nn.Module, before: Sequence[nn.Module]) -> str | None:
    """Why a map has no native step after those before it in a run; None where it has one.

    Raises:
        NativeUnavailable: where the map stands on no CPU: it can be evaluated natively nowhere.
    """
    if any(parameter.device.type != "cpu" for parameter in module.parameters()):
        raise NativeUnavailable(f"parameters on {next(module.parameters()).device}, expected a CPU")
    return why_no_step(module, before, "native")
