"""Distances to meshes against the formulas of analytic shapes, and signs where meshes are closed, open or overlap."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from eugen3d.metrics.triangle_mesh import TriangleMesh

HALF = torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64)
TOLERANCE = 1e-5


def box(half: Tensor = HALF, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> TriangleMesh:
    mesh = trimesh.creation.box((2 * half).numpy())
    return TriangleMesh(np.asarray(mesh.vertices) + centre, np.asarray(mesh.faces))


def box_distance(points: Tensor) -> Tensor:
    q = points.abs() - HALF
    return q.clamp_min(0.0).norm(dim=1) + q.amax(dim=1).clamp_max(0.0)


def cube_points(count: int, half: float) -> Tensor:
    return half * (2.0 * torch.rand(count, 3, dtype=torch.float64) - 1.0)


def test_hand_computed_distances_to_a_box() -> None:
    points = torch.tensor([[0, 0, 0], [0.8, 1.4, 0], [0.5, 0, 0], [0, 0, 1.25], [-0.4, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([-0.25, 0.5, 0.0, 1.0, -0.1], dtype=torch.float64)
    torch.testing.assert_close(box().signed_distance(points), expected, atol=1e-12, rtol=0)


def test_rays_meet_the_first_face_of_a_box_from_either_side() -> None:
    """The box reaches to 0.5 in x: 4.5 from 5, 0.5 from its middle, or 0.25 lengths of 2."""
    origins = torch.tensor([[5, 0.1, 0.2], [5, 0.1, 0.2], [0, 0.1, 0.2], [0, 0.1, 0.2], [5, 9, 0]], dtype=torch.float64)
    directions = torch.tensor([[-1, 0, 0], [1, 0, 0], [1, 0, 0], [-2, 0, 0], [-1, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([4.5, torch.inf, 0.5, 0.25, torch.inf], dtype=torch.float64)
    torch.testing.assert_close(box().first_hits(origins, directions), expected, atol=1e-12, rtol=0)
    assert box().first_hits(origins[:0], directions[:0]).shape == (0,)
    with pytest.raises(ValueError, match="not finite"):
        box().first_hits(origins, directions / 0.0)


def test_gradients_of_a_box_point_away_from_it() -> None:
    points = torch.tensor([[0.8, 1.4, 0], [-0.4, 0.1, 0], [0.1, 0.2, 0.25]], dtype=torch.float64)
    distance, gradient = box().signed_distance_and_gradient(points)
    torch.testing.assert_close(distance, torch.tensor([0.5, -0.1, 0.0], dtype=torch.float64), atol=1e-12, rtol=0)
    expected = torch.tensor([[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)


def test_gradients_are_those_of_the_distances() -> None:
    points, step = cube_points(200, 1.5), 1e-6
    mesh = box()
    _, gradient = mesh.signed_distance_and_gradient(points)
    moves = step * torch.eye(3, dtype=torch.float64)
    numeric = torch.stack(
        [(mesh.signed_distance(points + m) - mesh.signed_distance(points - m)) / (2 * step) for m in moves], dim=1
    )
    agree = (gradient - numeric).norm(dim=1) < 1e-4
    assert agree.double().mean() > 0.99, "all but points within a step of the medial axis"


def test_a_box_is_right_everywhere() -> None:
    points = cube_points(5000, 1.6)
    points[:100] = HALF * torch.tensor([1.0, -1.0, 1.3, 0.7], dtype=torch.float64)[torch.randint(4, (100, 3))]
    torch.testing.assert_close(box().signed_distance(points), box_distance(points), atol=TOLERANCE, rtol=0)


def test_a_sphere_is_right_everywhere() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=6, radius=0.1)
    points = cube_points(2000, 0.2)
    found = TriangleMesh(np.asarray(mesh.vertices), np.asarray(mesh.faces)).signed_distance(points)
    torch.testing.assert_close(found, points.norm(dim=1) - 0.1, atol=TOLERANCE, rtol=0)


def test_a_torus_is_right_everywhere() -> None:
    mesh = trimesh.creation.torus(0.05, 0.02, major_sections=320, minor_sections=160)
    points = cube_points(1000, 0.1)
    found = TriangleMesh(np.asarray(mesh.vertices), np.asarray(mesh.faces)).signed_distance(points)
    tube = torch.stack([points[:, :2].norm(dim=1) - 0.05, points[:, 2]], dim=1)
    torch.testing.assert_close(found, tube.norm(dim=1) - 0.02, atol=TOLERANCE, rtol=0)
    assert (found < 0).any() and (found > 0).any()


def test_overlapping_parts_are_one_solid() -> None:
    """Parity would call the overlap empty."""
    left, right = box(), box(centre=(0.6, 0.0, 0.0))
    both = TriangleMesh(np.concatenate([left.vertices, right.vertices]), np.concatenate([left.faces, right.faces + 8]))
    points = cube_points(2000, 1.6)
    inside = left.contains(points) | right.contains(points)
    assert torch.equal(both.contains(points), inside)
    assert (left.contains(points) & right.contains(points)).any()


def test_an_open_box_has_an_inside_away_from_its_hole() -> None:
    whole = box()
    open_ = TriangleMesh(whole.vertices, whole.faces[2:])
    assert whole.is_closed and not open_.is_closed
    points = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    assert open_.contains(points).tolist() == [True, False]


def test_a_mesh_turned_inside_out_is_refused() -> None:
    mesh = TriangleMesh(box().vertices, box().faces[:, ::-1])
    assert mesh.volume == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="turn inwards"):
        mesh.signed_distance(torch.zeros(1, 3))
    assert mesh.closest(torch.zeros(1, 3))[0].tolist() == [0.25]


def test_the_grid_is_the_distances_at_its_points() -> None:
    lower = torch.tensor([-0.7, -1.2, -0.4])
    grid = box().signed_distance_grid(lower, 0.3, (5, 9, 3))
    index = torch.stack(torch.meshgrid(*map(torch.arange, (5, 9, 3)), indexing="ij"), -1).reshape(-1, 3)
    points = lower.double() + 0.3 * index.double()
    assert grid.shape == (5, 9, 3) and grid.dtype == torch.float32
    torch.testing.assert_close(grid.reshape(-1).double(), box_distance(points), atol=1e-6, rtol=0)
    assert box().signed_distance_grid(lower, 0.3, (0, 2, 2)).shape == (0, 2, 2)


def test_dtype_is_kept_and_no_point_is_no_distance() -> None:
    distance, gradient = box().signed_distance_and_gradient(torch.tensor([[0.8, 1.4, 0.0]]))
    assert distance.dtype == gradient.dtype == torch.float32 and distance.item() == pytest.approx(0.5)
    assert box().signed_distance(torch.zeros(0, 3)).shape == (0,)


def test_samples_cover_the_surface_by_area() -> None:
    points = box().sample_surface(20000)
    assert box_distance(points).abs().max() < 1e-12
    on_top = (points[:, 2] - 0.25).abs() < 1e-12
    share = 2.0 / (2.0 * (2.0 + 0.5 + 1.0))  # of the area of 1 x 2 in the whole of 1 x 2 x 0.5
    assert on_top.double().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / 20000) ** 0.5)
    assert not torch.equal(points, box().sample_surface(20000, seed=1))


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.zeros((3, 2)), [[0, 1, 2]], r"vertices are of shape \(3, 2\), expected \(number, 3\)"),
        (np.zeros((3, 3)), np.zeros((0, 3)), "the mesh has no faces"),
        (np.full((3, 3), np.nan), [[0, 1, 2]], "a vertex is not finite"),
        (np.zeros((3, 3)), [[0, 1, 3]], "a face names a vertex outside 0 to 2"),
    ],
)
def test_what_is_no_mesh_is_refused(vertices, faces, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TriangleMesh(vertices, np.array(faces))


def test_points_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="a point is not finite"):
        box().signed_distance(torch.tensor([[0.0, torch.nan, 0.0]]))
    with pytest.raises(ValueError, match=r"points are of shape \(3,\)"):
        box().closest(torch.zeros(3))


@pytest.mark.parametrize("ending", ["ply", "obj", "off", "stl"])
def test_files_are_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"box.{ending}"
    trimesh.creation.box((1.0, 2.0, 0.5)).export(path)
    mesh = TriangleMesh.load(path)
    assert mesh.faces.shape == (12, 3) and mesh.is_closed and mesh.volume == pytest.approx(1.0)


def test_files_that_are_no_meshes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.ply: not found, expected a triangle mesh"):
        TriangleMesh.load(tmp_path / "none.ply")
    (tmp_path / "broken.obj").write_text("no mesh\n")
    with pytest.raises(ValueError, match=r"broken\.obj: cannot be used as a triangle mesh"):
        TriangleMesh.load(tmp_path / "broken.obj")


@pytest.mark.parametrize("name", ["armadillo", "rocker-arm", "spot"])
def test_signs_in_real_closed_meshes(shared_data: Path, name: str) -> None:
    """A step from a face's middle along its normal is outside, one back inside; the inside has the mesh's volume."""
    mesh = TriangleMesh.load(shared_data / "meshes" / f"{name}.obj")
    assert mesh.is_closed
    lower, upper = (torch.from_numpy(f(mesh.vertices, axis=0)) for f in (np.min, np.max))
    size = float((upper - lower).norm())
    some = np.random.default_rng(0).choice(len(mesh.faces), 1000, replace=False)
    middles, normals = torch.from_numpy(mesh.vertices[mesh.faces[some]].mean(axis=1)), mesh.normals[some]
    step = 1e-5 * size * torch.from_numpy(normals)
    outside, inside = mesh.signed_distance(middles + step), mesh.signed_distance(middles - step)
    assert (outside > 0).all() and (inside < 0).all()
    assert max(outside.max(), -inside.min()) <= 1.001e-5 * size
    points = lower + (upper - lower) * torch.rand(4000, 3, dtype=torch.float64)
    share, box_volume = mesh.contains(points).double().mean().item(), float((upper - lower).prod())
    assert share == pytest.approx(mesh.volume / box_volume, abs=5 * (share * (1 - share) / 4000) ** 0.5)


def test_the_open_bunny_has_an_inside(shared_data: Path) -> None:
    mesh = TriangleMesh.load(shared_data / "meshes" / "stanford-bunny.obj")
    assert not mesh.is_closed
    middle = torch.from_numpy(mesh.vertices.mean(axis=0))
    assert mesh.contains(torch.stack([middle, middle + 1.0])).tolist() == [True, False]
