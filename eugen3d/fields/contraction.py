"""The contraction of unbounded space into a ball of radius 2 (Barron et al. 2022, "Mip-NeRF 360", eq. 10).

    C(x) = x                        where ‖x‖ ≤ 1
    C(x) = (2 - 1/‖x‖) x/‖x‖        elsewhere

Its Jacobian at r = ‖x‖ > 1 stretches by 1/r² along x and by (2 - 1/r)/r across, so that volumes are multiplied by
det J = ((2 - 1/r) / r²)². What is small and round around x stays about round with its lengths multiplied by the
geometric mean of the three, det J^(1/3) (Barron et al. 2023, "Zip-NeRF", section 2).
"""

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST_NORM = 2 - 1e-6
"""Norms of contracted points are taken for no more than this where they are turned back."""


def contract(x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Contracted points; gradients are finite up to the square root of the largest number."""
    squared = x.square().sum(dim=-1, keepdim=True).clamp(min=1.0)
    return x * ((2 * squared.sqrt() - 1) / squared)


def uncontract(z: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """The points that contract to those of a ball of radius 2; what is nearer to its rim than 1e-6 comes from there."""
    norm = z.square().sum(dim=-1, keepdim=True).clamp(min=1.0).sqrt()
    return z / (norm * (2 - norm.clamp(max=LARGEST_NORM)))


def contraction_scale(x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """What small lengths around points are multiplied by: det J^(1/3), 1 inside the unit ball."""
    squared = x.square().sum(dim=-1).clamp(min=1.0)
    return ((2 - squared.rsqrt()) / squared) ** (2 / 3)


def contract_gaussians(
    means: Float[Tensor, "*batch 3"], stds: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
    """Contract isotropic Gaussians, to first order (Zip-NeRF, section 2)."""
    return contract(means), stds * contraction_scale(means)


def to_unit_cube(z: Float[Tensor, "*batch 3"], stds: Tensor) -> tuple[Tensor, Tensor]:
    """The cube [-2, 2]³ around the contracted ball as [0, 1]³, and lengths in its units."""
    return torch.clamp((z + 2) / 4, 0, 1), stds / 4
