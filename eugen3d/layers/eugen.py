"""EUGenLinear: a dense layer as a few learned random projections, their products and one output matrix.

    φ(x) = Φ(concat_{i=1..k} ∏_{j≤i} (G_ij x⁺)),    y = W φ(x) + b        (EUGens 2025, eq. 1, inference form)

The weight side g(W) of the equation is a free matrix here, the `readout`: a trained layer never needs the dense
weight again. The layer is kept as its two halves, `features` (x ↦ φ) and `readout` (φ ↦ y, affine), because folding
is nothing but composing one layer's readout with the next one's features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.layers.bernstein import bernstein_coefficients
from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.features import (
    Phi,
    Projection,
    degree_products,
    draw_projection,
    draw_uniform,
    num_projections,
)
from eugen3d.layers.kind import KindConfig, KindLayer, carry_over
from eugen3d.layers.readout import fit_readout


@dataclass(frozen=True)
class EUGenConfig(KindConfig):
    """An EUGen layer (EUGens 2025, eq. 1). The constructor arguments of `EUGenLinear`, less its two widths."""

    num_features: int = 64
    """m: features per degree."""
    order: int = 1
    """k: highest degree of the products of projections."""
    phi: Phi = "relu"
    """Φ: the element-wise map of the features. With "identity", the activation of the layer stays outside."""
    use_norm: bool = True
    """Whether the norm of the input is projected beside the input."""
    projection: Projection = "orthogonal"
    """Distribution that the projections are drawn from."""
    shared: bool = True
    """Whether the degrees share their projections: k matrices, or k(k+1)/2 independent ones."""
    train_projections: bool = True
    """Whether the projections are trained, or stay as they were drawn."""
    bias: bool = True
    """Whether the projections see a constant beside the input, and the output adds a learned bias."""
    projection_rank: int | None = None
    """r: rank of factored projections, which makes the merged matrix between two layers r rows; None for whole ones."""

    @property
    def includes_activation(self) -> bool:
        """Φ takes the activation's place, unless it is the identity."""
        return self.phi != "identity"

    @property
    def inner_width(self) -> int:
        """k·m."""
        return self.order * self.num_features

    def __post_init__(self) -> None:
        if self.num_features < 1:
            raise ValueError(f"num_features is {self.num_features}, expected at least 1")
        if self.order < 1:
            raise ValueError(f"order is {self.order}, expected at least 1")
        if self.projection_rank is not None and self.projection_rank < 1:
            raise ValueError(f"projection_rank is {self.projection_rank}, expected at least 1, or None")
        for name, value, choices in (("phi", self.phi, Phi), ("projection", self.projection, Projection)):
            if value not in get_args(choices):
                raise ValueError(f"{name} {value!r} is unknown, expected one of {', '.join(get_args(choices))}")


