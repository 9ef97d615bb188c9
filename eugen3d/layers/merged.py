"""Chains evaluated through merged matrices that are formed anew, and differentiably, at every call: for training.

An affine map W₁φ + b₁ that a second one reads is not applied: G(W₁φ + b₁) = (G W₁)φ + G b₁, and the rows see the one
product (EUGens 2025, section 3). The parameters stay the factors, so that function, gradients and training are those of
the chain as it is, up to rounding, at the cost of the folded one (see `eugen3d.layers.fold`): forming G W₁ does not
depend on the number of rows, and only what stands between affine maps is kept for the backward pass. Maps are merged
where that takes fewer products for the rows at hand.

The norm of an output that is not formed: ‖A z + b‖ = ‖F z + f‖ with [F f] = Qᵀ[A b], the columns of Q an orthonormal
basis of a space that holds those of [A b]. With Q from the factorisation [A b] = Q R the value is that of `compose`, as
precise as if the output had been formed; the quadratic form with [A b]ᵀ[A b] squares the condition number. Q is held
constant, and Qᵀ[A b] is differentiated as the product it is. That is exact: QQᵀ leaves [A b] as it is, so FᵀF has the
value and the first derivatives of AᵀA. Unlike the derivative of R, it exists where [A b] is short of rank, as it is
where b is zero. All derivatives in z are exact, and so are the mixed second ones, which a loss on the gradient in z
takes (the eikonal one); second derivatives in A and b twice are not.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures, without_autocast
from eugen3d.layers.features import input_norm
from eugen3d.layers.maps import is_composite, is_features, trained_maps
from eugen3d.layers.structure import has_hooks, is_affine_map, is_chain

QR_PRODUCTS = 8
"""What Q of a matrix (l, c) counts for, in l·c² products: LAPACK takes the time of 3 (c = 512) to 11 (c = 64)."""


def forward_merged(chain: nn.Module, x: Tensor) -> Tensor:
    """Evaluate a chain as `chain(x)` does, up to rounding, with neighbouring affine maps merged on the way.

    Gradients reach the chain's own parameters. What has hooks is called as it is. To merge across what is no
    `nn.Sequential`, such as a skip connection, pass a `Deferred` through its chains.

    Args:
        chain: an `nn.Sequential`, a `LayerStack` or a layer of any kind.
        x: shape (..., in_features).
    """
    return Deferred.of(x).through(chain).form()


class Part(NamedTuple):
    """A z + b; z itself where there is no matrix, and then no bias."""

    z: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def width(self) -> int:
        """Length of the last axis."""
        return self.z.shape[-1] if self.weight is None else self.weight.shape[0]

    def form(self) -> Tensor:
        """The value."""
        return self.z if self.weight is None else F.linear(self.z, self.weight, self.bias)


class Deferred(NamedTuple):
    """A tensor (..., width) as parts side by side, some of them affine maps that have not been applied yet."""

    parts: tuple[Part, ...]

    @staticmethod
    def of(x: Tensor) -> "Deferred":
        """A tensor as it is."""
        return Deferred((Part(x),))

    @staticmethod
    def cat(values: Sequence["Deferred"]) -> "Deferred":
        """Concatenate along the last axis; all take the dtype of the first."""
        parts = [part for value in values for part in value.parts]
        return Deferred(tuple(part._replace(z=part.z.to(parts[0].z.dtype)) for part in parts))

    def form(self) -> Tensor:
        """The tensor."""
        return _join([part.form() for part in self.parts])

    def through(self, chain: nn.Module) -> "Deferred":
        """What a chain makes of it; an affine map at its end is not applied."""
        value = self
        for map_ in own_maps(chain):
            if is_affine_map(map_) and not has_hooks(map_):
                value = value._affine(map_)
            elif is_features(map_) and not any(has_hooks(part) for part in map_.modules()):
                value = value._features(map_)
            elif isinstance(map_, Router) and not has_hooks(map_):
                value = map_.through(value)
            else:
                value = Deferred.of(map_(value.form()))
        return value

    def _features(self, features: EUGenFeatures) -> "Deferred":
        first, factor = features.projection if features.down is None else features.down, features.norm_factor
        value = self._before(first, features.use_norm and factor is None)
        u = value._affine(first)
        if features.down is not None:
            u = u._affine(features.projection)
        norm = None
        if features.use_norm:
            norm = (value if factor is None else value._affine(factor))._norm()
        return Deferred.of(features.activate(u.form(), norm))

    def _affine(self, linear: nn.Linear) -> "Deferred":
        """linear(self), not applied; what is cheaper to apply first has been. Matrices are multiplied in full
        precision, whatever autocast says of the rows."""
        parts, bias = self._before(linear).parts, linear.bias
        blocks = linear.weight.split([part.width for part in parts], dim=1)
        with without_autocast(linear.weight.device.type):
            matrices = [
                block if part.weight is None else block @ part.weight for part, block in zip(parts, blocks, strict=True)
            ]
            for part, block in zip(parts, blocks, strict=True):
                if part.bias is not None:
                    bias = block @ part.bias if bias is None else bias + block @ part.bias
        return Deferred((Part(_join([part.z for part in parts]), _join(matrices), bias),))

    def _before(self, linear: nn.Linear, with_norm: bool = False) -> "Deferred":
        """The same with those parts formed that it takes more products to merge into a map, and into the norm."""
        return Deferred(tuple(p if _is_worth(p, linear, with_norm) else Part(p.form()) for p in self.parts))

    def _norm(self) -> Tensor:
        """‖self‖₂ with the last axis kept, in float32 at least."""
        with without_autocast(self.parts[0].z.device.type):
            return input_norm(_join([_isometric(part) for part in self.parts]))


@runtime_checkable
class Router(Protocol):
    """A module that is no chain but passes its input through chains, such as one with skip connections."""

    def through(self, value: Deferred) -> Deferred:
        """What `forward` computes, with affine maps that have not been applied at either end."""
        ...


def own_maps(chain: nn.Module) -> list[nn.Module]:
    """A chain as a flat list of maps that all hold its own parameters; what has hooks stays whole."""
    if has_hooks(chain):
        return [chain]
    if is_chain(chain):
        return [map_ for module in chain for map_ in own_maps(module)]
    if is_composite(chain) and not is_features(chain) and (parts := trained_maps(chain)) != [chain]:
        return [map_ for part in parts for map_ in own_maps(part)]
    return [] if isinstance(chain, nn.Identity) else [chain]


def _is_worth(part: Part, linear: nn.Linear, with_norm: bool) -> bool:
    """Whether merging takes no more products than applying one map after the other; the backward pass takes twice
    those of the forward one in either case."""
    if part.weight is None:
        return True
    (inner, columns), outputs = part.weight.shape, linear.weight.shape[0]
    rows = part.z.numel() // columns
    separate = rows * (inner * columns + outputs * inner)
    merged = (rows + inner) * outputs * columns
    if with_norm:
        merged += rows * min(inner, columns + 1) * columns
        if inner > columns + 1:
            merged += QR_PRODUCTS * inner * (columns + 1) ** 2
    return merged <= separate


def _isometric(part: Part) -> Tensor:
    """A vector as long as a part, with no more entries than that part's input has, plus one."""
    if part.weight is None:
        return part.z
    wide = torch.float64 if part.weight.dtype == torch.float64 else torch.float32
    columns = [part.weight] if part.bias is None else [part.weight, part.bias[:, None]]
    extended = _join(columns).to(wide)
    if extended.shape[0] > extended.shape[1]:
        extended = torch.linalg.qr(extended.detach()).Q.T @ extended
    width = part.weight.shape[1]
    return F.linear(part.z.to(wide), extended[:, :width], None if part.bias is None else extended[:, width])


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=-1)
