"""TSDF fusion of depth images whose surfaces are known: planes and a sphere, what was not measured, hand-made means."""

import numpy as np
import pytest
import torch
from torch import Tensor

from eugen3d.cli.bench.tsdf import FusedMesh, TsdfVolume, enclosing, grid_shape, reach
from eugen3d.datasets import DepthFrame
from eugen3d.mapping import TraceConfig

VOXEL = 0.05


def looking_down(depth: float | Tensor, size: int = 64) -> DepthFrame:
    """A camera in the origin that looks along -z, 90 degrees wide."""
    image = torch.full((size, size), depth) if not isinstance(depth, Tensor) else depth
    half = size / 2
    return DepthFrame("frame", image, torch.eye(3, 4), (half, half, half, half))


def plane_volume(*depths: float, truncation: float = 0.2) -> TsdfVolume:
    """Frames of planes z = -depth, fused."""
    volume = TsdfVolume(torch.tensor([-0.5, -0.5, -1.5]), torch.tensor([0.5, 0.5, -0.5]), VOXEL, truncation)
    for depth in depths:
        volume.integrate(looking_down(depth))
    return volume


def sphere_frame(back: Tensor, radius: float, distance: float, size: int = 128) -> DepthFrame:
    """A camera at `distance` along the unit vector `back` from a sphere around the origin; 0 beside the sphere."""
    right = torch.linalg.cross(torch.tensor([0.3, 0.5, 0.81]), back)
    right = right / right.norm()
    pose = torch.stack([right, torch.linalg.cross(back, right), back, distance * back], dim=1)
    centres = (torch.arange(size) + 0.5 - size / 2) / size
    x, y = centres[None, :], -centres[:, None]
    square = 1.0 + x**2 + y**2  # of a pixel's direction, of length 1 along the axis: |(0, 0, -distance) + z d| = radius
    inner = distance**2 - square * (distance**2 - radius**2)
    depth = torch.where(inner > 0, (distance - inner.clamp(min=0).sqrt()) / square, 0.0)
    return DepthFrame("frame", depth, pose, (size, size, size / 2, size / 2))


@pytest.fixture(scope="module")
def sphere() -> FusedMesh:
    """A sphere of radius 0.5 around the origin, seen from eight sides."""
    corners = torch.tensor([[i, j, k] for i in (-1.0, 1) for j in (-1.0, 1) for k in (-1.0, 1)]) / 3**0.5
    frames = [sphere_frame(corner, 0.5, 1.6) for corner in corners]
    volume = TsdfVolume(*enclosing(reach(frame, 0.1) for frame in frames), 0.025, 0.1)
    for frame in frames:
        volume.integrate(frame)
    return FusedMesh.of(volume)


def test_a_plane_is_where_it_was_measured() -> None:
    """Between centres, and exactly: along the axis its distances are linear."""
    vertices, faces = plane_volume(1.01, 1.01).triangles()
    np.testing.assert_allclose(vertices[:, 2], -1.01, atol=1e-5)
    assert vertices[:, :2].min() == pytest.approx(-0.5) and vertices[:, :2].max() == pytest.approx(0.5)
    a, b, c = vertices[faces].swapaxes(0, 1)
    assert (np.cross(b - a, c - a)[:, 2] > 0).all(), "faces look at the camera"


def test_the_mean_is_that_of_the_truncated_distances() -> None:
    """At z = -1 three planes are 0.1, 0.1 and 0.7 behind: half the truncation twice, and all of it once."""
    volume = plane_volume(1.1, 1.1, 1.7)
    assert volume.tsdf[10, 10, 10] == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-5) and volume.weight[10, 10, 10] == 3
    assert volume.tsdf[10, 10, 5] == pytest.approx((-0.75 - 0.75 + 1) / 3, abs=1e-5), "z = -1.25"


def test_a_measurement_says_nothing_of_what_is_far_behind_it() -> None:
    """The plane at 0.92 reaches to z = -1.12 in a truncation of 0.2; beyond, the plane at 1.32 counts alone."""
    volume = plane_volume(0.92, 1.32)
    depth = -(volume.lower[2] + VOXEL * torch.arange(21))
    assert torch.equal(volume.weight[10, 10], 1.0 + (depth < 1.11).float())
    assert volume.tsdf[10, 10, 5] == pytest.approx(0.35, abs=1e-5), "z = -1.25, 0.07 before the second plane"
    near = plane_volume(0.92)
    assert (near.tsdf[near.weight == 0] == 0).all() and (near.weight == 0).any() and (near.tsdf < 0).any()


