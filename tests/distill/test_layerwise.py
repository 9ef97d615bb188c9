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
    Network,
    Rows,
    refit_dense,
    replace_layer,
    report_layer,
    rows_needed,
)
from eugen3d.layers import (
    EUGenConfig,
    EUGenLinear,
    KindConfig,
    LinearConfig,
    LowRankConfig,
    LowRankLinear,
    SineConfig,
    SNNKConfig,
    SNNKLinear,
)
from eugen3d.layers.features import Phi


def settings(num_features: int, phi: str = "relu", **options: Any) -> LayerwiseConfig:
    order, use_norm = options.pop("order", 1), options.pop("use_norm", False)
    return LayerwiseConfig(layer=EUGenConfig(num_features, order, cast(Phi, phi), use_norm=use_norm), **options)


def replace(teacher: Network, student: Network, name: str, rows: Rows, config: LayerwiseConfig) -> LayerReport:
    training, held_out = (part.batches() for part in rows.split())
    replace_layer(teacher, student, name, training, config, torch.Generator().manual_seed(0))
    return report_layer(teacher, student, name, held_out)


def state_of(network: Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.module.state_dict().items()}


@torch.no_grad()
def output_of(network: Network, name: str, points: Rows) -> Tensor:
    """What a layer gives together with its activation."""
    return network.block(name)(network.seen(name, points.inputs))


def error_at(teacher: Network, student: Network, name: str) -> float:
    """Relative error of a layer's output at points that no solve saw."""
    positions = torch.rand(500, 3, generator=torch.Generator().manual_seed(9)) * 2 - 1
    points = Rows((positions, torch.ones(500, 3)), torch.ones(500), torch.ones(500))
    expected = output_of(teacher, name, points)
    return float((output_of(student, name, points) - expected).norm() / expected.norm())


@pytest.mark.parametrize("phi", ["relu", "identity"])
def test_as_many_features_as_neurons_reproduce_the_layer(teacher: Network, rows: Rows, phi: str) -> None:
    student = teacher.copy()
    report = replace(teacher, student, "trunk.1", rows, settings(32, phi))
    block = student.block("trunk.1")
    assert isinstance(block[0], EUGenLinear) and type(block[1]) is (nn.Identity if phi == "relu" else nn.ReLU)
    assert report.name == "trunk.1"
    assert report.relative_error < 1e-4, "the ridge alone is in the way"
    assert error_at(teacher, student, "trunk.1") < 1e-4


