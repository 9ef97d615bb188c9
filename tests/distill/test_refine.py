"""The gradient polish, on a linear regression."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.distill import RefineConfig, RefineState, refine

Losses = tuple[Callable[[int], Tensor], Callable[[], float]]


class StoppedError(Exception):
    """What ends a polish in the middle."""


def make_losses(student: nn.Linear) -> Losses:
    """Batches that depend on their number alone, and a validation batch."""
    target = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))

    def loss(number: int) -> Tensor:
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
        return F.mse_loss(student(x), x @ target.T)

    return loss, lambda: float(loss(10**6).detach())


def test_the_loss_falls() -> None:
    student = nn.Linear(3, 2)
    train_loss, validation_loss = make_losses(student)
    before, steps = validation_loss(), []
    config = RefineConfig(steps=60, learning_rate=2.0, check_every=10, warmup_steps=5)
    state = refine(student, train_loss, validation_loss, config, on_step=lambda state: steps.append(state.step))
    assert steps == list(range(1, 61)) and state.step == 60
    assert validation_loss() == pytest.approx(state.best_loss)
    assert state.best_loss < 0.3 * before


def test_no_steps_change_nothing() -> None:
    student = nn.Linear(3, 2)
    before = copy.deepcopy(student.state_dict())
    state = refine(student, *make_losses(student), RefineConfig(steps=0))
    assert state.step == 0 and math.isfinite(state.best_loss)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_best_state_is_kept() -> None:
    """The validation loss is best after the second check, whatever training does later."""
    student = nn.Linear(3, 2)
    train_loss, _ = make_losses(student)
    values, seen = iter([3.0, 2.0, 1.0, 5.0, 4.0]), []

    def validation_loss() -> float:
        seen.append(copy.deepcopy(student.state_dict()))
        return next(values)

    state = refine(student, train_loss, validation_loss, RefineConfig(steps=20, check_every=5, warmup_steps=1))
    assert len(seen) == 5 and state.best_loss == 1.0
    assert torch.equal(student.weight, seen[2]["weight"]) and not torch.equal(student.weight, seen[4]["weight"])


def test_a_polish_that_only_harms_leaves_the_start() -> None:
    student = nn.Linear(3, 2)
    before = copy.deepcopy(student.state_dict())
    train_loss, _ = make_losses(student)
    values = iter([1.0, 2.0, 3.0])
    refine(student, train_loss, lambda: next(values), RefineConfig(steps=10, check_every=5))
    assert torch.equal(student.weight, before["weight"])


def test_steps_that_lead_nowhere_are_taken_back_and_made_smaller_until_it_ends() -> None:
    """Two measurements in a row without a better one are enough."""
    student = nn.Linear(3, 2)
    train_loss, _ = make_losses(student)
    values = iter([5.0, 6.0, 7.0, 4.0, 4.0, 4.5, 4.1, 4.2, 1.0])
    seen: list[tuple[float, int, Tensor]] = []
    config = RefineConfig(steps=90, learning_rate=0.1, check_every=5, patience=2, max_drops=1)
    state = refine(
        *(student, train_loss, lambda: next(values), config),
        on_step=lambda state: seen.append((state.rate, state.drops, student.weight.detach().clone())),
    )
    assert (state.step, state.best_loss, state.drops) == (35, 4.0, 2) and next(values) == 1.0
    rates = [rate for rate, _, _ in seen]
    assert rates[:9] == [1.0] * 9 and rates[9:24] == [0.3] * 15 and rates[24:34] == [pytest.approx(0.09)] * 10
    assert [drops for _, drops, _ in seen][14] == 0, "a gain in between starts the count anew"
    best = state.best["weight"]
    assert torch.equal(seen[24][2], best) and torch.equal(student.weight, best), "it went on from the best"
    assert not torch.equal(seen[23][2], best)


def test_the_last_step_is_checked() -> None:
    student = nn.Linear(3, 2)
    train_loss, validation_loss = make_losses(student)
    checks: list[float] = []

    def counted() -> float:
        checks.append(validation_loss())
        return checks[-1]

    refine(student, train_loss, counted, RefineConfig(steps=7, check_every=5))
    assert len(checks) == 3, "at the start, after five steps and at the end"


@pytest.mark.parametrize("stop_at", [1, 6, 10])
def test_a_resumed_polish_equals_an_uninterrupted_one(stop_at: int) -> None:
    """Through a file, as the command keeps it."""
    config = RefineConfig(steps=20, learning_rate=0.05, check_every=5, warmup_steps=3)
    start = nn.Linear(3, 2)
    whole = copy.deepcopy(start)
    expected = refine(whole, *make_losses(whole), config)

    interrupted, file = copy.deepcopy(start), io.BytesIO()

    def stop(state: RefineState) -> None:
        if state.step == stop_at:
            torch.save({"state": vars(state), "student": interrupted.state_dict()}, file)
            raise StoppedError

    with pytest.raises(StoppedError):
        refine(interrupted, *make_losses(interrupted), config, on_step=stop)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = nn.Linear(3, 2)
    resumed.load_state_dict(saved["student"])
    state = refine(resumed, *make_losses(resumed), config, RefineState(**saved["state"]))
    assert (state.step, state.best_loss) == (20, expected.best_loss)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    assert not torch.equal(resumed.weight, start.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(value: float) -> None:
    student = nn.Linear(3, 2)
    train_loss, validation_loss = make_losses(student)

    def broken(step: int) -> Tensor:
        return train_loss(step) * (value if step == 2 else 1.0)

    with pytest.raises(ValueError, match=r"the loss of step 2 is (nan|inf), expected a finite one"):
        refine(student, broken, validation_loss, RefineConfig(steps=5))
    assert student.weight.isfinite().all()


def test_frozen_parameters_stay() -> None:
    student = nn.Linear(3, 2)
    student.bias.requires_grad_(False)
    bias, weight = student.bias.clone(), student.weight.detach().clone()
    refine(student, *make_losses(student), RefineConfig(steps=10, learning_rate=0.05, check_every=5))
    assert torch.equal(student.bias, bias) and not torch.equal(student.weight, weight)
