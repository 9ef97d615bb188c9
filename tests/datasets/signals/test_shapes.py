"""Meshes and clouds in every kind of file: where they are put, what is drawn from them, and which are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from eugen3d.datasets import SceneError
from eugen3d.datasets.signals import ShapeSignal, open_signal

CENTER = (3.0, -1.0, 0.5)
SIDES = (1.0, 4.0, 0.5)


def box() -> trimesh.Trimesh:
    mesh = trimesh.creation.box(SIDES)
    mesh.apply_translation(CENTER)
    return mesh


def opened(path: Path, **options: bool) -> ShapeSignal:
    signal = open_signal(path, **options)
    assert isinstance(signal, ShapeSignal)
    return signal


def outward(signal: ShapeSignal, points: torch.Tensor, normals: torch.Tensor) -> bool:
    """Whether a box's normals are those of the sides on which the points are."""
    half = torch.tensor(SIDES) / 2 * signal.format.scale
    side = (points / half).abs().argmax(dim=1)
    expected = torch.nn.functional.one_hot(side, 3) * points.sign()
    return bool(torch.allclose(normals, expected, atol=1e-5))


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl", ".glb", ".STL"])
def test_a_box_fills_the_cube_up_to_the_margin(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"box{suffix}"
    box().export(path, file_type=suffix[1:].lower())
    signal = opened(path)
    assert signal.format.is_closed and signal.format.suffix == suffix.lower()
    assert signal.format.center == pytest.approx(CENTER) and signal.format.scale == pytest.approx(0.45)
    assert signal.format.num_bytes == path.stat().st_size
    assert signal.vertices is not None and signal.faces is not None
    assert signal.vertices.shape == (8, 3) and signal.faces.shape == (12, 3)
    torch.testing.assert_close(signal.vertices.amax(dim=0), torch.tensor(SIDES) * 0.225)
    world = torch.tensor(signal.format.center) + signal.vertices / signal.format.scale
    torch.testing.assert_close(world.amin(dim=0), torch.tensor(CENTER) - torch.tensor(SIDES) / 2)
    assert signal.points.shape == (12, 3) and outward(signal, signal.points, signal.normals)


def test_draws_are_uniform_by_area_with_the_faces_normals(tmp_path: Path) -> None:
    box().export(tmp_path / "box.ply")
    signal = opened(tmp_path / "box.ply")
    count = 20_000
    points, normals = signal.draw(count, torch.Generator().manual_seed(1))
    assert points.dtype == normals.dtype == torch.float32 and points.shape == normals.shape == (count, 3)
    assert outward(signal, points, normals)
    area = np.array([SIDES[1] * SIDES[2], SIDES[0] * SIDES[2], SIDES[0] * SIDES[1]])
    for axis, share in enumerate(area / area.sum()):
        found = float((normals[:, axis].abs() > 0.5).double().mean())
        assert found == pytest.approx(share, abs=5 * (share * (1 - share) / count) ** 0.5)
    assert abs(float(points[:, 1].mean())) < 5 * 0.9 / count**0.5
    again, other = (signal.draw(count, torch.Generator().manual_seed(seed))[0] for seed in (1, 2))
    assert torch.equal(again, points) and not torch.equal(other, points)
    assert signal.draw(0)[0].shape == (0, 3)


def test_faces_that_turn_inwards_or_both_ways_are_turned(tmp_path: Path) -> None:
    mesh = box()
    trimesh.Trimesh(mesh.vertices, mesh.faces[:, ::-1], process=False).export(tmp_path / "inverted.ply")
    faces = np.array(mesh.faces)
    faces[::3] = faces[::3, ::-1]
    trimesh.Trimesh(mesh.vertices, faces, process=False).export(tmp_path / "mixed.ply")
    for name in ("inverted.ply", "mixed.ply"):
        signal = opened(tmp_path / name)
        assert signal.format.is_closed and outward(signal, *signal.draw(500)), name


def test_degenerate_faces_and_stray_vertices_do_not_count(tmp_path: Path) -> None:
    mesh = box()
    vertices = np.vstack([mesh.vertices, [[99.0, 99.0, 99.0]], mesh.vertices[:1]])
    faces = np.vstack([mesh.faces, [[0, 0, 1], [2, 9, 0]]])  # vertex 9 is at vertex 0
    trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / "box.ply")
    signal = opened(tmp_path / "box.ply")
    assert signal.format.is_closed and signal.format.center == pytest.approx(CENTER)
    assert signal.faces is not None and len(signal.faces) == 12


def write_cloud(path: Path, points: np.ndarray, normals: np.ndarray) -> Path:
    if path.suffix == ".xyz":
        np.savetxt(path, np.hstack([points, normals]), header="x y z nx ny nz")
        return path
    properties = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    path.write_bytes(header.encode() + np.hstack([points, normals]).astype("<f4").tobytes())
    return path


