"""iSDF's metrics against numbers computed by hand."""

import math

import pytest
import torch

from eugen3d.metrics.sdf import (
    BINS,
    collision_cost,
    collision_cost_error,
    eikonal_error,
    gradient_cosine_distance,
    sdf_error,
    sdf_error_by_distance,
    sdf_metrics,
)

TRUTH = torch.tensor([-0.2, 0.0, 0.05, 0.1, 0.3, 0.7, 1.0, 3.0])
ERRORS = torch.tensor([0.1, -0.2, 0.4, 0.01, -0.02, 0.03, 0.5, -0.7])


def test_errors_by_hand() -> None:
    assert sdf_error(TRUTH + ERRORS, TRUTH) == pytest.approx(1.96 / 8)
    expected = {"<0": 0.1, "0-0.1": 0.3, "0.1-0.2": 0.01, "0.2-0.5": 0.02, "0.5-1": 0.03, ">1": 0.6}
    assert sdf_error_by_distance(TRUTH + ERRORS, TRUTH) == pytest.approx(expected, abs=1e-6)
    assert sdf_error_by_distance(torch.tensor([0.2]), torch.tensor([0.05]))["<0"] is None


def test_every_distance_is_in_one_bin() -> None:
    truth = torch.cat([torch.linspace(-2, 4, 1001), torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0])])
    counts = torch.stack([(truth >= low) & (truth < high) for low, high in BINS.values()]).sum(dim=0)
    assert (counts == 1).all()


def test_collision_cost_by_hand() -> None:
    cost = collision_cost(torch.tensor([-0.5, 0.0, 0.5, 1.5, 2.0, 3.0]), 2.0)
    torch.testing.assert_close(cost, torch.tensor([1.5, 1.0, 0.5625, 0.0625, 0.0, 0.0]))
    assert collision_cost_error(torch.tensor([0.5, 3.0]), torch.tensor([1.5, 5.0]), 2.0) == pytest.approx(0.25)


@pytest.mark.parametrize("epsilon", [1.0, 1.5, 2.0])
def test_collision_cost_is_smooth_and_falls(epsilon: float) -> None:
    distance = torch.linspace(-1, 3, 4001, dtype=torch.float64, requires_grad=True)
    cost = collision_cost(distance, epsilon)
    (slope,) = torch.autograd.grad(cost.sum(), distance)
    assert (cost.diff() <= 0).all() and cost.diff().abs().max() < 1.001e-3
    assert slope.diff().abs().max() < 1.1e-3 / epsilon, "no jump where the pieces meet"


def test_gradient_cosine_distance_by_hand() -> None:
    gradient = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -3.0], [1.0, 1.0, 0.0]])
    truth = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert gradient_cosine_distance(gradient, truth) == pytest.approx((0 + 1 + 2 + 1 - math.sqrt(0.5)) / 4)
    assert gradient_cosine_distance(torch.zeros(1, 3), torch.ones(1, 3)) == 1.0


def test_eikonal_error_by_hand() -> None:
    assert eikonal_error(torch.tensor([[0.0, 1.0, 0.0], [3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])) == pytest.approx(5 / 3)


def test_all_together() -> None:
    unit = torch.ones(8, 3) / math.sqrt(3)
    perfect = sdf_metrics(TRUTH, TRUTH, unit, unit)
    assert all(value == pytest.approx(0.0, abs=1e-6) for value in perfect.values())
    metrics = sdf_metrics(TRUTH + ERRORS, TRUTH)
    assert metrics["sdf_error"] == pytest.approx(0.245) and metrics["sdf_error[>1]"] == pytest.approx(0.6)
    assert metrics["collision_cost_error[1.5]"] == collision_cost_error(TRUTH + ERRORS, TRUTH, 1.5) > 0
    assert "gradient_cosine_distance" not in metrics


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        sdf_metrics(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"shapes \(0,\) and \(0,\)"):
        sdf_metrics(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="expected both or neither"):
        sdf_metrics(torch.zeros(2), torch.zeros(2), gradient=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        sdf_metrics(torch.tensor([math.nan]), torch.zeros(1))
