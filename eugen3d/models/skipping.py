"""Rendering that evaluates what can be seen, and nothing else: no empty space, and nothing behind what is opaque."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from nerfstudio.cameras.rays import RayBundle, RaySamples
from torch import Tensor

from eugen3d.models.occupancy import OccupancyGrid

Intervals = tuple[Tensor, Tensor]
"""The numbers of some rays (m,), and of an interval of each (m,)."""

NUM_PARTS = 128
"""Of a ray, that are looked up."""
PROPOSAL_MARGIN = 1
"""Intervals around what is occupied that a field sees which says where another one is evaluated."""
SLAB = 8
"""How many of a ray's live samples are evaluated before it is seen whether it goes on."""


class OccupiedSpans:
    """Which parts of rays lie in occupied cells: looked up once a ray, for the intervals of all its fields.

    A ray is divided into parts of equal length in the spacing of the samples; a part is occupied where its middle is.

    Args:
        before: (n, NUM_PARTS + 1) int32, how many of the parts before each are occupied.
    """

    def __init__(self, before: Tensor) -> None:
        self._before = before

    @classmethod
    def of_rays(cls, grid: OccupancyGrid, rays: RayBundle, samples: RaySamples) -> "OccupiedSpans":
        """Look rays (n,) up; samples are any of theirs, for their spacing."""
        assert samples.spacing_to_euclidean_fn is not None
        middles = (torch.arange(NUM_PARTS, device=rays.origins.device) + 0.5) / NUM_PARTS
        distances = samples.spacing_to_euclidean_fn(middles[None])
        points = torch.addcmul(rays.origins[:, None], distances[..., None], rays.directions[:, None])
        before = grid.occupied(points).cumsum(dim=1, dtype=torch.int32)
        return cls(F.pad(before, (1, 0)))

    def __getitem__(self, rays: Tensor) -> "OccupiedSpans":
        """Those of some of the rays."""
        return OccupiedSpans(self._before[rays])

    def any(self) -> Bool[Tensor, " n"]:
        """Whether rays have an occupied part."""
        return self._before[:, -1] > 0

    def of(self, samples: RaySamples, margin: int = 0) -> Bool[Tensor, "n s"]:
        """Which intervals have a part, or a part of one, that is occupied.

        Args:
            margin: how many intervals before and after those are live, too. Fields that only say where others are
                evaluated see surfaces less sharply than the grid, and their weights lie in front of them, too.
        """
        assert samples.spacing_starts is not None and samples.spacing_ends is not None
        first = (samples.spacing_starts[..., 0] * NUM_PARTS).floor().long().clamp(0, NUM_PARTS)
        end = (samples.spacing_ends[..., 0] * NUM_PARTS).ceil().long().clamp(0, NUM_PARTS)
        live = self._before.gather(1, end) > self._before.gather(1, first)
        if margin:
            live = F.max_pool1d(live.float(), 2 * margin + 1, stride=1, padding=margin) > 0
        return live


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
        evaluate: of some intervals: densities (m,) and, if any, colours (m, 3).
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
        values, *colors = evaluate((row, column))
        density[row, column] = values.float()
        for color in colors:
            rgb[row, column] = color.float()
        depth.index_add_(0, row, values.float() * deltas[row, column])
        rest = ~is_next & (depth < opaque)[rays]
        rays, intervals, turn = rays[rest], intervals[rest], turn[rest]
    return density, rgb
