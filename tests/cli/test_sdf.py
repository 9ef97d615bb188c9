"""`eugen3d query` and `eugen3d export-mesh` on a run of eugen-isdf whose field is known."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor, nn
from trimesh.visual import ColorVisuals

from eugen3d.cli import export_mesh
from eugen3d.cli.export_mesh import encode_mesh
from eugen3d.cli.main import main
from eugen3d.cli.sdf_runs import load_sdf_run
from eugen3d.fields import distance_and_gradient
from eugen3d.mapping import SdfQuery
from eugen3d.mapping.mesh import march
from eugen3d.models.isdf_pipeline import PROGRESS

MakeRun = Callable[..., Path]


class Sphere(nn.Module):
    """The exact distance to a sphere around (0.2, 0, 0)."""

    def __init__(self, radius: float = 0.7) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(radius))

    def forward(self, x: Tensor) -> Tensor:
        return (x - torch.tensor([0.2, 0.0, 0.0])).norm(dim=-1) - self.radius


class Wall(nn.Module):
    """The distance to the plane z = -2 from above."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(-2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 2] - self.level


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line that a command is refused with."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def colors_of(mesh: trimesh.Trimesh) -> np.ndarray | None:
    """The colours (n, 4) of a mesh's vertices, where it has any."""
    visual = mesh.visual
    return visual.vertex_colors if isinstance(visual, ColorVisuals) and visual.kind == "vertex" else None


def test_a_run_is_loaded_with_what_was_seen(make_sdf_run: MakeRun) -> None:
    loaded = load_sdf_run(make_sdf_run(), "cpu")
    assert (loaded.name, loaded.step) == ("run", 3)
    assert loaded.surface.shape == (16, 3)
    torch.testing.assert_close(loaded.surface[0], torch.tensor([-1.875, 1.875, -2.0]))


@pytest.mark.parametrize("count", [0, 1, 70_000])
def test_a_query_writes_distances_and_gradients(make_sdf_run: MakeRun, tmp_path: Path, count: int) -> None:
    config, points = make_sdf_run(), np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    np.save(tmp_path / "p.npy", points)
    run("query", "--load-config", config, "--points", tmp_path / "p.npy", "--output", tmp_path / "q.npz")
    with np.load(tmp_path / "q.npz") as written:
        distance, gradient = written["distance"], written["gradient"]
    expected, slope = distance_and_gradient(load_sdf_run(config, "cpu").model.field, torch.from_numpy(points))
    torch.testing.assert_close(torch.from_numpy(distance), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(gradient), slope, rtol=1e-3, atol=1e-4)
    assert distance.dtype == gradient.dtype == np.float32
    assert count < 2 or np.ptp(distance) > 1e-4


def test_a_query_without_gradients_writes_none(make_sdf_run: MakeRun, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.zeros((5, 3), np.int64))
    options = ("--points", tmp_path / "p.npy", "--output", tmp_path / "q.npz", "--values", "distance")
    run("query", "--load-config", make_sdf_run(), *options)
    with np.load(tmp_path / "q.npz") as written:
        assert written.files == ["distance"] and written["distance"].shape == (5,)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (np.zeros((4, 2)), "found float64 of shape (4, 2), expected numbers (n, 3)"),
        (np.zeros((3,)), "found float64 of shape (3,), expected numbers (n, 3)"),
        (np.array([["a"] * 3]), "found <U1 of shape (1, 3), expected numbers (n, 3)"),
        (np.array([[0.0, 0.0, 0.0], [0.0, np.nan, 0.0]]), "point 1 is not finite"),
        (None, "not found, expected an .npy file of points (n, 3)"),
        (b"no array", "is no .npy file of points (n, 3)"),
    ],
)
def test_points_that_are_none_are_refused(make_sdf_run: MakeRun, tmp_path: Path, capsys, points, expected: str) -> None:
    path, output = tmp_path / "p.npy", tmp_path / "q.npz"
    if isinstance(points, bytes):
        path.write_bytes(points)
    elif points is not None:
        np.save(path, points)
    line = refused(capsys, "query", "--load-config", make_sdf_run(), "--points", path, "--output", output)
    assert line.startswith(f"error: --points {path}: ") and expected in line
    assert not output.exists()


