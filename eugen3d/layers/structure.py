"""What the modules of a torch model are: chains, dense layers, and what only looks like a dense layer."""

from typing import NamedTuple, TypeGuard

import torch
from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Slot(NamedTuple):
    """A place where a module stands: an attribute of its parent. A shared module stands at several."""

    parent: nn.Module
    key: str

    @property
    def module(self) -> nn.Module | None:
        """What stands there."""
        return self.parent._modules.get(self.key)


def slots_of(model: nn.Module) -> dict[nn.Module, list[Slot]]:
    """Every module of a model, less its root, with the places where it stands."""
    slots: dict[nn.Module, list[Slot]] = {}
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is not None:
                slots.setdefault(child, []).append(Slot(parent, key))
    return slots


def forward_owner(module: nn.Module) -> type[nn.Module]:
    """The class whose `forward` a module runs: its own, or the ancestor that it has it from."""
    return next(ancestor for ancestor in type(module).__mro__ if "forward" in vars(ancestor))


def qualified_name(cls: type) -> str:
    """The top-level package and the name of a class, such as "torch.ReLU": modules move within a package."""
    return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"


def has_hooks(module: nn.Module) -> bool:
    """Whether a module carries hooks, which no replacement of it would."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a module is a plain chain: a subclass may route its data in a way of its own."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_affine_map(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Whether a module computes what its weight and bias say: a subclass (LoRA, quantised) may not."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the `Conv1D` of transformers' GPT-2: a dense layer with its weight (in, out) transposed.

    Known by the name of its class, its width `nf` and the shape of its parameters, so that nothing has to be imported.
    """
    weight, bias, width = getattr(module, "weight", None), getattr(module, "bias", None), getattr(module, "nf", None)
    if type(module).__name__ != "Conv1D" or not isinstance(weight, torch.Tensor) or not isinstance(bias, torch.Tensor):
        return False
    return weight.dim() == 2 and weight.shape[1:] == bias.shape == (width,)


def is_plain_dense(module: nn.Module) -> bool:
    """Whether a module is a dense layer with a weight of its own: `nn.Linear` itself or `Conv1D`, not quantised."""
    if type(module) is not nn.Linear and not is_conv1d(module):
        return False
    weight = module.weight
    return type(weight) is nn.Parameter and type(weight.data) is torch.Tensor and weight.is_floating_point()


def is_dense_like(module: nn.Module) -> bool:
    """Whether a module passes for a dense layer: the plain ones, and what has their widths and a weight."""
    if isinstance(module, nn.Linear) or is_conv1d(module):
        return True
    widths = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    has_weight = hasattr(module, "weight") or hasattr(module, "qweight")
    return all(isinstance(width, int) for width in widths) and has_weight


def as_linear(module: nn.Module) -> nn.Linear:
    """The `nn.Linear` that computes what a dense layer does; itself where it is one.

    Raises:
        TypeError: the module is no plain dense layer.
    """
    if isinstance(module, nn.Linear):
        return module
    if not is_conv1d(module):
        raise TypeError(f"{type(module).__name__} is no dense layer, expected nn.Linear or Conv1D")
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)
    linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
    linear.weight = nn.Parameter(weight.detach().T, requires_grad=weight.requires_grad)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return linear.train(module.training)


def num_products(module: nn.Module) -> int:
    """Scalar products that one row takes in a module's dense layers, each applied once."""
    dense = (layer for layer in module.modules() if isinstance(layer, nn.Linear) or is_conv1d(layer))
    return sum(layer.weight.numel() for layer in dense if isinstance(layer.weight, torch.Tensor))
