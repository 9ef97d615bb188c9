"""A multi-resolution hash grid (Müller et al. 2022, "Instant neural graphics primitives"), in PyTorch and natively.

Its layout is tiny-cuda-nn's, so that one's parameters are the other's. Level l of base resolution b and growth g has

    scale s = b gˡ - 1,   resolution r = ⌈s⌉ + 1,   at x in [0, 1]³ the lattice point ⌊p⌋, p = s x + ½, weights p - ⌊p⌋
    T_l = min(r³ rounded up to a multiple of 8, 2^log2_hashmap_size) entries
    entry of a lattice point (i, j, k): i + j r + k r² where r³ ≤ T_l, else i ⊕ 2654435761 j ⊕ 805459861 k; modulo T_l

and a level's value at x is the trilinear mean of eight entries. Here it is taken of Gaussians, each level weighted
by how much of them its cells resolve (Barron et al. 2023, "Zip-NeRF", section 2): the mean over several Gaussians of

    ω = erf(1 / √(8 σ² s²)),

the share of a Gaussian of deviation σ that is within half a cell of its middle along an axis, times the value there.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eugen3d.runtime.native_grid import MAX_FEATURES, GridLevel, grid_means, has_native_grid
from eugen3d.runtime.tcnn_grid import TcnnGrid

PRIMES = (1, 2654435761, 805459861)
GridBackend = Literal["auto", "torch", "native", "tcnn"]

INIT = 1e-4
"""Entries are drawn from [-INIT, INIT]."""


@dataclass(frozen=True)
class HashGridConfig:
    """Shape of a hash grid."""

    num_levels: int = 10
    """Levels."""
    base_resolution: int = 16
    """Lattice points of the first level along a side of the cube."""
    max_resolution: int = 8192
    """Those of the last level."""
    features_per_level: int = 4
    """Length of an entry."""
    log2_hashmap_size: int = 21
    """The most entries of a level, as a power of 2."""

    def __post_init__(self) -> None:
        if min(self.num_levels, self.features_per_level) < 1 or not 1 <= self.log2_hashmap_size <= 28:
            raise ValueError("num_levels and features_per_level are at least 1, log2_hashmap_size is 1 to 28")
        if not 2 <= self.base_resolution <= self.max_resolution:
            raise ValueError(
                f"resolutions are {self.base_resolution} to {self.max_resolution}, expected 2 or more, ascending"
            )

    @property
    def levels(self) -> tuple[GridLevel, ...]:
        """Every level's layout."""
        layout = zip(self.scales, self.resolutions, self.sizes, strict=True)
        return tuple(GridLevel(scale, r, size, r**3 <= size) for scale, r, size in layout)

    @property
    def growth(self) -> float:
        """What every level's resolution is multiplied by."""
        steps = max(self.num_levels - 1, 1)
        return (self.max_resolution / self.base_resolution) ** (1 / steps)

    @property
    def scales(self) -> tuple[float, ...]:
        """s of every level: cells in the unit cube, along a side."""
        log2_growth = math.log2(self.growth)
        return tuple(2.0 ** (level * log2_growth) * self.base_resolution - 1 for level in range(self.num_levels))

    @property
    def resolutions(self) -> tuple[int, ...]:
        """r of every level."""
        return tuple(math.ceil(scale - 1e-6) + 1 for scale in self.scales)

    @property
    def sizes(self) -> tuple[int, ...]:
        """T_l of every level."""
        return tuple(min(-(-(r**3) // 8) * 8, 1 << self.log2_hashmap_size) for r in self.resolutions)


class HashGrid(nn.Module):
    """Entries of all levels, and their weighted means.

    Attributes:
        table: (entries of all levels one after the other, features_per_level); flattened, tiny-cuda-nn's parameters.
        backend: what takes the means, all alike up to rounding: torch; native, a small library on a CPU, without
            gradients in positions; tcnn, tiny-cuda-nn on a GPU. auto is native where that can be, else torch.
    """

    scales: Tensor

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.num_levels * config.features_per_level
        self.table = nn.Parameter(torch.empty(sum(config.sizes), config.features_per_level).uniform_(-INIT, INIT))
        self.register_buffer("scales", torch.tensor(config.scales), persistent=False)
        self.backend: GridBackend = "auto"
        self._tcnn: TcnnGrid | None = None
        self._kept: tuple[tuple[int, int, torch.device], Tensor] | None = None

    def forward(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n out_dim"]:
        """Values at points in [0, 1]³, level after level."""
        return self._means(x[:, None], None)[0]

    def of_gaussians(
        self, means: Float[Tensor, "n points 3"], stds: Float[Tensor, "n points"]
    ) -> tuple[Float[Tensor, "n out_dim"], Float[Tensor, "n levels"]]:
        """The weighted means over each row's Gaussians in [0, 1]³, and the mean weights ω."""
        return self._means(means, stds)

    def mean_squares(self) -> Float[Tensor, " levels"]:
        """The mean square of every level's entries; without gradients they are kept until the entries change."""
        if torch.is_grad_enabled():
            return self._mean_squares()
        state = id(self.table), self.table._version, self.table.device
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._mean_squares()
        return self._kept[1]

    def _mean_squares(self) -> Tensor:
        return torch.stack([level.square().mean() for level in self.table.split(list(self.config.sizes))])

    def entries(self, x: Float[Tensor, "*batch 3"], level: int) -> tuple[Tensor, Tensor]:
        """The entries of a level around points in [0, 1]³, int32 (*batch, 8), and their trilinear weights (*batch, 8).

        Corner c is one further along axis a where bit a of c is set.
        """
        size, resolution = self.config.sizes[level], self.config.resolutions[level]
        position = x * self.config.scales[level] + 0.5
        lowest = position.floor()
        fraction, lowest = position - lowest, lowest.to(torch.int32)
        is_dense = resolution**3 <= size
        strides = (1, resolution, resolution**2) if is_dense else tuple(_as_int32(prime) for prime in PRIMES)
        ways = []
        for axis, stride in enumerate(strides):
            low = lowest[..., axis] * stride
            ways.append(torch.stack([low, low + stride], dim=-1))
        i, j, k = ways[0][..., None, None, :], ways[1][..., None, :, None], ways[2][..., :, None, None]
        index = (i + j + k) if is_dense else (i ^ j ^ k)
        index = index.remainder(size) if is_dense or size & (size - 1) else index & (size - 1)
        shares = torch.stack([1 - fraction, fraction], dim=-1)
        a, b, c = (shares[..., axis, :] for axis in range(3))
        weights = a[..., None, None, :] * b[..., None, :, None] * c[..., :, None, None]
        return index.flatten(-3), weights.flatten(-3)

    def _means(self, x: Tensor, stds: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._is_native(x, stds):
            return grid_means(self.config.levels, self.table, x, stds)
        omega = x.new_ones(*x.shape[:2], self.config.num_levels)
        if stds is not None:
            omega = torch.erf(1 / (math.sqrt(8) * stds[..., None] * self.scales).clamp(min=1e-20))
        take = self._by_tcnn if self.backend == "tcnn" else self._by_torch
        return take(x, omega / x.shape[1]), omega.mean(dim=1)

    def _is_native(self, x: Tensor, stds: Tensor | None) -> bool:
        """Whether the library takes the means; asked for by name it has to."""
        wants = torch.is_grad_enabled() and (x.requires_grad or (stds is not None and stds.requires_grad))
        fits = x.device.type == "cpu" and x.dtype == self.table.dtype == torch.float32 and not wants
        if self.backend == "auto" and fits and self.config.features_per_level <= MAX_FEATURES:
            return has_native_grid()
        return self.backend == "native"

    def _by_tcnn(self, x: Tensor, weights: Tensor) -> Tensor:
        """The levels' values at points (n, points, 3), summed with weights (n, points, levels)."""
        config = self.config
        if self._tcnn is None:
            shape = config.num_levels, config.features_per_level, config.log2_hashmap_size, config.base_resolution
            self._tcnn = TcnnGrid(*shape, config.growth, self.table.numel())
        values = self._tcnn(self.table, x.flatten(0, 1)).view(*x.shape[:2], config.num_levels, -1)
        return (weights[..., None] * values).sum(dim=1).flatten(1)

    def _by_torch(self, x: Tensor, weights: Tensor) -> Tensor:
        """The same."""
        start, values = 0, []
        for level, size in enumerate(self.config.sizes):
            index, shares = self.entries(x, level)
            shares = shares * weights[..., level, None]
            rows = self.table[start : start + size]
            values.append(F.embedding_bag(index.flatten(1), rows, per_sample_weights=shares.flatten(1), mode="sum"))
            start += size
        return torch.cat(values, dim=-1)


def _as_int32(value: int) -> int:
    """The number of 32 bits with a sign that has the bits of one without."""
    return value - (1 << 32) if value >= 1 << 31 else value
