"""Distances along rays, made even for sampling (Barron et al. 2023, "Zip-NeRF", section 4, power transformation).

    P(x, λ) = |λ - 1|/λ ((x/|λ - 1| + 1)^λ - 1),        s(t) = P(2t, -1.5)

It is linear near the camera and bounded far away, so that a ray without an end has evenly spaced samples.
"""

import torch
from torch import Tensor

LAMBDA = -1.5
SCALE = 2.0


def power_transform(x: Tensor, power: float = LAMBDA) -> Tensor:
    """P(x, λ) of x ≥ 0."""
    width = abs(power - 1)
    return width / power * torch.expm1(power * torch.log1p(x / width))


def inverse_power_transform(y: Tensor, power: float = LAMBDA) -> Tensor:
    """The x of which y is P(x, λ); gradients are finite below the bound |λ - 1|/|λ| that a negative λ has."""
    width = abs(power - 1)
    inside = (y * (power / width)).clamp(min=-1 + 1e-7)
    return width * torch.expm1(torch.log1p(inside) / power)


def spacing(t: Tensor) -> Tensor:
    """s of distances t ≥ 0 in scene units."""
    return power_transform(SCALE * t)


def inverse_spacing(s: Tensor) -> Tensor:
    """t of s."""
    return inverse_power_transform(s) / SCALE