def test_pixels_without_a_measurement_and_what_no_picture_shows_stay_unknown() -> None:
    depth = torch.full((64, 64), 1.0)
    depth[:, :32] = 0.0
    volume = TsdfVolume(torch.tensor([-2.0, -0.5, -1.5]), torch.tensor([2.0, 0.5, 0.5]), VOXEL, 0.2)
    volume.integrate(looking_down(depth))
    x = volume.lower[0] + VOXEL * torch.arange(volume.weight.shape[0])
    seen = volume.weight.flatten(1).any(dim=1)
    assert not seen[x < -0.01].any() and not seen[x > 1.21].any() and seen[(x > 0.01) & (x < 1)].all()
    assert not volume.weight[:, :, -10:].any(), "behind the camera"
    vertices, _ = volume.triangles()
    assert vertices[:, 0].min() > -VOXEL and np.allclose(vertices[:, 2], -1.0, atol=1e-5), "open where it was not seen"


def test_a_frame_beside_the_volume_changes_nothing() -> None:
    volume = TsdfVolume(torch.full((3,), 5.0), torch.full((3,), 6.0), VOXEL, 0.2)
    volume.integrate(looking_down(1.0))
    assert not volume.weight.any() and len(volume.triangles()[1]) == 0
    with pytest.raises(ValueError, match="no faces"):
        FusedMesh.of(volume)


def test_slabs_of_voxels_are_updated_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plane_volume(1.1, 1.2)
    monkeypatch.setattr("eugen3d.cli.bench.tsdf.SLAB_VOXELS", 1000)
    parts = plane_volume(1.1, 1.2)
    assert torch.equal(whole.tsdf, parts.tsdf) and torch.equal(whole.weight, parts.weight) and whole.weight.any()


def test_a_sphere_is_recovered_to_a_fraction_of_a_voxel(sphere: FusedMesh) -> None:
    radii = np.linalg.norm(sphere.vertices, axis=1)
    assert np.abs(radii.mean() - 0.5) < 0.1 * 0.025 and np.percentile(np.abs(radii - 0.5), 99) < 0.6 * 0.025
    outward = (sphere.vertex_normals * sphere.vertices).sum(axis=1) / radii
    assert np.median(outward) > 0.99


def test_distances_are_euclidean_with_the_sign_of_what_was_measured(sphere: FusedMesh) -> None:
    """Far before the surface, too, where the truncated distance says nothing; deep inside nothing is known."""
    points = torch.nn.functional.normalize(torch.randn(400, 3), dim=1)
    for radius in (0.46, 0.54, 0.9, 2.0):
        distance, gradient = sphere.distance_and_gradient(radius * points)
        error = (distance - (radius - 0.5)).abs()
        assert float(error.mean()) < 0.3 * 0.025 and float(error.max()) < 0.025, radius
        torch.testing.assert_close(sphere.distance(radius * points), distance)
        assert float((gradient * points).sum(dim=1).mean()) > 0.97, radius
    assert float(sphere.distance(torch.zeros(1, 3))) == pytest.approx(0.5, abs=0.01), "unknown: free"


def test_rays_meet_the_fused_surface_between_the_planes(sphere: FusedMesh) -> None:
    origins = torch.tensor([[0.0, 0.01, 2.0], [0.0, 0.01, 2.0], [0.0, 2.0, 2.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    distance, is_hit = sphere.trace(origins, directions, TraceConfig(near_plane=0.1, far_plane=5.0))
    assert is_hit.tolist() == [True, False, False] and distance[1:].tolist() == [5.0, 5.0]
    assert float(distance[0]) == pytest.approx(1.5, abs=0.01)
    assert not sphere.trace(origins, directions, TraceConfig(far_plane=1.4))[1].any()
    inner, _ = sphere.trace(origins, directions, TraceConfig(near_plane=1.8))
    assert float(inner[0]) == pytest.approx(2.5, abs=0.01), "from the near plane on: the far side, from within"


def test_boxes_and_their_grids() -> None:
    lower, upper = reach(looking_down(1.0), 0.5)
    torch.testing.assert_close(lower, torch.tensor([-1.5, -1.5, -1.5]) * torch.tensor([63 / 64, 63 / 64, 1]))
    torch.testing.assert_close(upper, torch.tensor([1.5 * 63 / 64, 1.5 * 63 / 64, -0.5]))
    a, b = enclosing([(lower, upper), (lower - 1, upper - 2)])
    assert torch.equal(a, lower - 1) and torch.equal(b, upper)
    assert grid_shape(torch.zeros(3), torch.tensor([1.0, 0.55, 0.0]), 0.1) == (11, 7, 2)