def test_runs_that_cannot_be_loaded_are_refused(make_sdf_run: MakeRun, tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "p.npy", np.zeros((1, 3)))
    options = ("--points", tmp_path / "p.npy", "--output", tmp_path / "q.npz")

    def line_of(config: Path) -> str:
        return refused(capsys, "query", "--load-config", config, *options)

    assert "not found, expected a run's config.yml" in line_of(tmp_path / "none" / "config.yml")
    lacking = make_sdf_run(lambda state: state.pop("_model.field.head.0.weight"), "lacking")
    assert "lacks _model.field.head.0.weight, expected what config.yml describes" in line_of(lacking)
    damaged = make_sdf_run(lambda state: state.update({PROGRESS: torch.zeros(9, dtype=torch.uint8)}), "damaged")
    assert "its keyframes cannot be read" in line_of(damaged)
    nerf = make_sdf_run(name="nerf")
    text = nerf.read_text().replace("isdf.EUGenIsdfModelConfig", "nerf.EUGenNerfModelConfig")
    nerf.write_text(text)
    assert "expected a run of eugen-isdf" in line_of(nerf)


def test_the_output_of_a_query_is_an_npz_file(make_sdf_run: MakeRun, tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "p.npy", np.zeros((1, 3)))
    options = ("--points", tmp_path / "p.npy", "--output", tmp_path / "q.npy")
    assert "expected the name of an .npz file" in refused(capsys, "query", "--load-config", make_sdf_run(), *options)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_every_format_is_read_back(suffix: str) -> None:
    triangles = march(SdfQuery(Sphere()), np.full(3, -1.0), 0.1, np.zeros((1, 3), int))
    normals = (triangles[0] - [0.2, 0, 0]) / 0.7
    content = encode_mesh(triangles, normals, suffix)
    mesh = trimesh.load(io.BytesIO(content), file_type=suffix[1:], force="mesh")
    assert isinstance(mesh, trimesh.Trimesh) and colors_of(mesh) is None
    assert len(mesh.faces) == len(triangles[1])
    assert np.abs(np.linalg.norm(mesh.vertices - [0.2, 0, 0], axis=1) - 0.7).max() < 5e-3


