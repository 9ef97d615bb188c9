"""Laws of the contraction: its inverse, its Jacobian, and gradients that are finite everywhere."""

import math

import pytest
import torch

from eugen3d.fields.contraction import contract, contract_gaussians, contraction_scale, to_unit_cube, uncontract


@pytest.fixture
def points() -> torch.Tensor:
    """Of norms from 1e-3 to 1e3, in all directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator, dtype=torch.float64), dim=-1)
    return directions * torch.logspace(-3, 3, 200, dtype=torch.float64)[:, None]


def test_known_points() -> None:
    x = torch.tensor([[0.5, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -10.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.5, 0.0, 0.0], [0.0, 1.5, 0.0], [0.0, 0.0, -1.9], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(contract(x), expected)


def test_uncontract_inverts_contract(points: torch.Tensor) -> None:
    contracted = contract(points)
    assert contracted.norm(dim=-1).max() < 2 and not torch.allclose(contracted, points)
    torch.testing.assert_close(uncontract(contracted), points, rtol=1e-9, atol=1e-12)


def test_the_rim_has_an_inverse_too() -> None:
    assert uncontract(torch.tensor([[2.0, 0.0, 0.0]])).isfinite().all()


def test_the_scale_is_the_jacobians(points: torch.Tensor) -> None:
    jacobians = torch.func.vmap(torch.func.jacrev(contract))(points)
    expected = torch.linalg.det(jacobians).abs() ** (1 / 3)
    torch.testing.assert_close(contraction_scale(points), expected, rtol=1e-9, atol=0)
    assert (contraction_scale(points) < 0.01).any() and (contraction_scale(points) == 1).any()


def test_the_jacobian_stretches_as_written() -> None:
    r = 3.0
    jacobian = torch.func.jacrev(contract)(torch.tensor([r, 0.0, 0.0], dtype=torch.float64))
    expected = torch.diag(torch.tensor([1 / r**2, (2 - 1 / r) / r, (2 - 1 / r) / r], dtype=torch.float64))
    torch.testing.assert_close(jacobian, expected)


def test_gaussians_against_samples() -> None:
    """A small Gaussian's contraction has the deviation that is said, as the geometric mean over its directions."""
    mean, std = torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64), torch.tensor(1e-3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    samples = contract(mean + std * torch.randn(200_000, 3, generator=generator, dtype=torch.float64))
    contracted, contracted_std = contract_gaussians(mean, std)
    torch.testing.assert_close(samples.mean(dim=0), contracted, atol=1e-5, rtol=0)
    measured = torch.linalg.det(torch.cov(samples.T)) ** (1 / 6)
    assert float(measured) == pytest.approx(float(contracted_std), rel=0.01)


@pytest.mark.parametrize("norm", [0.0, 1e-10, 1e-3, 1.0, 1e3, 1e10])
def test_gradients_are_finite(norm: float) -> None:
    x = (torch.tensor([[0.6, 0.0, 0.8]]) * norm).requires_grad_()
    (contract(x).sum() + contraction_scale(x).sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_the_ball_fits_the_unit_cube() -> None:
    z, std = to_unit_cube(torch.tensor([[-2.0, 0.0, 2.0]]), torch.tensor([1.0]))
    torch.testing.assert_close(z, torch.tensor([[0.0, 0.5, 1.0]]))
    assert float(std) == 0.25 and math.isclose(float(to_unit_cube(torch.tensor([[2.1, 0, 0]]), std)[0].max()), 1.0)
