"""Polish a student end to end by gradient descent, keeping the best state seen."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from eugen3d.distill.whitening import WhitenedMuon
from eugen3d.training.distributed import average_gradients

RATE_DROP = 0.3
"""Share of the learning rate that is left where a larger one led nowhere."""


@dataclass(frozen=True)
class RefineConfig:
    """Settings of the polish."""

    steps: int = 0
    """Gradient steps; 0 for none."""
    learning_rate: float = 4e-4
    """About the share by which a layer's outputs change in a step; warmed up, then decayed to a hundredth."""
    warmup_steps: int = 20
    """Steps over which the learning rate grows from zero."""
    check_every: int = 50
    """Steps between measurements of the validation loss, on which the best state is chosen."""
    patience: int = 3
    """So many measurements in a row without a better one, and it goes on from the best state in smaller steps."""
    max_drops: int = 3
    """How often it does so without a gain in between, before it ends."""


@dataclass
class RefineState:
    """Where a polish stands; plain tensors and numbers, so that it can be saved and resumed."""

    step: int = 0
    optimizer: dict[str, Any] | None = None
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    """Measurements since the best one, or since the steps were made smaller."""
    drops: int = 0
    """How often they were made smaller since the best one."""
    rate: float = 1.0
    """What the learning rate is multiplied by."""


def refine(
    student: nn.Module,
    train_loss: Callable[[int], Tensor],
    validation_loss: Callable[[], float],
    config: RefineConfig,
    state: RefineState | None = None,
    on_step: Callable[[RefineState], None] = lambda state: None,
) -> RefineState:
    """Minimise a loss over the student's parameters, in place; it ends with the best state seen, the start included.

    Steps that lead nowhere are taken back and tried again smaller; where that helps no more it ends early.

    Several processes take the mean of their gradients, and so go the same way.

    Args:
        train_loss: the loss of training batch number `step`. It has to depend on the number alone, so that a resumed
            polish goes on as if it had not been interrupted. Over several processes its mean over them is the loss.
        validation_loss: the loss on held-out rays, without gradients; the same in all processes.
        state: of an interrupted polish, together with the student as it was then.
        on_step: called after every step with the state, whose optimizer entry is live.

    Raises:
        ValueError: when the loss is not finite.
    """
    state = state or RefineState()
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = WhitenedMuon(student, lr=config.learning_rate)
    if state.optimizer is not None:
        optimizer.load_state_dict(state.optimizer)
    if not state.best:
        _check(student, validation_loss, optimizer, state)
    while state.step < config.steps and state.drops <= config.max_drops:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * state.rate * _rate(state.step, config)
        loss = train_loss(state.step)
        if not loss.isfinite():
            raise ValueError(f"the loss of step {state.step} is {loss.item()}, expected a finite one")
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters)
        optimizer.step()
        state.step += 1
        if state.step % config.check_every == 0 or state.step == config.steps:
            _check(student, validation_loss, optimizer, state)
            if state.stale >= config.patience:
                optimizer.forget()
                student.load_state_dict(state.best)
                state.stale, state.drops, state.rate = 0, state.drops + 1, state.rate * RATE_DROP
        state.optimizer = optimizer.state_dict()
        on_step(state)
    student.load_state_dict(state.best)
    return state


def _rate(step: int, config: RefineConfig) -> float:
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def _check(
    student: nn.Module, validation_loss: Callable[[], float], optimizer: WhitenedMuon, state: RefineState
) -> None:
    """Take the validation loss, and the coordinates of the steps that follow."""
    with optimizer.measuring():
        loss = validation_loss()
    state.stale += 1
    if loss < state.best_loss:
        state.best_loss, state.best, state.stale, state.drops = loss, copy.deepcopy(student.state_dict()), 0, 0
