"""Learning-rate schedules whose checkpoints `torch.load(weights_only=True)` reads."""

from dataclasses import dataclass, field

from nerfstudio.engine.schedulers import ExponentialDecayScheduler, ExponentialDecaySchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@dataclass
class ExponentialDecayConfig(ExponentialDecaySchedulerConfig):
    """nerfstudio's warm-up and exponential decay."""

    _target: type = field(default_factory=lambda: ExponentialDecay)
    """Target class to instantiate."""


class ExponentialDecay(ExponentialDecayScheduler):
    """nerfstudio's schedule in plain floats.

    Its factors are numpy numbers; they end up in the optimizer's state, and torch ≥ 2.6 refuses to load a checkpoint
    with one in it, so neither `ns-eval` nor a resumed `ns-train` could read what was trained.
    """

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The schedule for an optimizer."""
        schedule = super().get_scheduler(optimizer, lr_init)
        assert isinstance(schedule, LambdaLR)
        decay = schedule.lr_lambdas[0]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        return LambdaLR(optimizer, lambda step: float(decay(step)))
