"""Rendering that evaluates what can be seen, and nothing else: no empty space, and nothing behind what is opaque."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.model_components.ray_samplers import PDFSampler, SpacedSampler
from torch import Tensor

from eugen3d.models.occupancy import OccupancyGrid

Intervals = tuple[Tensor, Tensor]
"""The numbers of some rays (m,), and of an interval of each (m,)."""

NUM_PARTS = 192
"""Of a ray, that are looked up in a grid, each at its middle."""
SLAB = 8
"""How many of a ray's live samples are evaluated before it is seen whether it goes on."""


_SAMPLERS = {
    training: PDFSampler(include_original=False, histogram_padding=1e-5, single_jitter=True).train(training)
    for training in (False, True)
}
"""In evaluation, and jittered, as in training."""


def samples_by_grid(
    grid: OccupancyGrid, rays: RayBundle, sampler: SpacedSampler, count: int, spread: float
) -> tuple[RaySamples, Bool[Tensor, "n count"]]:
    """Samples of n rays by what a grid says of their parts, and which of the samples may have density.

    A part's weight is the mean of the larger of its own and each neighbour's, as Mip-NeRF blurs them (Barron et al.
    2021, section 3.1): a surface may lie at any place in its cell.

    Args:
        sampler: in whose spacing the parts are of equal length; in training the samples, but no parts, are jittered.
        count: samples of each ray.
        spread: of the configuration.
    """
    parts = SpacedSampler(sampler.spacing_fn, sampler.spacing_fn_inv, train_stratified=False)(rays, NUM_PARTS)
    middles = (parts.frustums.starts + parts.frustums.ends) / 2
    density = grid.density(torch.addcmul(rays.origins[:, None], middles, rays.directions[:, None]))
    is_occupied = density > 0
    occupied_before = F.pad(is_occupied.cumsum(dim=1, dtype=torch.int32), (1, 0))
    larger = F.pad(parts.get_weights(density[..., None])[..., 0], (1, 1))
    larger = torch.maximum(larger[:, 1:], larger[:, :-1])
    even = is_occupied * (spread / occupied_before[:, -1:].clamp(min=1))
    weights = (larger[:, 1:] + larger[:, :-1]) / 2 + even
    samples = _SAMPLERS[sampler.training](rays, parts, weights[..., None], count)
    assert samples.spacing_starts is not None and samples.spacing_ends is not None
    first = (samples.spacing_starts[..., 0] * NUM_PARTS).floor().long().clamp(0, NUM_PARTS)
    end = (samples.spacing_ends[..., 0] * NUM_PARTS).ceil().long().clamp(0, NUM_PARTS)
    return samples, occupied_before.gather(1, end) > occupied_before.gather(1, first)


def evaluate_front_to_back(
    live: Bool[Tensor, "n s"],
    deltas: Float[Tensor, "n s"],
    evaluate: Callable[[Intervals], tuple[Tensor, ...]],
    min_transmittance: float,
) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s 3"]]:
    """Densities and colours along rays; what is not live, or can hardly be seen, is not evaluated and has neither.

    Args:
        live: which intervals may have density.
        deltas: their lengths.
        evaluate: of some intervals: densities (m,) and colours (m, 3).
        min_transmittance: share of its light below which a ray is not followed further.
    """
    density = deltas.new_zeros(deltas.shape)
    rgb = deltas.new_zeros(*deltas.shape, 3)
    depth = deltas.new_zeros(len(deltas))  # optical, so far
    opaque = -math.log(max(min_transmittance, 1e-38))
    rays, intervals = live.nonzero(as_tuple=True)
    turn = (live.cumsum(dim=1) - 1)[rays, intervals].div_(SLAB, rounding_mode="floor")
    while len(rays):
        is_next = turn == turn.min()
        row, column = rays[is_next], intervals[is_next]
        values, colors = evaluate((row, column))
        density[row, column] = values.float()
        rgb[row, column] = colors.float()
        depth.index_add_(0, row, values.detach().float() * deltas[row, column])
        rest = ~is_next & (depth < opaque)[rays]
        rays, intervals, turn = rays[rest], intervals[rest], turn[rest]
    return density, rgb
