"""eugen-isdf on folders of frames: bad ones among them, a folder that grows, and what is measured afterwards."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import tyro
from torch import Tensor, nn

from eugen3d.datasets.depth_datamanager import DepthDataManager
from eugen3d.methods.eugen_isdf_small import eugen_isdf_small
from eugen3d.models import isdf_pipeline
from eugen3d.models.isdf_evaluation import SdfEvaluationConfig
from eugen3d.models.isdf_pipeline import SdfPipeline

WriteSequence = Callable[..., Path]


class Plane(nn.Module):
    """The distance to the plane z = `level` from above."""

    def __init__(self, level: float = -2.0) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 2] - self.level


@pytest.fixture
def evaluated(make_pipeline: Callable[..., SdfPipeline]) -> Callable[..., dict[str, float | None]]:
    """A function that says what a field scores on a sequence."""

    def evaluate(data: Path, field: nn.Module, folder: Path | None = None, **settings: Any) -> dict[str, float | None]:
        pipeline = make_pipeline(data, "test", **settings)
        pipeline.model.field = field  # pyright: ignore[reportArgumentType]
        return pipeline.get_average_eval_image_metrics(output_path=folder, get_std=True)

    return evaluate


def spoil(folder: Path) -> None:
    """Frame 1 loses its depth's values, 2 its pose, 3 its size, 4 its file; 5 is good; 6 is no picture."""
    iio.imwrite(folder / "depth001.png", np.zeros((24, 32), np.uint16))
    meta = json.loads((folder / "transforms.json").read_text())
    meta["frames"][2]["transform_matrix"][0][3] = float("nan")
    (folder / "transforms.json").write_text(json.dumps(meta))
    iio.imwrite(folder / "depth003.png", np.full((12, 16), 2000, np.uint16))
    (folder / "depth004.png").unlink()
    (folder / "depth006.png").write_bytes(b"no picture")


@pytest.mark.parametrize("settings", [{}, {"watch_timeout": 0.3}])
def test_a_stream_goes_on_over_bad_frames(make_pipeline, wall_sequence, capsys, settings: dict[str, Any]) -> None:
    data = wall_sequence(9)
    spoil(data)
    pipeline, metrics = make_pipeline(data, eval_interval=0, **settings), {}
    while not (pipeline.source.is_over and pipeline.mapper.wants_frame()):
        _, losses, metrics = pipeline.get_train_loss_dict(0)
        assert all(bool(loss.isfinite()) for loss in losses.values())
    last = pipeline.mapper.keyframes.entries[-1].frame.name
    assert (pipeline.mapper.num_frames, float(metrics["num_skipped"])) == (4, 5) and last == "wall/depth008.png"
    text = " ".join(capsys.readouterr().out.split())
    assert "skipped 5 of 9 frames: wall/depth001.png: depth has no measurement; wall/depth002.png: pose is not" in text
    assert text.count("skipped") == 1, "reported once"


def test_frames_that_are_all_bad_end_the_process_with_one_line(make_pipeline, wall_sequence, capsys) -> None:
    data = wall_sequence(2)
    for n in range(2):
        iio.imwrite(data / f"depth{n:03d}.png", np.zeros((24, 32), np.uint16))
    with pytest.raises(SystemExit, match="2"):
        make_pipeline(data, eval_interval=0).get_train_loss_dict(0)
    assert capsys.readouterr().err == f"error: {data}: none of its frames can be used, 2 were skipped\n"


def test_an_exact_field_has_no_error(evaluated, wall_sequence: WriteSequence, tmp_path: Path) -> None:
    metrics = evaluated(wall_sequence(9), Plane(), tmp_path / "views", eval_interval=4)
    assert metrics["num_frames"] == 2 and metrics["hit_rate"] == 1
    for name in ("depth_error", "depth_error_std", "sdf_error", "surface_sdf_error", "gradient_cosine_distance"):
        assert metrics[name] == pytest.approx(0.0, abs=2e-4), name
    assert metrics["sdf_error[>1]"] is not None
    shown = sorted(path.name for path in (tmp_path / "views").iterdir())
    assert shown == sorted(f"eval_{kind}_000{n}.png" for kind in ("rgb", "normals", "depth") for n in range(2))
    assert iio.imread(tmp_path / "views" / "eval_normals_0000.png")[12, 16].tolist() == [128, 128, 255]


def test_a_field_that_is_off_by_a_length_is_measured_to_be(evaluated, wall_sequence: WriteSequence) -> None:
    metrics = evaluated(wall_sequence(9), Plane(-1.75), eval_interval=4)
    for name in ("depth_error", "sdf_error", "surface_sdf_error"):
        assert metrics[name] == pytest.approx(0.25, abs=2e-4), name
    assert metrics["gradient_cosine_distance"] == pytest.approx(0.0, abs=1e-5)


def test_a_field_without_a_surface_is_never_met(evaluated, wall_sequence: WriteSequence) -> None:
    metrics = evaluated(wall_sequence(9, mesh=False), Plane(-50.0), eval_interval=4)
    assert metrics == {"num_frames": 2, "depth_error": None, "depth_error_std": None, "hit_rate": 0}