@pytest.mark.parametrize("suffix", [".ply", ".xyz"])
def test_a_cloud_keeps_its_points_and_has_unit_normals(tmp_path: Path, suffix: str) -> None:
    directions = np.random.default_rng(0).normal(size=(300, 3))
    directions[:6] = np.vstack([np.eye(3), -np.eye(3)])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    signal = opened(write_cloud(tmp_path / f"ball{suffix}", 2.0 * directions + CENTER, 3.0 * directions))
    assert signal.vertices is None and signal.faces is None and not signal.format.is_closed
    assert signal.format.scale == pytest.approx(0.45) and signal.format.center == pytest.approx(CENTER)
    torch.testing.assert_close(signal.normals, torch.from_numpy(directions).float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(signal.points, 0.9 * signal.normals, atol=1e-6, rtol=0)
    points, normals = signal.draw(1000)
    torch.testing.assert_close(points, 0.9 * normals, atol=1e-6, rtol=0)
    assert 200 < len(points.unique(dim=0)) <= 300


def open_box(path: Path) -> None:
    mesh = box()
    trimesh.Trimesh(mesh.vertices, mesh.faces[1:], process=False).export(path)


def with_vertex(position: tuple[float, float, float]):
    def make(path: Path) -> None:
        mesh = box()
        vertices = np.array(mesh.vertices)
        vertices[0] = position
        trimesh.Trimesh(vertices, mesh.faces, process=False).export(path)

    return make


def cloud(points: list[tuple[float, ...]], normals: list[tuple[float, ...]]):
    return lambda path: write_cloud(path, np.array(points), np.array(normals))


def moebius(path: Path) -> None:
    """Five triangles in a ring with half a turn; its middle edges cannot all be met in both directions."""
    angle = np.arange(5) * 2 * np.pi / 5
    vertices = np.column_stack([np.cos(angle), np.sin(angle), np.arange(5) * 0.1])
    faces = [(i % 5, (i + 1) % 5, (i + 2) % 5) for i in range(5)]
    trimesh.Trimesh(vertices, faces, process=False).export(path)


UP, OUT = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.obj", lambda path: None, "not found, expected a shape"),
        ("a.ply", lambda path: path.write_text("no mesh"), "cannot be read as a shape"),
        ("a.glb", lambda path: path.write_text("no mesh"), "cannot be read as a shape"),
        ("a.xyz", lambda path: path.write_text("no mesh"), "cannot be read as a shape"),
        ("a.obj", lambda path: path.write_text("no mesh"), "found 0 points with neither faces nor normals"),
        ("a.stl", lambda path: path.write_text("no mesh"), "found 0 points with neither faces nor normals"),
        (
            "a.obj",
            lambda path: path.write_text("v 0 0 0\nv 1 0 0\n"),
            "with neither faces nor normals, expected a mesh",
        ),
        ("a.ply", lambda path: trimesh.PointCloud(np.eye(3)).export(path), "found 3 points with neither faces"),
        ("a.xyz", lambda path: np.savetxt(path, np.eye(3)), "found rows of 3 numbers, expected x y z nx ny nz"),
        ("a.xyz", cloud([(0, 0, 0), (1, 0, np.nan)], [UP, OUT]), "found 1 points that are not finite"),
        ("a.xyz", cloud([(0, 0, 0), (1, 0, 0)], [UP, (0, np.inf, 0)]), "found 1 normals that are not finite"),
        ("a.ply", cloud([(0, 0, 0), (1, 0, 0)], [UP, (0, 0, 0)]), "found 1 normals of length 0, expected directions"),
        ("a.ply", cloud([(1, 2, 3), (1, 2, 3)], [UP, OUT]), "found all points at one position"),
        ("a.ply", with_vertex((np.nan, 0, 0)), "found 1 vertices that are not finite"),
        ("a.ply", open_box, "found a mesh with 3 open edges, expected a closed mesh, or a point cloud with normals"),
        ("a.ply", lambda path: trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False).export(path), "extent"),
        ("a.ply", moebius, "edges whose faces turn both ways"),
    ],
)
def test_shapes_that_cannot_be_used(tmp_path: Path, name: str, make, message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(SceneError) as error:
        open_signal(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_open_mesh_is_taken_where_it_may_be(tmp_path: Path) -> None:
    open_box(tmp_path / "box.ply")
    signal = opened(tmp_path / "box.ply", allow_open=True)
    assert not signal.format.is_closed and len(signal.points) == 11
    assert outward(signal, *signal.draw(500))


@pytest.mark.parametrize(("name", "faces"), [("armadillo", 99_976), ("rocker-arm", 20_088), ("spot", 5_856)])
def test_the_real_closed_meshes(shared_data: Path, name: str, faces: int) -> None:
    signal = opened(shared_data / "meshes" / f"{name}.obj")
    assert signal.format.is_closed and signal.faces is not None and len(signal.faces) == faces
    assert signal.vertices is not None and float(signal.vertices.abs().max()) == pytest.approx(0.9, abs=1e-6)
    points, normals = signal.draw(2000)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(2000))
    flux = float((points * normals).sum(dim=1).mean())
    assert flux > 0.0, "by the divergence theorem it is three volumes over the area"


def test_the_open_bunny(shared_data: Path) -> None:
    path = shared_data / "meshes" / "stanford-bunny.obj"
    with pytest.raises(SceneError, match="found a mesh with 223 open edges"):
        open_signal(path)
    assert not opened(path, allow_open=True).format.is_closed
