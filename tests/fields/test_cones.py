"""The six Gaussians of a cone's interval against the moments of the cone."""

import math

import pytest
import torch
from torch import Tensor

from eugen3d.fields.cones import STD_SCALE, cone_distances, cone_gaussians, perpendicular, pixel_radius

INTERVALS = [(1.0, 1.1), (1.0, 3.0), (0.1, 10.0), (0.0, 1.0)]


def in_the_rays_frame(starts: float, ends: float, radius: float, *, is_random: bool = False, count: int = 1):
    """Points of `count` equal intervals of a ray along z, (count, 6, 3), and their deviations."""
    origin, direction = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    near, far = (torch.full((1, count), value, dtype=torch.float64) for value in (starts, ends))
    generator = torch.Generator().manual_seed(0)
    radii = torch.tensor([radius], dtype=torch.float64)
    means, stds = cone_gaussians(origin, direction, radii, near, far, generator, is_random=is_random)
    return means[0], stds[0]


def frustum_moments(t0: float, t1: float, radius: float) -> tuple[float, float, float]:
    """Mean and variance along the axis, and variance along one direction across it, of a uniform conical frustum: the
    cross-section grows as t², and a disc of radius ρ has the variance ρ²/4."""
    moment = [(t1 ** (k + 3) - t0 ** (k + 3)) / (k + 3) for k in range(3)]
    mean, second = moment[1] / moment[0], moment[2] / moment[0]
    return mean, second - mean**2, radius**2 * second / 4


@pytest.mark.parametrize(("starts", "ends"), INTERVALS)
def test_moments_are_the_frustums(starts: float, ends: float) -> None:
    radius = 0.2
    points, _ = in_the_rays_frame(starts, ends, radius)
    mean, along, across = frustum_moments(starts, ends, radius)
    centre = points[0].mean(dim=0)
    torch.testing.assert_close(centre, torch.tensor([0.0, 0.0, mean], dtype=torch.float64), rtol=1e-12, atol=1e-12)
    variances = (points[0] - centre).square().mean(dim=0)
    assert float(variances[2]) == pytest.approx(along, rel=1e-12)
    assert float(variances[:2].sum()) == pytest.approx(2 * across, rel=1e-12)


def test_random_turns_make_the_covariance_isotropic() -> None:
    points, _ = in_the_rays_frame(1.0, 2.0, 0.2, is_random=True, count=40_000)
    _, along, across = frustum_moments(1.0, 2.0, 0.2)
    centred = points.reshape(-1, 3) - points.reshape(-1, 3).mean(dim=0)
    covariance = centred.T @ centred / len(centred)
    expected = torch.diag(torch.tensor([across, across, along], dtype=torch.float64))
    torch.testing.assert_close(covariance, expected, rtol=0.01, atol=0.01 * across)
    assert not torch.allclose(points[0], points[1])


def test_without_randomness_neighbours_are_turned() -> None:
    points, _ = in_the_rays_frame(1.0, 2.0, 0.2, count=3)
    again, _ = in_the_rays_frame(1.0, 2.0, 0.2, count=3)
    assert torch.equal(points, again) and torch.equal(points[0], points[2])
    assert not torch.allclose(points[0], points[1])


@pytest.mark.parametrize(("starts", "ends"), INTERVALS)
def test_points_lie_inside_the_cone(starts: float, ends: float) -> None:
    """And, within the interval's variance, between its ends: of a wide one the last lies a little beyond."""
    points, stds = in_the_rays_frame(starts, ends, 0.3)
    t, across = points[0, :, 2], points[0, :, :2].norm(dim=-1)
    assert (t > starts).all() and (t < ends + 0.05 * (ends - starts)).all() and (t.diff() > 0).all()
    torch.testing.assert_close(across, 0.3 * t / math.sqrt(2))
    torch.testing.assert_close(stds[0], STD_SCALE * across)


@pytest.mark.parametrize("unit", [1e-10, 1e-3, 1.0, 1e3, 1e10])
def test_scale_does_not_matter_and_gradients_are_finite(unit: float) -> None:
    starts = torch.tensor([1.0, 1.0]) * unit
    ends = (torch.tensor([1.001, 50.0]) * unit).requires_grad_()
    found = cone_distances(starts, ends)
    expected = cone_distances(torch.tensor([1.0, 1.0]), torch.tensor([1.001, 50.0]))
    torch.testing.assert_close(found / unit, expected, rtol=1e-5, atol=0)
    found.sum().backward()
    assert ends.grad is not None and ends.grad.isfinite().all()


def test_an_interval_of_no_length_is_a_point() -> None:
    assert torch.equal(cone_distances(torch.zeros(1), torch.zeros(1)), torch.zeros(1, 6))
    torch.testing.assert_close(cone_distances(torch.ones(1), torch.ones(1)), torch.ones(1, 6))


def test_perpendicular_axes(directions: Tensor) -> None:
    u, v = perpendicular(directions)
    frame = torch.stack([u, v, directions], dim=-1)
    torch.testing.assert_close(frame.mT @ frame, torch.eye(3).expand(len(frame), 3, 3), atol=1e-5, rtol=0)


def test_pixel_radius_has_the_pixels_variance() -> None:
    """A square of side a has the variance a²/12 along an axis, a disc of radius ρ has ρ²/4."""
    area = torch.tensor([0.04])
    assert float(pixel_radius(area)) ** 2 / 4 == pytest.approx(0.04 / 12)


@pytest.fixture
def directions() -> Tensor:
    drawn = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.nn.functional.normalize(drawn, dim=-1), torch.eye(3), -torch.eye(3)])


def test_intervals_can_be_had_one_by_one() -> None:
    """Those of some rays alone are what they are among all."""
    origins, directions = torch.zeros(2, 3), torch.eye(3)[:2]
    starts = torch.linspace(1, 2, 10).view(2, 5)
    all_means, all_stds = cone_gaussians(origins, directions, torch.tensor([0.1, 0.2]), starts, starts + 0.1)
    rays, index = torch.tensor([1, 0, 1]), torch.tensor([3, 2, 0])
    own = starts[rays, index][:, None]
    radius = torch.tensor([0.1, 0.2])[rays]
    means, stds = cone_gaussians(origins[rays], directions[rays], radius, own, own + 0.1, index=index[:, None])
    assert torch.equal(means[:, 0], all_means[rays, index]) and torch.equal(stds[:, 0], all_stds[rays, index])
    unturned, _ = cone_gaussians(origins[rays], directions[rays], radius, own, own + 0.1)
    assert not torch.allclose(unturned[0], means[0]) and torch.equal(unturned[1], means[1])
