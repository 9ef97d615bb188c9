"""The real commands on a sequence of depth frames: a stream that is killed goes on, is evaluated and exported."""

import io
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
import trimesh

from eugen3d.models.isdf_pipeline import PROGRESS

NUM_FRAMES = 60
TINY: dict[str, object] = {
    "--pipeline.model.layer-width": 32,
    "--pipeline.mapper.rays.num-rays": 20,
    "--pipeline.mapper.num-first-steps": 20,
    "--pipeline.mapper.num-frame-steps": 5,
    "--pipeline.mapper.num-keyframe-steps": 5,
    "--pipeline.mapper.keyframes.max-interval": 0.3,
    "--pipeline.num-final-steps": 30,
    "--pipeline.evaluation.num-rays": 50,
    "--steps-per-save": 100_000,
    "--machine.device-type": "cpu",
    "--experiment-name": "tiny",
    "--timestamp": "run",
    "--output-dir": "outputs",
    "--vis": "tensorboard",
}

pytestmark = pytest.mark.slow


def latest(models: Path) -> tuple[int, dict[str, Any]]:
    """The step and the mapper's progress of the latest checkpoint; killed in time, a run has the one before it, too."""
    *_, path = sorted(models.glob("*"))
    state = torch.load(path, weights_only=True)
    progress = torch.load(io.BytesIO(state["pipeline"][PROGRESS].numpy().tobytes()), weights_only=True)
    return state["step"], progress


def test_a_stream_that_is_killed_goes_on(start, finish, wall_sequence: Callable[..., Path], tmp_path: Path) -> None:
    data = wall_sequence(NUM_FRAMES)
    (data / "depth013.png").unlink()
    models = tmp_path / "outputs" / "tiny" / "eugen-isdf-small" / "run" / "nerfstudio_models"
    options = TINY | {"--data": data}

    process = start(tmp_path, "ns-train eugen-isdf-small", options)
    seen: set[str] = set()
    while len(seen) < 4 and process.poll() is None:
        seen |= {path.name for path in models.glob("*.ckpt")}
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "killed before the stream ended"
    step, progress = latest(models)
    assert 0 < progress["position"] < NUM_FRAMES and progress["num_steps"] == step + 1
    assert progress["keyframes"]["last_is_keyframe"], "what was done at the last keyframe is there"
    assert int(max(seen)[5:14]) <= step

    finish(start(tmp_path, "ns-train eugen-isdf-small", options | {"--load-dir": models}))
    step, progress = latest(models)
    assert len(list(models.glob("*"))) == 1
    assert progress["position"] == NUM_FRAMES
    assert progress["num_frames"] == NUM_FRAMES - NUM_FRAMES // 10 - 1, "less those for evaluation and the missing one"
    assert progress["num_steps"] == step, "every step is counted once"

    config = models.parent / "config.yml"
    finish(start(tmp_path, "ns-eval", {"--load-config": config, "--output-path": "eval.json"}))
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["num_frames"] == 6 and 0 <= results["hit_rate"] <= 1
    assert 0 < results["sdf_error"] < 1 and 0 < results["surface_sdf_error"] < 1

    rendered: dict[str, object] = {
        "--load-config": config,
        "--rendered-output-names": ("depth", "normals"),
        "--image-format": "png",
    }
    finish(start(tmp_path, "ns-render dataset", rendered | {"--output-path": "renders"}))
    for name in ("depth", "normals"):
        images = [iio.imread(path) for path in sorted((tmp_path / "renders" / "test" / name).glob("*.png"))]
        assert len(images) == 6 and {image.shape for image in images} == {(24, 32, 3)}
        assert images[0].std() > 0
    path = {"--output-format": "images", "--output-path": "path", "--interpolation-steps": 1}
    finish(start(tmp_path, "ns-render interpolate", rendered | path))
    assert {iio.imread(image).shape for image in (tmp_path / "path").glob("*.png")} == {(24, 64, 3)}

    finish(start(tmp_path, "eugen3d export-mesh", {"--load-config": config, "--voxel": 0.1, "--output": "m.ply"}))
    mesh = trimesh.load(tmp_path / "m.ply", force="mesh")
    assert isinstance(mesh, trimesh.Trimesh) and len(mesh.faces) > 10
    assert abs(mesh.vertices[:, 2] + 2).mean() < 0.3


def test_data_that_are_not_there_end_training_before_it_leaves_anything(start, tmp_path: Path) -> None:
    process = start(tmp_path, "ns-train eugen-isdf-small", TINY | {"--data": "gone"})
    output, _ = process.communicate()
    assert process.returncode == 2 and "Traceback" not in output
    assert output.splitlines()[-1] == "error: gone: not found, expected the folder of an RGB-D sequence"
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
