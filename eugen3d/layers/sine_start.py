"""A start of networks of sines that keeps activations and gradients alike from layer to layer.

A network of sines alternates matrices and features φ = sin(p): p is a projection t of what comes before, or a product
of several, p_i = t_1 ⋯ t_i (see `eugen3d.layers.features`; a dense layer and its sine are the case i = 1). Write

    S  the second moment E[φ²] of the features, averaged over the degrees i = 1..k,
    D  the second moment of their slopes, Σ_j E[(∂φ/∂t_j)²], averaged alike,
    τ  the variance of every projection t,
    a  the gain of the matrices between two layers of features: their product maps n features to rows whose squared
       length is a/n · n = a on average,
    β  the variance of the biases of these projections.

Forward, a projection has the variance a S + β; backward, what reaches a layer's projections of the gradient at the
next one's is a D of it. Both stay as they are, at any depth and width, if and only if

    a = 1/D,    β = τ − S/D.                                                                                       (1)

β is never negative: that is the Gaussian Poincaré inequality, Var f ≤ τ E‖∇f‖², for f = sin(p). For a normal t

    k = 1:  S = (1 − e^{−2τ})/2,  D = (1 + e^{−2τ})/2,  so a = 1 + tanh τ and β = τ − tanh τ;
    i ≥ 2:  with r = t_1 ⋯ t_{i−2} and g = 1 + 4τ²r²,  S = (1 − E g^{−1/2})/2  and  D = i τ E[r² (1 + g^{−3/2})]/2,

the expectations over r by Gauss-Hermite quadrature. At k = 1 there is more to be had: biases that are uniform over a
period, U(±π), make E[sin²] = E[cos²] = 1/2 whatever t is distributed like, normal or not. Then a = 2, which is the
bound √(6/n) that Sitzmann et al. (2020, section 3.2) derive for uniform weights, and (1) holds exactly; without such
phases the gradient of their start grows by a factor of up to 1.2 in the second moment per layer. Degrees above the
first are started at τ = 1.

Where several matrices follow one another (a readout and the next layer's projections, or the two of a low-rank layer)
their product is drawn, with orthogonal rows or columns, and the last one is what makes it of the others: products of
random factors would spread the singular values with every layer. The norm that a layer may see enters with weight
zero.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.features import draw_uniform
from eugen3d.layers.maps import is_features
from eugen3d.layers.merged import own_maps
from eugen3d.layers.sine import Sine
from eugen3d.layers.structure import is_affine_map

NODES = 81
"""Of the quadrature over each projection."""


class Moments(NamedTuple):
    """What features do to a signal and to its gradient: S and D of the module's docstring, and the τ they hold for."""

    second: float
    slope: float
    variance: float = 1.0


PHASED = Moments(0.5, 0.5, math.inf)
"""A sine whose phase is uniform over a period, of whatever projection."""


