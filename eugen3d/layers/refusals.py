"""What must not be replaced: dense layers that carry more than a new layer would take over."""

from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.utils import parametrize

from eugen3d.layers.structure import Slot, has_hooks, is_plain_dense


def refuse_unfit(name: str, module: nn.Module) -> None:
    """Refuse a layer that a new one cannot stand for.

    Raises:
        ValueError: it is parametrised, quantised or a subclass, or has hooks.
    """
    if parametrize.is_parametrized(module) or any(hasattr(module, f"weight_{part}") for part in ("g", "v", "orig")):
        raise ValueError(f"{name}: is parametrised (weight_norm or the like), expected a plain nn.Linear; remove it")
    if not is_plain_dense(module):
        found = f"is a {type(module).__module__}.{type(module).__qualname__}"
        if type(module) is nn.Linear:
            found = f"its weight is a {type(module.weight.data).__name__} of {module.weight.dtype}"
        raise ValueError(
            f"{name}: {found} (quantised, with adapters or the like), expected a plain nn.Linear; "
            "leave it out with filter_fn"
        )
    if has_hooks(module):
        raise ValueError(f"{name}: has hooks, which would be lost; remove them before converting")


def refuse_hooked(model: nn.Module, slots: Iterable[Slot]) -> None:
    """Refuse activations that carry hooks, which would be lost.

    Raises:
        ValueError: it names the activation.
    """
    for slot in slots:
        if slot.module is not None and has_hooks(slot.module):
            name = next(name for name, module in model.named_modules() if module is slot.module)
            raise ValueError(f"{name}: has hooks, which would be lost; remove them before converting")


def refuse_tied(model: nn.Module, names: Mapping[nn.Module, str]) -> None:
    """Refuse layers that share a parameter with another module: a new layer would untie the two.

    Args:
        names: the layers to replace, with their names.

    Raises:
        ValueError: it names both.
    """
    holders: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(parameter, []).append(module)
    all_names = {module: name for name, module in model.named_modules()}
    for module, name in names.items():
        for key, parameter in module._parameters.items():
            sharing = [] if parameter is None else holders[parameter]
            other = next((other for other in sharing if other is not module), None)
            if other is not None:
                raise ValueError(
                    f"{name}: shares its {key} with {all_names[other]}, and a replacement would untie the two; "
                    "leave it out with filter_fn"
                )
