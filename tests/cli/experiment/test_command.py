"""`eugen3d experiment` with the real commands, on models of two layers and a scene of 16 x 16 views."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from eugen3d.cli.distill import Distill
from eugen3d.cli.main import main
from eugen3d.cli.teacher_rows import SamplingConfig
from eugen3d.layers import LayerConfig

Make = Callable[..., Path]

KEYS = ["device", "versions", "date", "rows", "summary", "scores", "failures", "settings"]
ROW_KEYS = [
    *("scene", "teacher", "method", "kind", "solver", "layers", "num_features", "order", "refined", "psnr"),
    *("delta_psnr", "ssim", "lpips", "num_parameters", "flops_per_sample", "speedup", "seconds", "seed"),
    *("group", "name", "checkpoint_bytes", "folder_bytes", "job_seconds", "job_cpu_seconds", "config", "flags"),
]
FEW_ROWS = {"sampling.num-rays": 96, "sampling.pair-fraction": 1.0}
SMALL_VIEW = {"num-views": 1, "downscale-factor": 1, **FEW_ROWS}


@pytest.fixture
def teacher(make_run: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A dense run, and the working folder beside it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-cache"))
    monkeypatch.chdir(tmp_path)
    return make_run("dense", layer=LayerConfig("linear")).relative_to(tmp_path)


def write(teacher: Path, jobs: dict[str, Any], **top: Any) -> str:
    content = {"scenes": {"disc": {"data": "disc", "teacher": str(teacher)}}, "jobs": jobs, **top}
    Path("try.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return "try.yaml"


def experiment(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the result."""
    code = 0
    try:
        main(["experiment", *arguments, "--threads", "1", "--retries", "0"])
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    return code, json.loads(Path("outputs/try/result.json").read_text())


def weights(config: str | Path) -> dict[str, Tensor]:
    (checkpoint,) = Path(config).parent.glob("nerfstudio_models/*.ckpt")
    return torch.load(checkpoint, weights_only=True)["pipeline"]


@pytest.mark.slow
def test_what_can_run_runs_and_what_fails_is_reported(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = {
        "student": {"distill": "teacher", "flags": {"num-features": 3, "layers": 1, **FEW_ROWS}},
        "broken": {"distill": "teacher", "flags": {"layers": 9}},
        "lost": {"distill": "broken", "flags": {"layers": "none", "refine-steps": 1}},
        "budget": {"plan": "teacher", "flags": {"max-flops": "0.8x", "front-shares": 0.8, "sizes": 0.5, **SMALL_VIEW}},
        "planned": {"distill": "budget", "flags": FEW_ROWS},
    }
    code, result = experiment(write(teacher, jobs))
    shown = capsys.readouterr().out
    assert code == 1 and list(result) == KEYS
    assert [list(row) for row in result["rows"]] == [ROW_KEYS] * 3
    given, student, planned = result["rows"]
    assert (given["name"], given["kind"], given["solver"], given["layers"], given["speedup"]) == (
        *("teacher", "narrow", None, [], 1.0),
    )
    assert (student["kind"], student["solver"], student["layers"], student["num_features"], student["order"]) == (
        *("eugen", "closed-form", ["fields.coarse.trunk.1", "fields.fine.trunk.1"], 3, 1),
    )
    assert (student["teacher"], student["refined"], student["seed"]) == (str(teacher), False, 0)
    assert student["delta_psnr"] == pytest.approx(student["psnr"] - given["psnr"]) and student["delta_psnr"] != 0
    assert student["num_parameters"] < given["num_parameters"] and student["job_seconds"] > 0
    assert weights(student["config"])
    (budget,) = [json.loads(path.read_text()) for path in Path("outputs/try/disc").glob("budget-*/plan/plan.json")]
    assert planned["layers"] == [f"fields.{name}" for name in budget["layers"]] and planned["teacher"] == str(teacher)
    assert planned["flops_per_sample"] <= 0.8 * given["flops_per_sample"]

    broken, lost = result["failures"]
    assert (broken["state"], broken["reason"], broken["attempts"]) == ("failed", "exit code 2", 1)
    assert "--layers" in broken["log_tail"][-1] and Path(broken["log"]).exists()
    assert (lost["state"], lost["reason"]) == ("not run", "its input broken failed")
    assert "disc/broken: failed after 1 attempt (exit code 2); see" in shown and "disc/lost: not run" in shown
    page = Path("outputs/try/report.html").read_text()
    assert "disc/broken" in page and (Path("outputs/try") / page.split('<a href="')[1].split('"')[0]).exists()

    code, again = experiment(
        write(teacher, {name: jobs[name] for name in ("student", "budget", "planned")}), "--output", "kept/try.json"
    )
    shown = capsys.readouterr().out
    assert code == 0 and shown.count("done by an earlier call") == 4, "and that is the score of the three runs, too"
    assert again["rows"] == result["rows"] and again["failures"] == []
    assert json.loads(Path("kept/try.json").read_text()) == again


@pytest.mark.slow
def test_a_killed_experiment_goes_on_to_the_same_result(teacher: Path, commands: Any) -> None:
    """Killed with its command in the middle of a refinement, it ends in what an unbroken call gives, bit by bit."""
    refine = {"num-features": 3, "layers": 1, "refine-steps": 200, "refine-num-rays": 16, **FEW_ROWS}
    file = write(teacher, {"student": {"distill": "teacher", "flags": refine}})
    process = commands.start(["eugen3d", "experiment", file, "--threads", "1"], Path.cwd())
    wait_for(lambda: any(refined_steps(path) for path in Path("outputs/try/disc").glob("student-*/run.partial")))
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    (child,) = [int(pid) for path in children for pid in path.read_text().split()]
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.communicate()
    assert not list(Path("outputs/try/disc").glob("student-*/run/config.yml")), "it was in the middle"
    code, result = experiment(file)
    assert code == 0 and result["rows"][1]["job_seconds"] is None, "it was not done in one go"

    sampling = SamplingConfig(num_rays=96, pair_fraction=1.0)
    settings: dict[str, Any] = {"num_features": 3, "layers": ("1",), "refine_steps": 200, "refine_num_rays": 16}
    Distill(teacher, Path("alone"), **settings, sampling=sampling).main()
    expected, found = weights("alone/config.yml"), weights(result["rows"][1]["config"])
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    start = weights(teacher)
    assert any(key not in start or not torch.equal(value, start[key]) for key, value in found.items())


def test_bad_input_is_one_line_before_anything_runs(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(teacher, {"student": {"distill": "teacher"}})
    for arguments, expected in [
        (["nowhere.yaml"], "nowhere.yaml: not found"),
        ([file, "--threads", "0"], "--threads 0: expected at least 1"),
        ([file, "--retries", "-1"], "--retries -1: expected at least 0"),
        ([file, "--device", "tpu"], "--device tpu: is unknown"),
        ([file, "--slurm", "partition=x"], "--slurm partition=x: is of no use with --engine local"),
        ([file, "--output", "."], "--output .: is a folder"),
        ([file, "--output-dir", file], "--output-dir try.yaml: is a file"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(["experiment", *arguments])
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and message.startswith(f"error: {expected}") and message.count("\n") == 1
    assert not Path("outputs").exists()


def refined_steps(partial: Path) -> int:
    """How far the refinement has come, as its progress file says."""
    refine = torch.load(partial, weights_only=True)["refine"]
    return refine["step"] if refine else 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
