"""A trainer whose checkpoints appear whole or not at all, so that one that is killed can always go on; what it cannot
train on it refuses with one line."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from nerfstudio.engine.trainer import Trainer, TrainerConfig
from torch import nn

from eugen3d.datasets.stop import stop

SCRATCH = ".checkpoint"
"""The folder that checkpoints are written to, beside theirs: nerfstudio takes every file in theirs for a whole one."""


ENDED = "ended"
"""The empty file that a training leaves in its run folder when it has come to its end, wherever that was."""


class WholeCheckpointTrainer(Trainer):
    """Nerfstudio's trainer, but a checkpoint is renamed into its folder only when all of it is written.

    How many steps a stream is worth is known at its end only: `ENDED` tells a training that is over from one that was
    interrupted.
    """

    def _after_train(self) -> None:
        super()._after_train()
        (self.base_dir / ENDED).touch()

    def save_checkpoint(self, step: int) -> None:
        """Save the model and the optimizers; what was saved before goes only when this is there."""
        folder, scratch = self.checkpoint_dir, self.checkpoint_dir.parent / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        self.checkpoint_dir = scratch
        try:
            super().save_checkpoint(step)
        finally:
            self.checkpoint_dir = folder
        written = list(scratch.glob("*.ckpt"))
        folder.mkdir(parents=True, exist_ok=True)
        for path in written:
            os.replace(path, folder / path.name)
        shutil.rmtree(scratch, ignore_errors=True)
        if written and self.config.save_only_latest_checkpoint:
            for path in folder.glob("*.ckpt"):
                if path.name != written[0].name:
                    path.unlink()


@dataclass
class WholeCheckpointTrainerConfig(TrainerConfig):
    """A trainer's settings, which become a run only where there is something to train on."""

    _target: type = field(default_factory=lambda: WholeCheckpointTrainer)
    """Target class to instantiate."""

    def check(self) -> None:
        """End the process with one line and exit code 2 where a method cannot use its settings or data."""

    def save_config(self) -> None:
        """Write config.yml. What cannot be used ends the process before, with one line and exit code 2."""
        self.check()
        if self.load_dir is not None and not any(self.load_dir.glob("step-*.ckpt")):
            stop(f"--load-dir {self.load_dir}: has no checkpoint, expected step-*.ckpt")
        if self.steps_per_eval_batch:
            stop(f"--steps-per-eval-batch {self.steps_per_eval_batch}: expected 0, evaluation is of the whole")
        super().save_config()


def load_weights(model: nn.Module, pipeline_state: Mapping[str, Any]) -> None:
    """Load a model from a pipeline's state, strictly; one of another model ends the process with one line and exit
    code 2."""
    prefix = "_model."
    weights = {key.removeprefix(prefix): value for key, value in pipeline_state.items() if key.startswith(prefix)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        refuse_checkpoint(str(error).splitlines()[1].strip())


def refuse_checkpoint(found: str) -> NoReturn:
    """End the process because a checkpoint is not this model's."""
    stop(f"--load-dir: its checkpoint is of another model, expected this one's ({found})")
