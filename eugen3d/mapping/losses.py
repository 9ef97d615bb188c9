"""The losses of iSDF (Ortiz et al. 2022, section III-C), element-wise over samples.

Symbols: s the distance that the field gives, b its bound, t the truncation, g the field's gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from eugen3d.mapping.bounds import Bounds
from eugen3d.mapping.config import SdfLossConfig


def free_space_loss(distance: Tensor, bound: Tensor, rate: float = 5.0) -> Tensor:
    """max(relu(s − b), e^{−βs} − 1): nothing from 0 to the bound, linear above, exponential below."""
    return torch.maximum(F.relu(distance - bound), torch.exp(-rate * distance) - 1)


def distance_loss(distance: Tensor, bound: Tensor, config: SdfLossConfig) -> Tensor:
    """The free-space loss where b > t; near surfaces and behind them |s − b|, times its weight."""
    near = config.truncation_mult * (distance - bound).abs()
    return torch.where(bound > config.truncation, free_space_loss(distance, bound, config.free_space_rate), near)


def gradient_loss(gradient: Tensor, expected: Tensor) -> Tensor:
    """1 − cos of the angle between two gradients (..., 3)."""
    return 1 - F.cosine_similarity(gradient, expected, dim=-1, eps=1e-6)


def eikonal_loss(gradient: Tensor) -> Tensor:
    """|‖g‖ − 1|, gradients (..., 3): a distance grows by a metre a metre."""
    return (gradient.norm(dim=-1) - 1).abs()


def sdf_losses(distance: Tensor, gradient: Tensor, bounds: Bounds, config: SdfLossConfig) -> dict[str, Tensor]:
    """The three losses of samples, weighted, each of the shape of the distances (n, samples).

    The eikonal loss is zero where the bound is under `eikonal_min_bound`.
    """
    is_free = bounds.distance >= config.eikonal_min_bound
    return {
        "distance_loss": distance_loss(distance, bounds.distance, config),
        "gradient_loss": config.gradient_mult * gradient_loss(gradient, bounds.gradient),
        "eikonal_loss": config.eikonal_mult * torch.where(is_free, eikonal_loss(gradient), 0.0),
    }
