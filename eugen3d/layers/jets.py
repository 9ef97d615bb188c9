"""Values, gradients and Laplacians of a chain in its input, carried forward map by map.

A jet of a vector y(x), x ∈ R^d, is y itself, its derivatives ∂_1 y … ∂_d y and, where it is asked for, Δy = Σ ∂_i² y.
Every map takes a jet to a jet:

    W y + b     W y + b,      W ∂y,                     W Δy
    f(y)        f(y),         f′ ∂y,                    f′ Δy + f″ Σ (∂_i y)²
    y z         y z,          y ∂z + z ∂y,              y Δz + z Δy + 2 Σ ∂_i y ∂_i z
    ‖y‖ = r     r,            y·∂y / r,                 (Σ ‖∂_i y‖² + y·Δy − Σ (∂_i r)²) / r

Nothing has to be kept for a backward pass, and a Laplacian takes d + 2 products with each matrix, where reverse mode
takes d + 1 further passes over the graph of the first. What comes out can be differentiated in the parameters.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.features import ACTIVATIONS, Phi
from eugen3d.layers.maps import chain_maps, is_features
from eugen3d.layers.registry import make_activation
from eugen3d.layers.sine import Sine
from eugen3d.layers.structure import is_affine_map


class Jet(NamedTuple):
    """A function of x at n points."""

    value: Tensor
    """(n, c)."""
    gradient: Tensor
    """(n, d, c): ∂_i of every entry."""
    laplacian: Tensor | None = None
    """(n, c), or None where it is not carried."""

    @staticmethod
    def of(x: Tensor, laplacian: bool = False) -> "Jet":
        """The jet of x (n, d) itself."""
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return Jet(x, eye.expand(len(x), -1, -1), torch.zeros_like(x) if laplacian else None)

    def affine(self, weight: Tensor, bias: Tensor | None = None) -> "Jet":
        """W y + b, all of it in one product."""
        rows, dim, _ = self.gradient.shape
        parts = [self.value, self.gradient.flatten(0, 1)]
        products = F.linear(torch.cat(parts if self.laplacian is None else [*parts, self.laplacian]), weight)
        value, gradient, *rest = products.split([rows, rows * dim, *[rows] * (self.laplacian is not None)])
        value = value if bias is None else value + bias
        return Jet(value, gradient.view(rows, dim, -1), rest[0] if rest else None)

    def through(self, function: "Function") -> "Jet":
        """f(y), entry by entry."""
        value, first, second = function(self.value)
        gradient = first[:, None] * self.gradient
        if self.laplacian is None:
            return Jet(value, gradient)
        return Jet(value, gradient, first * self.laplacian + second * self.gradient.square().sum(dim=1))

    def times(self, other: "Jet") -> "Jet":
        """The product, entry by entry."""
        value = self.value * other.value
        gradient = self.value[:, None] * other.gradient + other.value[:, None] * self.gradient
        if self.laplacian is None or other.laplacian is None:
            return Jet(value, gradient)
        mixed = (self.gradient * other.gradient).sum(dim=1)
        return Jet(value, gradient, self.value * other.laplacian + other.value * self.laplacian + 2 * mixed)

    def plus(self, other: "Jet") -> "Jet":
        """The sum."""
        laplacian = None
        if self.laplacian is not None and other.laplacian is not None:
            laplacian = self.laplacian + other.laplacian
        return Jet(self.value + other.value, self.gradient + other.gradient, laplacian)

    def norm(self) -> "Jet":
        """‖y‖₂ (n, 1); where y is zero, so are its derivatives, as in `input_norm`."""
        value = torch.linalg.vector_norm(self.value, dim=1, keepdim=True)
        scale = torch.where(value > 0, 1 / value, 0.0)
        gradient = (self.gradient @ self.value[:, :, None]) * scale[:, None]
        if self.laplacian is None:
            return Jet(value, gradient)
        turned = self.gradient.square().sum(dim=(1, 2))[:, None] + (self.value * self.laplacian).sum(1, keepdim=True)
        return Jet(value, gradient, (turned - gradient.square().sum(dim=1)) * scale)

    def entries(self, start: int, stop: int) -> "Jet":
        """Some of the entries of y."""
        laplacian = None if self.laplacian is None else self.laplacian[:, start:stop]
        return Jet(self.value[:, start:stop], self.gradient[:, :, start:stop], laplacian)

    @staticmethod
    def cat(jets: list["Jet"]) -> "Jet":
        """The vectors one after the other."""
        if len(jets) == 1:
            return jets[0]
        laplacians = [jet.laplacian for jet in jets if jet.laplacian is not None]
        return Jet(
            torch.cat([jet.value for jet in jets], dim=1),
            torch.cat([jet.gradient for jet in jets], dim=2),
            torch.cat(laplacians, dim=1) if laplacians else None,
        )


Function = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""An element-wise function with its first and second derivatives."""


