"""`eugen3d plan` and `eugen3d distill --plan`, in this process, on an untrained teacher of eight neurons a layer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eugen3d.cli.main
from eugen3d.cli.plan_progress import PlanProgress
from eugen3d.cli.plan_trials import Trial, Trials
from eugen3d.cli.runs import load_run
from eugen3d.cli.teacher_rows import SamplingConfig, sample_rows
from eugen3d.cli.teachers import teacher_of
from eugen3d.cli.views import load_views
from eugen3d.distill import Plan
from eugen3d.layers import EUGenConfig, LayerConfig, LowRankConfig

Make = Callable[..., Path]
FEW_RAYS = ("--sampling.num-rays", "300", "--sampling.pair-fraction", "0.5")
QUICK = (*FEW_RAYS, "--num-views", "2", "--downscale-factor", "1", "--sizes", "0.25", "0.5")


@pytest.fixture
def teacher(make_run: Make) -> Path:
    """Three dense hidden layers."""
    return make_run("teacher", layer=LayerConfig("linear"), replaced_layers=(), num_layers=3)


def plan(teacher: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """Run the command; its plan.json."""
    required = ("--load-config", str(teacher), "--output-dir", str(output))
    eugen3d.cli.main.main(["plan", *required, *QUICK, *arguments])
    return json.loads((output / "plan.json").read_text())


def distill(teacher: Path, output: Path, *arguments: str) -> Path:
    required = ("--load-config", str(teacher), "--output-dir", str(output))
    eugen3d.cli.main.main(["distill", *required, *FEW_RAYS, *arguments])
    return output / "config.yml"


def refused(capsys: pytest.CaptureFixture[str], call: Callable[..., Any], *arguments: Any) -> str:
    """The one line that a command ends with, after exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def front_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "front.json").read_text())


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Plan]]:
    """Trials whose drop is 1 dB for every layer replaced and 1/m more, and whose speed is 1 + the layers; kept."""
    tried: list[Plan] = []

    def measure(_trials: Trials, each: Plan) -> Trial:
        tried.append(each)
        layers = [layer for part in each.values() for layer in part.values()]
        drop = sum(1 + 1 / layer.inner_width for layer in layers)
        return Trial(drop, drop / 100, 1.0 + len(layers))

    monkeypatch.setattr(Trials, "measure", measure)
    yield tried


def test_a_plan_within_a_number_of_parameters_is_distilled_as_it_says(teacher: Path, tmp_path: Path) -> None:
    found = plan(teacher, tmp_path / "plan", "--max-parameters", "0.5x")
    front = front_of(tmp_path / "plan")
    assert found["cost"]["num_parameters"] <= found["budget"]["value"] == 0.5 * front["teacher"]["num_parameters"]
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == [
        "front.json",
        "front.svg",
        "plan.json",
        "report.html",
    ]
    assert not (tmp_path / "plan.partial").exists()
    student = distill(teacher, tmp_path / "student", "--plan", str(tmp_path / "plan" / "plan.json"))
    result = json.loads((student.parent / "distill.json").read_text())
    assert sorted(layer["name"] for layer in result["layers"]) == sorted(found["layers"])
    assert result["num_parameters"]["folded"] == found["cost"]["num_parameters"], "it is counted as it is folded"
    assert result["num_parameters"]["teacher"] > result["num_parameters"]["folded"]


def test_the_front_is_no_worse_than_uniform_plans(teacher: Path, tmp_path: Path) -> None:
    plan(teacher, tmp_path / "plan", "--max-flops", "0.6x", "--front-shares", "0.8", "0.5")
    front = front_of(tmp_path / "plan")
    points = front["points"]
    assert {point["origin"] for point in points} == {"planned", "uniform features", "uniform rank"}
    assert [point["is_chosen"] for point in points].count(True) == 1
    on_front = [point for point in points if point["is_on_front"]]
    for point in points:
        assert any(
            each["flops_per_sample"] <= point["flops_per_sample"] and each["psnr_drop"] <= point["psnr_drop"]
            for each in on_front
        )
    chosen = next(point for point in points if point["is_chosen"])
    fitting = [p for p in points if p["flops_per_sample"] <= 0.6 * front["teacher"]["flops_per_sample"]]
    assert chosen in fitting and chosen["difference"] == min(point["difference"] for point in fitting)
    assert all(point["speedup"] is None for point in points)
    sensitivity = front["sensitivities"]["fine.trunk.1"]
    assert [entry.get("num_features", entry.get("rank")) for entry in sensitivity] == [2, 4, 2]
    assert all(entry["loss"] > 0 for entry in sensitivity)