@pytest.mark.parametrize(("suffix", "shade"), [(".ply", 188), (".obj", 188), (".glb", 128)])
def test_every_format_keeps_colours(suffix: str, shade: int) -> None:
    """sRGB's 188 is linear light of 0.5029 = 128 / 255, which is what glTF has."""
    triangles = march(SdfQuery(Sphere()), np.full(3, -1.0), 0.1, np.zeros((1, 3), int))
    colors = np.tile(np.array([188, 0, 255, 255], np.uint8), (len(triangles[0]), 1))
    content = encode_mesh(triangles, (triangles[0] - [0.2, 0, 0]) / 0.7, suffix, colors)
    mesh = trimesh.load(io.BytesIO(content), file_type=suffix[1:], force="mesh", process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    found = colors_of(mesh)
    assert found is not None and np.unique(found, axis=0).tolist() == [[shade, 0, 255, 255]]


def test_export_mesh_writes_the_zero_level(make_sdf_run: MakeRun, tmp_path: Path, capsys) -> None:
    def centre(state: dict) -> None:
        points = torch.rand(4000, 3) * 2 - 1
        weights = {key.removeprefix("_model.field."): v for key, v in state.items() if key.startswith("_model.field.")}
        field = load_sdf_run(make_sdf_run(name="plain"), "cpu").model.field
        field.load_state_dict(weights)
        bias = state["_model.field.head.0.bias"]
        bias -= distance_and_gradient(field, points)[0].median() / field.config.output_scale

    config = make_sdf_run(centre)
    bounds = ("--bounds", -1, -1, -1, 1, 1, 1)
    options = ("--load-config", config, "--voxel", 0.1, *bounds, "--seen-within", "inf", "--max-slope", "inf")
    run("export-mesh", *options, "--output", tmp_path / "m.ply")
    mesh = trimesh.load(tmp_path / "m.ply", force="mesh")
    assert isinstance(mesh, trimesh.Trimesh) and len(mesh.faces) > 100
    distance = SdfQuery(load_sdf_run(config, "cpu").model.field).distance(torch.tensor(mesh.vertices).float())
    assert float(distance.abs().max()) < 2e-3
    assert "no colours: the run names no sequence" in capsys.readouterr().out and colors_of(mesh) is None


def test_a_mesh_has_the_colours_of_its_sequence(
    make_sdf_run: MakeRun, wall_sequence: Callable[..., Path], tmp_path: Path, monkeypatch, capsys
) -> None:
    """The cameras see the wall at z = -2 up to x = 2.06."""
    data = wall_sequence(4)
    config = make_sdf_run(data=data)
    monkeypatch.setattr(export_mesh, "SdfQuery", lambda field, runtime: SdfQuery(Wall(), runtime))

    def exported(*options: object) -> tuple[trimesh.Trimesh, str]:
        box = ("--voxel", 0.1, "--bounds", -1, -1.03, -2.53, 5, 1, -1.5, "--seen-within", "inf")
        run("export-mesh", "--load-config", config, *box, *options, "--output", tmp_path / "m.ply")
        mesh = trimesh.load(tmp_path / "m.ply", force="mesh", process=False)
        assert isinstance(mesh, trimesh.Trimesh)
        return mesh, " ".join(capsys.readouterr().out.split())

    mesh, text = exported()
    found = colors_of(mesh)
    assert found is not None
    is_seen = (mesh.vertices[:, 0] < 2.06) & (mesh.vertices[:, 1] < 1.5)
    expected = np.where(is_seen[:, None], (200, 100, 50, 255), (128, 128, 128, 255))
    assert np.array_equal(found, expected) and 0.2 < is_seen.mean() < 0.8
    assert f"colours of 4 frames on {is_seen.mean():.0%} of the vertices" in text
    assert "colours of 2 frames on " in exported("--num-color-frames", 2)[1]
    mesh, text = exported("--num-color-frames", 0)
    assert "no colours, as asked" in text and colors_of(mesh) is None
    (data / "transforms.json").unlink()
    assert "no colours: " in exported()[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--output", "m.stl"), "--output m.stl: expected a file's name that ends in one of .ply, .obj, .glb"),
        (("--output", "m.ply", "--voxel", 0), "--voxel 0.0: expected a positive number of metres"),
        (("--output", "m.ply", "--max-slope", -1), "--max-slope -1.0: expected a positive number, or inf"),
        (
            ("--output", "m.ply", "--bounds", 0, 0, 0, 1, 1, 0),
            "--bounds 0 0 0 1 1 0: expected the least x, y and z, then the greatest",
        ),
        (("--output", "m.ply", "--num-color-frames", -1), "--num-color-frames -1: expected at least 0"),
        (("--output", "m.ply", "--voxel", 1e-4), "expected a larger voxel"),
        (("--output", "m.ply", "--bounds", 90, 90, 90, 91, 91, 91, "--voxel", 0.5), "has no surface in the box"),
    ],
)
def test_meshes_that_cannot_be_are_refused(
    make_sdf_run: MakeRun, capsys, monkeypatch, tmp_path, options, expected
) -> None:
    config = make_sdf_run(lambda state: state["_model.field.head.0.bias"].fill_(50.0))
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, "export-mesh", "--load-config", config, *options)
    assert not (tmp_path / "m.ply").exists()


def test_without_keyframes_a_box_is_needed(make_sdf_run: MakeRun, capsys, tmp_path: Path) -> None:
    config = make_sdf_run(lambda state: state.pop(PROGRESS))
    line = refused(capsys, "export-mesh", "--load-config", config, "--output", tmp_path / "m.ply")
    assert "its checkpoint holds no keyframes, expected --bounds" in line
