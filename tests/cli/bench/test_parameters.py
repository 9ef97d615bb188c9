"""`eugen3d bench parameters`: the counts, the comparison with the paper, and what cannot be built."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eugen3d import EUGenConfig, convert, fold
from eugen3d.cli.bench.cases import CASES
from eugen3d.cli.bench.models import Sine, SkipMlp, ZipNerfNetwork, build_model
from eugen3d.cli.main import main

OURS = ["nerf", "zipnerf", "isdf", "siren"]


def bench(*arguments: str) -> None:
    main(["bench", "parameters", *arguments])


def rows_of(path: Path, *arguments: str) -> list[dict[str, Any]]:
    bench(*arguments, "--output", str(path))
    return json.loads(path.read_text())["rows"]


def test_the_result_has_its_keys_and_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench("--models", *OURS, "--output", str(tmp_path / "new" / "result.json"))
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result.keys() == {"date", "versions", "rows"} and "torch" in result["versions"]
    assert [row["model"] for row in result["rows"]] == ["nerf", "nerf", "zipnerf", "isdf", "siren", "siren"]
    for row in result["rows"]:
        assert list(row) == [
            *("model", "layers", "kind", "num_features", "order"),
            *("num_parameters", "bytes", "flops", "paper", "skipped"),
        ]
        assert row["kind"] == "eugen" and row["skipped"] is None
        assert row["bytes"] == {state: 4 * count for state, count in row["num_parameters"].items()}
        assert row["paper"] is None or {"figure", "value", "ours", "difference", "assumption"} <= row["paper"].keys()
    output = capsys.readouterr().out
    assert "siren, m = 32" in output and "converted" in output and f"wrote {tmp_path}" in output


def test_the_counts_are_those_of_the_arithmetic(tmp_path: Path) -> None:
    """SIREN: 2→256, three layers 256→256, 256→1, each of the three replaced at m = 32 with the norm."""
    row = rows_of(tmp_path / "result.json", "--models", "siren")[0]
    outside, layer = 3 * 256 + 257, 32 * 256 + 2 * 32 + 256 * 32 + 256
    chained = 32 * 32 + 2 * 32 + 33 * 32 + 33  # merged projection, bias, norm column; the norm's factor and offset
    assert row["num_parameters"] == {
        "dense": 198_401,
        "converted": outside + 3 * layer,
        "folded": 3 * 256 + (32 * 256 + 2 * 32) + 2 * chained + 33,
    }
    assert row["flops"]["dense"] == 2 * (2 * 256 + 3 * 256 * 256 + 256)
    assert row["flops"]["folded"] < row["flops"]["converted"] < row["flops"]["dense"]
    paper = row["paper"]
    assert paper["ours"] == pytest.approx(row["num_parameters"]["converted"] / 198_401)
    assert paper["difference"] == pytest.approx((paper["ours"] - paper["value"]) / paper["value"])


def test_the_transformers_of_vision_give_the_papers_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    stated, read = rows_of(tmp_path / "result.json", "--models", "vit-base")
    assert stated["bytes"]["dense"] / 1e6 == pytest.approx(346, rel=0.01)
    assert abs(stated["paper"]["difference"]) > 0.03 > abs(read["paper"]["difference"])
    output = " ".join(capsys.readouterr().out.split())
    assert "does not give the paper's figure" in output and "it takes eight" in output
    row = rows_of(tmp_path / "result.json", "--models", "vit-large")[1]
    assert row["num_parameters"]["dense"] == pytest.approx(304e6, rel=0.01)
    assert row["paper"]["ours"] == row["num_parameters"]["folded"] == pytest.approx(150e6, rel=0.03)


def test_the_language_models_fold(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    gpt2, bert = rows_of(tmp_path / "result.json", "--models", "gpt2", "bert-base")
    assert gpt2["num_parameters"]["dense"] == 124_439_808
    assert abs(gpt2["paper"]["difference"]) < 0.03
    for row in (gpt2, bert):
        counts = row["num_parameters"]
        assert counts["dense"] > counts["converted"] > counts["folded"]


@pytest.mark.parametrize(("model", "package"), [("gpt2", "transformers"), ("vit-base", "timm")])
def test_a_missing_package_skips_the_row(
    model: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    rows = rows_of(tmp_path / "result.json", "--models", model, "siren")
    skipped = rows[0]
    assert skipped["skipped"] == f"{package} is not installed, expected it: pip install 'eugen3d[bench]'"
    assert skipped["num_parameters"] is skipped["bytes"] is skipped["flops"] is skipped["paper"] is None
    assert rows[-1]["skipped"] is None
    assert skipped["skipped"] in capsys.readouterr().out


def test_a_package_without_the_model_skips_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "is_model", lambda name: name != "efficientvit_b1")
    (row,) = rows_of(tmp_path / "result.json", "--models", "efficientvit-b1")
    assert row["skipped"].startswith(f"timm {timm.__version__} has no efficientvit_b1, expected a newer one")


def test_other_features_are_counted_once_and_compared_with_nothing(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "result.json", "--models", "siren", "--num-features", "8")
    assert [(row["num_features"], row["paper"]) for row in rows] == [(8, None)]
    (row,) = rows_of(tmp_path / "result.json", "--models", "siren", "--num-features", "32")
    assert row["paper"] is not None, "the paper's own number"
    assert rows[0]["num_parameters"]["folded"] < row["num_parameters"]["folded"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-features", "0"], "error: --num-features 0: expected at least 1"),
        (["--models"], "error: --models: names none, expected some of vit-base, vit-large"),
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


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "other"], ["bench", "parameters", "--models", "vit"]])
def test_an_unknown_name_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_every_case_says_what_it_replaces() -> None:
    names = [(case.model, case.layers, case.num_features) for case in CASES]
    assert len(set(names)) == len(names)
    assert all(case.paper is None or case.paper.assumption for case in CASES)


@pytest.mark.parametrize("name", OURS)
def test_models_are_built_without_weights(name: Any) -> None:
    assert all(parameter.is_meta for parameter in build_model(name).parameters())


@pytest.mark.parametrize("skip", [0, 2])
def test_a_network_with_a_skip_folds_to_the_same_function(skip: int) -> None:
    network = SkipMlp(5, 24, 4, 2, nn.ReLU(), skip).double()
    convert(network, EUGenConfig(num_features=4), lambda _, name: name.startswith("layers.") and name != "layers.0.0")
    x = torch.randn(30, 5, dtype=torch.float64)
    expected, before = network(x), sum(parameter.numel() for parameter in network.parameters())
    torch.testing.assert_close(fold(network)(x), expected, rtol=1e-12, atol=1e-12)
    assert sum(parameter.numel() for parameter in network.parameters()) < before


def test_the_networks_run() -> None:
    assert ZipNerfNetwork()(torch.randn(7, 40), torch.randn(7, 27)).shape == (7, 3)
    torch.testing.assert_close(Sine(30.0)(torch.tensor(0.1)), torch.tensor(3.0).sin())
