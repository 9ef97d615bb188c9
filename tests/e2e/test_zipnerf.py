"""The real command on the embedded courtyard, at two scales."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eugen3d.fields.hash_grid import INIT

SCENE = Path(__file__).parents[2] / "data" / "courtyard"
TINY = {
    "--data": SCENE,
    "--machine.device-type": "cpu",
    "--vis": "tensorboard",
    "--pipeline.model.num-samples": (6, 6, 4),
    "--pipeline.datamanager.train-num-rays-per-batch": 32,
    "--pipeline.datamanager.scales": (4, 8),
    "--pipeline.model.appearance-dim": 2,
    "--experiment-name": "tiny",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SCENE / "transforms.json").exists(), reason="needs the embedded scene"),
]


def test_training_on_several_scales(run: Callable[..., str], tmp_path: Path) -> None:
    options = TINY | {"--output-dir": tmp_path, "--timestamp": "run", "--max-num-iterations": 3}
    run(tmp_path, "ns-train eugen-zipnerf-small", options)
    (checkpoint,) = tmp_path.glob("tiny/eugen-zipnerf-small/run/nerfstudio_models/*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["pipeline"]
    assert all(value.isfinite().all() for value in state.values())
    tables = [value for name, value in state.items() if name.endswith("grid.table")]
    assert len(tables) == 3 and all(table.abs().max() > 1.5 * INIT for table in tables), "they were trained"
    assert state["_model.appearance.embedding.weight"].shape == (80, 2), "a photograph's at both scales"
