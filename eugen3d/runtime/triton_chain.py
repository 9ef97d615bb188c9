"""A folded chain on an NVIDIA GPU, evaluated by one Triton kernel: activations stay in registers between its layers."""

import contextlib
import importlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from eugen3d.layers.features import Phi
from eugen3d.layers.maps import is_features
from eugen3d.layers.structure import is_affine_map
from eugen3d.runtime.chains import flat_maps, replace_runs
from eugen3d.runtime.machine import why_no_cuda
from eugen3d.runtime.steps import activation_of, why_no_step

MAX_COLUMNS = 512
"""Columns that a step may see, and project to: activations beyond do not fit the registers."""
MIN_TILE, MIN_ROWS, MAX_ROWS = 16, 16, 128
"""Columns of a tile and rows of a program: `tl.dot` takes no fewer than 16 of either."""
MAX_TILES: dict[torch.dtype, int] = {torch.float32: 32, torch.bfloat16: 64, torch.float16: 64}
"""Columns of a tile at most. Without TF32 a float32 product is unrolled into code that in long chains spills registers
(compiled for 8.0 and 9.0: six layers of 64 do, one of 63 × 256 does not; bfloat16 and TF32 hardly ever)."""
REGISTER_VALUES: dict[torch.dtype, int] = {torch.float32: 4096, torch.bfloat16: 8192, torch.float16: 8192}
"""Inputs and projections of a step that one program of 128 threads holds. From what ptxas reports, not from times."""
MIN_CAPABILITY = (8, 0)
"""The oldest GPUs that Triton supports."""


class TritonUnavailable(RuntimeError):  # noqa: N818 (as NativeUnavailable)
    """Triton cannot be had here, or cannot evaluate this module; the message says why, in one line."""


@dataclass(frozen=True)
class KernelStep:
    """What the kernel knows of a step when it is compiled; offsets count elements of the packed buffers."""

    concatenates: bool
    matrix: int
    bias: int
    num_projection_tiles: int
    products: tuple[tuple[int, ...], ...]
    """Per tile of the step's output, the tiles of the projections that are multiplied."""
    widths: tuple[int, ...]
    """Per tile of the step's output, its columns in use."""
    activation: Phi
    norm: Literal["none", "input", "factor"] = "none"
    norm_weight: int = 0
    factor_matrix: int = 0
    factor_offset: int = 0
    num_factor_tiles: int = 0
    is_last: bool = False
    """Whether the step's output leaves the kernel, unrounded."""


def make_triton(chain: nn.Sequential, dtype: torch.dtype | None = None) -> nn.Module:
    """A chain with Triton chains in the place of its maps, as long runs of them as can be had (see `replace_runs`).

    Raises:
        TritonUnavailable: when Triton chains cannot be had here at all.
        ValueError: when no map has a Triton step, a map cannot be cast, or the chain has hooks.
    """
    return replace_runs(chain, _why_not, lambda run: TritonChain(run, dtype), dtype)


