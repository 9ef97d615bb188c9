"""Nested closed forms, and what a network loses by each."""

import pytest
import torch

from eugen3d.distill import (
    FieldLoss,
    LayerwiseConfig,
    NestedSolutions,
    Network,
    RecordedNetwork,
    Rows,
    layer_losses,
    replace_layer,
)
from eugen3d.layers import EUGenConfig, KindConfig, LowRankConfig, SineConfig

FEATURES = (EUGenConfig(m, use_norm=False) for m in (4, 9, 16))
OPTIONS: list[KindConfig] = [*FEATURES, LowRankConfig(2), LowRankConfig(7)]


@pytest.mark.parametrize("name", ["trunk.1", "trunk.2", "trunk.3", "view"])
def test_nested_solutions_equal_separate_ones(teacher: Network, rows: Rows, name: str) -> None:
    solutions = NestedSolutions(teacher, name, rows.batches(), OPTIONS)
    outputs = []
    for option in OPTIONS:
        student = teacher.copy()
        replace_layer(teacher, student, name, rows.batches(), LayerwiseConfig(option), torch.Generator())
        x = teacher.seen(name, rows.inputs)
        with torch.no_grad():
            nested, separate = solutions.layer(option)(x), student.layer(name)(x)
        torch.testing.assert_close(nested, separate, rtol=1e-3, atol=1e-4)
        outputs.append(nested)
    for smaller, larger in (0, 1), (3, 4):
        assert (outputs[smaller] - outputs[larger]).abs().max() > 1e-3, "sizes differ"


def test_losses_are_those_of_the_network_with_one_layer_replaced(teacher: Network, rows: Rows) -> None:
    training, held_out = rows.split()
    loss = FieldLoss(teacher, held_out)
    losses = layer_losses(teacher, "trunk.1", training.batches(), OPTIONS, loss)
    assert list(losses) == OPTIONS
    student = teacher.copy()
    replace_layer(teacher, student, "trunk.1", training.batches(), LayerwiseConfig(OPTIONS[0]), torch.Generator())
    with torch.no_grad():
        expected = float(loss.at(student, torch.arange(len(held_out))))
    assert losses[OPTIONS[0]] == pytest.approx(expected, rel=1e-2)
    assert losses[OPTIONS[0]] > losses[OPTIONS[1]] > losses[OPTIONS[2]] > 0 and losses[OPTIONS[3]] > losses[OPTIONS[4]]
    assert loss.of(teacher) == 0


def test_other_kinds_are_not_nested(teacher: Network, rows: Rows) -> None:
    with pytest.raises(TypeError, match="SineConfig is not nested"):
        NestedSolutions(teacher, "trunk.1", rows.batches(), OPTIONS).layer(SineConfig())


def test_a_recorded_network_runs_a_batch_once(teacher: Network, rows: Rows) -> None:
    calls: list[int] = []

    def run(module: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        calls.append(len(batch[0]))
        return module(*batch)

    recorded = RecordedNetwork(Network(teacher.module, teacher.sites, teacher.readers, run))
    batches = rows.batches(1000)
    for batch in [*batches, *rows.batches(1000)]:
        assert torch.equal(recorded.seen("trunk.2", batch), teacher.seen("trunk.2", batch))
    assert calls == [1000, 1000]
    recorded.seen("trunk.1", batches[0])
    assert len(calls) == 3, "another site"
    assert type(recorded.copy()) is Network and recorded.copy().module is not teacher.module
