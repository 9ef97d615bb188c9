"""Layers replaced one after the other, on a field of a few dozen neurons."""

import copy
import itertools
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.distill import (
    LayerReport,
    LayerwiseConfig,
    Rows,
    chosen_layers,
    refit_dense,
    replace_layer,
    report_layer,
    rows_needed,
)
from eugen3d.distill.problem import LayeredField
from eugen3d.fields import NerfField
from eugen3d.layers import EUGenConfig, EUGenLinear
from eugen3d.layers.features import Phi


def settings(num_features: int, phi: str = "relu", **options: Any) -> LayerwiseConfig:
    order, use_norm = options.pop("order", 1), options.pop("use_norm", False)
    return LayerwiseConfig(layer=EUGenConfig(num_features, order, cast(Phi, phi), use_norm=use_norm), **options)


def replace(teacher: NerfField, student: NerfField, index: int, rows: Rows, config: LayerwiseConfig) -> LayerReport:
    replace_layer(teacher, student, index, rows, config, torch.Generator().manual_seed(0))
    return report_layer(teacher, student, index, rows)


@torch.no_grad()
def output_of(field: NerfField, index: int, positions: Tensor) -> Tensor:
    """What trunk layer `index` gives."""
    encoded = field.encode_position(positions)
    hidden = encoded
    for i in range(index + 1):
        hidden = field.trunk[i](field.trunk_input(i, encoded, hidden))
    return hidden


def error_at(teacher: NerfField, student: NerfField, index: int) -> float:
    """Relative error of a trunk layer's output at points that no solve saw."""
    positions = torch.rand(500, 3, generator=torch.Generator().manual_seed(9)) * 2 - 1
    expected = output_of(teacher, index, positions)
    return float((output_of(student, index, positions) - expected).norm() / expected.norm())


@pytest.mark.parametrize("phi", ["relu", "identity"])
def test_as_many_features_as_neurons_reproduce_the_layer(teacher: NerfField, rows: Rows, phi: str) -> None:
    student = copy.deepcopy(teacher)
    report = replace(teacher, student, 1, rows, settings(32, phi))
    block = cast(nn.Sequential, student.trunk[1])
    assert isinstance(block[0], EUGenLinear) and [type(m) for m in block[1:]] == ([nn.ReLU] if phi != "relu" else [])
    assert (report.index, report.rows) == (1, 2000)
    assert report.relative_error < 1e-4, "the ridge alone is in the way"
    assert error_at(teacher, student, 1) < 1e-4


