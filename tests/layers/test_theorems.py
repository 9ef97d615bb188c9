"""Theorems 3.1 to 3.4 of EUGens (2025), by Monte Carlo with fixed seeds.

A layer of m features is the mean of m random terms. Terms of different features are independent for Gaussian and
Rademacher projections, so one layer of many features is as many draws, and its terms' variance is m times the layer's.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from eugen3d import EUGenConfig, EUGenLinear
from eugen3d.layers import bernstein_coefficients

IN_FEATURES = 4
COEFFICIENTS = {1: (0.0, 1.0), 2: (0.5, 1.0, -0.7), 3: (0.3, -0.8, 0.5, 0.25), 4: (0.2, -0.6, 0.4, 0.3, -0.1)}
FOURTH_MOMENT = {"gaussian": 3.0, "rademacher": 1.0}


def problem() -> tuple[nn.Linear, Tensor]:
    """A dense layer of two outputs without bias, and one input."""
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(IN_FEATURES, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, IN_FEATURES, generator=generator, dtype=torch.float64) / 2)
    return linear, torch.randn(IN_FEATURES, generator=generator, dtype=torch.float64)


def draw_terms(
    order: int, projection, shared: bool, num_features: int, seed: int, coefficients: tuple[float, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """The m terms (m, 2) whose mean is the output of the layer of Theorem 3.1, and that output, (2,)."""
    linear, x = problem()
    config = EUGenConfig(num_features, order, "identity", False, projection, shared)
    generator = torch.Generator().manual_seed(seed)
    layer = EUGenLinear.from_polynomial(linear, coefficients or COEFFICIENTS[order], config, generator)
    with torch.no_grad():
        parts = (layer.readout.weight * layer.features(x)).view(2, order, num_features)
        return num_features * parts.sum(1).T + layer.readout.bias, layer(x)


def expected_output(coefficients: tuple[float, ...]) -> Tensor:
    linear, x = problem()
    t = (linear.weight @ x).detach()
    return torch.stack([a * t**i for i, a in enumerate(coefficients)]).sum(0)


def theorem_3_2(coefficients: tuple[float, ...], projection: str) -> Tensor:
    """m times the variance of the layer, (2,), all projections independent."""
    linear, x = problem()
    w = linear.weight.detach()
    t, excess = w @ x, FOURTH_MOMENT[projection] - 3
    per_degree = 2 * t**2 + w.square().sum(1) * x.square().sum() + excess * (w.square() @ x.square())
    terms = [a**2 * (per_degree**i - t ** (2 * i)) for i, a in enumerate(coefficients) if i]
    return torch.stack(terms).sum(0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("projection", ["gaussian", "rademacher", "orthogonal"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_layer_is_unbiased(order: int, projection, shared: bool) -> None:
    """Theorem 3.1, the mean within five of its standard errors."""
    num_features = 20_000 if projection == "orthogonal" else 200_000
    terms, output = draw_terms(order, projection, shared, num_features, seed=11)
    torch.testing.assert_close(output, terms.mean(0))
    if projection == "orthogonal":  # independent block by block, not row by row
        terms = terms.view(-1, IN_FEATURES, 2).mean(1)
    standard_error = terms.std(0) / math.sqrt(len(terms))
    distance = (output - expected_output(COEFFICIENTS[order])).abs()
    assert (distance < 5 * standard_error).all()
    assert (distance > 0).all(), "the layer is random, an exact value means that it was not drawn"
    assert (standard_error < 0.1 * problem()[1].norm()).all(), "too few draws to tell anything"


def measured_variance(order: int, projection: str, coefficients: tuple[float, ...], draws: int) -> Tensor:
    """m times the variance of the layer, (2,), from 200,000 terms a draw."""
    squares = torch.zeros(2, dtype=torch.float64)
    for seed in range(draws):
        terms, _ = draw_terms(order, projection, False, 200_000, seed, coefficients)
        squares += (terms - expected_output(coefficients)).square().mean(0)
    return squares / draws


@pytest.mark.parametrize("projection", ["gaussian", "rademacher"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_variance_is_that_of_theorem_3_2(order: int, projection) -> None:
    """Within 5 %. Products of six Gaussians and more have heavy tails: sixteen draws tell it to between 1 and 2 %."""
    draws = 16 if projection == "gaussian" and order > 2 else 2
    variance = measured_variance(order, projection, COEFFICIENTS[order], draws)
    torch.testing.assert_close(variance, theorem_3_2(COEFFICIENTS[order], projection), rtol=0.05, atol=0)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_variance_of_the_highest_degree_alone_is_that_of_theorem_3_2(order: int) -> None:
    """f(t) = tᵏ, where no lower degree can hide the highest; Rademacher projections, whose tails are bounded."""
    coefficients = (0.0,) * order + (1.0,)
    variance = measured_variance(order, "rademacher", coefficients, draws=3)
    torch.testing.assert_close(variance, theorem_3_2(coefficients, "rademacher"), rtol=0.05, atol=0)


@pytest.mark.parametrize("projection", ["gaussian", "rademacher"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_large_errors_become_exponentially_rare_with_more_features(order: int, projection) -> None:
    """Theorem 3.3: P(|error| > ε) falls with m, and faster than a power of m would.

    Of a power every doubling of m leaves the same share; here it leaves less and less. ε is half the standard
    deviation of one term; Chebyshev's inequality would leave 1/8 at m = 32.
    """
    terms, _ = draw_terms(order, projection, False, 200_000, seed=17)
    errors = (terms - expected_output(COEFFICIENTS[order]))[:, 0]
    threshold = theorem_3_2(COEFFICIENTS[order], projection)[0].sqrt() / 2
    tails = [float((errors.view(-1, m).mean(1).abs() > threshold).double().mean()) for m in (4, 8, 16, 32)]
    left = [after / before for before, after in itertools.pairwise(tails)]
    assert left == sorted(left, reverse=True) and left[0] < 1
    assert 0 < tails[-1] < 0.02


def test_orthogonal_projections_lower_the_variance() -> None:
    """Proved for order 1: the output of d features varies less than with independent Gaussian rows."""
    terms, _ = draw_terms(1, "orthogonal", True, 20_000, seed=5)
    variance = terms.view(-1, IN_FEATURES, 2).mean(1).var(0)
    assert (variance < 0.9 * theorem_3_2(COEFFICIENTS[1], "gaussian") / IN_FEATURES).all()


def test_from_linear_with_phi_identity_is_the_unbiased_start() -> None:
    linear = nn.Linear(IN_FEATURES, 3, dtype=torch.float64)
    x = torch.randn(IN_FEATURES, dtype=torch.float64)
    config = EUGenConfig(100_000, 2, "identity", projection="gaussian")
    layer = EUGenLinear.from_linear(linear, "identity", config)
    assert layer(x).tolist() == pytest.approx(linear(x).tolist(), abs=0.05)
    assert not layer.features.norm_weight.any()  # pyright: ignore[reportOptionalMemberAccess]


def test_the_mean_of_a_layer_from_a_function_is_its_bernstein_polynomial() -> None:
    """Theorem 3.4, within five standard errors, and nearer to the function than a straight line."""
    linear, x = problem()
    config = EUGenConfig(200_000, 4, "identity", False, "rademacher", shared=False)
    generator = torch.Generator().manual_seed(7)
    layer = EUGenLinear.from_function(linear, torch.tanh, (-2.0, 2.0), config, generator)
    coefficients = bernstein_coefficients(torch.tanh, 4, (-2.0, 2.0))
    standard_error = (theorem_3_2(coefficients, "rademacher") / config.num_features).sqrt()
    output = layer(x).detach()
    assert ((output - expected_output(coefficients)).abs() < 5 * standard_error).all()
    t = linear(x).detach()
    secant = t * math.tanh(2.0) / 2
    assert (output - torch.tanh(t)).abs().max() < 0.7 * (secant - torch.tanh(t)).abs().max()


def test_factored_projections_are_refused() -> None:
    config = EUGenConfig(4, phi="identity", projection_rank=2)
    with pytest.raises(ValueError, match="projection_rank is set, expected None"):
        EUGenLinear.from_polynomial(nn.Linear(3, 2, bias=False), (0.0, 1.0), config)


@pytest.mark.parametrize(
    ("coefficients", "config", "bias", "message"),
    [
        ((0.0, 1.0), EUGenConfig(4), False, "phi is 'relu', expected 'identity'"),
        ((0.0, 1.0, 2.0), EUGenConfig(4, phi="identity"), False, "3 coefficients for order 1, expected 2"),
        ((0.0, 2.0), EUGenConfig(4, phi="identity"), True, "has a bias, expected none"),
        ((1.0, 1.0), EUGenConfig(4, phi="identity", bias=False), False, "config.bias is False, expected True"),
        ((0.0, 1.0), EUGenConfig(4, phi="identity", bias=False), True, "config.bias is False, expected True"),
    ],
)
def test_polynomials_that_cannot_be_built_are_refused(coefficients, config, bias: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EUGenLinear.from_polynomial(nn.Linear(3, 2, bias=bias), coefficients, config)
