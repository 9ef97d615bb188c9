"""EUGenFeatures: the map x ↦ φ(x) of an EUGen layer, the half that a readout follows (EUGens 2025, eq. 1)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from eugen3d.layers.features import ACTIVATIONS, Phi, degree_products, input_norm, num_projections


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
        projection_rank: r, or None. With a rank the projections of x are factored, G = A B: `down` is B (r × d), common
            to all of them, and `projection` is A, which sees B x beside the constant and the norm.

    Shape: (..., d) → (..., k·m).
    """

    phi: Phi
    norm_weight: Tensor | None
    norm_factor: nn.Linear | None
    down: nn.Linear | None

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
        projection_rank: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.num_features, self.order = in_features, num_features, order
        self.phi, self.use_norm, self.shared = phi, use_norm, shared
        rows = num_projections(order, shared) * num_features
        like = {"device": device, "dtype": dtype}
        self.down = nn.Linear(in_features, projection_rank, bias=False, **like) if projection_rank else None
        self.projection = nn.Linear(projection_rank or in_features, rows, bias=bias, **like)
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
        u = self.projection(x if self.down is None else self.down(x))
        return self.activate(u, self._norm(x) if self.use_norm else None)

    def activate(self, u: Tensor, norm: Tensor | None) -> Tensor:
        """φ of an input's projections and, where it is projected, of its norm.

        Args:
            u: G [x; 1], shape (..., P·m).
            norm: shape (..., 1).
        """
        if self.norm_weight is not None:
            assert norm is not None
            norm = norm.clamp(max=torch.finfo(u.dtype).max)  # an infinite norm times a zero weight is NaN
            u = u + norm.to(u.dtype) * self.norm_weight.to(u.dtype)
        if self.order == 1:
            return ACTIVATIONS[self.phi](u)
        products = degree_products(u, self.num_features, self.order, self.shared)
        return ACTIVATIONS[self.phi](torch.cat(products, dim=-1))

    def maps(self) -> list[nn.Module]:
        """The maps that the features are a chain of, for folding.

        Affine features are their matrices. With the norm they are one map, factored or not: both ‖x‖ and B x take x.
        """
        if self.use_norm or (self.down is None and not self.is_affine):
            return [self]
        last = self.projection if self.is_affine else self._after_down()
        return [last] if self.down is None else [self.down, last]

    def _after_down(self) -> "EUGenFeatures":
        """The features as a map of B x, on the same parameters."""
        matrix = self.projection
        like = {"device": matrix.weight.device, "dtype": matrix.weight.dtype}
        rest = EUGenFeatures(matrix.in_features, self.num_features, self.order, self.phi, False, self.shared, **like)
        rest.projection = matrix
        return rest.train(self.training)

    def _norm(self, x: Tensor) -> Tensor:
        """‖x‖₂ with the last axis kept, or ‖F x + f‖₂; that product too stays out of autocast's half precision."""
        if self.norm_factor is None:
            return input_norm(x)
        with without_autocast(x.device.type):
            return input_norm(self.norm_factor(x.to(self.norm_factor.weight.dtype)))

    def extra_repr(self) -> str:
        return f"{self.in_features}, m={self.num_features}, k={self.order}, phi={self.phi}, norm={self.use_norm}"


def without_autocast(device_type: str) -> AbstractContextManager:
    """A context without autocast, on the devices that have one."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