@pytest.mark.parametrize("phi", ["relu", "identity"])
def test_errors_fall_as_features_are_added(teacher: NerfField, rows: Rows, phi: str) -> None:
    errors = []
    for num_features in (4, 8, 16, 28):
        student = copy.deepcopy(teacher)
        report = replace(teacher, student, 1, rows, settings(num_features, phi))
        errors.append(report.relative_error)
        assert error_at(teacher, student, 1) == pytest.approx(report.relative_error, rel=0.25), "held out honestly"
    assert errors[0] < 1
    assert all(later < 0.95 * earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("start", ["picked", "orthogonal", "gaussian", "rademacher"])
@pytest.mark.parametrize("use_norm", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_every_start_gives_a_layer(teacher: NerfField, rows: Rows, start: str, order: int, use_norm: bool) -> None:
    student = copy.deepcopy(teacher)
    config = settings(16, order=order, use_norm=use_norm, start=start)
    report = replace(teacher, student, 1, rows, config)
    assert report.relative_error < 0.6


def test_picked_neurons_are_the_teacher_s(teacher: NerfField, rows: Rows) -> None:
    student = copy.deepcopy(teacher)
    replace(teacher, student, 1, rows, settings(6))
    projection = student.get_submodule("trunk.1.0.features.projection")
    dense = teacher.get_submodule("trunk.1.0")
    assert isinstance(projection, nn.Linear) and isinstance(dense, nn.Linear)
    distances = (projection.weight[:, None] - dense.weight).abs().amax(dim=-1).min(dim=1)
    assert not distances.values.any() and len(set(distances.indices.tolist())) == 6
    assert torch.equal(projection.bias, dense.bias[distances.indices])


def test_a_layer_makes_up_for_those_before_it(teacher: NerfField, rows: Rows) -> None:
    """Solved on the student's inputs, the second layer is better than one solved on the teacher's."""
    student = copy.deepcopy(teacher)
    replace(teacher, student, 1, rows, settings(8))
    other = copy.deepcopy(student)
    alone = copy.deepcopy(teacher)
    replace(teacher, student, 2, rows, settings(24))
    replace(teacher, alone, 2, rows, settings(24))
    other.trunk[2] = alone.trunk[2]
    assert error_at(teacher, student, 2) < 0.95 * error_at(teacher, other, 2)


def test_the_other_parameters_stay(teacher: NerfField, rows: Rows) -> None:
    student = copy.deepcopy(teacher)
    before = copy.deepcopy(teacher.state_dict())
    replace(teacher, student, 1, rows, settings(8))
    after = student.state_dict()
    others = [name for name in before if not name.startswith("trunk.1.")]
    assert all(torch.equal(after[name], before[name]) for name in others)
    assert "trunk.1.0.weight" not in after
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_same_generator_gives_the_same_layer(teacher: NerfField, rows: Rows) -> None:
    states = []
    for seed in (1, 1, 2):
        student, generator = copy.deepcopy(teacher), torch.Generator().manual_seed(seed)
        replace_layer(teacher, student, 1, rows, settings(8, start="orthogonal"), generator)
        states.append(student.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_refitting_the_dense_layer_that_follows_makes_up_for_errors(teacher: NerfField, rows: Rows) -> None:
    student = copy.deepcopy(teacher)
    replace(teacher, student, 1, rows, settings(6))
    before = error_at(teacher, student, 2)
    weight = cast(nn.Linear, student.get_submodule("trunk.2.0")).weight.clone()
    refit_dense(teacher, student, "trunk.2", rows)
    assert not torch.equal(cast(nn.Linear, student.get_submodule("trunk.2.0")).weight, weight)
    assert error_at(teacher, student, 2) < 0.9 * before


def test_refitting_a_head_makes_up_for_errors(teacher: NerfField, rows: Rows) -> None:
    student = copy.deepcopy(teacher)
    replace(teacher, student, 1, rows, settings(6))

    @torch.no_grad()
    def error() -> float:
        ours, theirs = (f.heads["feature"](output_of(f, len(f.trunk) - 1, rows.positions)) for f in (student, teacher))
        return float((ours - theirs).norm() / theirs.norm())

    before, density = error(), copy.deepcopy(student.density_head.state_dict())
    refit_dense(teacher, student, "feature", rows)
    assert error() < 0.9 * before
    assert all(torch.equal(value, density[name]) for name, value in student.density_head.state_dict().items())


def test_refitting_without_an_error_before_changes_next_to_nothing(teacher: NerfField, rows: Rows) -> None:
    student = copy.deepcopy(teacher)
    refit_dense(teacher, student, "trunk.2", rows)
    torch.testing.assert_close(student.state_dict(), teacher.state_dict(), rtol=0, atol=1e-6)


def test_too_few_rows_are_refused(teacher: NerfField, rows: Rows) -> None:
    needed = rows_needed(EUGenConfig(num_features=40), 32)
    few = rows[: needed - 1]
    with pytest.raises(ValueError, match=rf"{needed - 1} rows for layer 1 with m = 40, expected {needed}"):
        replace(teacher, copy.deepcopy(teacher), 1, few, settings(40))
    enough = rows[:needed]
    replace(teacher, copy.deepcopy(teacher), 1, enough, settings(40))


def test_rows_that_are_not_finite_are_refused(teacher: NerfField, rows: Rows) -> None:
    rows.positions[1500] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        replace(teacher, copy.deepcopy(teacher), 1, rows, settings(8))


def test_a_teacher_s_layer_that_is_not_dense_is_refused(teacher: NerfField, rows: Rows) -> None:
    student = copy.deepcopy(teacher)
    replace(teacher, student, 1, rows, settings(8))
    with pytest.raises(ValueError, match="layer 1 is a EUGenLinear, expected a dense layer"):
        replace(student, copy.deepcopy(student), 1, rows, settings(4))
    with pytest.raises(ValueError, match=r"trunk\.1 is a EUGenLinear"):
        refit_dense(teacher, student, "trunk.1", rows)
    assert chosen_layers(student, None) == (3,)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ValueError, match="projection 'best' is unknown"):
        settings(8, start="best")


def test_factored_projections_are_refused() -> None:
    with pytest.raises(ValueError, match="projection_rank is 2, expected None"):
        LayerwiseConfig(layer=EUGenConfig(8, projection_rank=2))


def test_chosen_layers(teacher: NerfField) -> None:
    assert chosen_layers(teacher, None) == (1, 3), "not the first, nor the one after the skip"
    assert chosen_layers(teacher, ["trunk.3", "0", "3"]) == (0, 3)
    assert chosen_layers(teacher, ["2"]) == (2,)
    for name in ("4", "feature", "-1", "trunk.x"):
        with pytest.raises(ValueError, match=rf"'{name}' matches none.*trunk\.0, trunk\.1"):
            chosen_layers(teacher, ["1", name])


def test_a_nerf_field_is_a_layered_field(teacher: NerfField) -> None:
    assert isinstance(teacher, LayeredField)
    assert not isinstance(nn.Linear(2, 2), LayeredField)


def test_readers_are_the_weights_of_what_comes_next(teacher: NerfField) -> None:
    assert torch.equal(teacher.readers(0), teacher.get_parameter("trunk.1.0.weight"))
    after_skip = teacher.get_parameter("trunk.2.0.weight")
    assert after_skip.shape[1] > 32 and torch.equal(teacher.readers(1), after_skip[:, -32:])
    heads = teacher.readers(3)
    assert heads.shape == (33, 32) and torch.equal(heads[:1], teacher.get_parameter("density_head.0.weight"))


def test_the_skip_and_the_first_layer_can_be_replaced(teacher: NerfField, rows: Rows) -> None:
    student = copy.deepcopy(teacher)
    for index in (0, 2):
        assert replace(teacher, student, index, rows, settings(32)).relative_error < 1e-3
    positions, directions = rows.positions[:50], F.normalize(rows.directions[:50], dim=-1)
    for ours, theirs in zip(student(positions, directions), teacher(positions, directions), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
