"""Zip-NeRF's fields (Barron et al. 2023): Gaussians of a cone → features of a hash grid → density and colour.

    f = [for every level, the grid's weighted mean and (2ω̄ - 1) √(INIT² + mean of the level's squares)]
    h = layer(f),   density = softplus(d(h) - 1),   b = bottleneck(h)
    v = [b, e(direction), appearance],   colour = c(layer([v, layer(v)]))

The second half of every level's features says how wide the Gaussians are for its cells (section 2). A proposal field
has density alone. The dense layers are a module of their own, `ZipNerfHead`, of which layers can be of any kind.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eugen3d.fields.contraction import contract_gaussians, to_unit_cube
from eugen3d.fields.hash_grid import INIT, HashGrid, HashGridConfig
from eugen3d.fields.nerf import FrequencyEncoding
from eugen3d.layers import (
    Deferred,
    EUGenConfig,
    KindConfig,
    LayerConfig,
    LayerStack,
    LinearConfig,
    Link,
    first_matrix,
    fold_links,
    make_layer,
)

ZipLayer = Literal["density", "view-0", "view-1"]
"""The hidden layers: that of the density, and the two view-dependent ones."""

DENSITY_BIAS = -1.0
RGB_PADDING = 1e-3
"""How far colours may lie beyond [0, 1], so that no sigmoid has to saturate."""


@dataclass(frozen=True)
class ZipNerfFieldConfig:
    """Shape of the field that renders; the defaults are Zip-NeRF's with one EUGen layer."""

    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """The hash grid."""
    density_width: int = 64
    """Width of the layer between features and density."""
    bottleneck_dim: int = 256
    """What the view-dependent layers see of the position."""
    view_width: int = 256
    """Width of the two view-dependent layers."""
    num_direction_frequencies: int = 4
    """Octaves of the direction's encoding."""
    appearance_dim: int = 0
    """Length of the appearance that the view-dependent layers see; 0 for none."""
    layer: LayerConfig = field(default_factory=lambda: LayerConfig("eugen", EUGenConfig(num_features=64)))
    """Kind of the replaced layers."""
    replaced_layers: tuple[ZipLayer, ...] = ("view-0",)
    """Which hidden layers are of that kind; the others are dense."""
    merged: bool = False
    """Whether the layers are kept folded: thinner, cheaper to train, no longer over-parametrised."""

    def layer_at(self, name: ZipLayer) -> KindConfig:
        """The configuration of a hidden layer."""
        return self.layer.chosen if name in self.replaced_layers else LinearConfig()


class GridFeatures(nn.Module):
    """A hash grid over contracted space, and what it says of Gaussians in scene units.

    Args:
        config: of the grid.
        radius: of the ball around the origin that is not contracted, in scene units.
    """

    def __init__(self, config: HashGridConfig, radius: float = 1.0) -> None:
        super().__init__()
        self.grid = HashGrid(config)
        self.radius = radius
        self.out_dim = self.grid.out_dim + config.num_levels

    def forward(self, means: Float[Tensor, "n points 3"], stds: Float[Tensor, "n points"]) -> Float[Tensor, "n dim"]:
        means, stds = contract_gaussians(means / self.radius, stds / self.radius)
        values, omega = self.grid.of_gaussians(*to_unit_cube(means, stds))
        with torch.no_grad():
            size = (INIT**2 + self.grid.mean_squares()).sqrt()
        return torch.cat([values, (2 * omega - 1) * size], dim=-1)


