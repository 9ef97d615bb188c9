"""`eugen3d bench fusion` on a camera that moves along a wall: the split, the result, runs beside it, bad input."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh
import yaml

from eugen3d.cli.bench.fusion import training_frames
from eugen3d.cli.main import main
from eugen3d.datasets.depth_datamanager import DepthDataManager, DepthDataManagerConfig
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.methods.eugen_isdf_small import eugen_isdf_small
from eugen3d.models.isdf import EUGenIsdfModel, EUGenIsdfModelConfig
from eugen3d.models.isdf_pipeline import PROGRESS, SdfPipeline

WriteSequence = Callable[..., Path]
FEW = ("--evaluation.num-rays", "100", "--evaluation.num-points", "200")


def bench(data: Path, *arguments: object) -> None:
    main(["bench", "fusion", "--data", str(data), "--voxel", "0.1", *FEW, *map(str, arguments)])


def result_of(output: Path, data: Path, *arguments: object) -> dict[str, Any]:
    bench(data, "--output", output, *arguments)
    return json.loads(output.read_text())


def refused(capsys: pytest.CaptureFixture[str], data: Path, *arguments: object) -> str:
    """The one line that the command is refused with."""
    with pytest.raises(SystemExit) as error:
        bench(data, *arguments)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a run of a small untrained field that is 0 on the wall, and returns its config.yml."""

    def make(data: Path, name: str = "run", change: Callable[[dict[str, Any]], Any] = dict, **frames: Any) -> Path:
        config = copy.deepcopy(eugen_isdf_small.config)
        config.pipeline.datamanager = DepthDataManagerConfig(data=data, **frames)  # pyright: ignore
        model = cast(EUGenIsdfModelConfig, config.pipeline.model)
        model.layer = LayerConfig("eugen", EUGenConfig(4, phi="softplus-100"))
        model.layer_width, model.num_frequencies = 8, 2
        pipeline = copy.deepcopy(config.pipeline).setup(device="cpu", test_mode="val")
        assert isinstance(pipeline, SdfPipeline)
        pipeline.mapper.add_keyframes(list(training_frames(DepthDataManager(config.pipeline.datamanager)))[:1])
        field, wall = cast(EUGenIsdfModel, pipeline.model).field, torch.tensor([[0.0, 0.0, -2.0]])
        with torch.no_grad():
            field.head[0].bias -= field(wall) / field.config.output_scale
        folder = tmp_path / name / "nerfstudio_models"
        folder.mkdir(parents=True)
        (folder.parent / "config.yml").write_text(yaml.dump(config))
        state = pipeline.state_dict()
        change(state)
        torch.save({"step": 3, "pipeline": state}, folder / "step-000000003.ckpt")
        return folder.parent / "config.yml"

    return make


def test_the_frames_of_a_run_are_fused_and_the_others_measured(wall_sequence: WriteSequence) -> None:
    """Frames 3 and 7 of ten are held out at an interval of four; a bad one is left out."""
    data = wall_sequence(10)
    iio.imwrite(data / "depth004.png", np.zeros((24, 32), np.uint16))
    source = DepthDataManager(DepthDataManagerConfig(data=data, eval_interval=4))
    assert [frame.name[-7:-4] for frame in training_frames(source)] == ["000", "001", "002", "005", "006", "008", "009"]
    assert [frame.name[-7:-4] for frame in source.eval_frames()] == ["003", "007"]


def test_a_wall_is_fused_and_measured(wall_sequence: WriteSequence, tmp_path: Path, capsys) -> None:
    """Exactly where there is a surface, which ends at the last cube that was seen whole, before the rim."""
    data = wall_sequence(9)
    result = result_of(tmp_path / "r.json", data, "--eval-interval", 4, "--mesh", tmp_path / "m.ply")
    (row,) = result["rows"]
    metrics = row["metrics"]
    assert list(row) == ["name", "seconds_per_frame", "num_vertices", "num_faces", "metrics"]
    assert row["name"] == "tsdf-fusion" and row["seconds_per_frame"] > 0 and metrics["num_frames"] == 2
    assert metrics["depth_error"] == pytest.approx(0.0, abs=1e-4) and 0.8 < metrics["hit_rate"] < 1
    assert metrics["surface_sdf_error"] < 0.02 and metrics["accuracy"] < 1e-4 and metrics["completion"] < 0.02
    assert metrics["sdf_error"] < 0.005 < metrics["sdf_error[<0]"] and metrics["sdf_error[>1]"] is not None
    volume = result["volume"]
    assert volume["num_frames"] == 7 and volume["truncation"] == pytest.approx(0.4)
    assert volume["bytes"] == 8 * np.prod(volume["shape"])
    mesh = trimesh.load(tmp_path / "m.ply", force="mesh", process=False)
    assert isinstance(mesh, trimesh.Trimesh) and len(mesh.faces) == row["num_faces"] > 100
    np.testing.assert_allclose(mesh.vertices[:, 2], -2.0, atol=1e-4)
    assert (mesh.vertex_normals[:, 2] > 0.99).all(), "it looks at the cameras"
    shown = capsys.readouterr().out
    assert "depth error, cm" in shown and "tsdf-fusion" in shown and not list(tmp_path.glob("*.partial"))


