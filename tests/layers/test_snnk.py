"""SNNKLinear: the kernels of its features, and the fit of its readout."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eugen3d import SNNKConfig, SNNKLinear


def terms(form, num_features: int = 200_000) -> tuple[Tensor, Tensor, Tensor]:
    """Two inputs of four entries, and the products of their features, one term of the kernel's mean each."""
    generator = torch.Generator().manual_seed(2)
    layer = SNNKLinear(4, 1, num_features, form, dtype=torch.float64, generator=generator)
    w, x = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        return w, x, layer.features(w) * layer.features(x)


def assert_mean_within_five_standard_errors(values: Tensor, expected: float) -> None:
    standard_error = values.std() / math.sqrt(len(values))
    assert 0 < (values.mean() - expected).abs() < 5 * standard_error
    assert standard_error < 0.02 * abs(expected), "too few draws to tell anything"


def test_the_relu_form_is_the_arc_cosine_kernel() -> None:
    """E ΨᵀΦ = ‖w‖‖x‖ (sin θ + (π − θ) cos θ)/2π (Cho & Saul 2009, order 1, of Gaussian rows)."""
    w, x, products = terms("relu")
    theta = torch.acos(nn.functional.cosine_similarity(w, x, dim=0)).item()
    kernel = w.norm().item() * x.norm().item() * (math.sin(theta) + (math.pi - theta) * math.cos(theta)) / (2 * math.pi)
    assert_mean_within_five_standard_errors(len(products) * products, kernel)


def test_the_fourier_form_is_the_gaussian_kernel() -> None:
    """2 E sin(g·w + β) sin(g·x + β) = exp(−‖w − x‖²/2d) (Rahimi & Recht 2007)."""
    w, x, products = terms("fourier")
    assert_mean_within_five_standard_errors(2 * products, math.exp(-(w - x).square().sum().item() / 8))


@pytest.mark.parametrize(
    ("form", "value"), [("relu", 3 * 4 + 0.5), ("fourier", 3 * math.sin(5) + 7 * math.sin(-5) + 0.5)]
)
def test_value_computed_by_hand(form, value: float) -> None:
    layer = SNNKLinear(2, 1, num_features=2, form=form)
    with torch.no_grad():
        layer.features.projection.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
        if form == "fourier":
            layer.features.projection.bias.copy_(torch.tensor([1.0, -1.0]))
        layer.readout.weight.copy_(torch.tensor([[3.0, 7.0]]))
        layer.readout.bias.fill_(0.5)
    assert layer(torch.tensor([2.0, 1.0])).item() == pytest.approx(value)


def test_the_relu_form_divides_by_the_root_of_the_number_of_features() -> None:
    layer = SNNKLinear(50, 1, num_features=400)
    assert layer.features.projection.weight.std().item() == pytest.approx(1 / 20, rel=0.05)


@pytest.mark.parametrize("form", ["relu", "fourier"])
def test_a_fresh_layer_keeps_the_second_moment(form) -> None:
    layer = SNNKLinear(64, 64, num_features=4000, form=form)
    assert layer(torch.randn(200, 64)).square().mean().item() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("form", ["relu", "fourier"])
@pytest.mark.parametrize("train_projections", [True, False])
def test_projections_are_fixed_unless_they_are_to_be_trained(form, train_projections: bool) -> None:
    layer = SNNKLinear(6, 5, num_features=4, form=form, train_projections=train_projections)
    layer(torch.randn(7, 6)).square().sum().backward()
    assert all((p.grad is not None) is train_projections for p in layer.features.parameters())
    assert all(p.grad is not None and p.grad.any() for p in layer.readout.parameters())


def test_the_generator_decides_the_whole_draw() -> None:
    draws = [SNNKLinear(6, 4, 8, "fourier", generator=torch.Generator().manual_seed(s)).state_dict() for s in (1, 1, 2)]
    for name in ("features.projection.weight", "features.projection.bias", "readout.weight"):
        assert torch.equal(draws[0][name], draws[1][name])
        assert not torch.equal(draws[0][name], draws[2][name])


@pytest.mark.parametrize("form", ["relu", "fourier"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_fit_to_inputs_is_the_least_squares_solution(form, bias: bool) -> None:
    linear = nn.Linear(6, 3, dtype=torch.float64)
    x = torch.randn(10, 20, 6, dtype=torch.float64)
    layer = SNNKLinear.from_linear(linear, "relu", SNNKConfig(5, form, bias=bias), x)
    phi = layer.features(x).detach().flatten(0, 1).numpy()
    if bias:
        phi = np.concatenate([phi, np.ones((len(phi), 1))], axis=1)
    target = linear(x).relu().detach().flatten(0, 1).numpy()
    expected = np.linalg.lstsq(phi, target, rcond=None)[0].T
    np.testing.assert_allclose(layer.readout.weight.detach().numpy(), expected[:, :5], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("form", "activation"), [("relu", "relu"), ("fourier", "sine"), ("fourier", "softplus")])
def test_a_fit_without_inputs_comes_close_on_standard_normal_ones(form, activation) -> None:
    """Random features of six inputs, 128 of them: some per cent, never exact, and nearer with more of them."""
    linear, x = nn.Linear(6, 3), torch.randn(500, 6)
    target = {"relu": torch.relu, "sine": torch.sin, "softplus": nn.functional.softplus}[activation](linear(x))
    errors = []
    for num_features in (16, 128):
        layer = SNNKLinear.from_linear(linear, activation, SNNKConfig(num_features, form))
        errors.append(float((layer(x) - target).detach().norm() / target.detach().norm()))
    assert 0 < errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.2


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(ValueError, match="num_features is 0, expected at least 1"):
        SNNKLinear(3, 2, num_features=0)
    with pytest.raises(ValueError, match="form 'gelu' is unknown, expected one of relu, fourier"):
        SNNKLinear(3, 2, form="gelu")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="widths are 0 and 2"):
        SNNKLinear(0, 2)
