"""Bernstein polynomials: a polynomial near any continuous function, for the unbiased layers of EUGens (2025).

    B_k f(t) = Σ_{v≤k} f(lo + v h/k) C(k, v) sᵛ (1−s)^{k−v},    s = (t − lo)/h,  h = hi − lo

B_k f tends to f uniformly on [lo, hi] as k grows (Bernstein 1912), by which Theorem 3.4 has EUGens approximate any f:
|B_k f − f| ≤ 3/2 ω(h/√k) with ω the modulus of continuity of f (Popoviciu 1935). Affine functions are their own.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor


def bernstein_coefficients(
    function: Callable[[Tensor], Tensor], degree: int, interval: tuple[float, float]
) -> tuple[float, ...]:
    """The coefficients a_0 … a_k with Σ aᵢ tⁱ = B_k f(t), the Bernstein polynomial of f on an interval.

    They are computed in exact fractions from the k + 1 values of f and rounded once. Of functions that do not oscillate
    from node to node, as |t|, exp or sin, Σ aᵢ tⁱ is right to 1e-14 of their size up to degree 20; of others powers of
    t cancel, and digits are lost.

    Args:
        function: f, element-wise on a float64 tensor.
        degree: k ≥ 1.
        interval: lo and hi.

    Returns:
        The k + 1 coefficients, lowest degree first, as `EUGenLinear.from_polynomial` takes them.

    Raises:
        ValueError: on a degree, an interval or a value of f that makes no polynomial.
    """
    low, high = interval
    if degree < 1:
        raise ValueError(f"degree is {degree}, expected at least 1")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"interval is {low} to {high}, expected two finite numbers in ascending order")
    nodes = [low + (high - low) * v / degree for v in range(degree)] + [high]
    values = function(torch.tensor(nodes, dtype=torch.float64))
    if not values.isfinite().all():
        raise ValueError(f"the function is not finite at one of {nodes}, expected a continuous one")
    differences = [Fraction(value) for value in values.tolist()]
    in_s = []  # C(k, j) Δʲf, the coefficients of sʲ
    for power in range(degree + 1):
        in_s.append(math.comb(degree, power) * differences[0])
        differences = [after - before for before, after in itertools.pairwise(differences)]
    return tuple(float(coefficient) for coefficient in _substitute_affine(in_s, Fraction(low), Fraction(high)))


def _substitute_affine(in_s: list[Fraction], low: Fraction, high: Fraction) -> list[Fraction]:
    """The coefficients in t of a polynomial in s = (t − low)/(high − low), by Horner's rule."""
    slope, offset = 1 / (high - low), -low / (high - low)
    in_t: list[Fraction] = []
    for coefficient in reversed(in_s):
        shifted = [Fraction(0), *(slope * a for a in in_t)]
        scaled = [*(offset * a for a in in_t), Fraction(0)]
        in_t = [a + b for a, b in zip(shifted, scaled, strict=True)]
        in_t[0] += coefficient
    return in_t
