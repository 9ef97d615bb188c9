"""A run whose field learns to be rendered at the few samples of a ray that a grid of its scene places."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from nerfstudio.engine.trainer import TrainerConfig
from torch.optim import Optimizer

from eugen3d.cli.errors import UsageError
from eugen3d.cli.refinement import Photographs
from eugen3d.cli.teacher_rows import hash_seed
from eugen3d.cli.teachers import NerfTeacher

RATE = 0.3
"""Share of the learning rates of training with which it starts; a hundredth of that is left at the end."""
WARMUP_STEPS = 20
CHECK_EVERY = 50
"""Steps between states that are kept."""


class GridRefinement:
    """Steps on photographs' rays over the field that renders, by the optimizers that trained it.

    Grid, proposals, coarse field and appearances stay as they are.

    Args:
        teacher: of a model with a grid.
        config: of its run.
    """

    def __init__(self, teacher: NerfTeacher, config: TrainerConfig, photographs: Photographs, num_rays: int) -> None:
        self.teacher, self.photographs, self.num_rays = teacher, photographs, num_rays
        self.step = 0
        model = teacher.model
        trained = [p for p in model.rendering_field.parameters() if p.requires_grad]
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self._optimizers: dict[str, Optimizer] = {
            name: config.optimizers[name]["optimizer"].setup(parameters)
            for name, parameters in model.get_param_groups().items()
            if parameters
        }
        self._rates = {
            name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in self._optimizers.items()
        }

    def state(self) -> dict[str, Any]:
        """What another call goes on from."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        return {"step": self.step, "model": self.teacher.model.state_dict(), "optimizers": optimizers}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.step = state["step"]
        self.teacher.model.load_state_dict(state["model"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def run(self, steps: int, on_step: Callable[[int], object]) -> None:
        """Take the steps that are left; the model is in evaluation mode before and after.

        Args:
            on_step: called after every step with how many there were.

        Raises:
            UsageError: the loss is not finite.
        """
        model: Any = self.teacher.model
        own = model.config.occupancy
        try:
            model.config.occupancy = replace(own, skipping=True, training=True)
            model.train()
            while self.step < steps:
                self._take_step(steps)
                on_step(self.step)
        finally:
            model.eval()
            model.config.occupancy = own

    def _take_step(self, steps: int) -> None:
        factor = RATE * min(1.0, (self.step + 1) / WARMUP_STEPS) * 0.01 ** (self.step / steps)
        for name, optimizer in self._optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
        rays, batch = self.photographs.batch(self.step, self.num_rays)
        torch.manual_seed(hash_seed(self.photographs.seed, "jitter", self.step))
        loss = self.teacher.color_loss(rays, batch)
        if not loss.isfinite():
            raise UsageError(f"--refine-steps: the loss of step {self.step} is {loss.item()}, expected a finite one")
        loss.backward()
        for optimizer in self._optimizers.values():
            optimizer.step()
        self.step += 1
