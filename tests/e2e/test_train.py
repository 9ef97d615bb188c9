"""The real commands on the embedded scene: train, evaluate, render, export."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor

PROJECT = Path(__file__).parents[2]
SCENE = PROJECT / "data" / "still_life"
TINY = {
    "--pipeline.model.num-coarse-samples": 4,
    "--pipeline.model.num-importance-samples": 4,
    "--pipeline.model.layer-width": 16,
    "--pipeline.model.view-width": 8,
    "--pipeline.datamanager.train-num-rays-per-batch": 32,
    "--pipeline.datamanager.eval-num-rays-per-batch": 32,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("trained"),  # by one process, which trains once
    pytest.mark.skipif(not (SCENE / "transforms_train.json").exists(), reason="needs the embedded scene"),
]


def train(run: Callable[..., str], folder: Path, name: str, seed: int, is_new: bool = False) -> Path:
    """Train for three steps; the run's folder."""
    options = {
        "--data": SCENE,
        "--output-dir": folder,
        "--experiment-name": "tiny",
        "--timestamp": name,
        "--max-num-iterations": 3,
        "--machine.device-type": "cpu",
        "--machine.seed": seed,
        "--vis": "tensorboard",
    }
    run(folder, "ns-train eugen-nerf-small", options | TINY, is_new)
    return folder / "tiny" / "eugen-nerf-small" / name


def weights(run_folder: Path) -> dict[str, Tensor]:
    (checkpoint,) = (run_folder / "nerfstudio_models").glob("*.ckpt")
    return torch.load(checkpoint, weights_only=True)["pipeline"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="module")
def trained(run, folder: Path) -> Path:
    return train(run, folder, "first", seed=1, is_new=True)


def test_the_same_seed_writes_the_same_checkpoint(run, folder: Path, trained: Path) -> None:
    first, again = weights(trained), weights(train(run, folder, "again", seed=1))
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    readouts = [value for name, value in first.items() if name.endswith("readout.bias")]
    assert readouts and all(value.any() for value in readouts), "they start at zero: nothing was trained"
    assert list(trained.glob("events.out.tfevents.*"))


def test_evaluation_writes_finite_metrics(run, folder: Path, trained: Path) -> None:
    output = folder / "metrics.json"
    run(folder, "ns-eval", {"--load-config": trained / "config.yml", "--output-path": output})
    results = json.loads(output.read_text())["results"]
    assert 3 < results["psnr"] < 40
    assert 0 < results["ssim"] < 1


def test_a_split_renders_to_images(run, folder: Path, trained: Path) -> None:
    output = folder / "renders"
    options = {"--load-config": trained / "config.yml", "--output-path": output}
    options |= {"--split": "val", "--rendered-output-names": "rgb", "--image-format": "png"}
    run(folder, "ns-render dataset", options)
    images = [iio.imread(path) for path in sorted(output.rglob("*.png"))]
    listed = json.loads((SCENE / "transforms_val.json").read_text())["frames"]
    assert len(images) == len(listed)
    assert {image.shape for image in images} == {(200, 200, 3)}
    assert not np.array_equal(images[0], images[1])


def test_a_camera_path_renders_to_images(run, folder: Path, trained: Path) -> None:
    poses = [frame["transform_matrix"] for frame in json.loads((SCENE / "transforms_test.json").read_text())["frames"]]
    path = {
        "camera_type": "perspective",
        "render_height": 16,
        "render_width": 24,
        "seconds": 1,
        "camera_path": [{"camera_to_world": np.ravel(pose).tolist(), "fov": 40, "aspect": 1.5} for pose in poses[:2]],
    }
    (folder / "path.json").write_text(json.dumps(path))
    output = folder / "path"
    options = {"--load-config": trained / "config.yml", "--output-path": output}
    options |= {"--camera-path-filename": folder / "path.json", "--output-format": "images", "--image-format": "png"}
    run(folder, "ns-render camera-path", options)
    assert [iio.imread(image).shape for image in sorted(output.rglob("*.png"))] == [(16, 24, 3)] * 2


def test_a_point_cloud_is_exported(run, folder: Path, trained: Path) -> None:
    loaded = subprocess.run([sys.executable, "-c", "import open3d"], capture_output=True, text=True)
    if loaded.returncode:
        pytest.skip(f"needs Open3D: {loaded.stderr.strip().splitlines()[-1]}")
    output = folder / "cloud"
    options = {"--load-config": trained / "config.yml", "--output-dir": output, "--num-points": 200}
    options |= {"--num-rays-per-batch": 128, "--remove-outliers": False, "--normal-method": "open3d"}
    options |= {"--obb-center": (0, 0, 0), "--obb-rotation": (0, 0, 0), "--obb-scale": (8, 8, 8)}
    run(folder, "ns-export pointcloud", options)
    header = (output / "point_cloud.ply").read_bytes().split(b"end_header")[0].decode()
    (vertices,) = [int(line.split()[2]) for line in header.splitlines() if line.startswith("element vertex")]
    assert vertices >= 200
