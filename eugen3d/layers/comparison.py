"""How far the layers of a converted model are from those of the model that it was."""

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from eugen3d.layers.features import ACTIVATIONS, Phi
from eugen3d.layers.patterns import Patterns, find_activations


@torch.no_grad()
def relative_errors(
    model: nn.Module, reference: nn.Module, inputs: Any, names: Container[str], patterns: Patterns | None = None
) -> dict[str, float]:
    """‖y − y_reference‖ / ‖y_reference‖ of the outputs of the layers that two models both have by name.

    Args:
        inputs: positional arguments of the forward pass of both, a tensor or a tuple of tensors.
        names: the layers.
        patterns: those that the model was converted with.
    """
    ours, theirs = _outputs(model, inputs, names), _outputs(reference, inputs, names)
    for name, phi in _taken_in(model, reference, names, patterns).items():
        if name in theirs:
            theirs[name] = ACTIVATIONS[phi](theirs[name])
    return {
        name: float((ours[name] - theirs[name]).norm() / theirs[name].norm())
        for name in ours
        if name in theirs and ours[name].shape == theirs[name].shape
    }


def _outputs(network: nn.Module, inputs: Any, names: Container[str]) -> dict[str, Tensor]:
    """What the layers of these names give in one pass; a layer that is run several times, the last."""
    captured: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, y, name=name: captured.__setitem__(name, y.detach().clone()))
        for name, module in network.named_modules()
        if name in names
    ]
    try:
        network(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    finally:
        for handle in handles:
            handle.remove()
    return captured


def _taken_in(
    model: nn.Module, reference: nn.Module, names: Container[str], patterns: Patterns | None
) -> dict[str, Phi]:
    """The layers whose activation went into them: the identity stands where the reference has one."""
    layers = {module: name for name, module in reference.named_modules() if name in names}
    parents = {module: name for name, module in reference.named_modules()}
    modules = dict(model.named_modules(remove_duplicate=False))
    taken_in = {}
    for layer, followed in find_activations(reference, layers, patterns).items():
        places = [f"{parents[slot.parent]}.{slot.key}".removeprefix(".") for slot in followed.slots]
        if all(isinstance(modules.get(place), nn.Identity) for place in places):
            taken_in[layers[layer]] = followed.phi
    return taken_in
