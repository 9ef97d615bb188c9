"""`eugen3d bench training`: the contestants, the rows, and bad input. No test is timed."""

import copy
import json
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch

from eugen3d import forward_merged
from eugen3d.cli.bench.training_networks import ContestantName, NetworkShape, make_network, narrow_width
from eugen3d.cli.bench.training_tasks import make_task
from eugen3d.cli.main import main
from eugen3d.layers import fold_sequential
from eugen3d.metrics.cost import flops_per_row

SHAPE = NetworkShape(in_dim=7, out_dim=3, width=32, depth=4, num_features=4)
TEACHER = Path("data/still_life/teacher/config.yml")
TINY = [
    *("--tasks", "sdf", "--width", "16", "--depth", "3", "--num-features", "4", "--steps", "3", "--batch", "32"),
    *("--num-rows", "200", "--rounds", "1"),
]


def bench(*arguments: str) -> None:
    main(["bench", "training", *TINY, *arguments])


@pytest.fixture(autouse=True)
def no_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eugen3d.cli.bench.timing.SHORTEST", 0.0)


def result_of(path: Path, *arguments: str) -> dict[str, Any]:
    bench(*arguments, "--output", str(path))
    return json.loads(path.read_text())


def test_the_result_has_its_keys_and_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(tmp_path / "result.json", "--seeds", "2", "--learning-rates", "1e-3", "1e-2")
    rows = result["rows"]
    assert [(row["contestant"], row["learning_rate"]) for row in rows] == [
        (name, rate) for name in get_args(ContestantName) for rate in (1e-3, 1e-2)
    ]
    for row in rows:
        assert list(row) == [
            *("task", "contestant", "seconds_per_step", "peak_memory_bytes", "num_trained", "flops"),
            *("learning_rate", "error", "standard_deviation", "errors"),
        ]
        assert row["seconds_per_step"] > 0 and row["peak_memory_bytes"] > 12 * row["num_trained"], "Adam's state counts"
        assert row["error"] == pytest.approx(sum(row["errors"]) / 2) and row["errors"][0] != row["errors"][1]
        assert row["standard_deviation"] == pytest.approx(abs(row["errors"][0] - row["errors"][1]) / 2**0.5)
    output = capsys.readouterr().out
    assert "sdf: held-out relative error" in output and "eugen-merged" in output and f"wrote {tmp_path}" in output


def test_the_same_seed_gives_the_same_errors_and_steps_lower_them(tmp_path: Path) -> None:
    short = ["--contestants", "dense", "eugen", "--seeds", "1"]
    first, again, longer = (
        [row["errors"] for row in result_of(tmp_path / "r.json", *short, *more)["rows"]]
        for more in ([], [], ["--steps", "200"])
    )
    assert first == again
    assert all(after[0] < before[0] for before, after in zip(first, longer, strict=True))


def test_the_merged_network_starts_as_the_factored_one() -> None:
    x = torch.randn(30, SHAPE.in_dim)
    factored, merged, other = (
        make_network(cast(ContestantName, name), SHAPE, seed)
        for name, seed in (("eugen", 0), ("eugen-merged", 0), ("eugen", 1))
    )
    torch.testing.assert_close(forward_merged(merged, x), factored(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other(x), factored(x), rtol=1e-2)
    counts = [sum(p.numel() for p in network.parameters()) for network in (merged, factored)]
    assert counts[0] < counts[1]


def test_the_narrow_network_costs_what_the_folded_one_does() -> None:
    """To less than one neuron more or less."""
    folded = flops_per_row(fold_sequential(copy.deepcopy(make_network("eugen", SHAPE, 0))))
    narrow = flops_per_row(make_network("narrow", SHAPE, 0))
    width = narrow_width(SHAPE)
    assert 4 < width < SHAPE.width
    assert abs(narrow - folded) < 2 * (SHAPE.in_dim + SHAPE.out_dim + (SHAPE.depth - 1) * (2 * width + 1))


def test_a_teachers_rows_are_what_its_field_gives() -> None:
    task = make_task("nerf", TEACHER, 500, seed=0)
    assert task.inputs.shape == (400, 63 + 27) and task.held_out_outputs.shape == (100, 4)
    opacity, colour = task.outputs[:, :1], task.outputs[:, 1:]
    assert ((opacity >= 0) & (opacity <= 1)).all() and ((colour >= 0) & (colour <= opacity)).all()
    assert opacity.std() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "1"], "error: --depth 1: expected at least 2"),
        (["--seeds", "0"], "error: --seeds 0: expected at least 1"),
        (["--learning-rates", "0"], "error: --learning-rates 0.0: expected more than 0"),
        (["--learning-rates", "inf"], "error: --learning-rates inf: expected more than 0"),
        (["--contestants"], "error: --contestants: names none, expected at least one"),
        (["--output", "."], "error: --output .: is a folder, expected a file's name"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(*arguments)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.startswith(message) and captured.err.count("\n") == 1 and not captured.out
