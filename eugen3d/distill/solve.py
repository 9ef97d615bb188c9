"""Closed forms over streamed moments, all in float64.

- `solve_readout`: ridge regression, the output matrix of features that are given (EUGens 2025, appendix on
  distillation: Ŵ = (ΦᵀΦ + λI)⁻¹ΦᵀY).
- `reduced_rank_regression`: the best W of a given rank (Izenman 1975); applied to a layer's pre-activations this is
  activation-aware low rank.
- `choose_ridge`: λ by the error on held-out rows, of which moments are enough.
- `pick_columns`: which neurons tell most of what is read from all of them, greedily (column subset selection, Farahat
  et al. 2013; Chee et al. 2022 prune networks with least squares, too, and pick by pivoted QR).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eugen3d.distill.moments import Covariances

RIDGE = 1e-7
RIDGES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Those that `choose_ridge` tries. Less would let in the rounding of rows in single precision."""
TOLERANCE = 1e-3
"""So much more error, relatively, is no reason for a smaller ridge."""


@dataclass(frozen=True)
class Conditioning:
    """How well a regression was determined."""

    ridge: float
    """λ, relative to standardised inputs."""
    condition: float
    """Condition number of the inputs' correlations, without the ridge."""


def solve_readout(moments: Covariances, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """W (q, p) and b (q,) that minimise Σ‖W x + b − y‖² + λ n ‖W D‖², D the standard deviations of x.

    The inputs are standardised first, so that λ = ridge has the same meaning for every feature; a feature that
    never varies gets the weight zero.
    """
    scale = _scale(moments)
    correlation = moments.xx * torch.outer(scale, scale)
    correlation.diagonal().add_(ridge + (scale == 0).double())
    cross = moments.xy * scale[:, None]
    factor, failed = torch.linalg.cholesky_ex(correlation)
    if failed:  # numerically singular at this ridge: the pseudo-inverse drops the empty directions
        solution = torch.linalg.pinv(correlation, hermitian=True, rtol=1e-12) @ cross
    else:
        solution = torch.cholesky_solve(cross, factor)
    weight = (solution * scale[:, None]).T
    return weight, moments.mean_y - weight @ moments.mean_x


def choose_ridge(
    moments: Covariances,
    held_out: Covariances | None,
    solve: Callable[[float], tuple[Tensor, Tensor]],
    metric: Tensor | None = None,
) -> Conditioning:
    """The ridge of `RIDGES` with which W and b leave the least error on rows that they were not solved on.

    Of those that do as well up to `TOLERANCE` it is the largest: where directions of the inputs hardly vary the error
    does not tell ridges apart, and a small one would give these directions large weights.

    Args:
        moments: of the rows to solve on.
        held_out: of other rows; an error on rows is a quadratic form of their moments. Without any it is `RIDGE`.
        solve: W (q, p) and b (q,) for a ridge.
        metric: which errors matter, (q, q); the identity by default.
    """
    ridge = RIDGE
    if held_out is not None:
        errors = {ridge: relative_residual(held_out, *solve(ridge), metric) for ridge in RIDGES}
        ridge = max(ridge for ridge, error in errors.items() if error <= (1 + TOLERANCE) * min(errors.values()))
    return Conditioning(ridge, _condition(moments))


def reduced_rank_regression(
    moments: Covariances, rank: int, ridge: float = RIDGE, metric: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A (q, rank), G (rank, p) and b (q,) that minimise Σ eᵀ M e, e = A G x + b − y.

    The rows of G give uncorrelated projections of unit variance, strongest first.

    Args:
        metric: M (q, q), positive semi-definite: which errors matter; the identity by default. A hundredth of its mean
            eigenvalue is added, so that no error is free.
    """
    full, _ = solve_readout(moments, ridge)
    root, inverse = _square_roots(torch.eye(len(full), dtype=full.dtype, device=full.device), metric)
    weighted = root @ full
    fitted = weighted @ moments.xx @ weighted.T
    _, vectors = torch.linalg.eigh((fitted + fitted.T) / 2)
    basis = vectors[:, -rank:].flip(1)
    projection = basis.T @ weighted
    spread = (projection @ moments.xx @ projection.T).diagonal().clamp(min=0).sqrt()
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    readout = inverse @ basis * scale
    projection = projection / scale[:, None]
    return readout, projection, moments.mean_y - readout @ (projection @ moments.mean_x)


def _square_roots(identity: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a metric and its inverse."""
    if metric is None:
        return identity, identity
    values, vectors = torch.linalg.eigh((metric + metric.T) / 2)
    values = values.clamp(min=0) + 0.01 * values.clamp(min=0).mean() + torch.finfo(values.dtype).tiny
    return vectors * values.sqrt() @ vectors.T, vectors / values.sqrt() @ vectors.T


def pick_columns(covariance: Tensor, count: int, readers: Tensor | None = None) -> Tensor:
    """Indices of the `count` variables y that explain most of the variance of R y by linear regression, greedily.

    Each step takes the variable that explains most of what those taken before it leave of R y, and removes what it
    explains from all covariances. Stops early where nothing is left, so fewer indices may come back.

    Args:
        covariance: of the variables, (q, q).
        readers: R (p, q), what is read of them; the identity by default.
    """
    residual = covariance.clone()
    read = residual.clone() if readers is None else readers @ residual
    floor = float(residual.diagonal().max()) * 1e-12
    least = float(read.square().sum()) * 1e-24
    picked: list[int] = []
    for _ in range(min(count, len(covariance))):
        variance = residual.diagonal()
        is_free = variance > floor
        is_free[picked] = False
        explained = torch.where(is_free, read.square().sum(dim=0) / variance.clamp(min=1e-300), -1.0)
        pivot = int(explained.argmax())
        if not is_free[pivot] or float(explained[pivot] * variance[pivot]) <= least:
            break
        column = residual[:, pivot] / variance[pivot]
        read = read - torch.outer(read[:, pivot], column)
        residual = residual - torch.outer(column, residual[pivot])
        picked.append(pivot)
    return torch.tensor(picked, dtype=torch.long)


def relative_residual(moments: Covariances, weight: Tensor, bias: Tensor, metric: Tensor | None = None) -> float:
    """‖W x + b − y‖ / ‖y‖ over the rows of the moments, with ‖e‖² = eᵀ M e where there is a metric M (q, q)."""
    offset = weight @ moments.mean_x + bias - moments.mean_y
    product = weight @ moments.xy
    residual = weight @ moments.xx @ weight.T - product - product.T + moments.yy + torch.outer(offset, offset)
    total = moments.yy + torch.outer(moments.mean_y, moments.mean_y)
    squares = [part.trace() if metric is None else (part * metric).sum() for part in (residual, total)]
    return float((squares[0].clamp(min=0) / squares[1].clamp(min=1e-300)).sqrt())


def _scale(moments: Covariances) -> Tensor:
    """One over the standard deviation of every input; zero for one that never varies."""
    deviations = moments.xx.diagonal().clamp(min=0).sqrt()
    return torch.where(deviations > 1e-12 * deviations.max().clamp(min=1e-300), 1 / deviations, 0.0)


def _condition(moments: Covariances) -> float:
    """Largest over smallest eigenvalue of the correlations of the inputs that vary; at most one over the rounding."""
    scale = _scale(moments)
    varying = scale > 0
    if not varying.any():
        return 1.0
    values = torch.linalg.eigvalsh((moments.xx * torch.outer(scale, scale))[varying][:, varying])
    return float(values[-1] / values[0].clamp(min=values[-1] * torch.finfo(values.dtype).eps))
