"""A network distilled layer by layer, and the gradient steps on one layer at a time."""

import itertools
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eugen3d.distill import Distiller, FieldLoss, FitConfig, LayerTask, LayerwiseConfig, Network, Rows, fit_layer
from eugen3d.layers import EUGenConfig
from eugen3d.layers.features import Phi

EVERY_LAYER = ["trunk.0", "trunk.1", "trunk.2", "trunk.3", "density_head", "feature", "view", "rgb_head"]
HEADS = [f"{name} refit" for name in EVERY_LAYER[4:]]
CLOSED = ["trunk.1 replace", "trunk.2 refit", "trunk.3 replace", *HEADS]


def distiller(
    teacher: Network, rows: Rows, steps: int = 0, sweeps: int = 0, indices: tuple[int, ...] = (1, 3), **layer: Any
) -> Distiller:
    config = LayerwiseConfig(EUGenConfig(**{"num_features": 8, "use_norm": False} | layer))
    layers = {f"trunk.{index}": config for index in indices}
    return Distiller(teacher, teacher.copy(), layers, rows, FitConfig(steps, sweeps, batch_rows=256), FieldLoss)


def run(distiller: Distiller, seed: int = 0) -> Network:
    """The student with all tasks done."""
    for task in distiller.tasks:
        distiller.run(task, torch.Generator().manual_seed(seed))
    return distiller.student


def state_of(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.module.state_dict().items()}


@torch.no_grad()
def lost(teacher: Network, student: Network) -> tuple[float, float]:
    """Mean squared differences of opacity over 0.1 units and of colour, at points that no solve saw."""
    generator = torch.Generator().manual_seed(9)
    positions = torch.rand(500, 3, generator=generator) * 2 - 1
    directions = F.normalize(torch.randn(500, 3, generator=generator), dim=-1)
    (density, rgb), (expected_density, expected_rgb) = (f((positions, directions)) for f in (student, teacher))
    opacities = torch.exp(-0.1 * density) - torch.exp(-0.1 * expected_density)
    return float(opacities.square().mean()), float((rgb - expected_rgb).square().mean())


def test_tasks_of_the_closed_form_alone(teacher: Network, rows: Rows) -> None:
    assert [str(task) for task in distiller(teacher, rows, sweeps=2).tasks] == CLOSED
    last = ["trunk.3 replace", *HEADS]
    assert [str(task) for task in distiller(teacher, rows, indices=(3,)).tasks] == last
    assert distiller(teacher, rows, steps=3, indices=()).tasks == []


def test_tasks_with_steps(teacher: Network, rows: Rows) -> None:
    names = [str(task) for task in distiller(teacher, rows, steps=3, sweeps=2).tasks]
    assert names[:3] == ["trunk.1 replace", "trunk.1 fit 0", "trunk.2 refit"]
    sweeps = [f"{layer} fit {sweep}" for sweep in (1, 2) for layer in EVERY_LAYER]
    assert names[-16:] == sweeps and len(names) == 7 + 2 + 16
    assert len(set(names)) == len(names), "they tell tasks apart"


def test_the_closed_form_makes_up_for_replaced_layers(teacher: Network, rows: Rows) -> None:
    whole = distiller(teacher, rows)
    alone = distiller(teacher, rows)
    for task in alone.tasks:
        if task.action == "replace":
            alone.run(task, torch.Generator())
    corrected = lost(teacher, run(whole))
    assert all(a < b for a, b in zip(corrected, lost(teacher, alone.student), strict=True))
    assert [report.name for report in whole.reports()] == ["trunk.1", "trunk.3"]
    assert whole.num_rows == 2000 and all(0 < report.relative_error < 1 for report in whole.reports())


@pytest.mark.parametrize("phi", ["relu", "identity"])
def test_steps_and_sweeps_each_lower_what_the_field_loses(teacher: Network, rows: Rows, phi: str) -> None:
    """A layer's own error may grow meanwhile: what matters is what comes out at the end."""
    losses = [
        lost(teacher, run(distiller(teacher, rows, steps, sweeps, phi=cast(Phi, phi))))
        for steps, sweeps in ((0, 0), (100, 0), (100, 2))
    ]
    for before, after in itertools.pairwise(losses):
        assert all(a < 0.9 * b for a, b in zip(after, before, strict=True))