@pytest.mark.parametrize("phi", ["relu", "identity"])
def test_errors_fall_as_features_are_added(teacher: Network, rows: Rows, phi: str) -> None:
    errors = []
    for num_features in (4, 8, 16, 28):
        student = teacher.copy()
        report = replace(teacher, student, "trunk.1", rows, settings(num_features, phi))
        errors.append(report.relative_error)
        assert error_at(teacher, student, "trunk.1") == pytest.approx(report.relative_error, rel=0.25), (
            "held out honestly"
        )
    assert errors[0] < 1
    assert all(later < 0.95 * earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("start", ["picked", "orthogonal", "gaussian", "rademacher"])
@pytest.mark.parametrize("use_norm", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_every_start_gives_a_layer(teacher: Network, rows: Rows, start: str, order: int, use_norm: bool) -> None:
    student = teacher.copy()
    config = settings(16, order=order, use_norm=use_norm, start=start)
    report = replace(teacher, student, "trunk.1", rows, config)
    assert report.relative_error < 0.6


def test_a_start_says_how_projections_are_drawn(teacher: Network, rows: Rows) -> None:
    """Scaled to the inputs column by column, ±1 have one size in each, orthogonal and normal numbers have not."""
    weights = {}
    for start in ("orthogonal", "gaussian", "rademacher"):
        student = teacher.copy()
        replace(teacher, student, "trunk.1", rows, settings(8, start=start))
        weights[start] = student.layer("trunk.1").get_parameter("features.projection.weight").detach().abs()
    sizes = {start: (weight.std(dim=0) / weight.mean(dim=0)).nanmean() for start, weight in weights.items()}
    assert sizes["rademacher"] < 1e-5 < 0.3 < min(sizes["orthogonal"], sizes["gaussian"])
    assert not torch.allclose(weights["orthogonal"], weights["gaussian"])


def test_picked_neurons_are_the_teacher_s(teacher: Network, rows: Rows) -> None:
    student = teacher.copy()
    replace(teacher, student, "trunk.1", rows, settings(6))
    projection = student.layer("trunk.1").get_submodule("features.projection")
    dense = teacher.layer("trunk.1")
    assert isinstance(projection, nn.Linear) and isinstance(dense, nn.Linear)
    distances = (projection.weight[:, None] - dense.weight).abs().amax(dim=-1).min(dim=1)
    assert not distances.values.any() and len(set(distances.indices.tolist())) == 6
    assert torch.equal(projection.bias, dense.bias[distances.indices])


def test_a_layer_makes_up_for_those_before_it(teacher: Network, rows: Rows) -> None:
    """Solved on the student's inputs, the second layer is better than one solved on the teacher's."""
    student = teacher.copy()
    replace(teacher, student, "trunk.1", rows, settings(8))
    other = student.copy()
    alone = teacher.copy()
    replace(teacher, student, "trunk.2", rows, settings(24))
    replace(teacher, alone, "trunk.2", rows, settings(24))
    other.place("trunk.2", alone.layer("trunk.2"), settings(24).layer)
    assert error_at(teacher, student, "trunk.2") < 0.95 * error_at(teacher, other, "trunk.2")


def test_the_other_parameters_stay(teacher: Network, rows: Rows) -> None:
    student = teacher.copy()
    before = state_of(teacher)
    replace(teacher, student, "trunk.1", rows, settings(8))
    after = state_of(student)
    others = [name for name in before if not name.startswith("trunk.1.")]
    assert all(torch.equal(after[name], before[name]) for name in others)
    assert "trunk.1.0.weight" not in after
    assert all(torch.equal(value, before[name]) for name, value in state_of(teacher).items())


def test_the_same_generator_gives_the_same_layer(teacher: Network, rows: Rows) -> None:
    states = []
    for seed in (1, 1, 2):
        student, generator = teacher.copy(), torch.Generator().manual_seed(seed)
        replace_layer(
            teacher, student, "trunk.1", rows.split()[0].batches(), settings(8, start="orthogonal"), generator
        )
        states.append(state_of(student))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_refitting_the_dense_layer_that_follows_makes_up_for_errors(teacher: Network, rows: Rows) -> None:
    student = teacher.copy()
    replace(teacher, student, "trunk.1", rows, settings(6))
    before = error_at(teacher, student, "trunk.2")
    weight = student.dense("trunk.2").weight.clone()
    refit_dense(teacher, student, "trunk.2", rows.split()[0].batches())
    assert not torch.equal(student.dense("trunk.2").weight, weight)
    assert error_at(teacher, student, "trunk.2") < 0.9 * before


def test_refitting_a_head_makes_up_for_errors(teacher: Network, rows: Rows) -> None:
    student = teacher.copy()
    replace(teacher, student, "trunk.1", rows, settings(6))

    @torch.no_grad()
    def error() -> float:
        ours, theirs = (output_of(network, "feature", rows) for network in (student, teacher))
        return float((ours - theirs).norm() / theirs.norm())

    before, density = error(), copy.deepcopy(student.layer("density_head").state_dict())
    refit_dense(teacher, student, "feature", rows.split()[0].batches())
    assert error() < 0.9 * before
    assert all(torch.equal(value, density[name]) for name, value in student.layer("density_head").state_dict().items())


def test_refitting_without_an_error_before_changes_next_to_nothing(teacher: Network, rows: Rows) -> None:
    student = teacher.copy()
    refit_dense(teacher, student, "trunk.2", rows.split()[0].batches())
    torch.testing.assert_close(state_of(student), state_of(teacher), rtol=0, atol=1e-6)


def test_too_few_rows_are_refused(teacher: Network, rows: Rows) -> None:
    needed = rows_needed(EUGenConfig(num_features=40), 32)
    assert needed == 4 * 41
    for count in (needed - 1, needed):
        arguments = teacher, teacher.copy(), "trunk.1", rows[:count].batches(), settings(40), torch.Generator()
        if count == needed:
            replace_layer(*arguments)
            continue
        with pytest.raises(ValueError, match=rf"{count} rows for layer trunk\.1 with m = 40, expected {needed}"):
            replace_layer(*arguments)


def test_rows_that_are_not_finite_are_refused(teacher: Network, rows: Rows) -> None:
    rows.inputs[0][1500] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        replace(teacher, teacher.copy(), "trunk.1", rows, settings(8))


def test_a_teacher_s_layer_that_is_not_dense_is_refused(teacher: Network, rows: Rows) -> None:
    student = teacher.copy()
    replace(teacher, student, "trunk.1", rows, settings(8))
    with pytest.raises(ValueError, match=r"trunk\.1 is a EUGenLinear, expected a dense layer"):
        replace(student, student.copy(), "trunk.1", rows, settings(4))
    with pytest.raises(ValueError, match=r"trunk\.1 is a EUGenLinear"):
        refit_dense(teacher, student, "trunk.1", rows.split()[0].batches())


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ValueError, match="projection 'best' is unknown"):
        settings(8, start="best")


def test_factored_projections_are_refused() -> None:
    with pytest.raises(ValueError, match="projection_rank is 2, expected None"):
        LayerwiseConfig(layer=EUGenConfig(8, projection_rank=2))


def test_chosen_layers(teacher: Network) -> None:
    assert teacher.chosen(None) == ["trunk.1", "trunk.3"], "not the first, nor the one after the skip"
    assert teacher.chosen(["trunk.3", "0", "3"]) == ["trunk.0", "trunk.3"]
    assert teacher.chosen(["feature", "2"]) == ["trunk.2", "feature"]
    for name in ("5", "-1", "trunk.x"):
        with pytest.raises(ValueError, match=rf"'{name}' matches none.*trunk\.0, trunk\.1"):
            teacher.chosen(["1", name])


def test_the_skip_and_the_first_layer_can_be_replaced(teacher: Network, rows: Rows) -> None:
    student = teacher.copy()
    for name in ("trunk.0", "trunk.2"):
        assert replace(teacher, student, name, rows, settings(32)).relative_error < 1e-3
    inputs = rows.inputs[0][:50], F.normalize(rows.inputs[1][:50], dim=-1)
    for ours, theirs in zip(student(inputs), teacher(inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("config", [LowRankConfig(12), SNNKConfig(24)])
def test_the_baselines_have_closed_forms_too(teacher: Network, rows: Rows, config: LowRankConfig | SNNKConfig) -> None:
    student = teacher.copy()
    report = replace(teacher, student, "trunk.1", rows, LayerwiseConfig(config))
    assert isinstance(student.layer("trunk.1"), LowRankLinear | SNNKLinear) and 0 < report.relative_error < 0.6
    assert error_at(teacher, student, "trunk.1") == pytest.approx(report.relative_error, rel=0.25)


def test_low_rank_is_the_identity_corner(teacher: Network, rows: Rows) -> None:
    """Two spellings of one layer: EUGen with Φ = identity, order 1 and no norm."""
    errors = []
    for config in (LayerwiseConfig(LowRankConfig(6)), settings(6, "identity")):
        student = teacher.copy()
        errors.append(replace(teacher, student, "trunk.1", rows, config).relative_error)
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_spanning_neurons_beat_the_largest_ones(teacher: Network, rows: Rows) -> None:
    errors = {}
    for start in ("picked", "largest"):
        errors[start] = replace(teacher, teacher.copy(), "trunk.1", rows, settings(10, start=start)).relative_error
    assert errors["picked"] < 0.95 * errors["largest"] < 1


@pytest.mark.parametrize("config", [LinearConfig(), SineConfig(), EUGenConfig(bias=False), LowRankConfig(bias=False)])
def test_what_has_no_closed_form_is_refused(config: KindConfig) -> None:
    with pytest.raises(ValueError, match=r"no closed form|has no bias"):
        LayerwiseConfig(config)
