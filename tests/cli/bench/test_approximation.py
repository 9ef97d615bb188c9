"""`eugen3d bench approximation`: rows, what is said of them, the targets, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eugen3d.cli.bench.approximation_statements import error_at, error_within, statements
from eugen3d.cli.bench.approximation_targets import signed_distance
from eugen3d.cli.main import main
from eugen3d.layers import LayerConfig

KEYS = [
    *("target", "kind", "num_features", "order", "projection", "trained", "phi", "use_norm", "num_parameters", "flops"),
    *("relative_error", "standard_error", "setting"),
]
TINY = [
    *("--width", "8", "--num-features", "2", "4", "--orders", "1", "2", "--phis", "relu", "identity", "--seeds", "2"),
    *("--trained-seeds", "2", "--steps", "2", "--train-steps", "2", "--num-rows", "300"),
]


def bench(*arguments: str) -> None:
    main(["bench", "approximation", *TINY, *arguments])


def result_of(path: Path, *arguments: str) -> dict[str, Any]:
    bench(*arguments, "--output", str(path))
    return json.loads(path.read_text())


def make_row(error: float, cost: int, setting: str = "lone", **changes: Any) -> dict[str, Any]:
    row = {"target": "t", "kind": "eugen", "num_features": cost, "order": 1, "projection": "orthogonal"}
    row |= {"trained": False, "phi": "relu", "use_norm": False, "num_parameters": cost, "flops": cost}
    return row | {"relative_error": error, "standard_error": 0.01, "setting": setting} | changes


def test_the_result_has_its_keys_and_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = ["sdf", "siren", "synthetic-relu", "synthetic-softplus"]
    page = tmp_path / "page.html"
    result = result_of(tmp_path / "result.json", "--targets", *targets, "--report", str(page))
    assert list(result) == ["date", "hardware", "threads", "versions", "settings", "rows"]
    rows = result["rows"]
    assert all(list(row) == KEYS for row in rows)
    assert list(dict.fromkeys(row["target"] for row in rows)) == targets
    assert {row["kind"] for row in rows} == {"eugen", "low-rank", "snnk", "narrow"}
    assert all(row["relative_error"] > 0 and row["num_parameters"] > 0 and row["flops"] > 0 for row in rows)
    by_setting = [[row for row in rows if row["setting"] == setting] for setting in ("lone", "chain")]
    assert [r["relative_error"] for r in by_setting[0]] == [r["relative_error"] for r in by_setting[1]]
    assert max(row["order"] * row["num_features"] for row in rows if row["kind"] == "eugen") == 4
    assert {row["use_norm"] for row in rows} == {row["trained"] for row in rows} == {True, False}
    output = capsys.readouterr().out
    assert "sdf, lone" in output and "orthogonal against iid" in output and f"wrote {tmp_path}" in output
    assert "<svg" in page.read_text() and "http" not in page.read_text()


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    first, again, other = (
        result_of(tmp_path / f"{index}.json", "--targets", "siren", "--seed", seed)["rows"]
        for index, seed in enumerate(("0", "0", "1"))
    )
    assert first == again != other


def test_a_teachers_activations_are_measured(make_run: Any, tmp_path: Path) -> None:
    teacher = make_run("teacher", layer=LayerConfig("linear"))
    arguments = ["--load-config", str(teacher), "--layers", "1", "--sampling.num-rays", "128"]
    rows = result_of(tmp_path / "result.json", "--targets", "nerf", "--trained-seeds", "0", *arguments)["rows"]
    assert {row["target"] for row in rows} == {"nerf.trunk.1"}
    assert not any(row["trained"] for row in rows)


def test_one_draw_has_no_standard_error_and_low_rank_has_none_to_have(tmp_path: Path) -> None:
    rows = result_of(tmp_path / "r.json", "--targets", "synthetic-relu", "--seeds", "1", "--trained-seeds", "0")["rows"]
    assert {row["standard_error"] for row in rows if row["kind"] == "low-rank"} == {0.0}
    assert {row["standard_error"] for row in rows if row["kind"] != "low-rank"} == {None}


def test_errors_are_compared_at_equal_cost() -> None:
    family = [make_row(0.4, 100), make_row(0.1, 400)]
    assert error_at(200, family) == pytest.approx(0.2)
    assert (error_at(100, family), error_at(400, family)) == (0.4, 0.1)
    assert error_at(99, family) is error_at(401, family) is None
    assert error_within(401, family) == 0.1 and error_within(99, family) is None


def test_the_statements_follow_the_rows() -> None:
    eugen = [make_row(0.4, 100), make_row(0.1, 400)]
    rank = [make_row(0.2, 100, kind="low-rank"), make_row(0.15, 400, kind="low-rank")]
    said = statements(eugen + rank)
    assert "t, lone, 100 parameters: low-rank wins with 0.2; eugen fixed orthogonal relu 0.4" in said
    assert "t, lone, 400 parameters: eugen fixed orthogonal relu wins with 0.1; low-rank 0.15" in said
    swapped = statements(eugen + [row | {"relative_error": 0.05} for row in rank])
    assert all("low-rank wins" in line for line in swapped if ", lone, " in line)


@pytest.mark.parametrize(
    ("error", "said"), [(0.5, "in 0, behind in 1"), (0.1, "in 1, behind in 0"), (0.31, "in 0, behind in 0")]
)
def test_orthogonality_is_judged_by_the_standard_errors(error: float, said: str) -> None:
    (line,) = [s for s in statements([make_row(error, 9), make_row(0.3, 9, projection="gaussian")]) if "iid" in s]
    assert said in line and ("most of all" in line) == (error == 0.5)


def test_the_norm_and_orders_are_judged_by_the_rows() -> None:
    plain = [make_row(0.4, 100), make_row(0.1, 400)]
    norm = [make_row(0.3, 200, use_norm=True, num_features=100)]
    square = [make_row(0.1, 200, order=2, num_features=100)]
    said = "\n".join(statements(plain + norm + square))
    assert "the norm: error × 0.75 (geometric mean of 1, lower in 1) at equal m; × 1.5 (geometric mean of 1" in said
    assert "order 2 for order 1: error × 0.25 (geometric mean of 1, lower in 1) at equal m; × 0.5 (" in said


def test_the_signed_distance_is_negative_inside() -> None:
    points = torch.tensor([[0.3, 0.1, 0.0], [-0.3, -0.1, 0.1], [1.0, 0.1, 0.0], [-0.3, 0.25, 0.1]])
    torch.testing.assert_close(signed_distance(points)[:, 0], torch.tensor([-0.4, -0.25, 0.3, 0.1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-features", "0"], "error: --num-features 0: expected at least 1"),
        (["--targets"], "error: --targets: names none, expected at least one"),
        (["--orders", "-1"], "error: --orders -1: expected at least 1"),
        (["--seeds", "0"], "error: --seeds 0: expected at least 1"),
        (["--steps", "0"], "error: --steps 0: expected at least 1"),
        (["--num-rows", "10"], "error: --num-rows 10: expected at least 45, four a feature to fit on"),
        (["--kinds", "narrow", "--trained-seeds", "0"], "error: --trained-seeds 0: leaves nothing to measure"),
        (["--load-config", "none.yml", "--targets", "nerf"], "error: none.yml"),
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


def test_a_layer_that_the_teacher_has_not_is_refused(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = make_run("teacher", layer=LayerConfig("linear"))
    with pytest.raises(SystemExit) as stopped:
        bench("--targets", "nerf", "--load-config", str(teacher), "--layers", "9")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --layers 9: is no dense trunk layer of")
