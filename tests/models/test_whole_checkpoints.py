"""Checkpoints that appear whole or not at all."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.engine.trainer import Trainer
from torch import nn
from torch.amp.grad_scaler import GradScaler

from eugen3d.models.whole_checkpoints import ENDED, SCRATCH, WholeCheckpointTrainer


class Saver(WholeCheckpointTrainer):
    """A trainer that can do nothing but save."""

    def __init__(self, folder: Path, keep_only_latest: bool) -> None:
        self.checkpoint_dir, self.local_rank = folder, 0
        self.config: Any = SimpleNamespace(save_only_latest_checkpoint=keep_only_latest)
        self.pipeline: Any = nn.Linear(2, 2)
        self.optimizers: Any = SimpleNamespace(optimizers={}, schedulers={})
        self.grad_scaler = GradScaler("cpu", enabled=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("keep_only_latest", [True, False])
def test_a_checkpoint_takes_its_place(tmp_path: Path, keep_only_latest: bool) -> None:
    folder = tmp_path / "run" / "models"
    saver = Saver(folder, keep_only_latest)
    saver.save_checkpoint(3)
    saver.save_checkpoint(7)
    older = [] if keep_only_latest else ["step-000000003.ckpt"]
    assert names(folder) == [*older, "step-000000007.ckpt"] and names(folder.parent) == ["models"]
    assert torch.load(folder / "step-000000007.ckpt", weights_only=True)["step"] == 7
    assert saver.checkpoint_dir == folder


def test_what_was_saved_stays_where_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run" / "models"
    saver = Saver(folder, True)
    saver.save_checkpoint(3)

    def half(_: object, path: Path) -> None:
        path.write_bytes(b"half of")
        raise OSError("no space left on the device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(torch, "save", half)
        saver.save_checkpoint(5)
    assert names(folder) == ["step-000000003.ckpt"], "nothing that would be taken for a checkpoint"
    assert names(folder.parent / SCRATCH) == ["step-000000005.ckpt"], "as a killed process leaves it"
    saver.save_checkpoint(7)
    assert names(folder) == ["step-000000007.ckpt"] and names(folder.parent) == ["models"]


def test_a_training_says_that_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Saver(tmp_path / "models", True)
    saver.base_dir = tmp_path
    done: list[bool] = []
    monkeypatch.setattr(Trainer, "_after_train", lambda _: done.append((tmp_path / ENDED).exists()))
    saver._after_train()
    assert done == [False], "not before the last checkpoint is written"
    assert (tmp_path / ENDED).exists()
