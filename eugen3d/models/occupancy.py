"""Where a scene is: a grid of bits over contracted space, baked from a field's density; rendering skips the rest.

    z = C(x / radius) in [-2, 2]³,    cell (i, j, k) = ⌊R (z + 2) / 4⌋,    bit number (i R + j) R + k

A cell is occupied where a ray that crosses it, or if so wished one of its neighbours, loses more than a threshold of
its light. The idea is that of Müller et al. 2022, "Instant neural graphics primitives"; their grids are kept up in
training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from eugen3d.fields.contraction import contract, to_unit_cube, uncontract

NUM_DRAWS = 8
"""Points at which density is looked up for a cell."""
REACH = 0.5
"""How far around a cell they lie, in its sides: what is missed in a cell by chance is found from its neighbours."""
CHUNK_CELLS = 1 << 15


@dataclass(frozen=True)
class OccupancyConfig:
    """A grid of what is occupied, and what rendering skips by it.

    Frozen, with plain defaults: it is an attribute of the models' classes then, which a configuration finds that was
    saved before there were grids.
    """

    resolution: int = 0
    """Cells along a side of the cube [-2, 2]³ around contracted space, an even number; 0: none, nothing is skipped."""
    skipping: bool = True
    """Whether rendering skips what the grid, if there is one, says is empty."""
    min_transmittance: float = 2e-3
    """Rays are not followed further where less of their light is left; by default half a step of 8 bits."""

    def __post_init__(self) -> None:
        if self.resolution < 0 or self.resolution % 2:
            raise ValueError(f"occupancy.resolution is {self.resolution}, expected 0 or an even number")
        if not 0 <= self.min_transmittance < 1:
            raise ValueError(f"occupancy.min_transmittance is {self.min_transmittance}, expected 0 to under 1")

    def make_grid(self, radius: float) -> "OccupancyGrid | None":
        """The grid, all occupied as yet, or None where there is none."""
        return OccupancyGrid(self.resolution, radius) if self.resolution else None


NO_OCCUPANCY = OccupancyConfig()


class OccupancyGrid(nn.Module):
    """One bit for every cell of contracted space; at first all are occupied.

    Args:
        resolution: R, even.
        radius: of the ball around the origin that is not contracted, in scene units.

    Attributes:
        bits: (R³ / 8,) uint8, eight cells a byte, the first in its lowest bit.
    """

    bits: Tensor

    def __init__(self, resolution: int, radius: float = 1.0) -> None:
        super().__init__()
        self.resolution, self.radius = resolution, radius
        self.register_buffer("bits", torch.full((resolution**3 // 8,), 255, dtype=torch.uint8))

    def occupied(self, points: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Whether points, in scene units, lie in occupied cells."""
        z = contract(points / self.radius)
        i, j, k = to_unit_cube(z, z[..., 0])[0].mul_(self.resolution).long().clamp_(max=self.resolution - 1).unbind(-1)
        index = (i * self.resolution + j) * self.resolution + k
        return (self.bits[index >> 3] >> (index & 7)) & 1 != 0

    def cells(self) -> Bool[Tensor, "r r r"]:
        """Which cells are occupied."""
        bits = self.bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        return (bits & 1).bool().view(3 * (self.resolution,))

    def set_cells(self, cells: Bool[Tensor, "r r r"]) -> None:
        """Say which cells are occupied."""
        shifts = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        eights = cells.to(self.bits.device).view(-1, 8).to(torch.uint8)
        self.bits.copy_((eights << shifts).sum(dim=1, dtype=torch.uint8))

    @torch.no_grad()
    def cell_alphas(
        self,
        density: Callable[[Tensor, Tensor], Tensor],
        longest: float,
        within: float = math.inf,
        generator: torch.Generator | None = None,
        advance: Callable[[float], object] = lambda share: None,
    ) -> Float[Tensor, "r r r"]:
        """What share of its light a ray loses at most on its way through each cell.

        The way is taken for as long as it is radially, where contraction makes cells longest. 1 - exp(-density * way)
        is looked up at a few random points of every cell, so that this is approximate.

        Args:
            density: of points (n, 3) in scene units, and the cells' sides there (n,) → (n,) per scene unit.
            longest: the way that a ray goes in all.
            within: distance from the origin, in scene units, beyond which no ray comes; cells there are left at 0.
            generator: of the points.
            advance: called with the share of the work that was done since the last call.
        """
        alphas = torch.zeros(self.resolution**3, device=self.bits.device)
        chosen = self._reached(within)
        for part in chosen.split(CHUNK_CELLS):
            corner = torch.stack([part // self.resolution**2, part // self.resolution % self.resolution], dim=-1)
            corner = torch.cat([corner, (part % self.resolution)[:, None]], dim=-1)
            jitter = torch.rand(NUM_DRAWS, len(part), 3, device=part.device, generator=generator)
            jitter = jitter * (1 + 2 * REACH) - REACH
            x = uncontract((corner + jitter).flatten(0, 1) * (4 / self.resolution) - 2)
            side = 4 / self.resolution * self.radius * x.square().sum(dim=-1).clamp(min=1.0)
            side = side.clamp(max=longest)
            values = 1 - torch.exp(-density(x * self.radius, side) * side)
            alphas[part] = values.view(NUM_DRAWS, -1).amax(dim=0)
            advance(len(part) / len(chosen))
        return alphas.view(3 * (self.resolution,))

    def occupy(self, alphas: Float[Tensor, "r r r"], threshold: float, dilation: int = 1) -> float:
        """Occupy the cells of more than a threshold of what `cell_alphas` found, and those around them.

        Args:
            dilation: how many cells around, along every axis.

        Returns:
            The share of the cells that rays can reach, those of the contracted ball, that are occupied.
        """
        is_dense = (alphas > threshold).float()[None, None]
        cells = F.max_pool3d(is_dense, kernel_size=2 * dilation + 1, stride=1, padding=dilation)[0, 0] > 0
        self.set_cells(cells)
        return float(cells.view(-1)[self._reached(math.inf)].float().mean())

    def _reached(self, within: float) -> Tensor:
        """The numbers of the cells that hold points of the contracted ball of a radius in scene units."""
        r = max(within / self.radius, 1e-12)
        norm = r if r <= 1 else 2 - 1 / r
        middles = (torch.arange(self.resolution, device=self.bits.device) + 0.5) * (4 / self.resolution) - 2
        squared = middles.square()
        distance = (squared[:, None, None] + squared[:, None] + squared).sqrt()
        return (distance <= norm + math.sqrt(3) * 2 / self.resolution).view(-1).nonzero()[:, 0]
