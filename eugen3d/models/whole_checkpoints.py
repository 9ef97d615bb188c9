"""A trainer whose checkpoints appear whole or not at all, so that one that is killed can always go on."""

import os
import shutil

from nerfstudio.engine.trainer import Trainer

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
