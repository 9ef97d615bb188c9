"""Swap the dense layers of a torch model for layers of another kind, and report on what a model is made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from eugen3d.layers.config import EUGenConfig, LayerConfig, LinearConfig
from eugen3d.layers.eugen import EUGenFeatures, EUGenLinear

Filter = Callable[[nn.Module, str], bool]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def convert(model: nn.Module, config: EUGenConfig | LayerConfig, filter_fn: Filter | None = None) -> nn.Module:
    """Replace the dense layers of a model by layers made from them, in place, and return the model.

    A module that stands at several places is replaced once, if any of its names matches, and stays shared; a model
    that is itself a dense layer comes back replaced. Training flag, device, dtype and requires_grad carry over. The
    new layers start as `EUGenLinear.from_linear` makes them, which is approximate: train or distil them.

    Args:
        config: the kind and settings of the new layers.
        filter_fn: takes a dense layer and its fully qualified name, says whether to replace it; all by default.

    Raises:
        ValueError: when nothing matches, naming the dense layers seen, or a matching layer has hooks or
            parametrisations (weight_norm, spectral_norm), which would be lost.
    """
    chosen = config.chosen if isinstance(config, LayerConfig) else config
    if isinstance(chosen, LinearConfig):
        raise ValueError("the layer kind is 'linear', expected another: the layers are dense already")
    seen = _dense_layers(model)
    matching = [(name, module) for name, module in seen if filter_fn is None or filter_fn(module, name)]
    if not matching:
        names = ", ".join(name or "(the model itself)" for name, _ in seen) or "none"
        raise ValueError(f"no dense layer matched; the model's plain nn.Linear layers: {names}")
    for name, module in matching:
        _refuse_attachments(name, module)
    unique = dict.fromkeys(module for _, module in matching)
    replacements: dict[nn.Module, nn.Module] = {
        module: EUGenLinear.from_linear(module, "identity", chosen) for module in unique
    }
    if model in replacements:
        return replacements[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return model


def layer_status(model: nn.Module, reference: nn.Module | None = None, inputs: Any = None) -> list[dict[str, Any]]:
    """Describe the dense and EUGen layers of a model, one row each.

    Args:
        reference: the model before conversion. With `inputs` for a forward pass of both, every row has the relative
            error ‖y − y_reference‖ / ‖y_reference‖ of that layer's output; the layers are matched by name.
        inputs: positional arguments of the forward pass, a tensor or a tuple of tensors.

    Returns:
        Rows with keys `name`, `kind` ("linear" or "eugen"), `num_parameters`, `flops` (two per product, for one
        input row) and `relative_error` (None where it was not measured).
    """
    layers = {name: module for name, module in model.named_modules() if _is_layer(module)}
    layers = {name: m for name, m in layers.items() if not any(_inside(name, n) for n in layers if n != name)}
    errors = {} if reference is None or inputs is None else _relative_errors(model, reference, inputs, layers)
    return [
        {
            "name": name,
            "kind": "linear" if isinstance(module, nn.Linear) else "eugen",
            "num_parameters": sum(p.numel() for p in module.parameters()),
            "flops": 2 * sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear)),
            "relative_error": errors.get(name),
        }
        for name, module in layers.items()
    ]


def _dense_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The dense layers by every name that they have, less those that EUGen layers are made of."""
    inner = {part for layer in model.modules() if _is_eugen(layer) for part in layer.modules()}
    return [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear) and module not in inner
        if type(module) is nn.Linear or parametrize.is_parametrized(module)
    ]


def _is_eugen(module: nn.Module) -> bool:
    return isinstance(module, EUGenLinear | EUGenFeatures)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_eugen(module)


def _inside(name: str, container: str) -> bool:
    return name.startswith(container + ".") or container == ""


def _refuse_attachments(name: str, module: nn.Module) -> None:
    if parametrize.is_parametrized(module) or any(hasattr(module, f"weight_{part}") for part in ("g", "v", "orig")):
        raise ValueError(f"{name}: is parametrised (weight_norm or the like), expected a plain nn.Linear; remove it")
    if any(getattr(module, hooks) for hooks in _HOOKS):
        raise ValueError(f"{name}: has hooks, which would be lost; remove them before converting")


@torch.no_grad()
def _relative_errors(
    model: nn.Module, reference: nn.Module, inputs: Any, layers: dict[str, nn.Module]
) -> dict[str, float]:
    """Run both models on the same inputs and compare the outputs of the layers that both have by name."""
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    outputs: list[dict[str, torch.Tensor]] = []
    for network in (model, reference):
        captured: dict[str, torch.Tensor] = {}
        handles = [
            module.register_forward_hook(
                lambda _m, _i, y, name=name, captured=captured: captured.__setitem__(name, y.detach())
            )
            for name, module in network.named_modules()
            if name in layers
        ]
        try:
            network(*arguments)
        finally:
            for handle in handles:
                handle.remove()
        outputs.append(captured)
    ours, theirs = outputs
    return {
        name: float((ours[name] - theirs[name]).norm() / theirs[name].norm())
        for name in ours
        if name in theirs and ours[name].shape == theirs[name].shape
    }
