"""Weight norm taken off a model: its dense layers with the weights that they compute with."""

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.nn.utils.weight_norm import remove_weight_norm as remove_hook


def remove_weight_norm(model: nn.Module) -> nn.Module:
    """Make plain weights of the weight-normed ones of dense layers, in place, and return the model.

    The function stays exactly the same. Both of torch's forms are known: `torch.nn.utils.weight_norm` and
    `torch.nn.utils.parametrizations.weight_norm`. Other parametrisations stay.
    """
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        if any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):
            remove_hook(module)
        elif parametrize.is_parametrized(module, "weight"):
            parts = getattr(module.parametrizations, "weight")  # noqa: B009 - pyright takes it for a tensor
            if len(parts) == 1 and isinstance(parts[0], _WeightNorm):
                parametrize.remove_parametrizations(module, "weight")
    return model


@torch.no_grad()
def detach_weight_norm(model: nn.Module) -> None:
    """Compute normed weights anew without a graph: with one a model cannot be copied."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                setattr(module, hook.name, hook.compute_weight(module))