class EUGenLinear(KindLayer):
    """An EUGen layer in the place of `nn.Linear(in_features, out_features)` and, through Φ, of its activation.

    The projections start as drawn, scaled by 1/√d so that inputs with entries of unit variance have projections of
    unit variance; the norm column starts at zero (Theorem 3.1) and is learned from there.

    Args:
        in_features: d, length of an input.
        out_features: l, length of an output.
        num_features: m, features per degree.
        order: k ≥ 1, highest degree of the products.
        phi: Φ. With "identity" and order 1 the layer is a low-rank dense layer.
        use_norm: whether ‖x‖₂ is projected beside x.
        projection: distribution that the projections are drawn from.
        shared: whether the degrees share their projections (k of them) or not (k(k+1)/2).
        train_projections: whether the projections require a gradient.
        bias: whether a constant is projected beside x and the output has a bias.
        projection_rank: r, with which every projection is a product of an (m × r) and a common (r × d) matrix; None
            for whole ones.
        generator: source of the random draw; the global one by default.

    Raises:
        ValueError: on a width, an order, a phi or a projection that does not exist.

    Shape: (..., in_features) → (..., out_features), any number of leading axes, empty ones included.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_features: int = 64,
        order: int = 1,
        phi: Phi = "relu",
        use_norm: bool = True,
        projection: Projection = "orthogonal",
        shared: bool = True,
        train_projections: bool = True,
        bias: bool = True,
        projection_rank: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.config = EUGenConfig(
            num_features, order, phi, use_norm, projection, shared, train_projections, bias, projection_rank
        )  # checks the rest
        like = {"device": device, "dtype": dtype}
        self.features = EUGenFeatures(
            in_features, num_features, order, phi, use_norm, shared, bias, projection_rank=projection_rank, **like
        )
        self.readout = nn.Linear(self.features.out_features, out_features, bias=bias, **like)
        self.reset_parameters(generator)
        self.features.requires_grad_(train_projections)

    @property
    def in_features(self) -> int:
        """d, length of an input."""
        return self.features.in_features

    @property
    def out_features(self) -> int:
        """l, length of an output."""
        return self.readout.out_features

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        activation: Phi = "identity",
        config: EUGenConfig | None = None,
        inputs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> "EUGenLinear":
        """Build the layer that stands for activation(linear(x)), without training.

        With Φ = identity, whole projections, no activation and no inputs this is the unbiased start of Theorem 3.1 for
        f(t) = t. In every other case the projections are drawn and the readout is the least-squares fit over `inputs`,
        or over standard normal inputs when there are none. Both are approximate.

        Args:
            linear: the dense layer; device, dtype and requires_grad carry over.
            activation: what follows the dense layer and goes into this one.
            inputs: rows that the dense layer sees, shape (..., in_features).
        """
        config = config or EUGenConfig()
        kwargs = {"device": linear.weight.device, "dtype": linear.weight.dtype, "generator": generator}
        is_unbiased = config.phi == "identity" and activation == "identity" and config.projection_rank is None
        if is_unbiased and inputs is None:
            layer = cls.from_polynomial(linear, (0.0, 1.0) + (0.0,) * (config.order - 1), config, generator)
        else:
            layer = cls.from_config(config, linear.in_features, linear.out_features, **kwargs)
            fit_readout(layer.features, layer.readout, linear, activation, inputs, generator)
        carry_over(linear, layer)
        return layer

    @classmethod
    def from_polynomial(
        cls,
        linear: nn.Linear,
        coefficients: tuple[float, ...],
        config: EUGenConfig,
        generator: torch.Generator | None = None,
    ) -> "EUGenLinear":
        """Build the random layer with E[layer(x)] = f(W x) for f(t) = Σ aᵢ tⁱ (EUGens 2025, Theorem 3.1).

        Φ is the identity and the norm column is zero. The sign of aᵢ and all scales stand on the weight side:
        readout block i is (aᵢ/m) ∏ⱼ Gᵢⱼ w over projections of unit variance. A bias of the dense layer is added to
        the output for f(t) = t, and has to be absent otherwise.

        Args:
            coefficients: a_0 … a_k, k = config.order.
        """
        if config.phi != "identity":
            raise ValueError(f"phi is {config.phi!r}, expected 'identity': Theorem 3.1 holds for no other")
        if config.projection_rank is not None:
            raise ValueError("projection_rank is set, expected None: factored projections are not independent")
        if len(coefficients) != config.order + 1:
            raise ValueError(f"{len(coefficients)} coefficients for order {config.order}, expected {config.order + 1}")
        is_plain = coefficients[1] == 1 and not any(coefficients[:1] + coefficients[2:])
        if linear.bias is not None and not is_plain:
            raise ValueError("the dense layer has a bias, expected none for a polynomial other than f(t) = t")
        kwargs = {"device": linear.weight.device, "dtype": linear.weight.dtype, "generator": generator}
        layer = cls.from_config(config, linear.in_features, linear.out_features, **kwargs)
        projection = layer.features.projection
        with torch.no_grad():
            projection.weight.mul_(math.sqrt(linear.in_features))  # back to unit variance
            u = F.linear(linear.weight.double(), projection.weight.double())
            blocks = degree_products(u, config.num_features, config.order, config.shared)
            scaled = [a / config.num_features * block for a, block in zip(coefficients[1:], blocks, strict=True)]
            layer.readout.weight.copy_(torch.cat(scaled, dim=-1))
            if layer.readout.bias is not None:
                layer.readout.bias.fill_(coefficients[0])
                if linear.bias is not None:
                    layer.readout.bias.add_(linear.bias)
            elif coefficients[0] or linear.bias is not None:
                raise ValueError("config.bias is False, expected True: the layer has a constant to add")
        return layer

    @classmethod
    def from_function(
        cls,
        linear: nn.Linear,
        function: Callable[[Tensor], Tensor],
        interval: tuple[float, float],
        config: EUGenConfig,
        generator: torch.Generator | None = None,
    ) -> "EUGenLinear":
        """Build the random layer whose mean is near f(W x) for a continuous f (EUGens 2025, Theorem 3.4).

        Approximate twice over: the mean of the layer is the Bernstein polynomial of f, of the degree config.order, and
        that holds where every entry of W x lies in the interval; the layer itself has the variance of Theorem 3.2.

        Args:
            linear: the dense layer, without a bias.
            function: f, element-wise on a float64 tensor.
            interval: bounds of the entries of W x.
        """
        return cls.from_polynomial(linear, bernstein_coefficients(function, config.order, interval), config, generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the projections and the readout anew; norm column and biases become zero."""
        features, config = self.features, self.config
        blocks = num_projections(config.order, config.shared)
        width, matrix = features.projection.in_features, features.projection.weight
        drawn = [draw_projection(config.projection, config.num_features, width, generator) for _ in range(blocks)]
        matrix.copy_(torch.cat(drawn) / math.sqrt(width))
        bound = math.sqrt(3.0 / self.readout.in_features)
        self.readout.weight.copy_(draw_uniform(self.readout.weight.shape, bound, generator))
        if features.down is not None:
            down = draw_projection(config.projection, width, self.in_features, generator)
            features.down.weight.copy_(down / math.sqrt(self.in_features))
        for constant in (features.projection.bias, features.norm_weight, self.readout.bias):
            if constant is not None:
                constant.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x))

    def maps(self) -> list[nn.Module]:
        """The maps that the layer is a chain of, for folding."""
        return [self.features, self.readout]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"