class ProposalField(nn.Module):
    """Density alone, by which rays are sampled.

    Shape: Gaussians (n, points, 3) and (n, points) in scene units → density (n,) per scene unit.
    """

    def __init__(self, grid: HashGridConfig, radius: float = 1.0, width: int = 64) -> None:
        super().__init__()
        self.features = GridFeatures(grid, radius)
        self.head = nn.Sequential(nn.Linear(self.features.out_dim, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, means: Float[Tensor, "n points 3"], stds: Float[Tensor, "n points"]) -> Float[Tensor, " n"]:
        return F.softplus(self.head(self.features(means, stds)).squeeze(-1) + DENSITY_BIAS)


class ZipNerfHead(nn.Module):
    """The dense layers: features of the grid → density and colour.

    Shape: features (n, d), unit directions (n, 3) and, where there is one, appearance (n, appearance_dim) → density
    (n,) per scene unit, rgb (n, 3).
    """

    def __init__(self, config: ZipNerfFieldConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.encode_direction = FrequencyEncoding(config.num_direction_frequencies)
        seen = config.bottleneck_dim + self.encode_direction.out_dim + config.appearance_dim
        self.density = make_layer(config.layer_at("density"), in_dim, config.density_width)
        self.density_head = nn.Sequential(nn.Linear(config.density_width, 1))
        self.bottleneck = nn.Sequential(nn.Linear(config.density_width, config.bottleneck_dim))
        first = make_layer(config.layer_at("view-0"), seen, config.view_width)
        second = make_layer(config.layer_at("view-1"), seen + config.view_width, config.view_width)
        self.view = LayerStack([first, second], {1})
        self.rgb_head = nn.Sequential(nn.Linear(config.view_width, 3))
        if config.merged:
            self.fold_()

    def forward(
        self,
        features: Float[Tensor, "n d"],
        directions: Float[Tensor, "n 3"],
        appearance: Float[Tensor, "n a"] | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        rest = [self.encode_direction(directions), *([] if appearance is None else [appearance])]
        if torch.is_grad_enabled():
            hidden = Deferred.of(features).through(self.density)
            density = hidden.through(self.density_head).form()
            seen = Deferred.cat([hidden.through(self.bottleneck), *map(Deferred.of, rest)])
            rgb = self.view.through(seen).through(self.rgb_head).form()
        else:  # folded where it is evaluated often
            plain = self.density(features)
            density = self.density_head(plain)
            seen = torch.cat([self.bottleneck(plain), *(part.to(plain.dtype) for part in rest)], dim=-1)
            rgb = self.rgb_head(self.view(seen))
        rgb = rgb.sigmoid() * (1 + 2 * RGB_PADDING) - RGB_PADDING
        return F.softplus(density.squeeze(-1) + DENSITY_BIAS), rgb

    def links(self) -> list[Link]:
        """Every chain with the chains that take its output and the columns where they take it."""
        first, second = self.view[0], self.view[1]
        rest = self.encode_direction.out_dim + self.config.appearance_dim
        seen = first_matrix(first).shape[1]
        assert isinstance(first, nn.Sequential) and isinstance(second, nn.Sequential)
        return [
            (self.density, [(self.density_head, slice(None)), (self.bottleneck, slice(None))]),
            (self.bottleneck, [(first, slice(0, seen - rest)), (second, slice(0, seen - rest))]),
            *self.view.links(),
            (second, [(self.rgb_head, slice(None))]),
        ]

    def fold_(self) -> None:
        """Fold in place: every readout is merged into the layers that take it (see `eugen3d.layers.fold`)."""
        view = [chain for chain in self.view if isinstance(chain, nn.Sequential)]
        fold_links([self.density, self.density_head, self.bottleneck, *view, self.rgb_head], self.links)


class ZipNerfField(nn.Module):
    """The field that renders.

    Shape: Gaussians (n, points, 3) and (n, points) in scene units, unit directions (n, 3) and, where there is one,
    appearance (n, appearance_dim) → density (n,) per scene unit, rgb (n, 3).
    """

    def __init__(self, config: ZipNerfFieldConfig, radius: float = 1.0) -> None:
        super().__init__()
        self.features = GridFeatures(config.grid, radius)
        self.head = ZipNerfHead(config, self.features.out_dim)

    def forward(
        self,
        means: Float[Tensor, "n points 3"],
        stds: Float[Tensor, "n points"],
        directions: Float[Tensor, "n 3"],
        appearance: Float[Tensor, "n a"] | None = None,
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        return self.head(self.features(means, stds), directions, appearance)
