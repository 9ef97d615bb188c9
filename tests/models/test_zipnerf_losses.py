"""The losses of Zip-NeRF against brute force."""

import pytest
import torch
from torch import Tensor

from eugen3d.fields import HashGrid, HashGridConfig
from eugen3d.models.ray_spacing import inverse_power_transform, inverse_spacing, power_transform, spacing
from eugen3d.models.zipnerf_losses import blurred_weights, charbonnier_loss, hash_decay, interlevel_loss


def histogram(rays: int, bins: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.rand(rays, bins + 1, generator=generator, dtype=torch.float64).sort(dim=-1).values
    weights = torch.rand(rays, bins, generator=generator, dtype=torch.float64)
    return edges, weights / weights.sum(dim=-1, keepdim=True)


def brute_force(edges: Tensor, weights: Tensor, pulse: float, at: Tensor, count: int = 400_000) -> Tensor:
    """The blurred histogram's mass between points, from draws: a point of the histogram plus one of the box."""
    found = []
    for own_edges, own_weights, own_at in zip(edges, weights, at, strict=True):
        generator = torch.Generator().manual_seed(1)
        picks = torch.multinomial(own_weights, count, replacement=True, generator=generator)
        low, width = own_edges[picks], own_edges.diff()[picks]
        draws = low + width * torch.rand(count, generator=generator, dtype=torch.float64)
        draws += pulse * (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)
        found.append(torch.stack([((draws >= a) & (draws < b)).double().mean() for a, b in own_at.unfold(0, 2, 1)]))
    return torch.stack(found)


@pytest.mark.parametrize("pulse", [0.03, 0.003, 0.5])
def test_blurred_weights_against_draws(pulse: float) -> None:
    (edges, weights), (at, _) = histogram(3, 8, 0), histogram(3, 5, 1)
    torch.testing.assert_close(
        blurred_weights(edges, weights, pulse, at), brute_force(edges, weights, pulse, at), atol=5e-3, rtol=0
    )


def test_blurring_keeps_the_mass_and_a_narrow_pulse_the_histogram() -> None:
    edges, weights = histogram(4, 8, 0)
    wide = torch.tensor([-2.0, 3.0]).expand(4, 2)
    torch.testing.assert_close(blurred_weights(edges, weights, 0.1, wide)[:, 0], weights.sum(dim=-1))
    torch.testing.assert_close(blurred_weights(edges, weights, 1e-7, edges), weights, atol=1e-5, rtol=0)
    assert not torch.allclose(blurred_weights(edges, weights, 0.1, edges), weights, atol=1e-2)


def test_interlevel_loss_against_brute_force() -> None:
    (edges, weights), (at, proposed) = histogram(3, 8, 0), histogram(3, 5, 1)
    found = interlevel_loss(edges, weights, at, proposed, 0.05)
    wanted = brute_force(edges, weights, 0.05, at)
    expected = ((wanted - proposed).clamp(min=0) ** 2 / (proposed + 1e-5)).sum(dim=-1).mean()
    assert float(expected) > 0.01
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


def test_interlevel_loss_trains_the_proposal_alone() -> None:
    (edges, weights), (at, proposed) = histogram(3, 8, 0), histogram(3, 5, 1)
    weights.requires_grad_()
    proposed.requires_grad_()
    interlevel_loss(edges, weights, at, proposed, 0.05).backward()
    assert weights.grad is None and proposed.grad is not None and proposed.grad.abs().max() > 0


def test_a_proposal_that_covers_everything_costs_nothing() -> None:
    edges, weights = histogram(3, 8, 0)
    assert float(interlevel_loss(edges, weights, edges, 10 * torch.ones_like(weights), 0.03)) == 0.0


def test_interlevel_loss_is_finite_for_empty_intervals() -> None:
    edges = torch.tensor([[0.0, 0.5, 0.5, 1.0]])
    weights = torch.tensor([[0.2, 0.8, 0.0]], requires_grad=True)
    proposed = torch.zeros(1, 3, requires_grad=True)
    loss = interlevel_loss(edges, weights, edges, proposed, 0.003)
    loss.backward()
    assert loss.isfinite() and proposed.grad is not None and proposed.grad.isfinite().all()


def test_hash_decay_counts_every_level_alike() -> None:
    grids = [HashGrid(HashGridConfig(2, 4, 16, 2, 10)) for _ in range(2)]
    for grid in grids:
        torch.nn.init.constant_(grid.table, 3.0)
    torch.testing.assert_close(hash_decay(grids), torch.tensor(2 * 2 * 9.0))


def test_charbonnier_is_the_absolute_error_and_smooth() -> None:
    rgb = torch.tensor([[0.5, 0.2, 0.9]], requires_grad=True)
    assert float(charbonnier_loss(rgb, torch.tensor([[0.1, 0.4, 0.9]]))) == pytest.approx(0.2, abs=1e-3)
    charbonnier_loss(rgb, rgb.detach().clone()).backward()
    assert rgb.grad is not None and torch.equal(rgb.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("power", [-1.5, -0.5, 0.5])
def test_power_transform_and_its_inverse(power: float) -> None:
    x = torch.logspace(-10, 2, 13, dtype=torch.float64)
    y = power_transform(x, power)
    torch.testing.assert_close(inverse_power_transform(y, power), x, rtol=1e-6, atol=0)
    assert (y.diff() > 0).all() and float(y[0] / x[0]) == pytest.approx(1.0)


def test_power_transform_as_published() -> None:
    """|λ-1|/λ ((x/|λ-1| + 1)^λ - 1) at λ = -1.5 and x = 2.5: -5/3 (2^-1.5 - 1)."""
    assert float(power_transform(torch.tensor(2.5))) == pytest.approx(-5 / 3 * (2**-1.5 - 1))


@pytest.mark.parametrize("distance", [1e-10, 1e-3, 1.0, 1e3, 1e10])
def test_spacing_has_finite_gradients_both_ways(distance: float) -> None:
    t = torch.tensor(distance, requires_grad=True)
    s = spacing(t)
    inverse_spacing(s).backward()
    assert s.isfinite() and t.grad is not None and t.grad.isfinite()