def sine_moments(order: int, variance: float = 1.0) -> Moments:
    """S and D of features sin(t_1 ⋯ t_i), i = 1..order, whose projections are normal with that variance."""
    square, weights = _quadrature(NODES if order < 6 else NODES // 4)
    square *= variance
    decay = math.exp(-2 * variance)
    second, slope = [(1 - decay) / 2], [(1 + decay) / 2]
    r_square = chance = torch.ones(1, dtype=torch.float64)
    for degree in range(2, order + 1):
        spread = 1 + 4 * variance**2 * r_square
        second.append((1 - float(chance @ spread**-0.5)) / 2)
        slope.append(degree * variance * float(chance @ (r_square * (1 + spread**-1.5))) / 2)
        if degree < order:
            r_square, chance = torch.outer(r_square, square).flatten(), torch.outer(chance, weights).flatten()
    return Moments(sum(second) / order, sum(slope) / order, variance)


@torch.no_grad()
def start_sines(chains: Iterable[nn.Module], omega_0: float, generator: torch.Generator | None = None) -> None:
    """Draw every parameter of a network of sines anew, in place.

    The first projections t = ω₀ (w·x + b) start as Sitzmann et al. (2020) have them, w in U(±1/d), for coordinates in
    [−1, 1]: ω₀ is about the largest frequency, in radians per unit, that the network starts with. The last matrices,
    behind which there is no sine, start in U(±√(6/n)/ω₀), as theirs.

    Args:
        chains: one after the other, of layers of any kind and of `Sine`s; the last ends without one.
        omega_0: ω₀, of the first projections alone.
        generator: source of the draws, on the CPU; the global one by default.

    Raises:
        ValueError: a layer of features that are no sines is not followed by one, or sines have no bias before them.
    """
    before: Moments | None = None
    matrices: list[nn.Linear] = []
    for map_ in (map_ for chain in chains for map_ in own_maps(chain)):
        if is_affine_map(map_):
            matrices.append(map_)
        elif isinstance(map_, Sine):
            before = _start_projections(matrices, before, PHASED, omega_0, map_.omega_0, 1, generator)
            matrices = []
        elif is_features(map_):
            moments = _moments(map_)
            matrices += [map_.projection] if map_.down is None else [map_.down, map_.projection]
            blocks = map_.projection.out_features // map_.num_features
            before = _start_projections(matrices, before, moments, omega_0, 1.0, blocks, generator)
            if map_.norm_weight is not None:
                map_.norm_weight.zero_()
            matrices = []
        else:
            raise ValueError(f"a network of sines holds {type(map_).__name__}, expected layers and sines")
    for index, matrix in enumerate(matrices):
        bound = math.sqrt(6 / matrix.in_features) / (omega_0 if index == len(matrices) - 1 else math.sqrt(2))
        matrix.weight.copy_(draw_uniform(matrix.weight.shape, bound, generator))
        _start_bias(matrix, 0.0, generator)


def _quadrature(count: int) -> tuple[Tensor, Tensor]:
    """The squared nodes and the weights of Gauss-Hermite quadrature for a standard normal variable (Golub and Welsch
    1969): eigenvalues, and first entries of the eigenvectors, of the Hermite polynomials' recurrence."""
    off_diagonal = torch.arange(1, count, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return nodes.square(), vectors[0].square()


def _moments(features: EUGenFeatures) -> Moments:
    if features.phi == "sine":
        return PHASED if features.order == 1 else sine_moments(features.order)
    if features.phi == "identity":  # products of unit variance, each the slope of its degree's i others
        return Moments(1.0, (features.order + 1) / 2)
    raise ValueError(f"phi is {features.phi!r} in a network of sines, expected 'sine' or 'identity'")


def _start_projections(
    matrices: list[nn.Linear],
    before: Moments | None,
    moments: Moments,
    omega_0: float,
    factor: float,
    blocks: int,
    generator: torch.Generator | None,
) -> Moments:
    """Draw what leads from features, or from coordinates, to a layer's projections; gives that layer's moments.

    Args:
        matrices: first to last; the last one's rows, times `factor`, are the projections, in so many blocks.
        before: those of the features; None of coordinates.
    """
    *first, last = matrices
    width = matrices[0].in_features
    if last.bias is None:
        raise ValueError("the projections of sines have no bias, expected one: their start needs it")
    gain = omega_0**2 / (3 * width) if before is None else 1 / before.slope
    carried = gain * (1 / 3 if before is None else before.second)
    spread = math.sqrt(max(moments.variance - carried, 0.0))  # of biases; infinite stands for phases
    for matrix in first:
        drawn = _draw_orthogonal(matrix.out_features, matrix.in_features, generator)
        matrix.weight.copy_(drawn / math.sqrt(matrix.in_features))
        _start_bias(matrix, 0.0, generator)
    if not first:
        drawn = draw_uniform(last.weight.shape, math.sqrt(3 * gain / width), generator)
    else:
        product = _product(first)
        rows = last.out_features // blocks
        wanted = torch.cat([_draw_orthogonal(rows, width, generator) for _ in range(blocks)])
        drawn = wanted @ torch.linalg.pinv(product)
        drawn *= math.sqrt(gain * len(drawn)) / torch.linalg.matrix_norm(drawn @ product)
    last.weight.copy_(drawn / factor)
    _start_bias(last, spread, generator)
    last.bias.div_(factor)
    return moments


def _product(matrices: list[nn.Linear]) -> Tensor:
    """What the matrices are together, in float64 on the CPU."""
    weights = [matrix.weight.double().cpu() for matrix in matrices]
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    return product


def _draw_orthogonal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """A (rows, columns) matrix with orthogonal rows or columns, whichever are fewer, and entries of variance one."""
    long, short = max(rows, columns), min(rows, columns)
    gaussian = torch.randn(long, short, generator=generator, dtype=torch.float64)
    directions, triangle = torch.linalg.qr(gaussian)
    directions = directions * triangle.diagonal().sign() * math.sqrt(long)
    return directions if rows == long else directions.T


def _start_bias(matrix: nn.Linear, spread: float, generator: torch.Generator | None) -> None:
    """Draw biases of that standard deviation from a normal distribution; if infinite, phases uniform over a period.

    One is drawn of each of as many equal shares of the distribution as there are biases, in random order: so the
    features' moments are their expectations even where they are few.
    """
    if matrix.bias is None:
        return
    count = len(matrix.bias)
    order = torch.randperm(count, generator=generator)
    share = (order + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    drawn = math.pi * (2 * share - 1) if math.isinf(spread) else spread * torch.special.ndtri(share)
    matrix.bias.copy_(drawn)
