"""Boxes and spheres at known distances, with known volumes in common."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from eugen3d.metrics.shape import Field, shape_metrics, solid_metrics
from eugen3d.metrics.triangle_mesh import TriangleMesh


def of(mesh: trimesh.Trimesh, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> TriangleMesh:
    return TriangleMesh(np.asarray(mesh.vertices) + shift, np.asarray(mesh.faces))


def cube(side: float = 1.0, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> TriangleMesh:
    return of(trimesh.creation.box((side, side, side)), shift)


def sphere(radius: float) -> TriangleMesh:
    return of(trimesh.creation.icosphere(subdivisions=4, radius=radius))


def test_a_mesh_is_as_good_as_itself() -> None:
    metrics = shape_metrics(cube(), cube(), num_samples=2000)
    expected = {"chamfer": 0.0, "chamfer_to_diagonal": 0.0, "normal_consistency": 1.0}
    assert metrics == pytest.approx(expected, abs=1e-9)


def box_field(shift: float) -> Field:
    """The unit cube's signs, moved along x."""
    return lambda points: (points - torch.tensor([shift, 0.0, 0.0])).abs().amax(dim=1) - 0.5


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
def test_iou_of_two_shifted_cubes(shift: float) -> None:
    """(1 - s) in common of 1 + s, of which s - 0.05 lie beyond the box that is looked at, 0.05 wider on every side."""
    count = 40_000
    seen = 1 + shift - max(shift - 0.05, 0.0)
    share, in_union = (1 - shift) / seen, count * seen / 1.1**3
    found = solid_metrics(box_field(shift), cube(), num_samples=count)["iou"]
    assert found == pytest.approx(share, abs=5 * (share * (1 - share) / in_union) ** 0.5 + 1e-9)


def test_what_is_empty_has_nothing_in_common() -> None:
    metrics = solid_metrics(lambda points: torch.ones(len(points)), cube(), num_samples=2000)
    assert metrics["iou"] == 0.0 and metrics["sign_accuracy"] == pytest.approx(1 - 1 / 1.1**3, abs=0.06)


def test_chamfer_of_a_shifted_cube() -> None:
    """By s along x: of a cube's six sides one is s away, four on average s²/2 (their strip is cut off), and one meets
    the other's rim, or lies within it at the distance to the nearest side."""
    shift = 0.1
    metrics = shape_metrics(cube(shift=(shift, 0.0, 0.0)), cube(), num_samples=40_000)
    at_most_shift = 1 / 6 * shift + 4 / 6 * shift**2 / 2
    u = np.abs((np.arange(1000) + 0.5) / 1000 - 0.5)
    inner = np.minimum(shift, 0.5 - np.maximum(u[:, None], u[None])).mean()  # the side that is inside
    expected = at_most_shift + inner / 6
    assert metrics["chamfer"] == pytest.approx(expected, rel=0.03)
    assert metrics["chamfer_to_diagonal"] == pytest.approx(expected / 3**0.5, rel=0.03)


def test_concentric_spheres() -> None:
    metrics = shape_metrics(sphere(1.0), sphere(1.1), num_samples=4000)
    assert metrics["chamfer"] == pytest.approx(0.1, abs=2e-3)
    assert metrics["chamfer_to_diagonal"] == pytest.approx(0.1 / (2.2 * 3**0.5), abs=1e-3)
    assert metrics["normal_consistency"] == pytest.approx(1.0, abs=5e-3)


def test_normals_of_tilted_squares() -> None:
    """Large squares at 60° through one line: a point's closest one on the other has its normal, |cos 60°| = 1/2."""
    corners = np.array([(-1.0, -1.0, 0.0), (1.0, -1.0, 0.0), (1.0, 1.0, 0.0), (-1.0, 1.0, 0.0)])
    flat = TriangleMesh(corners, np.array([(0, 1, 2), (0, 2, 3)]))
    cos, sin = 0.5, 0.75**0.5
    tilted = TriangleMesh(corners @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]), flat.faces[:, ::-1])
    metrics = shape_metrics(tilted, flat, num_samples=1000)
    assert metrics["normal_consistency"] == pytest.approx(0.5)
    assert shape_metrics(flat, flat, num_samples=1000)["normal_consistency"] == pytest.approx(1.0)


def test_signs_of_a_field() -> None:
    """A ball of radius 1/2 in the unit cube: wrong in the cube's corners, 1 - π/6 of the volume 1 of 1.1³."""
    count = 40_000
    share = 1.0 - (1.0 - np.pi / 6) / 1.1**3
    ball = solid_metrics(lambda points: points.norm(dim=1, keepdim=True) - 0.5, cube(), num_samples=count)
    assert ball["sign_accuracy"] == pytest.approx(share, abs=5 * (share * (1 - share) / count) ** 0.5)
    assert solid_metrics(box_field(0.0), cube(), num_samples=count)["sign_accuracy"] == 1.0
    turned = solid_metrics(lambda points: 0.5 - points.abs().amax(dim=1), cube(), num_samples=count)
    assert turned == {"iou": 0.0, "sign_accuracy": 0.0}


def test_the_field_is_asked_in_pieces_without_gradients() -> None:
    sizes = []

    def field(points: torch.Tensor) -> torch.Tensor:
        sizes.append(len(points))
        assert points.dtype == torch.float32 and not torch.is_grad_enabled()
        return points[:, 0]

    solid_metrics(field, cube(), num_samples=100_000)
    assert sum(sizes) == 100_000 and max(sizes) <= 1 << 16


def test_seeds_decide_the_draws() -> None:
    first, again, other = (
        shape_metrics(sphere(1.0), cube(1.5), num_samples=500, seed=seed)["chamfer"] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_real_mesh_against_itself_moved(shared_data: Path) -> None:
    mesh = TriangleMesh.load(shared_data / "meshes" / "spot.obj")
    moved = TriangleMesh(mesh.vertices + np.array([0.0, 0.02, 0.0]), mesh.faces)
    metrics = shape_metrics(moved, mesh, num_samples=5000)
    assert 0.002 < metrics["chamfer"] < 0.02
    assert 0.9 < metrics["normal_consistency"] < 1.0
