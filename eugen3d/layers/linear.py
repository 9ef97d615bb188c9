"""The dense layer as a layer kind: `torch.nn.Linear` itself, the baseline of every method."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eugen3d.layers.features import Phi, draw_uniform
from eugen3d.layers.kind import KindConfig


@dataclass(frozen=True)
class LinearConfig(KindConfig):
    """The dense layer, `torch.nn.Linear`: the baseline of every method."""

    bias: bool = True
    """Whether the layer adds a learned output bias."""


def linear_from_config(
    config: LinearConfig,
    in_features: int,
    out_features: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> nn.Linear:
    """Build a dense layer that starts as He et al. (2015) have it, with a bias of zero.

    That keeps the variance through a stack of ReLUs, as the EUGen layers' own start does; torch's default loses it,
    layer by layer.
    """
    linear = nn.Linear(in_features, out_features, bias=config.bias, device=device, dtype=dtype)
    if generator is None:
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
    else:  # on the CPU, as all kinds draw, wherever the layer is
        with torch.no_grad():
            linear.weight.copy_(draw_uniform(linear.weight.shape, math.sqrt(6 / in_features), generator))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def linear_from_linear(
    linear: nn.Linear,
    activation: Phi = "identity",
    config: LinearConfig | None = None,
    inputs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> nn.Linear:
    """A copy of a dense layer, which is exact; the arguments after the first are those of the other kinds."""
    if activation != "identity":
        raise ValueError(f"activation is {activation!r}, expected 'identity': a dense layer has none inside")
    if linear.bias is not None and config is not None and not config.bias:
        raise ValueError("config.bias is False, expected True: the dense layer has a bias")
    return copy.deepcopy(linear)
