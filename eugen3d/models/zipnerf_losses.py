"""What Zip-NeRF's fields are trained by (Barron et al. 2023, sections 3 and 4).

Symbols: a histogram has the edges s (n, k + 1), ascending, and the weights w (n, k) in between.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from eugen3d.fields import HashGrid

CHARBONNIER = 1e-3
EPSILON = 1e-5


def charbonnier_loss(rgb: Tensor, target: Tensor) -> Tensor:
    """The mean of √(error² + 0.001²)."""
    return ((rgb - target).square() + CHARBONNIER**2).sqrt().mean()


def blurred_weights(
    edges: Float[Tensor, "n k1"], weights: Float[Tensor, "n k"], pulse: float, at: Float[Tensor, "n j1"]
) -> Float[Tensor, "n j"]:
    """What of a histogram, blurred by a box of half width r, is between the points of another (section 3).

    With C the histogram's distribution function and I the integral of C, the blurred one's is
    (I(s + r) - I(s - r)) / 2r; I is quadratic from edge to edge. In float64, since I is differenced.
    """
    edges, weights, at = edges.double(), weights.double(), at.double()
    upper = _integrated(edges, weights, at + pulse)
    return ((upper - _integrated(edges, weights, at - pulse)) / (2 * pulse)).diff(dim=-1)


def interlevel_loss(
    edges: Tensor, weights: Tensor, proposal_edges: Tensor, proposal_weights: Tensor, pulse: float
) -> Tensor:
    """By how much a proposal's weights fall short of the blurred ones of the field that renders (section 3).

    The mean over rays of Σ max(0, w̃ - ŵ)² / ŵ; gradients reach the proposal alone, and are smooth as its edges move.
    """
    with torch.no_grad():
        wanted = blurred_weights(edges, weights, pulse, proposal_edges).to(proposal_weights.dtype)
    short = (wanted - proposal_weights).clamp(min=0)
    return (short.square() / (proposal_weights + EPSILON)).sum(dim=-1).mean()


def hash_decay(grids: Iterable[HashGrid]) -> Tensor:
    """The sum over grids and levels of the mean square of a level's entries (section 4): every level counts alike,
    however many entries it has."""
    return torch.stack([grid.mean_squares().sum() for grid in grids]).sum()


def _integrated(edges: Tensor, weights: Tensor, at: Tensor) -> Tensor:
    """I at points, 0 before the first edge."""
    widths = edges.diff(dim=-1)
    zero = torch.zeros_like(edges[..., :1])
    distribution = torch.cat([zero, weights.cumsum(dim=-1)], dim=-1)
    integral = torch.cat([zero, (widths * (distribution[..., 1:] + distribution[..., :-1]) / 2).cumsum(dim=-1)], dim=-1)
    index = torch.searchsorted(edges.contiguous(), at.contiguous(), right=True) - 1
    last = weights.shape[-1]
    inside, index = (index >= 0) & (index < last), index.clamp(0, last)
    density = torch.cat([weights / widths.clamp(min=1e-12), zero], dim=-1).gather(-1, index)
    beyond = (at - edges.gather(-1, index)).clamp(min=0)
    slope = distribution.gather(-1, index)
    quadratic = torch.where(inside, density, 0.0) / 2 * beyond.square()
    return integral.gather(-1, index) + slope * beyond + quadratic
