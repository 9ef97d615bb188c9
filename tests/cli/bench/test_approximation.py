"""`eugen3d bench approximation`: rows, what is said of them, the targets, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eugen3d.cli.bench.approximation_statements import Estimate, best_within, difference, error_at, statements
from eugen3d.cli.bench.approximation_targets import signed_distance
from eugen3d.cli.main import main
from eugen3d.distill.approximation import ApproximationProblem, Candidate
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
    assert {r["order"] * r["num_features"] for r in rows if r["kind"] == "eugen" and r["phi"] == "relu"} == {2, 4}
    assert {row["projection"] for row in rows} == {"orthogonal", "gaussian", "picked", "regression", None}
    assert {row["use_norm"] for row in rows} == {row["trained"] for row in rows} == {True, False}
    output = capsys.readouterr().out
    assert "sdf, lone" in output and "orthogonal against iid" in output and f"wrote {tmp_path}" in output
    assert "the best EUGen against the best low-rank at equal stored parameters: " in output
    assert not (tmp_path / "result.json.partial").exists()
    assert "<svg" in page.read_text() and "http" not in page.read_text()


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    first, again, other = (
        result_of(tmp_path / f"{index}.json", "--targets", "siren", "--seed", seed)["rows"]
        for index, seed in enumerate(("0", "0", "1"))
    )
    assert first == again != other


def test_an_interrupted_call_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done, asked = tmp_path / "result.json", 0, []
    measure = ApproximationProblem.relative_errors

    def interrupted(self: ApproximationProblem, candidate: Candidate, *rest: Any) -> list[float]:
        nonlocal done
        if done == 5:
            raise KeyboardInterrupt
        done += 1
        return measure(self, candidate, *rest)

    def counted(self: ApproximationProblem, candidate: Candidate, *rest: Any) -> list[float]:
        asked.append(candidate)
        return measure(self, candidate, *rest)

    monkeypatch.setattr(ApproximationProblem, "relative_errors", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        result_of(path, "--targets", "siren")
    assert (tmp_path / "result.json.partial").exists() and not path.exists()
    monkeypatch.setattr(ApproximationProblem, "relative_errors", counted)
    continued = result_of(path, "--targets", "siren")["rows"]
    assert not (tmp_path / "result.json.partial").exists()
    continued_with, asked = len(asked), []
    assert result_of(tmp_path / "whole.json", "--targets", "siren")["rows"] == continued
    assert len(asked) == continued_with + 5


@pytest.mark.parametrize(("content", "message"), [("{", "cannot be read"), ('{"settings": {}, "errors": {}}', "other")])
def test_progress_of_another_call_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json.partial").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        bench("--targets", "siren", "--output", str(tmp_path / "result.json"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_a_teachers_activations_are_measured(make_run: Any, tmp_path: Path) -> None:
    teacher = make_run("teacher", layer=LayerConfig("linear"))
    arguments = ["--load-config", str(teacher), "--layers", "1", "--sampling.num-rays", "128"]
    rows = result_of(tmp_path / "result.json", "--targets", "nerf", "--trained-seeds", "0", *arguments)["rows"]
    assert {row["target"] for row in rows} == {"nerf.trunk.1"}
    assert not any(row["trained"] for row in rows)


def test_one_draw_has_no_standard_error_and_what_is_not_drawn_has_none_to_have(tmp_path: Path) -> None:
    rows = result_of(tmp_path / "r.json", "--targets", "synthetic-relu", "--seeds", "1", "--trained-seeds", "0")["rows"]
    certain = [row for row in rows if row["projection"] in (None, "picked", "regression")]
    assert {row["standard_error"] for row in certain} == {0.0}
    assert {row["standard_error"] for row in rows if row not in certain} == {None}


def test_errors_are_compared_at_equal_cost() -> None:
    family = [make_row(0.4, 100), make_row(0.1, 400)]
    error, spread = error_at(200, family) or (0, 0)
    assert error == pytest.approx(0.2)
    assert spread == pytest.approx(0.2 * 0.5 * ((0.01 / 0.4) ** 2 + (0.01 / 0.1) ** 2) ** 0.5)
    assert (error_at(100.5, family), error_at(399, family)) == ((0.4, 0.01), (0.1, 0.01))
    assert error_at(98, family) is error_at(405, family) is None
    assert best_within(399, family)["eugen"] == family[1] and best_within(390, family)["eugen"] == family[0]
    assert best_within(90, family) == {}


@pytest.mark.parametrize(
    ("one", "other", "sign"),
    [
        ((0.4, 0.01), (0.43, 0.01), -1),  # 0.03 against 2 √2 · 0.01
        ((0.43, 0.01), (0.4, 0.01), 1),
        ((0.4, 0.01), (0.425, 0.01), 0),
        ((0.4, 0.0), (0.4003, 0.0), 0),  # less than a thousandth
        ((0.4, 0.0), (0.4005, 0.0), -1),
        ((0.1, float("inf")), (0.9, 0.0), 0),  # one draw
    ],
)
def test_a_difference_is_one_beyond_the_noise(one: Estimate, other: Estimate, sign: int) -> None:
    assert difference(one, other) == sign


def test_the_statements_follow_the_rows() -> None:
    eugen = [make_row(0.4, 100), make_row(0.1, 400)]
    rank = [make_row(0.2, 100, kind="low-rank"), make_row(0.11, 400, kind="low-rank")]
    said = statements(eugen + rank)
    name = "eugen fixed orthogonal relu"
    assert f"t, lone, 100 parameters: low-rank fixed 0.2 ± 0.01 wins; {name} 0.4 ± 0.01" in said
    assert f"t, lone, 400 parameters: no difference: {name} 0.1 ± 0.01, low-rank fixed 0.11 ± 0.01" in said
    (line,) = [s for s in said if s.startswith("the best EUGen against the best low-rank")]
    assert "at equal stored parameters: lower error in 0, no difference in 1, higher in 1 of 2, × 1.35 on" in line
    assert f"(t m=100 {name} 0.4 ± 0.01 against low-rank fixed 0.2 ± 0.01)" in line
    swapped = statements(eugen + [row | {"relative_error": 0.8} for row in rank])
    assert "lower error in 2, no difference in 0, higher in 0 of 2" in "\n".join(swapped)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (0.5, "lower error in 0, no difference in 0, higher in 1 of 1, × 1.67"),
        (0.1, "lower error in 1, no difference in 0, higher in 0 of 1, × 0.333"),
        (0.31, "lower error in 0, no difference in 1, higher in 0 of 1, × 1.03"),
    ],
)
def test_orthogonality_is_judged_by_the_standard_errors(error: float, said: str) -> None:
    (line,) = [s for s in statements([make_row(error, 9), make_row(0.3, 9, projection="gaussian")]) if "iid" in s]
    assert line.startswith(f"orthogonal against iid projections, fixed: {said}")
    assert ("0.5 ± 0.01 against eugen fixed gaussian relu 0.3" in line) == (error == 0.5)


def test_the_norm_and_orders_are_judged_at_equal_cost() -> None:
    plain = [make_row(0.4, 100), make_row(0.1, 400)]
    norm = [make_row(0.3, 200, use_norm=True)]
    square = [make_row(0.1, 200, order=2)]
    cubic = [make_row(0.2, 200, order=3)]
    said = "\n".join(statements(plain + norm + square + cubic))
    assert (
        "t: the norm at equal parameters brings nothing (lower in 0, no difference in 0, higher in 1 of 1, × 1.5"
        in said
    )
    assert "t: order 2 for order 1 at equal parameters lowers the error (lower in 1, no difference in 0, higher" in said
    assert "t: order 3 for order 1 at equal parameters brings nothing (lower in 0, no difference in 1, higher" in said
    both = statements([*plain, make_row(0.1, 200, order=2), make_row(0.4, 400, order=2, num_features=9)])
    assert any("order 2 for order 1 at equal parameters helps here and hurts there" in line for line in both)


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