def test_the_cost_is_that_which_score_counts(teacher: Path, tmp_path: Path) -> None:
    plan(teacher, tmp_path / "plan", "--max-flops", "0.6x", "--front-shares", "0.5")
    distill(teacher, tmp_path / "student", "--plan", str(tmp_path / "plan" / "plan.json"))
    student = tmp_path / "student" / "config.yml"
    output = ("--output", str(tmp_path / "score.json"))
    eugen3d.cli.main.main(["score", "--load-config", str(teacher), str(student), "--num-images", "1", *output])
    scored = json.loads((tmp_path / "score.json").read_text())["runs"]
    chosen = json.loads((tmp_path / "plan" / "plan.json").read_text())["cost"]
    counted = [front_of(tmp_path / "plan")["teacher"], chosen]
    for run, cost in zip(scored, counted, strict=True):
        assert run["flops_per_sample"] == pytest.approx(cost["flops_per_sample"])
        assert run["num_parameters"] == cost["num_parameters"]
    assert scored[1]["flops_per_sample"] < 0.6 * scored[0]["flops_per_sample"]


@pytest.mark.usefixtures("simulated")
def test_a_drop_is_met_with_as_few_operations_as_it_allows(teacher: Path, tmp_path: Path) -> None:
    found = plan(teacher, tmp_path / "plan", "--max-psnr-drop", "4")
    points = front_of(tmp_path / "plan")["points"]
    meeting = [point for point in points if point["psnr_drop"] <= 4]
    assert found["measured"]["psnr_drop"] <= 4 and len(meeting) < len(points)
    assert found["cost"]["flops_per_sample"] == min(point["flops_per_sample"] for point in meeting)


@pytest.mark.usefixtures("simulated")
def test_a_speedup_is_met_with_the_least_drop(teacher: Path, tmp_path: Path) -> None:
    found = plan(teacher, tmp_path / "plan", "--min-speedup", "5")
    points = front_of(tmp_path / "plan")["points"]
    meeting = [point for point in points if point["speedup"] >= 5]
    assert found["measured"]["speedup"] >= 5 and len(meeting) < len(points)
    assert found["measured"]["psnr_drop"] == min(point["psnr_drop"] for point in meeting)


def test_the_speed_is_measured_where_it_is_the_budget(teacher: Path, tmp_path: Path) -> None:
    found = plan(teacher, tmp_path / "plan", "--min-speedup", "0.001", "--front-shares", "0.5", "--max-steps", "0")
    assert found["measured"]["speedup"] > 0.001


def test_budgets_that_cannot_be_met(
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    simulated: list[Plan],
) -> None:
    output = tmp_path / "plan"
    message = refused(capsys, plan, teacher, output, "--max-psnr-drop", "0.5")
    assert "--max-psnr-drop 0.5: no plan meets it, the nearest has " in message and "dB with ×0." in message
    count = len(simulated)
    monkeypatch.setattr("eugen3d.cli.plan_run.layer_losses", None)
    assert "the nearest has 1" in refused(capsys, plan, teacher, output, "--min-speedup", "99")
    assert len(simulated) > count, "trials that were not timed are of no use for it"
    count = len(simulated)
    refused(capsys, plan, teacher, output, "--max-psnr-drop", "0.5")
    assert len(simulated) == count, "what was measured before another budget is kept"
    assert "is of a call with other settings" in refused(
        capsys, plan, teacher, output, "--max-psnr-drop", "0.6", "--seed", "1"
    )
    message = refused(capsys, plan, teacher, output, "--max-parameters", "10")
    assert "no plan is as small, the smallest has" in message
    assert not output.exists()


