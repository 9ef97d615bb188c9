"""Where a scene is: a grid of densities over contracted space, baked from a field; rendering samples rays by it.

    z = C(x / radius) in [-2, 2]³,    cell (i, j, k) = ⌊R (z + 2) / 4⌋,    byte number (i R + j) R + k

A byte c is a density of LEAST GROWTH^(c - 1) per radius; 0 is an empty cell, where a ray that crosses it, or if so
wished one of its neighbours, loses no more than a threshold of its light. The idea is that of Müller et al. 2022,
"Instant neural graphics primitives"; their grids are kept up in training and are of bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eugen3d.fields.contraction import contract, to_unit_cube, uncontract

LEAST, MOST = 1e-3, 1e6
"""The densities per radius of the bytes 1 and 255."""
GROWTH = (MOST / LEAST) ** (1 / 254)
REACH = 0.5
"""How far around a cell the points may lie at which density is looked up for it, in its sides: what is missed in a cell
by chance is found from its neighbours."""
SEEN = 0.01
"""How many rays' light has to have come to a cell for it to be known from that."""
TRACE, NEAR = 1e-5, 2
"""A share of a ray's light that is something, and how many cells away is near."""
CHUNK_CELLS = 1 << 15


class Cells(NamedTuple):
    """What a ray meets on its way through each cell."""

    alpha: Float[Tensor, "r r r"]
    """The share of its light that it loses at most."""
    density: Float[Tensor, "r r r"]
    """That which takes the mean share, per scene unit."""


@dataclass(frozen=True)
class OccupancyConfig:
    """A grid of what is occupied, and how rendering samples rays by it.

    Frozen, with plain defaults: it is an attribute of the models' classes then, which a configuration finds that was
    saved before there were grids.
    """

    resolution: int = 0
    """Cells along a side of the cube [-2, 2]³ around contracted space; 0: there is no grid, nothing is skipped."""
    num_samples: int = 0
    """Samples of a ray that rendering places by the grid; 0: as many as the field that renders has without."""
    skipping: bool = True
    """Whether rendering asks the grid, if there is one, and skips what it says is empty."""
    spread: float = 0.2
    """Share of a ray's light that is added to the weights that place its samples, evenly over its occupied parts."""
    min_transmittance: float = 2e-3
    """Rays are not followed further where less of their light is left; by default half a step of 8 bits."""
    training: bool = False
    """Whether training samples rays by the grid, too, which itself stays as it is."""

    def __post_init__(self) -> None:
        for name, value in (("resolution", self.resolution), ("num_samples", self.num_samples)):
            if value < 0:
                raise ValueError(f"occupancy.{name} is {value}, expected 0 or more")
        if not 0 <= self.spread < math.inf:
            raise ValueError(f"occupancy.spread is {self.spread}, expected 0 or more")
        if not 0 <= self.min_transmittance < 1:
            raise ValueError(f"occupancy.min_transmittance is {self.min_transmittance}, expected 0 to under 1")

    def is_asked(self, in_training: bool) -> bool:
        """Whether the grid, if there is one, says where rays are sampled."""
        return self.skipping and (self.training or not in_training)

    def make_grid(self, radius: float) -> "OccupancyGrid | None":
        """The grid, all occupied as yet, or None where there is none."""
        return OccupancyGrid(self.resolution, radius) if self.resolution else None


NO_OCCUPANCY = OccupancyConfig()


