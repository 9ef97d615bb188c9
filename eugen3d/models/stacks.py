"""nerfstudio's MLPs as stacks of layers: the same function, in a form that can be distilled, folded and run fast.

nerfstudio's `MLP` applies its activations and skip connections inline, where neither a folding nor a runtime can see
them. A `FieldStack` has them as modules. Models are changed in place; their classes know nothing of it.
"""

import copy
from collections.abc import Collection, Iterable
from typing import Any

import torch
from nerfstudio.field_components.mlp import MLP, MLPWithHashEncoding
from torch import Tensor, nn

from eugen3d.layers import LayerStack, remove_weight_norm
from eugen3d.models.folded import KeptCopy
from eugen3d.runtime import AutoModule, Backend, TiledModule, build

TORCH_FLAG = "--pipeline.model.implementation torch"
"""What makes a method of nerfstudio build its MLPs from torch modules."""


class FieldStack(LayerStack):
    """A stack that renders by a folded copy of itself, made anew whenever a parameter has changed since.

    In training, with gradients and where `runtime` is None it is a plain `LayerStack`.

    Attributes:
        runtime: the backend of the folded copy.
    """

    def __init__(self, chains: Iterable[nn.Module] = (), skips: Collection[int] = ()) -> None:
        super().__init__(chains, skips)
        self.runtime: Backend | None = None
        self._evaluation = KeptCopy(_evaluation)

    def forward(self, x: Tensor) -> Tensor:
        if self.runtime is None or self.training or torch.is_grad_enabled():
            return super().forward(x)
        outputs = self._evaluation.of(self, self.runtime)(x.reshape(-1, x.shape[-1]))
        assert isinstance(outputs, Tensor)
        return outputs.view(*x.shape[:-1], outputs.shape[-1])

    def __deepcopy__(self, memo: dict[int, Any]) -> "FieldStack":
        """A copy that folds for itself."""
        twin = type(self)((copy.deepcopy(chain, memo) for chain in self), self.skips)
        twin.runtime = self.runtime
        memo[id(self)] = twin
        return twin.train(self.training)


def _evaluation(stack: FieldStack, runtime: Backend) -> TiledModule | AutoModule:
    return build(LayerStack(stack, stack.skips), runtime)


def to_stacks(model: nn.Module) -> nn.Module:
    """Put a stack that computes the same in the place of every MLP, in place, and return the model.

    An MLP that stands at several places stays shared. Weight norm is taken off, the weights staying what they are; a
    model's parameters are named anew.

    Raises:
        ValueError: an MLP is tiny-cuda-nn's; the message has the flag that builds it of torch modules.
    """
    for name, module in model.named_modules():
        if _is_tcnn(module):
            raise ValueError(f"{name} is tiny-cuda-nn's, expected torch modules: train with {TORCH_FLAG}")
    remove_weight_norm(model)
    stacks: dict[nn.Module | None, FieldStack] = {
        module: _stack(module) for module in model.modules() if isinstance(module, MLP)
    }
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in stacks:
                parent._modules[key] = stacks[child]
    return stacks.get(model, model)


def set_runtime(model: nn.Module, runtime: Backend | None) -> None:
    """Choose how the stacks of a model are evaluated when it renders; None for as they are."""
    for module in model.modules():
        if isinstance(module, FieldStack):
            module.runtime = runtime


def _stack(mlp: MLP) -> FieldStack:
    last = len(mlp.layers) - 1
    activations = [mlp.activation if index < last else mlp.out_activation for index in range(last + 1)]
    chains = [
        nn.Sequential(layer) if activation is None else nn.Sequential(layer, copy.deepcopy(activation))
        for layer, activation in zip(mlp.layers, activations, strict=True)
    ]
    return FieldStack(chains, mlp._skip_connections & set(range(last + 1))).train(mlp.training)


def _is_tcnn(module: nn.Module) -> bool:
    """Whether a module is an MLP that tiny-cuda-nn evaluates."""
    network = getattr(module, "model", None) if isinstance(module, MLPWithHashEncoding) else None
    is_mlp = isinstance(module, MLP) and module.tcnn_encoding is not None
    return is_mlp or type(network).__module__.startswith("tinycudann")