def test_a_fit_moves_one_layer_alone(teacher: Network, rows: Rows) -> None:
    student = run(distiller(teacher, rows))
    before, original = state_of(student), state_of(teacher)
    steps: list[int] = []
    loss = FieldLoss(teacher, rows)
    fit_layer(student, "trunk.2", (loss, loss), FitConfig(3), torch.Generator(), on_step=lambda: steps.append(1))
    moved = {name for name, value in state_of(student).items() if not torch.equal(value, before[name])}
    assert moved == {"trunk.2.0.weight", "trunk.2.0.bias"} and len(steps) == 3
    assert all(torch.equal(value, original[name]) for name, value in state_of(teacher).items())
    others = [p for name, p in student.module.named_parameters() if name not in moved]
    assert all(p.grad is None for p in (*others, *teacher.module.parameters()))


class Said:
    """A loss at held-out rows that is what it is told."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __call__(self, network: Network, generator: torch.Generator, num_rows: int) -> Tensor:
        raise AssertionError("it is not what falls")

    def of(self, network: Network) -> float:
        return self.values.pop(0)


@pytest.mark.parametrize(("said", "share"), [([2.0, 1.0], 1.0), ([2.0, 3.0, 1.0], 0.1), ([2.0, 2.0, 3.0], 0.0)])
def test_a_layer_that_got_no_better_is_fitted_with_smaller_steps_or_stays(
    teacher: Network, rows: Rows, said: list[float], share: float
) -> None:
    student = run(distiller(teacher, rows))
    readout, steps = student.layer("trunk.1").get_parameter("readout.weight"), list[int]()
    before, whole = readout.clone(), student.copy()
    fit = FitConfig(1)
    fit_layer(whole, "trunk.1", (FieldLoss(teacher, rows), Said([2.0, 1.0])), fit, torch.Generator())
    expected = share * (whole.layer("trunk.1").get_parameter("readout.weight") - before).norm()
    held_out = Said(said)
    losses = FieldLoss(teacher, rows), held_out
    changed = fit_layer(student, "trunk.1", losses, fit, torch.Generator(), on_step=lambda: steps.append(1))
    assert changed == (share > 0) and not held_out.values and len(steps) == 1
    assert float((readout - before).norm()) == pytest.approx(float(expected), rel=0.2)  # at other rows
    assert float(expected) > 0 or share == 0


def test_later_sweeps_take_smaller_steps(teacher: Network, rows: Rows) -> None:
    distances = []
    for sweep in (1, 2, 3):
        student = run(distiller(teacher, rows))
        readout = student.layer("trunk.1").get_parameter("readout.weight")
        before = readout.clone()
        losses = FieldLoss(teacher, rows), Said([2.0, 1.0])
        assert fit_layer(student, "trunk.1", losses, FitConfig(1), torch.Generator(), sweep)
        distances.append(float((readout - before).norm().detach()))
    assert distances[1] == pytest.approx(0.7 * distances[0], rel=1e-3)
    assert distances[2] == pytest.approx(0.7 * distances[1], rel=1e-3)


def test_the_loss_by_hand(teacher: Network, rows: Rows) -> None:
    student, rows = run(distiller(teacher, rows)), rows[:300]
    rows.visibility[:] = torch.arange(300) % 2 * 2.0
    batch = torch.arange(100)
    with torch.no_grad():
        loss = FieldLoss(teacher, rows).at(student, batch)
        (density, rgb), (t_density, t_rgb) = (field(rows.inputs) for field in (student, teacher))
    opacity, t_opacity = (1 - torch.exp(-0.1 * value) for value in (density, t_density))
    shown = t_rgb[1::2]
    rgb_scale = (shown - shown.mean(dim=0)).square().mean()
    in_rgb = (rgb - t_rgb)[1:100:2].square().mean() / rgb_scale
    in_opacity = (opacity - t_opacity)[:100].square().mean() / t_opacity.var()
    assert float(loss) == pytest.approx(float(in_rgb + in_opacity), rel=1e-4)
    assert float(FieldLoss(teacher, rows).at(teacher, batch)) == pytest.approx(0, abs=1e-9)


def test_the_same_seed_gives_the_same_student(teacher: Network, rows: Rows) -> None:
    states = [state_of(run(distiller(teacher, rows, steps=3, sweeps=1), seed)) for seed in (1, 1, 2)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_tasks_can_be_told_from_each_other_by_what_they_are() -> None:
    assert LayerTask("fit", "trunk.1") != LayerTask("fit", "trunk.1", 1)
    assert str(LayerTask("fit", "trunk.1", 1)) == "trunk.1 fit 1"