def test_frames_are_shown_one_after_the_other(make_pipeline, wall_sequence: WriteSequence, monkeypatch) -> None:
    pipeline = make_pipeline(wall_sequence(9), "test", eval_interval=4)
    pipeline.model.field = Plane()
    exact, other = pipeline.source.eval_frames()
    farther = dataclasses.replace(other, depth=other.depth + 0.25)
    monkeypatch.setattr(pipeline.datamanager, "eval_frames", lambda: [exact, farther])
    for step, error in ((0, 0.0), (500, 0.25), (1000, 0.0)):
        metrics, images = pipeline.get_eval_image_metrics_and_images(step)
        assert metrics == {"hit_rate": 1, "num_rays": 24 * 32, "depth_error": pytest.approx(error, abs=2e-4)}
        assert {name: tuple(image.shape) for name, image in images.items()} == dict.fromkeys(
            ("rgb", "normals", "depth"), (24, 32, 3)
        )


def test_without_frames_for_evaluation_the_process_ends_with_one_line(evaluated, wall_sequence, capsys) -> None:
    data = wall_sequence(3)
    with pytest.raises(SystemExit, match="2"):
        evaluated(data, Plane(), eval_interval=0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {data}: has no frame for evaluation")


def test_a_mesh_that_is_not_there_ends_the_process_with_one_line(evaluated, wall_sequence, capsys) -> None:
    data = wall_sequence(4)
    (data / "mesh.ply").unlink()
    with pytest.raises(SystemExit, match="2"):
        evaluated(data, Plane(), eval_interval=2)
    assert capsys.readouterr().err == f"error: {data / 'mesh.ply'}: not found, expected a triangle mesh\n"


def test_settings_of_evaluation_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="num_rays and num_points are at least 1"):
        SdfEvaluationConfig(num_rays=0)


def test_until_a_frame_can_be_used_the_stream_waits(make_pipeline, wall_sequence: WriteSequence, monkeypatch) -> None:
    """The first frame is bad and the next one a second away: no looking without pause, no end either."""
    data, slept, now = wall_sequence(4), [], [0.0]
    iio.imwrite(data / "depth000.png", np.zeros((24, 32), np.uint16))

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(isdf_pipeline, "time", SimpleNamespace(sleep=sleep))
    pipeline = make_pipeline(data, eval_interval=0, frame_rate=1.0)
    assert isinstance(pipeline.datamanager, DepthDataManager)
    pipeline.datamanager._clock = lambda: now[0]
    _, losses, metrics = pipeline.get_train_loss_dict(0)
    assert metrics["num_frames"] == 1 and metrics["num_skipped"] == 1 and losses
    assert pipeline.source.position == 2 and not pipeline.source.is_over
    assert 15 <= len(slept) <= 25 and sum(slept) == pytest.approx(1.0, abs=0.1)

    count = len(slept)
    pipeline.get_train_loss_dict(1)
    assert len(slept) == count, "with something to train on there is no pause"


def test_data_that_cannot_be_used_leave_no_run_behind(tmp_path: Path, wall_sequence, capsys) -> None:
    config = copy.deepcopy(eugen_isdf_small.config)
    config.output_dir, config.experiment_name, config.timestamp = tmp_path / "outputs", "room", "run"
    (tmp_path / "empty").mkdir()
    meta = json.loads(((data := wall_sequence(3)) / "transforms.json").read_text())
    for frame in meta["frames"]:
        frame["transform_matrix"][1][1] = float("nan")
    (data / "transforms.json").write_text(json.dumps(meta))
    (tmp_path / "unposed").mkdir()
    iio.imwrite(tmp_path / "unposed" / "frame-000000.depth.png", np.full((24, 32), 2000, np.uint16))
    for path, reason in {
        None: "--data: found none",
        tmp_path / "gone": "gone: not found",
        tmp_path / "empty": "empty: ",
        data: "wall: none of its 3 frames has a pose that can be used",
        tmp_path / "unposed": "unposed: none of its 1 frames has a pose that can be used",
    }.items():
        config.pipeline.datamanager.data = path
        with pytest.raises(SystemExit, match="2"):
            config.save_config()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and reason in line
    assert not config.output_dir.exists()

    config.pipeline.datamanager.data = wall_sequence(2, "good")
    config.load_dir = tmp_path / "empty"
    with pytest.raises(SystemExit, match="2"):
        config.save_config()
    assert "empty: has no checkpoint, expected step-*.ckpt" in capsys.readouterr().err
    config.load_dir = None
    config.steps_per_eval_batch = 5
    with pytest.raises(SystemExit, match="2"):
        config.save_config()
    assert "--steps-per-eval-batch 5: expected 0" in capsys.readouterr().err
    config.steps_per_eval_batch = 0
    config.save_config()
    assert (config.get_base_dir() / "config.yml").is_file()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--pipeline.mapper.rays.num-rays", "0", "num_rays"),
        ("--pipeline.mapper.losses.bounds", "foo", "nearest"),
        ("--pipeline.model.replaced-layers", "9", "replaced"),
        ("--pipeline.num-batch-steps", "0", "num_batch_steps"),
        ("--pipeline.datamanager.frame-rate", "-1", "frame_rate"),
        ("--pipeline.evaluation.num-rays", "0", "num_rays"),
    ],
)
def test_options_that_cannot_be_are_refused(option: str, value: str, reason: str, capsys) -> None:
    config = copy.deepcopy(eugen_isdf_small.config)
    with pytest.raises(SystemExit, match="2"):
        tyro.cli(type(config), default=config, args=[option, value])
    message = capsys.readouterr().err
    assert reason in message and "Traceback" not in message
