"""SineLinear: the layer of a SIREN, a dense layer with a sine behind it (Sitzmann et al. 2020).

y = sin(ω₀ (W x + b))
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.features import Phi, draw_uniform
from eugen3d.layers.kind import KindConfig, KindLayer, carry_over

SinePosition = Literal["first", "hidden"]


@dataclass(frozen=True)
class SineConfig(KindConfig):
    """A SIREN layer. The constructor arguments of `SineLinear`, less its two widths."""

    omega_0: float = 30.0
    """ω₀: frequency that the pre-activation is multiplied by; Sitzmann et al. (2020) take 30 for images and SDFs."""
    position: SinePosition = "hidden"
    """Where the layer stands, which its start depends on: "first" sees coordinates, "hidden" the sines of others."""
    bias: bool = True
    """Whether the pre-activation adds a learned bias."""

    @property
    def includes_activation(self) -> bool:
        """The sine is inside."""
        return True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.omega_0) and self.omega_0 > 0):
            raise ValueError(f"omega_0 is {self.omega_0}, expected a positive number")
        if self.position not in get_args(SinePosition):
            raise ValueError(
                f"position {self.position!r} is unknown, expected one of {', '.join(get_args(SinePosition))}"
            )


class Sine(nn.Module):
    """The element-wise map sin(ω₀ u) (Sitzmann et al. 2020, eq. 3), as a module; the Φ "sine" at ω₀ = 1."""

    def __init__(self, omega_0: float = 1.0) -> None:
        super().__init__()
        self.omega_0 = omega_0

    def forward(self, u: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * u)

    def extra_repr(self) -> str:
        return f"omega_0={self.omega_0}"


class SineLinear(KindLayer):
    """A dense layer whose output, times ω₀, goes through a sine.

    The weights start in U(±1/d) where the layer is the first and in U(±√(6/d)/ω₀) elsewhere, which keeps the
    distribution of the activations through the depth (Sitzmann et al. 2020, section 3.2); the bias starts in
    U(±1/√d), as their code leaves torch's default.

    Args:
        in_features: d, length of an input.
        out_features: l, length of an output.
        omega_0: ω₀.
        position: where the layer stands, "first" or "hidden".
        bias: whether the pre-activation has a bias.
        generator: source of the random draw, on the CPU; the global one by default.

    Raises:
        ValueError: on a width, an omega_0 or a position that does not exist.

    Shape: (..., in_features) → (..., out_features), any number of leading axes, empty ones included.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        omega_0: float = 30.0,
        position: SinePosition = "hidden",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.config = SineConfig(omega_0, position, bias)  # checks the rest
        self.omega_0 = omega_0
        self.linear = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.sine = Sine(omega_0)
        self.reset_parameters(generator)

    @property
    def in_features(self) -> int:
        """d, length of an input."""
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        """l, length of an output."""
        return self.linear.out_features

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        activation: Phi = "sine",
        config: SineConfig | None = None,
        inputs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> "SineLinear":
        """Build the layer that is sin(linear(x)), which is exact: W/ω₀ and b/ω₀ of the dense layer.

        Args:
            linear: the dense layer; device, dtype, training flag and requires_grad carry over.
            activation: "sine", the only one that this layer can stand for.
            inputs: not needed, there is nothing to fit; nor is the generator.
        """
        config = config or SineConfig()
        if activation != "sine":
            raise ValueError(f"activation is {activation!r}, expected 'sine': a sine layer stands for no other")
        if linear.bias is not None and not config.bias:
            raise ValueError("config.bias is False, expected True: the dense layer has a bias")
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        layer = cls.from_config(config, linear.in_features, linear.out_features, generator=generator, **like)
        with torch.no_grad():
            layer.linear.weight.copy_(linear.weight / config.omega_0)
            if linear.bias is not None:
                layer.linear.bias.copy_(linear.bias / config.omega_0)
            elif layer.linear.bias is not None:
                layer.linear.bias.zero_()
        carry_over(linear, layer)
        return layer

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weight and bias anew."""
        width = self.in_features
        bound = 1 / width if self.config.position == "first" else math.sqrt(6 / width) / self.omega_0
        self.linear.weight.copy_(draw_uniform(self.linear.weight.shape, bound, generator))
        if self.linear.bias is not None:
            self.linear.bias.copy_(draw_uniform(self.linear.bias.shape, 1 / math.sqrt(width), generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.sine(self.linear(x))

    @torch.no_grad()
    def maps(self) -> list[nn.Module]:
        """The maps that the layer is a chain of, for folding: features of order 1 with Φ = sine and ω₀ in G."""
        like = {"device": self.linear.weight.device, "dtype": self.linear.weight.dtype}
        features = EUGenFeatures(self.in_features, self.out_features, phi="sine", bias=self.config.bias, **like)
        features.projection.weight.copy_(self.omega_0 * self.linear.weight)
        if self.linear.bias is not None:
            features.projection.bias.copy_(self.omega_0 * self.linear.bias)
        return [features.train(self.training).requires_grad_(self.linear.weight.requires_grad)]

    def trained_maps(self) -> list[nn.Module]:
        """The maps that the layer is a chain of, for training: ω₀ stays behind the dense layer."""
        return [self.linear, self.sine]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, omega_0={self.omega_0}"