class OccupancyGrid(nn.Module):
    """One byte for every cell of contracted space; at first all are occupied, and hardly dense.

    Args:
        resolution: R.
        radius: of the ball around the origin that is not contracted, in scene units.

    Attributes:
        codes: (R³,) uint8.
    """

    codes: Tensor
    densities: Tensor

    def __init__(self, resolution: int, radius: float = 1.0) -> None:
        super().__init__()
        self.resolution, self.radius = resolution, radius
        self.register_buffer("codes", torch.ones(resolution**3, dtype=torch.uint8))
        densities = LEAST / radius * GROWTH ** (torch.arange(256, dtype=torch.float64) - 1)
        densities[0] = 0
        self.register_buffer("densities", densities.float(), persistent=False)

    def density(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
        """That of the cells that points, in scene units, lie in, per scene unit; 0 where they are empty alone."""
        return self.densities[self.codes[self.numbers(points)].int()]

    def numbers(self, points: Float[Tensor, "*batch 3"]) -> Int[Tensor, "*batch"]:
        """Those of the cells that points, in scene units, lie in."""
        z = contract(points / self.radius)
        i, j, k = to_unit_cube(z, z[..., 0])[0].mul_(self.resolution).int().clamp_(max=self.resolution - 1).unbind(-1)
        return (i * self.resolution + j) * self.resolution + k

    def sides(self, points: Float[Tensor, "*batch 3"], longest: float = math.inf) -> Float[Tensor, "*batch"]:
        """How long cells are radially, where contraction makes them longest, at points; all in scene units."""
        squared = (points / self.radius).square().sum(dim=-1)
        return (4 / self.resolution * self.radius * squared.clamp(min=1.0)).clamp(max=longest)

    def cells(self) -> Bool[Tensor, "r r r"]:
        """Which cells are occupied."""
        return (self.codes > 0).view(3 * (self.resolution,))

    @torch.no_grad()
    def look_up_cells(
        self,
        density: Callable[[Tensor, Tensor], Tensor],
        longest: float,
        within: float = math.inf,
        num_draws: int = 1,
        generator: torch.Generator | None = None,
        advance: Callable[[float], object] = lambda share: None,
    ) -> Cells:
        """What a ray meets on its way through each cell.

        The way is taken for as long as it is radially, where contraction makes cells longest. 1 - exp(-density * way)
        is looked up at a few points of every cell, so that this is approximate.

        Args:
            density: of points (n, 3) in scene units, and the cells' sides there (n,) → (n,) per scene unit.
            longest: the way that a ray goes in all.
            within: distance from the origin, in scene units, beyond which no ray comes; cells there are left at 0.
            num_draws: points of every cell: its middle, or several at random; only the first of them in cells that are
                far from all others where that one meets something.
            generator: of the points.
            advance: called with the share of the work that was done since the last call.
        """
        sums = CellSums(self.resolution, self.codes.device)

        def look_up(chosen: Tensor, at: Callable[[int], Tensor], share: float) -> None:
            for part in chosen.split(CHUNK_CELLS):
                corner = [part // self.resolution**2, part // self.resolution % self.resolution, part % self.resolution]
                x = uncontract((torch.stack(corner, dim=-1) + at(len(part))) * (4 / self.resolution) - 2)
                x *= self.radius
                side = self.sides(x, longest)
                sums.add(part, side, density(x, side), torch.ones_like(side))
                advance(share * len(part) / len(chosen))

        def random(count: int) -> Tensor:
            points = torch.empty(count, 3, device=self.codes.device)
            return points.uniform_(-REACH, 1 + REACH, generator=generator)

        chosen = self._reached(within)
        if num_draws == 1:
            look_up(chosen, lambda count: torch.full((count, 3), 0.5, device=self.codes.device), 1.0)
        else:
            look_up(chosen, random, 0.5)
            near = chosen[self._dilated(sums.alpha > TRACE, NEAR)[chosen]]
            for _ in range(num_draws - 1):
                look_up(near, random, 0.5 / (num_draws - 1))
        return sums.cells()

    def occupy(self, cells: Cells, threshold: float, dilation: int = 1) -> float:
        """Occupy the cells where a ray loses more than a threshold of its light, and those around them.

        Args:
            dilation: how many cells around, along every axis.

        Returns:
            The share of the cells that rays can reach, those of the contracted ball, that are occupied.
        """
        occupied = self._dilated(cells.alpha.view(-1) > threshold, dilation)
        ratios = (cells.density.view(-1) * (self.radius / LEAST)).clamp(min=1.0)
        codes = (1 + ratios.log() / math.log(GROWTH)).round().clamp(max=255)
        self.codes.copy_(torch.where(occupied, codes, 0).to(torch.uint8))
        return float(occupied[self._reached(math.inf)].float().mean())

    def _dilated(self, cells: Tensor, dilation: int) -> Tensor:
        """Which cells are, or have beside them, one of some, (R³,)."""
        grid = cells.view(1, 1, *3 * (self.resolution,)).float()
        return F.max_pool3d(grid, kernel_size=2 * dilation + 1, stride=1, padding=dilation).view(-1) > 0

    def _reached(self, within: float) -> Tensor:
        """The numbers of the cells that hold points of the contracted ball of a radius in scene units."""
        r = max(within / self.radius, 1e-12)
        norm = r if r <= 1 else 2 - 1 / r
        middles = (torch.arange(self.resolution, device=self.codes.device) + 0.5) * (4 / self.resolution) - 2
        squared = middles.square()
        distance = (squared[:, None, None] + squared[:, None] + squared).sqrt()
        return (distance <= norm + math.sqrt(3) * 2 / self.resolution).view(-1).nonzero()[:, 0]


class CellSums:
    """Sums over what rays meet in each cell of a grid, weighed by the light that comes there.

    Attributes:
        alpha: (R³,), the largest share of its light that one of them loses.
    """

    def __init__(self, resolution: int, device: torch.device) -> None:
        self._shape = 3 * (resolution,)
        self.alpha, self._lost, self._light, self._ways = torch.zeros(4, resolution**3, device=device)

    def add(
        self,
        cells: Int[Tensor, " n"],
        side: Float[Tensor, " n"],
        density: Float[Tensor, " n"],
        light: Float[Tensor, " n"],
    ) -> None:
        """What rays meet on their way through cells.

        Args:
            cells: their numbers; one may be there more than once.
            side: how long they are, in scene units.
            density: per scene unit.
            light: the share of a ray's light that comes there.
        """
        lost = light * (1 - torch.exp(-density * side))
        self.alpha.scatter_reduce_(0, cells, lost, "amax")
        self._lost.index_add_(0, cells, lost)
        self._light.index_add_(0, cells, light)
        self._ways.index_add_(0, cells, light * side)

    def cells(self, unseen: Cells | None = None) -> Cells:
        """What rays meet; of cells that no light came to, what is given, by default nothing."""
        seen = self._light > SEEN
        mean = self._lost / torch.where(seen, self._light, 1.0)
        density = -torch.log1p(-mean.clamp(max=1 - 1e-6)) * self._light / self._ways.clamp(min=1e-12)
        own = Cells(self.alpha.view(self._shape), density.view(self._shape))
        if unseen is None:
            return own
        return Cells(
            *(torch.where(seen.view(self._shape), mine, given) for mine, given in zip(own, unseen, strict=True))
        )
