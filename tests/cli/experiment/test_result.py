"""What the seeds say of a difference, in numbers computed by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eugen3d.cli.experiment.job import Job
from eugen3d.cli.experiment.measure import FIELDS
from eugen3d.cli.experiment.result import make_rows, summarize
from eugen3d.cli.experiment.specification import Specification
from eugen3d.cli.experiment.view import describe_failure, lines, remarks, write_experiment_page

SPECIFICATION = Specification(Path("try.yaml"), {}, {}, compare_with="dense")


def rows(group: str, psnrs: list[float | None], solver: str | None = "scratch", scene: str = "disc") -> list[dict]:
    shared: dict[str, Any] = {"scene": scene, "group": group, "solver": solver, "teacher": None, "kind": "linear"}
    cost = {"num_parameters": 1000, "flops_per_sample": 2e3, "checkpoint_bytes": 4e3, "speedup": 1.0, "seconds": 0.5}
    return [shared | cost | {"psnr": psnr, "ssim": 0.9, "lpips": None, "seed": i} for i, psnr in enumerate(psnrs)]


def test_mean_deviation_and_noise_floor() -> None:
    """s² = 1 for both: the floor is 2 √(1/3 + 1/3)."""
    summary = summarize(SPECIFICATION, rows("dense", [20.0, 21.0, 22.0]) + rows("eugen", [22.0, 23.0, 24.0]))
    dense, eugen = summary
    assert (dense["psnr"], dense["psnr_std"], dense["seeds"], dense["verdict"]) == (21.0, 1.0, 3, None)
    assert dense["delta_psnr"] is None
    assert eugen["delta_psnr"] == 2.0 and eugen["noise_floor"] == pytest.approx(1.6329932)
    assert eugen["verdict"] == "better"


@pytest.mark.parametrize(
    ("psnrs", "verdict", "shown"),
    [
        ([22.0, 23.0, 24.0], "better", "+2.00"),
        ([21.5, 22.5, 23.5], "no difference", "no difference"),
        ([19.5, 20.5, 21.5], "no difference", "no difference"),
        ([18.0, 19.0, 20.0], "worse", "−2.00"),
        ([23.0], None, "+2.00*"),
    ],
)
def test_a_difference_below_the_noise_is_none(psnrs: list[float | None], verdict: str | None, shown: str) -> None:
    summary = summarize(SPECIFICATION, rows("dense", [20.0, 21.0, 22.0]) + rows("eugen", psnrs))
    assert summary[1]["verdict"] == verdict
    assert lines(summary)[1]["Δ dB"] == shown
    assert lines(summary)[0]["PSNR dB"] == "21.00 ± 1.00"


def error_rows(group: str, errors: list[float]) -> list[dict]:
    shared: dict[str, Any] = {"scene": "room", "group": group, "solver": "scratch", "teacher": None, "kind": "linear"}
    cost = {"num_parameters": 1000, "flops_per_sample": 2e3, "checkpoint_bytes": 4e3, "speedup": 1.0, "seconds": 0.5}
    others = dict.fromkeys(FIELDS.others, 0.02)
    return [shared | cost | others | {"sdf_error": error, "seed": i} for i, error in enumerate(errors)]


@pytest.mark.parametrize(
    ("errors", "verdict", "shown"),
    [([0.05, 0.06, 0.07], "worse", "+50.0"), ([0.01, 0.02, 0.03], "better", "−50.0"), ([0.06], None, "+50.0*")],
)
def test_errors_are_better_where_they_are_less(errors: list[float], verdict: str | None, shown: str) -> None:
    summary = summarize(SPECIFICATION, error_rows("dense", [0.035, 0.04, 0.045]) + error_rows("eugen", errors))
    assert summary[1]["verdict"] == verdict and summary[1]["surface_sdf_error"] == pytest.approx(0.02)
    first, second = lines(summary)
    assert second["Δ %"] == shown and first["SDF cm"] == "4.00 ± 0.50" and first["surface cm"] == "2.00"
    assert first["ms/query"] == "500" and "PSNR dB" not in first


def test_a_given_run_has_no_noise() -> None:
    given = rows("dense", [21.0], solver=None)
    closer, farther = rows("a", [21.0, 21.2]), rows("b", [22.0, 22.2])  # s = 0.1 √2, the floor 0.2
    summary = summarize(SPECIFICATION, given + closer + farther)
    assert [row["noise_floor"] for row in summary[1:]] == pytest.approx([0.2, 0.2])
    assert [row["verdict"] for row in summary] == [None, "no difference", "better"]


def test_scenes_are_compared_each_with_its_own() -> None:
    both = [
        *(rows("dense", [20.0], scene="a") + rows("eugen", [21.0], scene="a")),
        *(rows("dense", [30.0], scene="b") + rows("eugen", [29.0], scene="b")),
    ]
    summary = summarize(SPECIFICATION, both)
    assert [row["delta_psnr"] for row in summary] == [None, 1.0, None, -1.0]
    assert [line["scene"] for line in lines(summary)] == ["a", "a", "b", "b"]
    assert "scene" not in lines(summary[:2])[0] and "LPIPS" not in lines(summary)[0]


def test_the_seeds_of_a_run_may_stand_apart() -> None:
    first, second = rows("eugen", [21.0, 22.0])
    summary = summarize(SPECIFICATION, [*rows("dense", [20.0]), first, *rows("other", [5.0]), second])
    assert [(row["name"], row["seeds"], row["psnr"]) for row in summary] == [
        *(("dense", 1, 20.0), ("eugen", 2, 21.5), ("other", 1, 5.0)),
    ]


def test_an_unmeasured_psnr_is_no_number() -> None:
    summary = summarize(SPECIFICATION, rows("dense", [None]) + rows("eugen", [21.0]))
    assert (summary[0]["psnr"], summary[1]["delta_psnr"], summary[1]["verdict"]) == (None, None, None)
    assert lines(summary)[0]["PSNR dB"] == "–" and lines(summary)[1]["Δ dB"] == ""


def test_a_row_has_the_psnr_of_every_further_scale(make_run: Callable[..., Path], tmp_path: Path) -> None:
    product = make_run()
    job = Job("disc", "dense", "dense", "given", (), tmp_path, product, "key")
    scales = [{"scale": scale, "psnr": 20.0 + scale} for scale in (1, 2, 4)]
    entry = {"name": "dense", "method": "eugen-nerf", "psnr": 21.0, "ssim": 0.9, "lpips": None, "speedup": 1.0}
    entry |= {"num_parameters": 9, "flops_per_sample": 2.0, "seconds_per_frame": 0.5, "checkpoint_bytes": 4}
    (row,) = make_rows(SPECIFICATION, {"dense": job}, {"runs": [entry | {"scales": scales}]})
    assert (row["psnr"], row["psnr_scale_2"], row["psnr_scale_4"]) == (21.0, 22.0, 24.0)
    for earlier in (entry, entry | {"scales": scales[:1]}):
        (plain,) = make_rows(SPECIFICATION, {"dense": job}, {"runs": [earlier]})
        assert row == plain | {"psnr_scale_2": 22.0, "psnr_scale_4": 24.0} and len(row) == len(plain) + 2


def test_scales_have_their_means_and_deviations() -> None:
    """s = 1 at a half of the first run, one seed of the other."""
    dense_rows = [
        row | {"psnr_scale_2": row["psnr"] - 3.0, "psnr_scale_8": None} for row in rows("dense", [20.0, 21.0, 22.0])
    ]
    eugen_rows = [row | {"psnr_scale_2": 16.5, "psnr_scale_8": 12.0} for row in rows("eugen", [21.0])]
    summary = summarize(SPECIFICATION, dense_rows + eugen_rows)
    dense, eugen = summary
    assert (dense["psnr_scale_2"], dense["psnr_scale_2_std"], dense["psnr_scale_8"]) == (18.0, 1.0, None)
    assert (eugen["psnr_scale_2"], eugen["psnr_scale_2_std"], eugen["psnr_scale_8"]) == (16.5, None, 12.0)
    assert [line["1/2"] for line in lines(summary)] == ["18.00", "16.50"]
    assert [line["1/8"] for line in lines(summary)] == ["–", "12.00"]
    notes = remarks({"summary": summary, "settings": {"compare_with": "dense"}})
    assert any(note.startswith("1/2, 1/8: PSNR dB") for note in notes)
    assert "1/2" not in lines(summarize(SPECIFICATION, rows("dense", [20.0])))[0]


def test_the_page_has_the_table_the_pictures_and_what_failed(tmp_path: Path) -> None:
    failure = {"scene": "disc", "name": "<b>", "state": "failed", "reason": "exit code 3", "attempts": 2}
    failure |= {"log": "out/log.txt", "log_tail": ["ValueError: & so"]}
    result = {
        "device": "a machine",
        "versions": {"eugen3d": "1"},
        "date": "2026-01-01T00:00:00+00:00",
        "summary": summarize(SPECIFICATION, rows("dense", [20.0]) + rows("eugen", [21.0])),
        "failures": [failure],
        "settings": {"name": "try", "compare_with": "dense", "engine": "ray"},
    }
    write_experiment_page(tmp_path / "report.html", result, {"disc": tmp_path / "disc" / "score-1" / "report.html"})
    page = (tmp_path / "report.html").read_text()
    assert '<a href="disc/score-1/report.html">disc</a>' in page and "<td>+1.00*</td>" in page
    assert "disc/&lt;b&gt;: failed after 2 attempts (exit code 3); see out/log.txt\n    ValueError: &amp; so" in page
    assert page.count("<svg") == 2 and "http" not in page.replace("http://www.w3.org", "")
    assert describe_failure(failure | {"state": "not run", "log": None})[0] == "disc/<b>: not run (exit code 3)"
    assert any(note.startswith("*: one seed") for note in remarks(result))
    write_experiment_page(tmp_path / "report.html", result | {"summary": [], "failures": []}, {})
    assert "<p>none</p>" in (tmp_path / "report.html").read_text()
