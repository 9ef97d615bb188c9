"""The loss of distances and gradients, and what it does for a student's gradients."""

import pytest
import torch
from torch import Tensor, nn

from eugen3d.distill import FitConfig, Network, Rows, SdfLoss, fit_network


class Linear(nn.Module):
    """s = w · x, whose gradient is w everywhere."""

    def __init__(self, *weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def network(module: nn.Module) -> Network:
    return Network(module, {}, {})


def rows_at(points: Tensor) -> Rows:
    return Rows((points,), torch.ones(len(points)), torch.ones(len(points)))


def test_the_loss_by_hand() -> None:
    """Distances 1 and −1 have the variance 1, gradients the square 1; students are off by 0.5 and by 0.3."""
    rows = rows_at(torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    loss = SdfLoss(network(Linear(1.0, 0.0, 0.0)), rows)
    assert loss.of(network(Linear(1.0, 0.0, 0.0))) == 0.0
    assert loss.of(network(Linear(1.5, 0.0, 0.0))) == pytest.approx(0.25 + 0.1 * 0.25)
    assert loss.of(network(Linear(1.0, 0.3, 0.0))) == pytest.approx(0.1 * 0.09), "distances alone do not show it"


def test_the_loss_can_be_descended_and_leaves_no_graph_where_none_is_wanted() -> None:
    rows, student = rows_at(torch.randn(64, 3)), Linear(0.0, 0.5, 0.0)
    loss = SdfLoss(network(Linear(1.0, 0.0, 0.0)), rows)
    loss(network(student), torch.Generator().manual_seed(0), 32).backward()
    assert student.weight.grad is not None and float(student.weight.grad[0]) < 0 < float(student.weight.grad[1])
    with torch.no_grad():
        assert not loss.at(network(student), torch.arange(4)).requires_grad


def test_gradients_are_fitted_too() -> None:
    """Distances at a few points leave the gradients there open."""
    points = 0.5 * torch.randn(12, 3)
    sphere = network(nn.Sequential(_Norm()))

    def error(mult: float) -> float:
        torch.manual_seed(1)
        student = network(nn.Sequential(nn.Linear(3, 32), nn.Softplus(beta=10), nn.Linear(32, 1), nn.Flatten(0)))
        loss = SdfLoss(sphere, rows_at(points))
        loss.gradient_scale /= mult
        fit_network(student, loss, FitConfig(steps=300, learning_rate=2e-2), torch.Generator().manual_seed(0))
        x = points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(student((x,))[0].sum(), x)
        return float(1 - torch.cosine_similarity(gradient, points, dim=-1).mean())

    assert error(1.0) < 0.8 * error(1e-6)


class _Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.norm(dim=-1)
