"""Bernstein polynomials, against their definition and the bounds of their error."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from eugen3d.layers import bernstein_coefficients

INTERVALS = [(-1.0, 1.0), (0.0, 3.0), (-2.5, -0.5)]


def by_definition(
    function: Callable[[Tensor], Tensor], degree: int, interval: tuple[float, float], t: Tensor
) -> Tensor:
    """Σ f(nodes) C(k, v) sᵛ (1−s)^{k−v}, of positive terms and so free of cancellation."""
    low, high = interval
    s = (t - low) / (high - low)
    nodes = function(torch.linspace(low, high, degree + 1, dtype=torch.float64))
    terms = [math.comb(degree, v) * s**v * (1 - s) ** (degree - v) * nodes[v] for v in range(degree + 1)]
    return torch.stack(terms).sum(0)


def evaluate(coefficients: tuple[float, ...], t: Tensor) -> Tensor:
    return torch.from_numpy(np.polynomial.polynomial.polyval(t.numpy(), np.array(coefficients)))


def grid(interval: tuple[float, float]) -> Tensor:
    return torch.linspace(*interval, 501, dtype=torch.float64)


@pytest.mark.parametrize(
    ("degree", "interval", "expected"),
    [
        (1, (-1.0, 1.0), (1.0, 0.0)),  # the chord of |t|
        (2, (-1.0, 1.0), (0.5, 0.0, 0.5)),  # (1−s)² + s² with s = (t + 1)/2
        (2, (0.0, 2.0), (0.0, 1.0, 0.0)),  # |t| is affine there
    ],
)
def test_coefficients_computed_by_hand(degree: int, interval, expected: tuple[float, ...]) -> None:
    assert bernstein_coefficients(torch.abs, degree, interval) == expected


@pytest.mark.parametrize("degree", [1, 3, 5, 10, 20])
@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("function", [torch.abs, torch.exp, torch.relu, torch.sin])
def test_the_coefficients_are_those_of_the_definition(function, interval, degree: int) -> None:
    t = grid(interval)
    ours = evaluate(bernstein_coefficients(function, degree, interval), t)
    torch.testing.assert_close(ours, by_definition(function, degree, interval, t), rtol=0, atol=5e-14)


@pytest.mark.parametrize("degree", [1, 2, 5, 20])
@pytest.mark.parametrize("interval", INTERVALS)
def test_affine_functions_are_reproduced(interval, degree: int) -> None:
    coefficients = bernstein_coefficients(lambda t: 0.75 - 1.5 * t, degree, interval)
    torch.testing.assert_close(
        evaluate(coefficients, grid(interval)), 0.75 - 1.5 * grid(interval), rtol=1e-7, atol=1e-7
    )
    assert len(coefficients) == degree + 1


def test_of_a_square_the_error_is_what_the_variance_of_the_binomial_says() -> None:
    """B_k t² − t² = s(1−s)h²/k, which is not zero: a polynomial is not its own Bernstein polynomial."""
    t = grid((0.0, 2.0))
    error = evaluate(bernstein_coefficients(torch.square, 5, (0.0, 2.0)), t) - t.square()
    torch.testing.assert_close(error, t * (2 - t) / 5, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("interval", [(-1.0, 1.0), (-0.5, 2.0)])
def test_the_error_at_a_kink_falls_and_keeps_to_its_bound(interval) -> None:
    """|B_k f − f| ≤ 3/2 ω(h/√k); the modulus of continuity of |t| is the distance itself."""
    t, width, errors = grid(interval), interval[1] - interval[0], []
    for degree in (2, 4, 8, 16, 20):
        coefficients = bernstein_coefficients(torch.abs, degree, interval)
        errors.append(float((evaluate(coefficients, t) - t.abs()).abs().max()))
        assert 0 < errors[-1] <= 1.5 * width / math.sqrt(degree)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("function", "degree", "interval", "message"),
    [
        (torch.abs, 0, (0.0, 1.0), "degree is 0, expected at least 1"),
        (torch.abs, 2, (1.0, 1.0), "interval is 1.0 to 1.0, expected two finite numbers in ascending order"),
        (torch.abs, 2, (0.0, math.inf), "interval is 0.0 to inf, expected two finite numbers"),
        (torch.log, 2, (0.0, 1.0), "the function is not finite at one of"),
    ],
)
def test_what_makes_no_polynomial_is_refused(function, degree: int, interval, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bernstein_coefficients(function, degree, interval)
