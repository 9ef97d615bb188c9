"""EUGenLinear: a dense layer as a few learned random projections, their products and one output matrix.

    φ(x) = Φ(concat_{i=1..k} ∏_{j≤i} (G_ij x⁺)),    y = W φ(x) + b        (EUGens 2025, eq. 1, inference form)

The weight side g(W) of the equation is a free matrix here, the `readout`: a trained layer never needs the dense
weight again. The layer is kept as its two halves, `features` (x ↦ φ) and `readout` (φ ↦ y, affine), because folding
is nothing but composing one layer's readout with the next one's features.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.layers.config import EUGenConfig
from eugen3d.layers.features import (
    ACTIVATIONS,
    Phi,
    Projection,
    degree_products,
    draw_projection,
    num_projections,
)


class EUGenFeatures(nn.Module):
    """The map x ↦ φ(x): projections of the input and of its norm, their products per degree, and Φ.

    Args:
        in_features: d, length of the last axis of the input.
        num_features: m, features per degree.
        order: k, highest degree.
        phi: Φ, applied to every product.
        use_norm: whether ‖x‖₂ is projected beside x.
        shared: whether the degrees share their projections.
        bias: whether a constant is projected beside x.
        norm_rank: rows of the norm factor F, or 0 for none. With a factor the norm that is projected is
            ‖F x + f‖₂ instead of ‖x‖₂: after folding, the norm of an input that is itself never formed.

    Shape: (..., d) → (..., k·m).
    """

    phi: Phi
    norm_weight: Tensor | None
    norm_factor: nn.Linear | None

    def __init__(
        self,
        in_features: int,
        num_features: int,
        order: int = 1,
        phi: Phi = "relu",
        use_norm: bool = False,
        shared: bool = True,
        bias: bool = True,
        norm_rank: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.num_features, self.order = in_features, num_features, order
        self.phi, self.use_norm, self.shared = phi, use_norm, shared
        rows = num_projections(order, shared) * num_features
        like = {"device": device, "dtype": dtype}
        self.projection = nn.Linear(in_features, rows, bias=bias, **like)
        self.norm_weight = nn.Parameter(torch.zeros(rows, **like)) if use_norm else None
        self.norm_factor = nn.Linear(in_features, norm_rank, **like) if use_norm and norm_rank else None

    @property
    def out_features(self) -> int:
        """Length of the feature vector, k·m."""
        return self.order * self.num_features

    @property
    def is_affine(self) -> bool:
        """Whether the map is a plain affine one: degree 1, Φ = identity, no norm."""
        return self.order == 1 and self.phi == "identity" and not self.use_norm

    def forward(self, x: Tensor) -> Tensor:
        u = self.projection(x)
        if self.norm_weight is not None:
            norm = self._norm(x).clamp(max=torch.finfo(u.dtype).max)  # an infinite norm times a zero weight is NaN
            u = u + norm.to(u.dtype) * self.norm_weight.to(u.dtype)
        if self.order == 1:
            return ACTIVATIONS[self.phi](u)
        products = degree_products(u, self.num_features, self.order, self.shared)
        return ACTIVATIONS[self.phi](torch.cat(products, dim=-1))

    def _norm(self, x: Tensor) -> Tensor:
        """‖x‖₂ with the last axis kept; half-precision inputs are summed in float32, where 256² does not overflow."""
        z = x if self.norm_factor is None else self.norm_factor(x)
        wide = torch.float64 if z.dtype == torch.float64 else torch.float32
        return torch.linalg.vector_norm(z, dim=-1, keepdim=True, dtype=wide)

    def extra_repr(self) -> str:
        return f"{self.in_features}, m={self.num_features}, k={self.order}, phi={self.phi}, norm={self.use_norm}"


class EUGenLinear(nn.Module):
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"widths are {in_features} and {out_features}, expected at least 1")
        self.config = EUGenConfig(
            num_features, order, phi, use_norm, projection, shared, train_projections, bias
        )  # checks the rest
        like = {"device": device, "dtype": dtype}
        self.features = EUGenFeatures(in_features, num_features, order, phi, use_norm, shared, bias, **like)
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
    def from_config(cls, config: EUGenConfig, in_features: int, out_features: int, **kwargs) -> "EUGenLinear":
        """Build a freshly drawn layer; `kwargs` are `device`, `dtype` and `generator`."""
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return cls(in_features, out_features, **fields, **kwargs)

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

        With Φ = identity, no activation and no inputs this is the unbiased start of Theorem 3.1 for f(t) = t. In
        every other case the projections are drawn and the readout is the least-squares fit over `inputs`, or over
        standard normal inputs when there are none. Both are approximate.

        Args:
            linear: the dense layer; device, dtype and requires_grad carry over.
            activation: what follows the dense layer and goes into this one.
            inputs: rows that the dense layer sees, shape (..., in_features).
        """
        config = config or EUGenConfig()
        kwargs = {"device": linear.weight.device, "dtype": linear.weight.dtype, "generator": generator}
        if config.phi == "identity" and activation == "identity" and inputs is None:
            layer = cls.from_polynomial(linear, (0.0, 1.0) + (0.0,) * (config.order - 1), config, generator)
        else:
            layer = cls.from_config(config, linear.in_features, linear.out_features, **kwargs)
            if inputs is None:
                rows = 8 * (layer.features.out_features + linear.in_features + 1)
                inputs = torch.randn(rows, linear.in_features, generator=generator, dtype=torch.float64)
            layer._fit_readout(linear, activation, inputs.reshape(-1, linear.in_features))
        layer.train(linear.training)
        if not linear.weight.requires_grad:
            layer.requires_grad_(False)
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

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the projections and the readout anew; norm column and biases become zero."""
        features, config = self.features, self.config
        blocks = num_projections(config.order, config.shared)
        drawn = [
            draw_projection(config.projection, config.num_features, self.in_features, generator) for _ in range(blocks)
        ]
        features.projection.weight.copy_(torch.cat(drawn) / math.sqrt(self.in_features))
        bound = math.sqrt(3.0 / self.readout.in_features)
        readout = torch.rand(self.readout.weight.shape, generator=generator, dtype=torch.float64)
        self.readout.weight.copy_((2 * readout - 1) * bound)
        for constant in (features.projection.bias, features.norm_weight, self.readout.bias):
            if constant is not None:
                constant.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x))

    @torch.no_grad()
    def _fit_readout(self, linear: nn.Linear, activation: Phi, inputs: Tensor) -> None:
        """Set the readout to the least-squares fit of activation(linear(inputs)), solved in float64."""
        rows = inputs.to(linear.weight.device, linear.weight.dtype)
        phi = self.features(rows).double()
        if self.readout.bias is not None:
            phi = torch.cat([phi, phi.new_ones(len(phi), 1)], dim=-1)
        if len(phi) < phi.shape[1]:
            raise ValueError(f"{len(phi)} input rows for {phi.shape[1]} unknowns, expected at least as many rows")
        target = ACTIVATIONS[activation](linear(rows)).double()
        solution = torch.linalg.lstsq(phi.cpu(), target.cpu(), driver="gelsd").solution.T
        self.readout.weight.copy_(solution[:, : self.readout.in_features])
        if self.readout.bias is not None:
            self.readout.bias.copy_(solution[:, -1])

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"
