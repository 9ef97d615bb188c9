"""The real commands on a picture: a training that is killed goes on as if it had not been, and is decoded."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

STEPS, SAVED = 1500, 100
pytestmark = pytest.mark.slow


def start(folder: Path, name: str, *arguments: object) -> subprocess.Popen[str]:
    """Start one of the commands in a folder, as a user would."""
    return subprocess.Popen(
        [Path(sys.executable).parent / name, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-4000:]
    return output


def training(folder: Path, name: str, *more: object) -> subprocess.Popen[str]:
    shared = ("--machine.device-type", "cpu", "--output-dir", "outputs", "--timestamp", "run")
    size = ("--pipeline.model.layer-width", 24, "--pipeline.model.layer.eugen.num-features", 8)
    steps = ("--max-num-iterations", STEPS, "--steps-per-save", SAVED, "--pipeline.datamanager.num-points", 500)
    return start(
        folder,
        "ns-train",
        *("eugen-siren", *shared, "--experiment-name", name, *size, *steps, "--data", "picture.png", *more),
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = run / "nerfstudio_models" / f"step-{STEPS - 1:09d}.ckpt"
    return torch.load(path, map_location="cpu", weights_only=True)["pipeline"]


def test_a_training_that_is_killed_goes_on_and_is_decoded(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:30, :40]
    iio.imwrite(tmp_path / "picture.png", (128 + 100 * np.sin(rows / 4) * np.cos(columns / 5)).astype(np.uint8))
    killed, whole = (tmp_path / "outputs" / name / "eugen-siren" / "run" for name in ("killed", "whole"))
    models = killed / "nerfstudio_models"

    process, deadline = training(tmp_path, "killed"), time.monotonic() + 200
    while not list(models.glob("step-*.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (saved,) = models.glob("step-*.ckpt")
    done = int(saved.stem.removeprefix("step-")) + 1
    assert 1 < done < STEPS

    finish(training(tmp_path, "killed", "--load-dir", models, "--max-num-iterations", STEPS - done))
    finish(training(tmp_path, "whole"))
    expected = weights(whole)
    for name, tensor in weights(killed).items():
        assert torch.equal(tensor, expected[name]), name

    options = ("--load", killed / "config.yml", "--output", "decoded.png", "--size", 60, 80)
    finish(start(tmp_path, "eugen3d", "decode", *options))
    assert iio.imread(tmp_path / "decoded.png").shape == (60, 80)
