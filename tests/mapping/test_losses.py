"""Bounds and losses at hand-computed values (Ortiz et al. 2022)."""

import math

import pytest
import torch

from eugen3d.mapping.bounds import bounds_by_nearest, bounds_by_normal, bounds_by_ray, find_bounds
from eugen3d.mapping.config import SdfLossConfig
from eugen3d.mapping.losses import distance_loss, eikonal_loss, free_space_loss, gradient_loss, sdf_losses
from eugen3d.mapping.rays import Rays, Samples

SQRT2 = math.sqrt(2)


def slanted() -> tuple[Rays, Samples]:
    """A ray from the origin along (1, 0, -1), whose surface at depth 2 has the normal (0, 0, 1), and one along
    (0, 0, -1), whose surface is at depth 1 with the normal (0, 0, 1). Samples: the surface, before it, behind it."""
    directions = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, -1.0]])
    depth = torch.tensor([2.0, 1.0])
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    rays = Rays(torch.zeros(2, 3), directions, depth, normals, torch.zeros(2, dtype=torch.int64))
    along = torch.tensor([[2.0, 0.5, 1.9, 2.1], [1.0, 0.5, 0.9, 1.2]])
    return rays, Samples(along, along[..., None] * directions[:, None])


def test_bounds_by_ray() -> None:
    bounds = bounds_by_ray(*slanted())
    expected = torch.tensor([[0.0, 1.5 * SQRT2, 0.1 * SQRT2, -0.1 * SQRT2], [0.0, 0.5, 0.1, -0.2]])
    torch.testing.assert_close(bounds.distance, expected, rtol=1e-5, atol=1e-6)
    back = torch.tensor([-1 / SQRT2, 0.0, 1 / SQRT2])
    torch.testing.assert_close(bounds.gradient[0], torch.stack([torch.tensor([0.0, 0.0, 1.0]), back, back, back]))


def test_bounds_by_normal() -> None:
    """cos θ is 1/√2 on the first ray and 1 on the second, where the bound stays that of the ray."""
    bounds = bounds_by_normal(*slanted(), truncation=0.3)
    free = 1.5 * SQRT2 - 0.3 * (1 - 1 / SQRT2)
    expected = torch.tensor([[0.0, free, 0.1, -0.1], [0.0, 0.5, 0.1, -0.2]])
    torch.testing.assert_close(bounds.distance, expected, rtol=1e-5, atol=1e-6)


def test_bounds_by_normal_are_continuous_at_the_truncation() -> None:
    rays, samples = slanted()
    depth = torch.tensor([2.0, 2 - 0.29999 / SQRT2, 2 - 0.30001 / SQRT2])[None]
    distance = bounds_by_normal(Rays(*(t[:1] for t in rays)), Samples(depth, samples.points[:1, :3]), 0.3).distance
    assert float(distance[0, 1]) == pytest.approx(float(distance[0, 2]), abs=1e-4)
    assert float(distance[0, 1]) == pytest.approx(0.3 / SQRT2, abs=1e-4)


def test_bounds_by_the_nearest_surface_point() -> None:
    """The surfaces are at (2, 0, -2) and (0, 0, -1). The first ray's sample at (.5, 0, -.5) is nearer to the second's
    surface: √(.25 + .25); behind their surface bounds are negative and gradients turn towards it."""
    bounds = bounds_by_nearest(*slanted())
    expected = torch.tensor([[0.0, SQRT2 / 2, 0.1 * SQRT2, -0.1 * SQRT2], [0.0, 0.5, 0.1, -0.2]])
    torch.testing.assert_close(bounds.distance, expected, rtol=1e-5, atol=1e-6)
    half = 1 / SQRT2
    first = [[0.0, 0.0, 1.0], [half, 0.0, half], [-half, 0.0, half], [-half, 0.0, half]]
    torch.testing.assert_close(bounds.gradient[0], torch.tensor(first))
    torch.testing.assert_close(bounds.gradient[1], torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3))


def test_a_sample_on_a_surface_has_its_normal_as_gradient() -> None:
    rays, _ = slanted()
    on_surface = rays.depth[:, None].expand(2, 3)
    bounds = bounds_by_nearest(rays, Samples(on_surface, on_surface[..., None] * rays.directions[:, None]))
    assert not bounds.distance.any()
    torch.testing.assert_close(bounds.gradient, rays.normals[:, None].expand(2, 3, 3))


def test_the_method_is_the_configured_one() -> None:
    found = {method: find_bounds(*slanted(), SdfLossConfig(bounds=method)).distance for method in ("ray", "normal")}
    found["nearest"] = find_bounds(*slanted(), SdfLossConfig()).distance
    values = [float(distance[0, 1]) for distance in found.values()]
    assert values == pytest.approx([1.5 * SQRT2, 1.5 * SQRT2 - 0.29365 * (1 - 1 / SQRT2), SQRT2 / 2], abs=1e-6)


@pytest.mark.parametrize(
    ("distance", "bound", "expected"),
    [
        (0.4, 1.0, 0.0),  # between zero and the bound nothing is known: e^{−2} − 1 is below zero
        (1.3, 1.0, 0.3),
        (0.0, 1.0, 0.0),
        (-0.1, 1.0, math.exp(0.5) - 1),
        (-1.0, 0.5, math.exp(5.0) - 1),
    ],
)
def test_the_free_space_loss(distance: float, bound: float, expected: float) -> None:
    found = free_space_loss(torch.tensor(distance), torch.tensor(bound))
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("distance", "bound", "expected"),
    [
        (0.5, 0.29, 5.38344 * 0.21),
        (0.2, -0.05, 5.38344 * 0.25),
        (-0.1, 0.29365, 5.38344 * 0.39365),  # at the truncation the distance is still taken for known
        (0.5, 0.30, 0.20),  # beyond it the free-space loss, whose weight is one
        (0.2, 0.30, 0.0),
    ],
)
def test_the_distance_loss(distance: float, bound: float, expected: float) -> None:
    found = distance_loss(torch.tensor(distance), torch.tensor(bound), SdfLossConfig())
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_gradient_loss() -> None:
    gradient = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = gradient_loss(gradient, torch.tensor([1.0, 0.0, 0.0]).expand(4, 3))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 2.0, 1 - 1 / SQRT2]))


def test_the_eikonal_loss() -> None:
    gradient = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.6, 0.8], [0.0, 0.0, 0.25]])
    torch.testing.assert_close(eikonal_loss(gradient), torch.tensor([4.0, 0.0, 0.75]))


def test_all_losses_with_their_weights() -> None:
    """Two samples of one ray: bounds 0.05 (near, too near for the eikonal loss) and 0.5 (free)."""
    bounds = bounds_by_ray(*slanted())
    bounds = bounds._replace(
        distance=torch.tensor([[0.05, 0.5]]), gradient=torch.tensor([[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    )
    distance, gradient = torch.tensor([[0.15, 0.75]]), torch.tensor([[[0.0, 2.0, 0.0], [0.0, 2.0, 0.0]]])
    losses = sdf_losses(distance, gradient, bounds, SdfLossConfig())
    torch.testing.assert_close(losses["distance_loss"], torch.tensor([[5.38344 * 0.1, 0.25]]))
    torch.testing.assert_close(losses["gradient_loss"], torch.tensor([[0.018, 0.0]]))
    torch.testing.assert_close(losses["eikonal_loss"], torch.tensor([[0.0, 0.268]]))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="bounds is 'pc', expected one of ray, normal, nearest"):
        SdfLossConfig(bounds="pc")  # pyright: ignore[reportArgumentType]
