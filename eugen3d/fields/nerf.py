"""The NeRF field: encoded coordinates through a trunk with one skip, then density and view-dependent colour.

    e(p) = [p, sin(2⁰p), cos(2⁰p), …, sin(2^{L−1}p), cos(2^{L−1}p)]           (Mildenhall et al. 2020, eq. 4)
    h = trunk(e(position)),   density = softplus(d(h)),   colour = sigmoid(c(view([feature(h), e(direction)])))

Every hidden layer of the trunk is of the kind that its configuration chooses. In training a readout is merged with what
reads it at every call, across the skip, too (see `eugen3d.layers.merged`).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eugen3d.layers import Deferred, KindConfig, LayerConfig, LayerStack, LinearConfig, Link, fold_links, make_layer


@dataclass(frozen=True)
class NerfFieldConfig:
    """Shape of a NeRF field."""

    num_layers: int = 8
    """Hidden layers of the trunk."""
    layer_width: int = 256
    """Width of the trunk."""
    view_width: int = 128
    """Width of the view-dependent layer."""
    skip: int = 4
    """The layer before which the encoded position is concatenated again; 0 for no skip."""
    num_position_frequencies: int = 10
    """L of the position's encoding."""
    num_direction_frequencies: int = 4
    """L of the direction's encoding."""
    layer: LayerConfig = field(default_factory=LayerConfig)
    """Kind of the replaced layers."""
    replaced_layers: tuple[int, ...] = (1, 2, 3)
    """Indices of the trunk's layers that are of that kind; the others are dense."""
    merged: bool = False
    """Whether the field is kept in its folded form: thinner, cheaper to train, no longer over-parametrised."""

    def __post_init__(self) -> None:
        out_of_range = [index for index in self.replaced_layers if not 0 <= index < self.num_layers]
        if out_of_range:
            raise ValueError(f"replaced_layers has {out_of_range}, expected indices of 0 to {self.num_layers - 1}")
        if not 0 <= self.skip < self.num_layers:
            raise ValueError(f"skip is {self.skip}, expected 0 to {self.num_layers - 1}")

    def layer_at(self, index: int) -> KindConfig:
        """The configuration of trunk layer `index`."""
        return self.layer.chosen if index in self.replaced_layers else LinearConfig()


class FrequencyEncoding(nn.Module):
    """Fourier features of coordinates: (..., 3) → (..., 3 + 6·L), the coordinates themselves first."""

    frequencies: Tensor

    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        self.out_dim = 3 + 6 * num_frequencies
        self.register_buffer("frequencies", 2.0 ** torch.arange(num_frequencies), persistent=False)

    def forward(self, x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch out_dim"]:
        angles = (x[..., None, :] * self.frequencies[:, None]).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


class NerfField(nn.Module):
    """Mildenhall et al.'s field with hidden layers of a chosen kind.

    Shape: positions (n, 3) in scene units and unit directions (n, 3) → density (n,) per scene unit, rgb (n, 3).
    """

    def __init__(self, config: NerfFieldConfig) -> None:
        super().__init__()
        self.config = config
        self.encode_position = FrequencyEncoding(config.num_position_frequencies)
        self.encode_direction = FrequencyEncoding(config.num_direction_frequencies)
        encoded, width = self.encode_position.out_dim, config.layer_width
        skips = {config.skip} - {0}
        in_dims = [encoded, *(width + encoded * (index in skips) for index in range(1, config.num_layers))]
        layers = (make_layer(config.layer_at(index), in_dim, width) for index, in_dim in enumerate(in_dims))
        self.trunk = LayerStack(layers, skips)
        self.density_head = nn.Sequential(nn.Linear(width, 1))
        self.feature = nn.Sequential(nn.Linear(width, width))
        self.view = make_layer(LinearConfig(), width + self.encode_direction.out_dim, config.view_width)
        self.rgb_head = nn.Sequential(nn.Linear(config.view_width, 3))
        if config.merged:
            self.fold_()

    def forward(
        self, positions: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        position, direction = self.encode_position(positions), self.encode_direction(directions)
        if torch.is_grad_enabled():
            hidden = Deferred.of(position).through(self.trunk)
            density = hidden.through(self.density_head).form()
            seen = Deferred.cat([hidden.through(self.feature), Deferred.of(direction)])
            rgb = seen.through(self.view).through(self.rgb_head).form()
        else:  # folded where it is evaluated often
            plain = self.trunk(position)
            density = self.density_head(plain)
            rgb = self.rgb_head(self.view(torch.cat([self.feature(plain), direction.to(plain.dtype)], dim=-1)))
        return F.softplus(density.squeeze(-1)), rgb.sigmoid()

    def links(self) -> list[Link]:
        """Every chain of the field with the chains that take its output and the columns where they take it."""
        last = self.trunk[-1]
        assert isinstance(last, nn.Sequential)
        return [
            *self.trunk.links(),
            (last, [(self.density_head, slice(None)), (self.feature, slice(None))]),
            (self.feature, [(self.view, slice(0, -self.encode_direction.out_dim))]),
            (self.view, [(self.rgb_head, slice(None))]),
        ]

    def fold_(self) -> None:
        """Fold in place: every readout is merged into the layers that take it (see `eugen3d.layers.fold`)."""
        trunk = [chain for chain in self.trunk if isinstance(chain, nn.Sequential)]
        fold_links([*trunk, self.density_head, self.feature, self.view, self.rgb_head], self.links)
