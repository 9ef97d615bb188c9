"""The SIREN field: coordinates through layers of sines to values (Sitzmann et al. 2020).

    h_1 = sin(ω₀ (W_0 x + b_0)),    h_{i+1} = sin(W_i h_i + b_i),    y = W_n h_n + b_n

Every hidden layer is of the kind that its configuration chooses: dense, its sine behind it; EUGen with Φ = sine, whose
features are the sines, or with Φ = identity, behind which a sine stands; low rank; SNNK. Folded, the first kind of
EUGen layers leaves a network of sines of width m, the others leave their factors.

ω₀ has one meaning, the scale of the first layer's frequencies. The paper has it in the hidden layers, too, where it
divides the weights' start and multiplies them again: with Adam, whose steps do not depend on the scale of gradients,
that is the same function trained at ω₀ times the learning rate. Here the weights are what they are and the learning
rate says how fast they move.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eugen3d.layers import (
    EUGenConfig,
    KindConfig,
    LayerConfig,
    LinearConfig,
    SNNKConfig,
    fold,
    forward_merged,
    make_layer,
    start_sines,
)


@dataclass(frozen=True)
class SirenFieldConfig:
    """Shape of a SIREN; the defaults are the paper's network for a grey picture with EUGen layers."""

    in_dim: int = 2
    """Coordinates of a point."""
    out_dim: int = 1
    """Values at a point."""
    num_layers: int = 4
    """Layers of sines, the first one included."""
    layer_width: int = 256
    """Their width."""
    omega_0: float = 30.0
    """ω₀: about the largest frequency that the first layer starts with, radians per unit of a coordinate in [−1, 1]."""
    layer: LayerConfig = LayerConfig(  # noqa: RUF009 (frozen)
        "eugen", EUGenConfig(64, phi="sine", use_norm=False), snnk=SNNKConfig(64, "fourier")
    )
    """Kind of the replaced layers."""
    replaced_layers: tuple[int, ...] | None = None
    """Indices of the layers that are of that kind, the others are dense; None: all but the first."""
    merged: bool = False
    """Whether the field is kept in its folded form: thinner, no longer over-parametrised."""

    def __post_init__(self) -> None:
        for name in ("in_dim", "out_dim", "num_layers", "layer_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not (math.isfinite(self.omega_0) and self.omega_0 > 0):
            raise ValueError(f"omega_0 is {self.omega_0}, expected a positive number")
        out_of_range = [index for index in self.replaced if not 0 <= index < self.num_layers]
        if out_of_range:
            raise ValueError(f"replaced_layers has {out_of_range}, expected indices of 0 to {self.num_layers - 1}")

    @property
    def replaced(self) -> tuple[int, ...]:
        """Indices of the replaced layers."""
        return tuple(range(1, self.num_layers)) if self.replaced_layers is None else self.replaced_layers

    def layer_at(self, index: int) -> KindConfig:
        """The configuration of layer `index`."""
        return self.layer.chosen if index in self.replaced else LinearConfig()


class SirenField(nn.Module):
    """Sitzmann et al.'s SIREN with hidden layers of a chosen kind.

    Args:
        config: its shape.
        generator: source of the start (see `eugen3d.layers.start_sines`); the global one by default.

    Raises:
        ValueError: a layer's configuration makes no sines.

    Attributes:
        layers: the layers of sines, then the last, dense one.

    Shape: coordinates (n, in_dim) in [−1, 1] → values (n, out_dim).
    """

    def __init__(self, config: SirenFieldConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        in_dims = [config.in_dim, *[config.layer_width] * (config.num_layers - 1)]
        layers = [
            make_layer(config.layer_at(index), in_dim, config.layer_width, "sine")
            for index, in_dim in enumerate(in_dims)
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(config.layer_width, config.out_dim))
        start_sines([self.layers], config.omega_0, generator)
        if config.merged:
            fold(self.layers)

    def forward(self, coordinates: Float[Tensor, "n in_dim"]) -> Float[Tensor, "n out_dim"]:
        if torch.is_grad_enabled():
            return forward_merged(self.layers, coordinates)
        return self.layers(coordinates)  # folded where it is evaluated often
