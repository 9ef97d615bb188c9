"""How good a signed distance field is, as iSDF (Ortiz et al. 2022) measures it.

d is the true signed distance of a point (metres, negative in the solid) and s what the field says there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BINS: dict[str, tuple[float, float]] = {
    "<0": (-math.inf, 0.0),
    "0-0.1": (0.0, 0.1),
    "0.1-0.2": (0.1, 0.2),
    "0.2-0.5": (0.2, 0.5),
    "0.5-1": (0.5, 1.0),
    ">1": (1.0, math.inf),
}
"""Ranges of true distance in metres, the lower end belonging to each (iSDF, section V)."""
EPSILONS = (1.0, 1.5, 2.0)
"""Metres from a surface at which a collision begins to cost (iSDF, section V)."""


def sdf_error(sdf: Tensor, truth: Tensor) -> float:
    """The mean of |s - d|, both of any shape; metres."""
    return float((sdf - truth).abs().mean())


def sdf_error_by_distance(sdf: Tensor, truth: Tensor) -> dict[str, float | None]:
    """The mean of |s - d| over the points of each range of true distance in `BINS`; None where there is no point."""
    error = (sdf - truth).abs()
    masks = {name: (truth >= low) & (truth < high) for name, (low, high) in BINS.items()}
    return {name: float(error[mask].mean()) if mask.any() else None for name, mask in masks.items()}


def collision_cost(sdf: Tensor, epsilon: float) -> Tensor:
    """CHOMP's cost of a distance (Zucker et al. 2013, equation 21); of the shape of `sdf`.

    epsilon / 2 - d in the solid, (d - epsilon)^2 / (2 epsilon) up to epsilon from it, 0 beyond.
    """
    near = (sdf - epsilon).clamp_max(0.0).square() / (2.0 * epsilon)
    return torch.where(sdf < 0.0, 0.5 * epsilon - sdf, near)


def collision_cost_error(sdf: Tensor, truth: Tensor, epsilon: float) -> float:
    """The mean absolute difference of the collision costs of s and d."""
    return float((collision_cost(sdf, epsilon) - collision_cost(truth, epsilon)).abs().mean())


def gradient_cosine_distance(gradient: Tensor, truth: Tensor) -> float:
    """The mean of 1 - cos between gradients, both (n, 3): 0 the same direction, 2 opposite; 1 for a zero gradient."""
    return float((1.0 - F.cosine_similarity(gradient, truth, dim=-1)).mean())


def eikonal_error(gradient: Tensor) -> float:
    """The mean of | ‖g‖ - 1 | of gradients (n, 3): 0 for a distance, which grows by a metre a metre."""
    return float((gradient.norm(dim=-1) - 1.0).abs().mean())


def sdf_metrics(
    sdf: Tensor, truth: Tensor, gradient: Tensor | None = None, true_gradient: Tensor | None = None
) -> dict[str, float | None]:
    """All of the above at n points, as one flat dictionary of plain numbers.

    Args:
        sdf: (n,) what the field says, metres.
        truth: (n,) true signed distances.
        gradient: (n, 3) the field's gradients, where they are to be measured.
        true_gradient: (n, 3), with `gradient`.

    Raises:
        ValueError: shapes differ, there is no point, a value is not finite, or only one of the gradients is given.
    """
    if sdf.shape != truth.shape or not sdf.numel():
        raise ValueError(f"distances are of shapes {tuple(sdf.shape)} and {tuple(truth.shape)}, expected (n,) twice")
    if (gradient is None) != (true_gradient is None):
        raise ValueError("found one of gradient and true_gradient, expected both or neither")
    given = [x for x in (sdf, truth, gradient, true_gradient) if x is not None]
    if not all(bool(x.isfinite().all()) for x in given):
        raise ValueError("a distance or gradient is not finite")
    metrics: dict[str, float | None] = {"sdf_error": sdf_error(sdf, truth)}
    metrics |= {f"sdf_error[{name}]": value for name, value in sdf_error_by_distance(sdf, truth).items()}
    metrics |= {f"collision_cost_error[{e:g}]": collision_cost_error(sdf, truth, e) for e in EPSILONS}
    if gradient is not None and true_gradient is not None:
        metrics["gradient_cosine_distance"] = gradient_cosine_distance(gradient, true_gradient)
        metrics["eikonal_error"] = eikonal_error(gradient)
    return metrics
