"""Rows along a teacher's rays: how many there are at the most, and that batches do not know of each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

import eugen3d.cli.teacher_rows
from eugen3d.cli.errors import UsageError
from eugen3d.cli.nerf_teachers import EUGenNerfTeacher
from eugen3d.cli.runs import load_run
from eugen3d.cli.teacher_rows import RAYS_PER_BATCH, SamplingConfig, _Pixels, sample_rows
from eugen3d.cli.teachers import teacher_of
from eugen3d.distill import Rows
from eugen3d.layers import LayerConfig

Sampled = Callable[..., dict[str, Rows]]


@pytest.fixture
def sampled(make_run: Callable[..., Path]) -> Sampled:
    """A function that samples a teacher with four coarse and nine fine samples a ray, on 1,024 pixels."""
    run = load_run(make_run(layer=LayerConfig("linear"), replaced_layers=()), "cpu")
    teacher, manager = teacher_of(run), run.pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)

    def sample(needed: int = 8, seed: int = 0, **settings: Any) -> dict[str, Rows]:
        return sample_rows(manager, teacher, SamplingConfig(**settings), needed, seed)

    return sample


def pixels(
    num_rays: int, sizes: list[tuple[int, int]], seed: int = 0, scales: tuple[int, ...] = (1,)
) -> list[torch.Tensor]:
    heights, widths = torch.cat([torch.tensor(sizes) // scale for scale in scales]).T
    drawn = _Pixels(heights, widths, scales, SamplingConfig(num_rays=num_rays), seed)
    return [drawn.batch(number) for number in range(drawn.num_batches)]


def test_pixels_are_distinct_and_even_over_the_images() -> None:
    batches = pixels(600, [(20, 30), (10, 20), (40, 10)])
    assert [len(batch) for batch in batches] == [200, 200, 200]
    drawn = torch.cat(batches)
    assert len({tuple(pixel) for pixel in drawn.tolist()}) == 600
    assert drawn[:, 0].bincount().tolist() == [300, 100, 200], "half of the pixels of each image"
    for batch in batches:
        assert len(batch[:, 0].unique()) == 3, "a batch goes through all images"
    for image, (height, width) in enumerate([(20, 30), (10, 20), (40, 10)]):
        rows, columns = drawn[drawn[:, 0] == image, 1:].T
        assert int(rows.min()) >= 0 and int(rows.max()) == height - 1
        assert int(columns.min()) >= 0 and int(columns.max()) == width - 1


@pytest.mark.parametrize("scales", [(1, 2, 4), (3,), (2, 6)])
def test_as_many_rays_go_through_each_size(scales: tuple[int, ...]) -> None:
    batches = pixels(600, [(24, 36), (48, 12)], scales=scales)
    drawn = torch.cat(batches)
    assert len(drawn) == min(600, sum((24 * 36 + 48 * 12) // scale**2 for scale in scales))
    views = drawn[:, 0].bincount()
    assert len(views) == 2 * len(scales)
    for part in range(len(scales)):
        share = views[2 * part : 2 * part + 2] * len(scales) / len(drawn)
        assert share.tolist() == pytest.approx([0.6, 0.4], abs=0.02)
    for image, count in enumerate(views.tolist()):
        scale = scales[image // 2]
        height, width = ((24, 36), (48, 12))[image % 2]
        rows, columns = drawn[drawn[:, 0] == image, 1:].T
        assert int(rows.min()) >= 0 and int(rows.max()) < height // scale
        assert int(columns.min()) >= 0 and int(columns.max()) < width // scale
        if count > height * width / scale**2:
            assert len(drawn[drawn[:, 0] == image].unique(dim=0)) > 0.6 * height * width / scale**2


def test_as_many_rays_as_pixels_are_all_pixels() -> None:
    drawn = torch.cat(pixels(10**9, [(20, 30), (10, 20)]))
    assert len({tuple(pixel) for pixel in drawn.tolist()}) == len(drawn) == 800


def test_the_seed_decides_which_pixels() -> None:
    first, again, other = (torch.cat(pixels(300, [(40, 40)], seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_more_rays_give_no_more_rows_than_the_most(sampled: Sampled) -> None:
    few = sampled(num_rays=100, pair_fraction=1.0, max_rows=900)
    assert len(few["coarse"]) == 400 and len(few["fine"]) == 900
    many = sampled(num_rays=1000, pair_fraction=1.0, max_rows=900)
    assert len(many["coarse"]) == len(many["fine"]) == 900
    assert len(sampled(num_rays=1000, pair_fraction=0.1, max_rows=900)["fine"]) == 900
    assert len(sampled(num_rays=1000, pair_fraction=0.05, max_rows=900)["fine"]) == pytest.approx(450, abs=2)


def test_one_row_in_eight_of_every_batch_is_held_out(sampled: Sampled) -> None:
    rows = sampled(num_rays=1000, pair_fraction=0.5)["fine"]
    training, held_out = rows.split()
    assert len(held_out) == 4 * (1125 // 8) and len(training) == 4500 - len(held_out)
    seen = {tuple(point) for point in held_out.inputs[0].tolist()}
    assert len(seen) > 0.5 * len(held_out)


def test_a_batch_in_memory_is_as_large_however_many_rays_there_are(
    sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the teacher is asked for at once, and what is kept of it."""
    asked: list[int] = []
    samples = EUGenNerfTeacher.samples
    monkeypatch.setattr(
        EUGenNerfTeacher, "samples", lambda self, rays: (asked.append(len(rays)), samples(self, rays))[1]
    )
    kept = [sum(len(rows) for rows in sampled(num_rays=count, max_rows=200).values()) for count in (100, 1000)]
    assert max(asked) <= RAYS_PER_BATCH and len(asked) == 1 + 4
    assert kept == [50 + 112, 200 + 200]


def test_processes_together_have_the_rows_of_one(sampled: Sampled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same training and the same held-out rows, wherever they lie."""
    alone = sampled(num_rays=1000)
    monkeypatch.setattr(eugen3d.cli.teacher_rows, "world_size", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(eugen3d.cli.teacher_rows, "rank", lambda number=number: number)
        parts.append(sampled(num_rays=1000))
    for name, rows in alone.items():
        for ours, theirs in zip(zip(*(part[name].split() for part in parts), strict=True), rows.split(), strict=True):
            columns = [torch.cat([*r.inputs, r.deltas[:, None], r.visibility[:, None]], dim=1) for r in (*ours, theirs)]
            assert all(len(column) for column in columns)
            assert sorted(torch.cat(columns[:-1]).tolist()) == sorted(columns[-1].tolist())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_rays": 10}, "--sampling.num-rays: 10 rays give 40 rows, expected at least 100"),
        ({"num_rays": 500, "max_rows": 99}, "--sampling.max-rows: is 99, expected at least 100"),
        ({"downscale_factor": (1, 17)}, "--sampling.downscale-factor: is 17, expected at most 16"),
    ],
)
def test_too_few_rows_are_refused(sampled: Sampled, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        sampled(needed=100, **settings)


def test_batches_have_to_go_round(sampled: Sampled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eugen3d.cli.teacher_rows, "world_size", lambda: 3)
    with pytest.raises(UsageError, match="500 rays are 2 batches, expected one or more for each of 3 processes"):
        sampled(num_rays=500)
