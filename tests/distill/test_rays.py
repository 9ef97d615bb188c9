"""Rows drawn along rays: how many, and which."""

import pytest
import torch
from torch import Tensor

from eugen3d.distill import RaySamples, Rows, draw_rows, join_rows


def some_samples(rays: int = 40, samples: int = 25, weights: Tensor | None = None) -> RaySamples:
    """Samples whose first coordinate is their number, and whose direction is minus their position."""
    positions = torch.zeros(rays, samples, 3)
    positions[..., 0] = torch.arange(rays * samples).view(rays, samples)
    weights = torch.rand(rays, samples) if weights is None else weights
    return RaySamples((positions, -positions), weights, deltas=1 + positions[..., 0])


def numbers(rows: Rows) -> list[int]:
    return rows.inputs[0][:, 0].long().tolist()


def draw(samples: list[RaySamples], share: float, weighted: float, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return join_rows([draw_rows(batch, share, weighted, generator) for batch in samples])


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("weighted", [0.0, 0.67, 1.0])
def test_the_share_of_every_batch_is_kept(share: float, weighted: float) -> None:
    rows = draw([some_samples(), some_samples(rays=8)], share, weighted)
    assert len(rows) == len(rows.inputs[1]) == round(share * 1000) + round(share * 200)
    assert torch.equal(rows.inputs[1], -rows.inputs[0]), "positions keep their directions"
    assert torch.equal(rows.deltas, 1 + rows.inputs[0][:, 0]), "and their intervals"


def test_the_smallest_share_keeps_a_row() -> None:
    assert len(draw([some_samples()], 1e-6, 0.0)) == 1


def test_all_samples_drawn_evenly_are_all_samples_shuffled() -> None:
    drawn = numbers(draw([some_samples()], 1.0, 0.0))
    assert drawn != sorted(drawn) and sorted(drawn) == list(range(1000))


def test_parts_stay_together_and_each_holds_out_an_eighth() -> None:
    first, second = some_samples(), some_samples(rays=8)
    second.inputs[0][..., 1] = 1
    rows = draw([first, second], 0.5, 0.5)
    assert [len(batch[0]) for batch in rows.batches()] == [500, 100]
    assert [len(batch[0]) for batch in rows.batches(300)] == [300, 200, 100]
    training, held_out = rows.split()
    for part, sizes in ((training, [438, 88]), (held_out, [62, 12])):
        assert [len(batch[0]) for batch in part.batches()] == sizes
        assert [sorted(set(batch[0][:, 1].tolist())) for batch in part.batches()] == [[0], [1]]
    assert sorted(numbers(training) + numbers(held_out)) == sorted(numbers(rows))
    assert [len(part) for part in rows[:100].split()] == [88, 12]


def test_heavy_samples_are_preferred() -> None:
    """One sample in ten carries 0.9 of the weight; its expected share of weighted rows is that."""
    weights = torch.full((40, 25), 0.1 / 900)
    weights.view(-1)[:100] = 0.9 / 100
    samples = some_samples(weights=weights)

    def heavy(weighted: float) -> float:
        drawn = numbers(draw([samples], 0.5, weighted))
        return sum(number < 100 for number in drawn) / len(drawn)

    assert heavy(0.0) == pytest.approx(0.1, abs=0.05)
    assert heavy(1.0) == pytest.approx(0.9, abs=0.05)
    assert heavy(0.5) == pytest.approx(0.5, abs=0.07)


def test_the_generator_alone_decides() -> None:
    samples = some_samples()
    first = draw([samples], 0.3, 0.5, seed=1)
    torch.rand(3)  # the global state plays no part
    assert torch.equal(draw([samples], 0.3, 0.5, seed=1).inputs[0], first.inputs[0])
    assert not torch.equal(draw([samples], 0.3, 0.5, seed=2).inputs[0], first.inputs[0])


@pytest.mark.parametrize("weighted", [0.0, 0.5, 1.0])
def test_visibility_undoes_the_draw(weighted: float) -> None:
    """Weighed by it, the mean over rows is the mean over rendering weights, however the rows were drawn."""
    weights = torch.rand(40, 25) ** 8
    samples = some_samples(weights=weights)
    expected = float((weights.flatten() * torch.arange(1000)).sum() / weights.sum())
    rows = draw([samples] * 50, 0.5, weighted)
    assert float(rows.visibility.mean()) == pytest.approx(1, abs=0.05)
    assert float((rows.visibility * rows.inputs[0][:, 0]).mean()) == pytest.approx(expected, rel=0.05)


def test_nothing_shows_without_weight() -> None:
    rows = draw([some_samples(weights=torch.zeros(40, 25))], 0.5, 0.5)
    assert not rows.visibility.any()


def test_samples_of_negative_or_no_weight_are_drawn_evenly_alone() -> None:
    weights = torch.zeros(40, 25)
    weights[0, :5] = -1e-9
    weights[1, 0] = 0.5
    drawn = numbers(draw([some_samples(weights=weights)], 0.2, 1.0))
    assert set(drawn) == {25}


def test_rays_without_any_weight_are_drawn_evenly() -> None:
    drawn = numbers(draw([some_samples(weights=torch.zeros(40, 25))], 0.2, 1.0))
    assert len(drawn) == len(set(drawn)) == 200


def test_rows_are_split_and_batched_without_copies() -> None:
    rows = draw([some_samples()], 0.5, 0.0)
    training, held_out = rows.split()
    assert (len(training), len(held_out)) == (438, 62)
    assert sorted(numbers(training) + numbers(held_out)) == sorted(numbers(rows))
    batches = training.batches(200)
    assert [len(batch[0]) for batch in batches] == [200, 200, 38] and all(len(batch) == 2 for batch in batches)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), training.inputs[1])
    assert batches[0][0].data_ptr() == training.inputs[0].data_ptr()