def chain_jet(chain: nn.Module, jet: Jet) -> Jet:
    """Carry a jet through a chain of layers of any kind, folded or not.

    Raises:
        TypeError: the chain holds a module whose derivatives are not known.
    """
    return maps_jet(chain_maps(chain), jet)


def maps_jet(maps: Iterable[nn.Module], jet: Jet) -> Jet:
    """The same for maps, one after the other."""
    for map_ in maps:
        if is_affine_map(map_):
            jet = jet.affine(map_.weight, map_.bias)
        elif is_features(map_):
            jet = _through_features(map_, jet)
        else:
            jet = jet.through(_function_of(map_))
    return jet


def _through_features(features: EUGenFeatures, jet: Jet) -> Jet:
    below = jet if features.down is None else jet.affine(features.down.weight)
    u = below.affine(features.projection.weight, features.projection.bias)
    if features.norm_weight is not None:
        factor = features.norm_factor
        norm = (jet if factor is None else jet.affine(factor.weight, factor.bias)).norm()
        u = u.plus(norm.affine(features.norm_weight[:, None]))
    width = features.num_features
    products, taken = [], 0
    for degree in range(1, features.order + 1):
        if features.shared:
            block = u.entries((degree - 1) * width, degree * width)
            products.append(block if degree == 1 else products[-1].times(block))
            continue
        blocks = [u.entries(index * width, (index + 1) * width) for index in range(taken, taken + degree)]
        product = blocks[0]
        for block in blocks[1:]:
            product = product.times(block)
        products.append(product)
        taken += degree
    return Jet.cat(products).through(_FUNCTIONS[features.phi])


def _function_of(module: nn.Module) -> Function:
    if isinstance(module, Sine):
        return lambda u: _sine(u, module.omega_0)
    for phi, function in _FUNCTIONS.items():
        known = make_activation(phi)
        if type(module) is type(known) and str(module) == str(known):
            return function
    raise TypeError(f"a chain holds {str(module).splitlines()[0]}, whose derivatives are not known")


def _sine(u: Tensor, omega_0: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    sine = torch.sin(omega_0 * u)
    return sine, omega_0 * torch.cos(omega_0 * u), -(omega_0**2) * sine


def _gelu(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    density = torch.exp(-0.5 * u.square()) * 0.3989422804014327  # 1/√(2π)
    below = torch.special.ndtr(u)
    return u * below, below + u * density, (2 - u.square()) * density


def _softplus(beta: float, phi: Phi) -> Function:
    def evaluate(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = torch.sigmoid(beta * u)
        return ACTIVATIONS[phi](u), slope, beta * slope * (1 - slope)

    return evaluate


_FUNCTIONS: dict[Phi, Function] = {
    "identity": lambda u: (u, torch.ones_like(u), torch.zeros_like(u)),
    "relu": lambda u: (F.relu(u), (u > 0).to(u.dtype), torch.zeros_like(u)),
    "gelu": _gelu,
    "softplus": _softplus(1.0, "softplus"),
    "softplus-100": _softplus(100.0, "softplus-100"),
    "sine": _sine,
}
