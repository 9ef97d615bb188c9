"""The real commands on a picture: a training that is killed goes on as if it had not been, and is decoded."""

import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

STEPS, SAVED = 500, 50


TRAINING: dict[str, object] = {
    "--machine.device-type": "cpu",
    "--output-dir": "outputs",
    "--timestamp": "run",
    "--pipeline.model.layer-width": 24,
    "--pipeline.model.layer.eugen.num-features": 8,
    "--pipeline.datamanager.num-points": 500,
    "--max-num-iterations": STEPS,
    "--steps-per-save": SAVED,
    "--data": "picture.png",
}

pytestmark = pytest.mark.slow


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = run / "nerfstudio_models" / f"step-{STEPS - 1:09d}.ckpt"
    return torch.load(path, map_location="cpu", weights_only=True)["pipeline"]


def test_a_training_that_is_killed_goes_on_and_is_decoded(start, run, tmp_path: Path) -> None:
    rows, columns = np.mgrid[:30, :40]
    iio.imwrite(tmp_path / "picture.png", (128 + 100 * np.sin(rows / 4) * np.cos(columns / 5)).astype(np.uint8))
    killed, whole = (tmp_path / "outputs" / name / "eugen-siren" / "run" for name in ("killed", "whole"))
    models = killed / "nerfstudio_models"

    options = TRAINING | {"--experiment-name": "killed"}
    process, deadline = start(tmp_path, "ns-train eugen-siren", options), time.monotonic() + 200
    while not list(models.glob("step-*.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    (saved,) = models.glob("step-*.ckpt")
    done = int(saved.stem.removeprefix("step-")) + 1
    assert 1 < done < STEPS

    remaining = {"--load-dir": models, "--max-num-iterations": STEPS - done}
    run(tmp_path, "ns-train eugen-siren", options | remaining)
    run(tmp_path, "ns-train eugen-siren", TRAINING | {"--experiment-name": "whole"})
    expected = weights(whole)
    for name, tensor in weights(killed).items():
        assert torch.equal(tensor, expected[name]), name

    size = {"--output": "decoded.png", "--size": (60, 80)}
    run(tmp_path, "eugen3d decode", {"--load": killed / "config.yml"} | size, is_new=True)
    assert iio.imread(tmp_path / "decoded.png").shape == (60, 80)