def test_refusals_before_anything_is_loaded(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, drop = tmp_path / "plan", ("--max-psnr-drop", "1")
    for arguments, expected in (
        ((), "found none, expected one budget"),
        ((*drop, "--min-speedup", "2"), "found --max-psnr-drop, --min-speedup, expected one budget"),
        (("--max-psnr-drop", "-1"), "--max-psnr-drop -1.0: expected at least 0"),
        (("--max-psnr-drop", "nan"), "--max-psnr-drop nan: expected"),
        (("--max-parameters", "many"), "--max-parameters many: expected a positive number such as 150000"),
        (("--max-flops", "0x"), "--max-flops 0x: expected a positive number"),
        ((*drop, "--num-views", "0"), "--num-views 0: expected at least 1"),
        ((*drop, "--sizes", "2"), "--sizes 2.0: expected numbers between 0 and 1"),
    ):
        assert expected in refused(capsys, plan, teacher, output, *arguments)
    output.mkdir()
    assert "exists already" in refused(capsys, plan, teacher, output, *drop)


def test_a_run_without_dense_layers_is_refused(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, plan, make_run("eugen"), tmp_path / "plan", "--max-flops", "0.5x")
    assert "its layers are 'eugen' already, expected 'linear' ones" in message


def test_an_interrupted_call_goes_on_from_what_it_measured(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: list[Plan]
) -> None:
    arguments = ("--max-flops", "0.5x", "--front-shares", "0.8")
    whole = plan(teacher, tmp_path / "whole", *arguments)
    count, save, saved = len(simulated), PlanProgress.save, iter(range(100))
    simulated.clear()

    def interrupted(progress: PlanProgress) -> None:
        save(progress)
        if next(saved) == 12:  # ten layers and two trials were saved before
            raise KeyboardInterrupt

    monkeypatch.setattr(PlanProgress, "save", interrupted)
    with pytest.raises(SystemExit) as stop:
        plan(teacher, tmp_path / "plan", *arguments)
    assert stop.value.code == 130 and (tmp_path / "plan.partial").exists() and not (tmp_path / "plan").exists()
    before = len(simulated)
    monkeypatch.setattr(PlanProgress, "save", save)
    monkeypatch.setattr("eugen3d.cli.plan_run.layer_losses", None)
    assert plan(teacher, tmp_path / "plan", *arguments)["layers"] == whole["layers"]
    assert 0 < before < count == len(simulated), "no plan was tried twice"
    assert not (tmp_path / "plan.partial").exists()


def write_plan(path: Path, layers: Any, **others: Any) -> Path:
    path.write_text(json.dumps({"teacher": "0" * 64, "layers": layers} | others))
    return path


def test_distill_takes_plans_made_by_hand(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = {
        "fine.trunk.1": {"kind": "eugen", "num_features": 3, "phi": "relu"},
        "fine.view": {"kind": "low-rank", "rank": 2},
    }
    path = write_plan(tmp_path / "plan.json", layers)
    student = distill(teacher, tmp_path / "student", "--plan", str(path))
    assert "was made for another checkpoint" in capsys.readouterr().out
    config: Any = load_run(student, "cpu", "inference").config.pipeline.model
    assert config.layers == {
        "fields.fine.trunk.1": EUGenConfig(3, use_norm=False),
        "fields.fine.view": LowRankConfig(2),
    }
    before, after = (load_run(run, "cpu", "inference").pipeline.state_dict() for run in (teacher, student))
    coarse = [name for name in before if ".coarse." in name]
    assert coarse and all((after[name] == before[name]).all() for name in coarse), "nothing was planned there"


def test_plan_files_that_are_refused(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(path: Path, *arguments: str) -> str:
        return refused(capsys, distill, teacher, tmp_path / "student", "--plan", str(path), *arguments)

    good = {"kind": "eugen", "num_features": 3, "phi": "relu"}
    file = tmp_path / "plan.json"
    assert f"--plan {file}: not found" in message(file)
    file.write_text("{")
    assert f"--plan {file}: cannot be read" in message(file)
    file.write_text("[]")
    assert f"--plan {file}: is a list, expected an object" in message(file)
    file.write_text('{"layers": {}}')
    assert f"--plan {file}: lacks the key 'teacher'" in message(file)
    for layers, others, expected in (
        ({}, {}, ": layers is empty"),
        ({"fine.trunk.1": good}, {"extra": 1}, ": has the unknown key 'extra'"),
        (
            {"fine.trunk.9": good},
            {},
            ": layers.fine.trunk.9: the teacher has no such layer, expected of coarse.trunk.0",
        ),
        ({"fine.trunk.1": 3}, {}, ": layers.fine.trunk.1: is a int, expected an object"),
        ({"fine.trunk.1": good | {"m": 3}}, {}, ": layers.fine.trunk.1: has the unknown key 'm'"),
        ({"fine.trunk.1": {"kind": "snnk"}}, {}, ": layers.fine.trunk.1.kind: is 'snnk', expected one of"),
        ({"fine.trunk.1": good | {"num_features": 2.5}}, {}, ".num_features: is 2.5, expected a whole number"),
        ({"fine.trunk.1": good | {"num_features": 0}}, {}, "num_features is 0, expected at least 1"),
        ({"fine.trunk.1": good | {"phi": "gelu"}}, {}, ".phi: is 'gelu', expected 'relu'"),
        ({"fine.trunk.1": {"kind": "low-rank", "rank": True}}, {}, ".rank: is True, expected a whole number"),
    ):
        assert expected in message(write_plan(file, layers, **others))
    write_plan(file, {"fine.trunk.1": good})
    assert "--num-features 8: found beside --plan" in message(file, "--num-features", "8")
    assert "--layers 1 2: found beside --plan" in message(file, "--layers", "1", "2")
    assert not (tmp_path / "student").exists()


def test_a_trial_renders_what_the_plan_s_student_renders(teacher: Path) -> None:
    from_run = load_run(teacher, "cpu", "test")
    model = teacher_of(from_run)
    manager: Any = from_run.pipeline.datamanager
    rows = sample_rows(manager, model, SamplingConfig(num_rays=300), 100, 0)
    trials = Trials(model, model.networks(), rows, (load_views(from_run, "train"), [0, 1]), 0, False)
    nothing = trials.measure({})
    assert nothing.psnr_drop == pytest.approx(0, abs=1e-6) and nothing.speedup is None, "the teacher itself"
    assert nothing.difference == pytest.approx(0, abs=1e-9)
    small: Plan = {"fine": {"trunk.1": EUGenConfig(1, use_norm=False), "trunk.2": LowRankConfig(1)}}
    trial = trials.measure(small)
    assert abs(trial.psnr_drop) > 1e-3 and trial.difference > 1e-6