def test_without_a_mesh_of_the_scene_depth_alone_is_measured(wall_sequence: WriteSequence, tmp_path: Path) -> None:
    (row,) = result_of(tmp_path / "r.json", wall_sequence(4, mesh=False), "--eval-interval", 2)["rows"]
    assert list(row["metrics"]) == ["num_frames", "depth_error", "hit_rate"]


def test_runs_are_measured_as_ns_eval_does(wall_sequence: WriteSequence, make_run, tmp_path: Path, capsys) -> None:
    data = wall_sequence(9)
    config = make_run(data, eval_interval=4)
    result = result_of(tmp_path / "r.json", data, "--eval-interval", 4, "--runs", config, config)
    fusion, run, again = result["rows"]
    assert (run["name"], again["name"]) == ("run", "run-2") and run["metrics"] == again["metrics"]
    assert run["seconds_per_frame"] is None and list(run["metrics"]) == list(fusion["metrics"])
    settings = yaml.load(config.read_text(), yaml.Loader).pipeline
    settings.evaluation = type(settings.evaluation)(num_rays=100, num_points=200)
    pipeline = settings.setup(device="cpu", test_mode="test")
    state = torch.load(config.parent / "nerfstudio_models/step-000000003.ckpt", weights_only=True)["pipeline"]
    pipeline.model.load_state_dict({k.removeprefix("_model."): v for k, v in state.items() if k != PROGRESS})
    expected = pipeline.get_average_eval_image_metrics()
    assert {key: run["metrics"][key] for key in expected} == pytest.approx(expected)
    assert run["metrics"]["accuracy"] != fusion["metrics"]["accuracy"]
    assert "was trained on" not in capsys.readouterr().out
    other = wall_sequence(9, name="other")
    bench(other, "--eval-interval", 4, "--runs", config)
    assert f"run was trained on {data}" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_call_goes_on(wall_sequence: WriteSequence, make_run, tmp_path: Path, monkeypatch) -> None:
    data, output = wall_sequence(6), tmp_path / "r.json"
    options = ("--eval-interval", 3, "--runs", make_run(data, eval_interval=3))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr("eugen3d.cli.bench.fusion.BenchFusion._measure_run", stop)
        bench(data, "--output", output, *options)
    assert not output.exists()
    monkeypatch.setattr("eugen3d.cli.bench.tsdf.TsdfVolume.integrate", stop)
    assert [row["name"] for row in result_of(output, data, *options)["rows"]] == ["tsdf-fusion", "run"]


def test_runs_that_saw_other_frames_are_refused(wall_sequence: WriteSequence, make_run, capsys) -> None:
    data = wall_sequence(9)
    line = refused(capsys, data, "--eval-interval", 4, "--runs", config := make_run(data, eval_interval=3))
    assert line == f"error: {config}: was trained with eval_interval 3, expected 4 as --eval-interval"
    stepped = make_run(data, "stepped", eval_interval=4, frame_step=2)
    line = refused(capsys, data, "--eval-interval", 4, "--runs", stepped)
    assert "was trained with frame_step 2, expected 1 as --frame-step" in line
    bare = make_run(data, "bare", lambda state: state.pop(PROGRESS), eval_interval=4)
    line = refused(capsys, data, "--eval-interval", 4, "--runs", bare)
    assert "its checkpoint holds no keyframes" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--voxel", "0"), "--voxel 0.0: expected a positive number of metres"),
        (("--voxel", "nan"), "--voxel nan: expected a positive number of metres"),
        (("--voxel", "1e-4"), "--voxel 0.0001: takes a grid of "),
        (("--truncation", "0.05"), "--truncation 0.05: expected at least a voxel of 0.1 m"),
        (("--eval-interval", "0"), "--eval-interval 0: expected at least 2"),
        (("--eval-interval", "9"), "has no frame to measure on, expected every 9th"),
        (("--frame-step", "0"), "--frame-step 0: expected at least 1"),
        (("--mesh", "m.stl"), "--mesh m.stl: expected a file's name that ends in one of .ply, .obj, .glb"),
        (("--output", "."), "--output .: is a folder, expected a file's name"),
        (("--data", "none"), "none: not found, expected the folder of an RGB-D sequence"),
        (("--runs", "none/config.yml"), "not found, expected a run's config.yml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    wall_sequence: WriteSequence, capsys, tmp_path: Path, monkeypatch, options, expected
) -> None:
    data = wall_sequence(4)
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, data, "--eval-interval", "2", *options)
    assert not list(tmp_path.glob("*.partial"))


def test_a_mesh_that_is_named_and_not_there_is_one_line(wall_sequence: WriteSequence, capsys) -> None:
    data = wall_sequence(4)
    (data / "mesh.ply").unlink()
    line = refused(capsys, data, "--eval-interval", 2)
    assert line == f"error: {data / 'mesh.ply'}: not found, expected a triangle mesh"
