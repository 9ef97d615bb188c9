"""The pure mathematics of EUGen features: projections, their products, and the map Φ.

Symbols, as in EUGens (2025), eq. 1, and as used in every module of this package:

    d   in_features       length of an input x
    l   out_features      length of an output y
    m   num_features      random features per degree
    k   order             highest degree of the products
    P   num_projections   matrices G: k when shared, k(k+1)/2 when independent
    r   projection_rank   where G is factored, G = A B: B (r, d) is common to all, A (P·m, r)
    x⁺  [x; 1; ‖x‖₂]      the extended input: a bias column, then the norm column
    u   G x⁺              the projections of one input, P blocks of m
    φ   Φ(products of u)  the features, degree by degree: k blocks of m

Degree 0 is a constant, so it lives in the output bias and is not stored as a feature.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Phi = Literal["identity", "relu", "gelu", "softplus", "softplus-100", "sine"]
"""Φ by name; "softplus-100" is softplus(100 u)/100, nearly ReLU but smooth, as fields of signed distance have it."""
Projection = Literal["orthogonal", "gaussian", "rademacher"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda u: u,
    "relu": F.relu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "softplus-100": lambda u: F.softplus(u, beta=100),
    "sine": torch.sin,
}


def num_projections(order: int, shared: bool) -> int:
    """P: the number of projection matrices that the degrees 1..order take."""
    return order if shared else order * (order + 1) // 2


def degree_products(u: Tensor, num_features: int, order: int, shared: bool) -> list[Tensor]:
    """The element-wise products of projections, one tensor (..., m) per degree 1..k.

    Shared projections reuse the product one degree down, G_ij = G_j; independent ones give degree i
    its own i matrices (EUGens 2025, section 3).

    Args:
        u: projections, shape (..., P·m), block after block.
    """
    blocks = u.split(num_features, dim=-1)
    if shared:
        products = [blocks[0]]
        for block in blocks[1:]:
            products.append(products[-1] * block)
        return products
    products, start = [], 0
    for degree in range(1, order + 1):
        product = blocks[start]
        for block in blocks[start + 1 : start + degree]:
            product = product * block
        products.append(product)
        start += degree
    return products


def draw_projection(kind: Projection, rows: int, columns: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw a (rows, columns) matrix whose entries have mean zero and variance one, in float64 on the CPU.

    "orthogonal" stacks blocks of at most `columns` orthogonal rows, each with the norm of a Gaussian row
    (a chi variable with `columns` degrees of freedom), so that every row on its own is Gaussian.
    """
    if kind not in get_args(Projection):
        raise ValueError(f"projection {kind!r} is unknown, expected one of {', '.join(get_args(Projection))}")
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    if kind == "gaussian" or columns == 0:
        return gaussian
    if kind == "rademacher":
        return gaussian.sign() + (gaussian == 0)
    blocks = []
    for block in gaussian.split(columns):
        directions, triangle = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))
        directions = directions * triangle.diagonal().sign()  # makes the distribution uniform (Haar)
        blocks.append(directions[: len(block)] * torch.linalg.vector_norm(block, dim=1, keepdim=True))
    return torch.cat(blocks)


def draw_uniform(shape: Sequence[int], bound: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw entries from U(−bound, bound), in float64 on the CPU; their variance is bound²/3."""
    return (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1) * bound


def input_norm(x: Tensor) -> Tensor:
    """‖x‖₂ over the last axis, which is kept, with derivatives of first and second order that are finite everywhere.

    At x = 0, where the norm has none, both are zero; the first is what torch has there, its second is NaN. The same
    holds below √tiny/eps of the dtype (9e-13 in float32), where 1/‖x‖² is on its way to overflow. The value is exact
    there too. Half-precision inputs are summed in float32, where 256² does not overflow.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    limit = torch.finfo(wide).tiny ** 0.5 / torch.finfo(wide).eps
    norm = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True, dtype=wide)
    if not torch.is_grad_enabled():
        return norm
    is_zero = norm < limit
    shifted = x + is_zero.to(x.dtype)  # adds nothing but where the derivatives are discarded
    return torch.where(is_zero, norm, torch.linalg.vector_norm(shifted, dim=-1, keepdim=True, dtype=wide))