class TritonChain(nn.Module):
    """A chain of dense layers, EUGen features and activations, evaluated without gradients by one kernel.

    The weights are packed once: later changes to the chain are not seen. Products are summed in float32. In float32
    they are taken in full precision, or in TF32 where torch is allowed it (`torch.backends.cuda.matmul.allow_tf32`).
    In bfloat16 and float16 what passes from layer to layer is rounded.

    Args:
        chain: its maps in order, those that `NativeChain` takes, up to `MAX_COLUMNS` wide.
        dtype: float32, bfloat16 or float16; by default that of the chain's parameters.
        concatenates: indices, among the chain's maps as `chain_maps` lists them, of the dense layers and features that
            see [input of the chain, what comes before], as a skip connection has it.

    Raises:
        TritonUnavailable: no Triton or no GPU, or the chain holds what the kernel has no step for.
        ValueError: when the widths of the maps do not fit together.

    Shape: (..., in_features) → (..., out_features), in the input's dtype.
    """

    weights: Tensor
    vectors: Tensor

    def __init__(
        self, chain: nn.Sequential, dtype: torch.dtype | None = None, concatenates: Sequence[int] = ()
    ) -> None:
        super().__init__()
        load_kernel()
        try:
            maps = flat_maps(chain)
        except ValueError as error:
            raise TritonUnavailable(str(error)) from None
        for index, module in enumerate(maps):
            if (reason := _why_not(module, maps[:index])) is not None:
                raise TritonUnavailable(reason)
        if not maps:
            raise TritonUnavailable("a chain has no maps")
        self.dtype = dtype or next(chain.parameters()).dtype
        if self.dtype not in MAX_TILES:
            raise TritonUnavailable(f"{self.dtype} parameters, expected {', '.join(map(str, MAX_TILES))}")
        packer = _Packer(maps, concatenates, self.dtype)
        self.steps, self.tile, self.program_rows = tuple(packer.steps), packer.tile, packer.program_rows
        self.in_features, self.out_features = packer.in_features, sum(self.steps[-1].widths)
        self.register_buffer("weights", torch.cat(packer.weights).to(self.dtype), persistent=False)
        self.register_buffer("vectors", torch.cat(packer.vectors).float(), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input has {x.shape[-1]} columns, expected {self.in_features}")
        if x.device != self.weights.device or not x.is_floating_point():
            raise ValueError(f"the input is {x.dtype} on {x.device}, expected floating point on {self.weights.device}")
        count = x.shape[:-1].numel()
        y = torch.empty(*x.shape[:-1], self.out_features, dtype=x.dtype, device=x.device)
        kernel = load_kernel()
        if count:
            with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
                kernel.chain_kernel[(-(-count // self.program_rows),)](
                    *(x.contiguous(), y, self.weights, self.vectors, count),
                    **self.constants(widens=kernel.IS_INTERPRETED),
                )
        return y

    def constants(self, widens: bool = False) -> dict[str, object]:
        """What the kernel is compiled for, by the names of its arguments.

        Args:
            widens: cast operands to float32, as the interpreter needs: it multiplies bfloat16 as the integers that
                hold its bits.
        """
        return {
            "IN_FEATURES": self.in_features,
            "OUT_FEATURES": self.out_features,
            "STEPS": self.steps,
            "ROWS": self.program_rows,
            "TILE": self.tile,
            "PRECISION": "tf32" if _allows_tf32() else "ieee",
            "WIDENS": widens,
        }

    def extra_repr(self) -> str:
        return f"{self.in_features} to {self.out_features}, {len(self.steps)} steps, {self.dtype}"


def load_kernel() -> ModuleType:
    """The module `triton_kernel`, imported at first use: `import eugen3d` loads no Triton.

    Raises:
        TritonUnavailable: Triton is not installed, or there is no GPU for it and its interpreter is off.
    """
    try:
        kernel = importlib.import_module("eugen3d.runtime.triton_kernel")
    except ImportError as error:
        raise TritonUnavailable(f"Triton cannot be imported ({error}), expected it installed, on Linux") from None
    if not kernel.IS_INTERPRETED and (reason := why_no_cuda()) is not None:
        raise TritonUnavailable(reason)
    return kernel


class _Packer:
    """Lays out a chain for the kernel: its steps, and the parts of the buffers that they point into."""

    def __init__(self, maps: list[nn.Module], concatenates: Sequence[int], dtype: torch.dtype) -> None:
        self.steps: list[KernelStep] = []
        self.weights: list[Tensor] = []
        self.vectors: list[Tensor] = []
        shapes = [_matrix_of(module).weight.shape for module in maps if activation_of(module) is None]
        self.in_features = shapes[0][1]
        self.tile = min(max(1 << (max(map(max, shapes)) - 1).bit_length(), MIN_TILE), MAX_TILES[dtype])
        segments, widest = [self.in_features], 0
        for index, module in enumerate(maps):
            if (phi := activation_of(module)) is not None:
                self.steps[-1] = replace(self.steps[-1], activation=phi)
                continue
            seen = [self.in_features, *segments] if index in concatenates else segments
            if (inputs := shapes[len(self.steps)][1]) != sum(seen):
                raise ValueError(f"map {index} of a chain takes {inputs} columns, what comes before has {sum(seen)}")
            self._add(module, seen, index in concatenates)
            segments = [module.num_features] * module.order if is_features(module) else [shapes[len(self.steps) - 1][0]]
            widest = max(widest, len(self._cut(seen)) + self.steps[-1].num_projection_tiles)
        self.steps[-1] = replace(self.steps[-1], is_last=True)
        rows = REGISTER_VALUES[dtype] // (widest * self.tile)
        self.program_rows = min(max(1 << rows.bit_length() >> 1, MIN_ROWS), MAX_ROWS)

    def _add(self, module: nn.Module, seen: list[int], concatenates: bool) -> None:
        matrix = _matrix_of(module)
        rows, num_blocks = [matrix.out_features], 1
        operands: list[tuple[int, ...]] = [(0,)]
        if is_features(module):
            num_blocks = matrix.out_features // module.num_features
            rows = [module.num_features] * num_blocks
            operands = _products(module.order, module.shared)
        tiles = self._cut(rows)
        per_block = len(tiles) // num_blocks
        step = KernelStep(
            concatenates=concatenates,
            matrix=self._pack_matrix(matrix.weight, rows, seen),
            bias=self._pack_vector(matrix.bias, rows),
            num_projection_tiles=len(tiles),
            products=tuple(tuple(i * per_block + j for i in factors) for factors in operands for j in range(per_block)),
            widths=tuple(len(tiles[j]) for _ in operands for j in range(per_block)),
            activation=module.phi if is_features(module) else "identity",
        )
        if is_features(module) and module.norm_weight is not None:
            step = replace(step, norm="input", norm_weight=self._pack_vector(module.norm_weight, rows))
            if (factor := module.norm_factor) is not None:
                step = replace(
                    step,
                    norm="factor",
                    factor_matrix=self._pack_matrix(factor.weight, [factor.out_features], seen),
                    factor_offset=self._pack_vector(factor.bias, [factor.out_features]),
                    num_factor_tiles=len(self._cut([factor.out_features])),
                )
        self.steps.append(step)

    def _cut(self, segments: list[int]) -> list[range]:
        """The columns of every tile; each segment begins a new one."""
        ends = itertools.accumulate(segments)
        starts_and_ends = [(end - width, end) for width, end in zip(segments, ends, strict=True)]
        return [
            range(i, min(i + self.tile, end)) for start, end in starts_and_ends for i in range(start, end, self.tile)
        ]

    def _pack_matrix(self, weight: Tensor, rows: list[int], columns: list[int]) -> int:
        """Append the blocks of a matrix (outputs, inputs), each transposed; returns their offset."""
        offset = sum(map(len, self.weights))
        for of_output, of_input in itertools.product(self._cut(rows), self._cut(columns)):
            block = weight.new_zeros(self.tile, self.tile)
            part = weight.detach()[of_output.start : of_output.stop, of_input.start : of_input.stop]
            block[: len(of_input), : len(of_output)] = part.T
            self.weights.append(block.flatten())
        return offset

    def _pack_vector(self, vector: Tensor | None, segments: list[int]) -> int:
        """Append a vector, tile by tile, zeros for None; returns its offset."""
        offset = sum(map(len, self.vectors))
        for part in self._cut(segments):
            whole = self.weights[0].new_zeros(self.tile)
            if vector is not None:
                whole[: len(part)] = vector.detach()[part.start : part.stop]
            self.vectors.append(whole)
        return offset


def _products(order: int, shared: bool) -> list[tuple[int, ...]]:
    """Per degree 1..k, the blocks of projections that are multiplied (see `degree_products`)."""
    starts = [0 if shared else degree * (degree - 1) // 2 for degree in range(1, order + 1)]
    return [tuple(range(start, start + degree)) for degree, start in enumerate(starts, 1)]


def _matrix_of(module: nn.Module) -> nn.Linear:
    matrix = module.projection if is_features(module) else module
    assert is_affine_map(matrix)
    return matrix


def _why_not(module: nn.Module, before: Sequence[nn.Module]) -> str | None:
    """Why a map has no step in the kernel after those before it in a run; None where it has one.

    Raises:
        TritonUnavailable: where the map stands on no GPU that Triton compiles for.
    """
    for parameter in module.parameters():
        _require_gpu(parameter.device)
    if (reason := why_no_step(module, before, "triton")) is not None:
        return reason
    for matrix in _matrices(module):
        if max(matrix.weight.shape) > MAX_COLUMNS:
            return f"a chain holds a matrix {tuple(matrix.weight.shape)}, expected at most {MAX_COLUMNS} either way"
    return None


def _matrices(module: nn.Module) -> Iterator[nn.Linear]:
    return (part for part in module.modules() if is_affine_map(part))


def _require_gpu(device: torch.device) -> None:
    if load_kernel().IS_INTERPRETED and device.type == "cpu":
        return
    if device.type != "cuda":
        raise TritonUnavailable(f"parameters on {device}, expected a CUDA device")
    if (found := torch.cuda.get_device_capability(device)) < MIN_CAPABILITY:
        raise TritonUnavailable(f"a GPU of compute capability {found}, expected {MIN_CAPABILITY} or newer")


def _allows_tf32() -> bool:
    """Whether torch may take float32 products in TF32; the newer of its two switches follows the older one."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if precision is None else precision == "tf32"
