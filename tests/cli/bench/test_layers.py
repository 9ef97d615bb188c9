"""`eugen3d bench layers`: the rows and what is computed from them, the contestants, and bad input. No test is timed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eugen3d.cli.bench import contest
from eugen3d.cli.bench.chains import Chain, chains_for, count_flops, make_chain
from eugen3d.cli.bench.layers import bytes_moved
from eugen3d.cli.bench.layers_view import remarks
from eugen3d.cli.bench.timing import peak_allocation, time_in_turn
from eugen3d.cli.main import main
from eugen3d.metrics.cost import flops_per_row
from eugen3d.runtime import NativeUnavailable

CPU = torch.device("cpu")
TINY = [
    *("--widths", "16", "--depth", "3", "--batches", "32", "64", "--num-features", "4", "--orders", "1", "2"),
    *("--dtypes", "float32", "--backends", "eager", "--rounds", "1"),
]


def bench(*arguments: str) -> None:
    main(["bench", "layers", *TINY, *arguments])


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eugen3d.cli.bench.layers.SQUARES", (32,))
    monkeypatch.setattr("eugen3d.cli.bench.timing.SHORTEST", 0.0)
    monkeypatch.setattr("eugen3d.cli.bench.timing.COPIED_BYTES", 1 << 12)


def result_of(path: Path, *arguments: str) -> dict[str, Any]:
    bench(*arguments, "--output", str(path))
    return json.loads(path.read_text())


def test_the_result_has_its_keys_and_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(tmp_path / "result.json", "--report", str(tmp_path / "page.html"))
    assert list(result) == [
        *(
            "date",
            "load_average",
            "hardware",
            "threads",
            "versions",
            "settings",
            "peak_flops_per_second",
            "bandwidth_bytes_per_second",
            "unavailable",
            "rows",
        )
    ]
    for row in result["rows"]:
        assert list(row) == [
            *("kind", "num_features", "order", "form", "width", "depth", "batch", "dtype", "backend", "direction"),
            *("seconds", "speedup", "peak_fraction", "roofline_fraction", "num_parameters", "peak_memory_bytes"),
            *("flops", "bytes"),
        ]
        assert row["seconds"] > 0 and row["peak_memory_bytes"] > 4 * row["num_parameters"]
    trained = {row["kind"] for row in result["rows"] if row["direction"] == "forward+backward"}
    inferred = {row["kind"] for row in result["rows"] if row["direction"] == "forward"}
    assert trained - inferred == {"eugen-merged"} and {"linear", "eugen", "low-rank", "snnk", "narrow"} == inferred
    output = capsys.readouterr().out
    assert "3×16, float32, forward, 32 rows" in output and "the peak is" in output and f"wrote {tmp_path}" in output
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page and "eugen-merged" in page and "$" not in page
    assert "http" not in page and "src=" not in page, "one self-contained file"


def test_speedup_and_share_are_computed_from_the_rows(tmp_path: Path) -> None:
    result = result_of(tmp_path / "result.json")
    for row in result["rows"]:
        same = [r for r in result["rows"] if all(r[k] == row[k] for k in ("batch", "dtype", "direction"))]
        dense = min(r["seconds"] for r in same if r["kind"] == "linear")
        assert row["speedup"] == pytest.approx(dense / row["seconds"])
        rate = row["flops"] * row["batch"] / row["seconds"]
        assert row["peak_fraction"] == pytest.approx(rate / result["peak_flops_per_second"]["float32"])
        shortest = max(
            row["flops"] * row["batch"] / result["peak_flops_per_second"]["float32"],
            row["bytes"] / result["bandwidth_bytes_per_second"],
        )
        assert row["roofline_fraction"] == pytest.approx(shortest / row["seconds"])


@pytest.mark.parametrize(
    ("direction", "dtype", "expected"),
    [
        ("forward", torch.float32, 4 * (2 * 10 * 16 + 100)),  # rows in, rows out, parameters
        ("forward", torch.bfloat16, 2 * (2 * 10 * 16 + 100)),
        ("forward+backward", torch.float32, 4 * (3 * 10 * 16 + 2 * 100)),  # and the gradients of output and parameters
    ],
)
def test_what_has_to_be_moved_is_counted(direction: Any, dtype: torch.dtype, expected: int) -> None:
    assert bytes_moved(contest.Shape(16, 3, dtype, direction, False, CPU), 10, 100) == expected


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured, measure = tmp_path / "r.json", [], contest.Contest.measure

    def interrupted(self: contest.Contest, batch: int, *rest: Any) -> Any:
        measured.append((self.shape.direction, batch))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, batch, *rest)

    monkeypatch.setattr(contest.Contest, "measure", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        bench("--output", str(path))
    kept = json.loads((tmp_path / "r.json.partial").read_text())["measured"]
    assert not path.exists() and len(kept) == 4, "the peak, the bandwidth and two comparisons"
    result = result_of(path)
    assert measured[2:] == [("forward+backward", 32), ("forward+backward", 32), ("forward+backward", 64)]
    first = [row for row in result["rows"] if row["direction"] == "forward" and row["batch"] == 32]
    before = kept["3x16 float32 forward, 32 rows"]["rows"]
    assert [row["seconds"] for row in first] == [row["seconds"] for row in before] and before
    assert {(row["direction"], row["batch"]) for row in result["rows"]} == set(measured)
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"], "it is gone with the result there"


def test_what_was_unavailable_before_the_interruption_is_still_said(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    settings = ("--backends", "eager", "tcnn", "--kinds", "linear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eugen3d.runtime.tcnn_chain.why_no_cuda", lambda: "no GPU today")
        patch.setattr("eugen3d.cli.bench.layers.write_whole", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            bench(*settings, "--output", str(path))
    assert result_of(path, *settings)["unavailable"] == {"tcnn": "runtime tcnn: no GPU today"}


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("{", [], "cannot be read, expected an interrupted call's progress; delete it"),
        (
            '{"conditions": {}, "measured": {}}',
            [],
            "is of a call with other hardware, threads, versions, settings",
        ),
        (None, ["--rounds", "2"], "is of a call with other settings, expected the same; repeat that or delete it"),
    ],
)
def test_progress_of_something_else_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    arguments: list[str],
    message: str,
) -> None:
    path, partial = tmp_path / "r.json", tmp_path / "r.json.partial"
    if content is None:
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
            patch.setattr(contest.Contest, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            bench("--output", str(path))
        capsys.readouterr()
    else:
        partial.write_text(content)
    before = partial.read_text()
    with pytest.raises(SystemExit) as stopped:
        bench(*arguments, "--output", str(path))
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(f"error: {partial}: {message}")
    assert partial.read_text() == before and not path.exists()


def test_without_a_dense_chain_there_is_no_speedup(tmp_path: Path) -> None:
    rows = result_of(tmp_path / "result.json", "--kinds", "low-rank", "--directions", "forward")["rows"]
    assert [row["kind"] for row in rows] == ["low-rank", "low-rank"]
    assert all(row["speedup"] is None and row["peak_fraction"] > 0 for row in rows)


def test_a_backend_that_cannot_run_is_said_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise NativeUnavailable("no compiler")

    monkeypatch.setattr("eugen3d.runtime.backends.make_native", refuse)
    result = result_of(tmp_path / "r.json", "--backends", "eager", "native", "--directions", "forward")
    assert {row["backend"] for row in result["rows"]} == {"eager"}
    assert "no compiler" in result["unavailable"]["native"]
    assert "native was not measured: runtime native: no compiler" in capsys.readouterr().out


def test_gradients_come_from_the_backends_that_have_them(tmp_path: Path) -> None:
    assert contest.TRAINING_BACKENDS == ("eager", "compiled")
    rows = result_of(tmp_path / "r.json", "--backends", "eager", "native", "--kinds", "linear", "eugen")["rows"]
    assert {row["backend"] for row in rows if row["direction"] == "forward+backward"} == {"eager"}


def test_the_narrow_network_has_the_folded_chains_cost() -> None:
    """Without the norm to the operation: folded, an EUGen chain of order k is a network of width k·m."""
    chains = chains_for(["narrow"], [4, 8], [1, 2], 32, 4, "forward", use_norm=False)
    assert [chain.num_features for chain in chains] == [4, 8, 16]
    for narrow, eugen in ((chains[1], Chain("eugen", 8, 1)), (chains[1], Chain("eugen", 4, 2))):
        costs = [flops_per_row(make_chain(chain, 32, 4, "forward", use_norm=False)) for chain in (narrow, eugen)]
        assert costs[0] == costs[1]
    (with_norm,) = chains_for(["narrow"], [8], [1], 32, 4, "forward", use_norm=True)
    assert with_norm.num_features is not None and with_norm.num_features > 8


def test_the_merged_chain_is_the_factored_one_folded() -> None:
    x = torch.randn(20, 32)
    factored, merged = (
        make_chain(Chain(kind, 4, 2), 32, 3, "forward+backward", use_norm=True) for kind in ("eugen", "eugen-merged")
    )
    torch.testing.assert_close(merged(x), factored(x), rtol=1e-4, atol=1e-5)
    counts = [sum(p.numel() for p in chain.parameters() if p.requires_grad) for chain in (merged, factored)]
    assert counts[0] < counts[1]


def test_operations_are_counted_in_both_directions() -> None:
    chain = make_chain(Chain("linear"), 16, 3, "forward+backward", use_norm=False)
    assert count_flops(chain, 16, "forward") == 2 * 3 * 16**2
    assert count_flops(chain, 16, "forward+backward") == 2 * 16**2 * (3 + 3 + 2)
    assert all(parameter.grad is None for parameter in chain.parameters())


def test_the_peak_is_what_is_held_at_once() -> None:
    def call() -> None:
        for _ in range(3):
            held = torch.empty(1000), torch.empty(1000)
            assert len(held) == 2

    assert peak_allocation(call, CPU) == 4 * 4000, "of six tensors: a pair goes when the next one is there"


def test_contestants_take_turns() -> None:
    order: list[str] = []
    time_in_turn({name: lambda name=name: order.append(name) for name in "ab"}, 2, CPU)
    assert "".join(order[-4:]) == "abab"


def test_a_busy_machine_and_a_peak_that_is_none_are_said(tmp_path: Path) -> None:
    result = result_of(tmp_path / "r.json", "--kinds", "linear")
    for row in result["rows"]:
        row["peak_fraction"] = 0.5
    quiet = "\n".join(remarks(result | {"load_average": 0.1}))
    assert "busy" not in quiet and "exceed" not in quiet
    result["rows"][0]["peak_fraction"] = 2.17
    said = "\n".join(remarks(result | {"load_average": 3.5}))
    assert "the machine was busy" in said and f"1 of {len(result['rows'])} rows exceed" in said and "217%" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--widths", "0"], "error: --widths 0: expected at least 1"),
        (["--batches"], "error: --batches: names none, expected at least one"),
        (["--num-features", "-3"], "error: --num-features -3: expected at least 1"),
        (["--rounds", "0"], "error: --rounds 0: expected at least 1"),
        (["--backends", "auto"], "error: --backends auto: chooses among the others, expected those to measure"),
        (["--backends", "native", "--directions", "forward+backward"], "error: --backends native: evaluate without"),
        (["--kinds", "eugen-merged", "--directions", "forward"], "error: --kinds eugen-merged: expected forward+back"),
        (["--device", "tpu"], "error: --device tpu: is unknown, expected cpu or cuda"),
        (["--report", "."], "error: --report .: is a folder, expected a file's name"),
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


@pytest.mark.parametrize("arguments", [["--kinds", "magic"], ["--dtypes", "float16"], ["--widths", "wide"]])
def test_an_unknown_value_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(*arguments)
    assert stopped.value.code == 2
