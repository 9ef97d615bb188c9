"""Huber's loss of one layer's outputs, and layers fitted by it."""

import dataclasses
import importlib

import pytest
import torch

from eugen3d.distill import (
    Distiller,
    FieldLoss,
    FitConfig,
    LayerLoss,
    LayerProblem,
    LayerwiseConfig,
    Network,
    Rows,
    fit_layer,
)
from eugen3d.layers import EUGenConfig


def with_random_features(teacher: Network, rows: Rows, fit: FitConfig) -> tuple[Distiller, Network]:
    """A distiller whose layers 1 and 3 start from random features, and its student in closed form."""
    config = LayerwiseConfig(EUGenConfig(num_features=8, use_norm=False), start="gaussian")
    layers = {"trunk.1": config, "trunk.3": config}
    distiller = Distiller(teacher, teacher.copy(), layers, rows, fit, FieldLoss)
    for task in distiller.tasks:
        if task.action != "fit":
            distiller.run(task, torch.Generator().manual_seed(0))
    return distiller, distiller.student


def test_the_loss_by_hand(teacher: Network, rows: Rows) -> None:
    """½ e² up to one deviation of the teacher's outputs, |e| − ½ beyond it."""
    _, student = with_random_features(teacher, rows, FitConfig())
    with torch.no_grad():
        student.layer("trunk.1").get_parameter("readout.weight").mul_(3.0)
    loss = LayerLoss(LayerProblem(teacher, student, "trunk.1", rows.batches()))
    x = student.seen("trunk.1", rows.inputs)
    with torch.no_grad():
        target = teacher.block("trunk.1")(teacher.seen("trunk.1", rows.inputs)).double()
        errors = student.block("trunk.1")(x).double() - target
    errors = errors.abs() / target.var(dim=0, correction=0).mean().sqrt()
    assert (errors > 1).any() and (errors < 1).any()
    expected = torch.where(errors < 1, errors.square() / 2, errors - 0.5).mean()
    assert loss.of(student) == pytest.approx(float(expected), rel=1e-5)
    assert loss.of(teacher) == 0.0, "the layers before it are the teacher's"
    some = loss(student, torch.Generator().manual_seed(0), 1000)
    assert float(some.detach()) == pytest.approx(float(expected), rel=0.3) and some.requires_grad


@pytest.mark.parametrize("most", [1 << 16, 700, 100])
def test_rows_beyond_the_bound_are_thinned_evenly(
    teacher: Network, rows: Rows, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(importlib.import_module("eugen3d.distill.layer_loss"), "MAX_ROWS", most)
    batches = rows.batches(300)
    loss = LayerLoss(LayerProblem(teacher, teacher.copy(), "trunk.1", batches))
    assert min(most, 2000) / 2 - len(batches) <= len(loss.inputs) <= min(most, 2000)
    seen = [teacher.seen("trunk.1", batch)[0] for batch in batches]
    assert all((loss.inputs == row).all(dim=1).any() for row in seen), "of every batch"
    with torch.no_grad():
        torch.testing.assert_close(teacher.block("trunk.1")(loss.inputs), loss.targets)


def test_a_fit_by_it_makes_the_layer_better_and_moves_nothing_else(teacher: Network, rows: Rows) -> None:
    _, student = with_random_features(teacher, rows, FitConfig())
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    loss = LayerLoss(LayerProblem(teacher, student, "trunk.1", rows.batches()))
    start, fit = loss.of(student), FitConfig(100, learning_rate=1e-2)
    assert fit_layer(student, "trunk.1", (loss, loss), fit, torch.Generator().manual_seed(0))
    assert loss.of(student) < 0.7 * start
    moved = {name for name, value in student.module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("trunk.1.") for name in moved)


def test_a_distiller_fits_layers_for_the_target_that_it_is_told(teacher: Network, rows: Rows) -> None:
    """By their own outputs layers come nearer to the teacher's than by the field's."""
    errors = {}
    for target in ("output", "layer"):
        fit = dataclasses.replace(FitConfig(60, sweeps=0, learning_rate=1e-2), target=target)
        distiller, _ = with_random_features(teacher, rows, fit)
        closed = {report.name: report.relative_error for report in distiller.reports()}
        for task in distiller.tasks:
            if task.action == "fit":
                distiller.run(task, torch.Generator().manual_seed(0))
        errors[target] = {report.name: report.relative_error for report in distiller.reports()}
    assert errors["layer"]["trunk.1"] < 0.9 * closed["trunk.1"]
    assert errors["layer"]["trunk.1"] < errors["output"]["trunk.1"]
