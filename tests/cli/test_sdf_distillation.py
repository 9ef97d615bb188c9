"""`eugen3d distill` and `eugen3d score` on runs of eugen-isdf."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eugen3d.cli.main import main
from eugen3d.cli.sdf_runs import load_sdf_run
from eugen3d.layers import EUGenConfig
from eugen3d.models.distilled import DistilledModelConfig
from eugen3d.models.isdf_pipeline import SdfPipeline

MakeRun = Callable[..., Path]
ROWS = ("--sampling.num-rays", "256", "--sampling.pair-fraction", "0.5")


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def distill(teacher: Path, output: Path, *arguments: object) -> Path:
    run("distill", "--load-config", teacher, "--output-dir", output, *ROWS, *arguments)
    return output / "config.yml"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command is refused with."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def teacher(make_sdf_run: MakeRun) -> Path:
    return make_sdf_run(kind="linear", name="teacher")


def gap(first: Path, second: Path) -> tuple[float, float]:
    """How far the distances and the gradients of two runs are apart in what the keyframe saw."""
    u, v, share = torch.rand(3, 500, generator=torch.Generator().manual_seed(0))
    z = 2 * share
    points = torch.stack([(2 * u - 1) * z, (2 * v - 1) * z, -z], dim=1)
    (d, g), (e, h) = (load_sdf_run(path, "cpu").model.query().distance_and_gradient(points) for path in (first, second))
    return float((d - e).norm() / (d - d.mean()).norm()), float((g - h).norm() / g.norm())


def test_the_student_is_a_run_that_goes_on(teacher: Path, tmp_path: Path) -> None:
    config = distill(teacher, tmp_path / "student", "--num-features", 6)
    student, dense = load_sdf_run(config, "cpu"), load_sdf_run(teacher, "cpu")
    settings = student.config.pipeline.model
    assert isinstance(settings, DistilledModelConfig)
    assert settings.layers["field.trunk.1"] == EUGenConfig(6, phi="softplus-100", use_norm=False)
    assert student.step == 3 and torch.equal(student.surface, dense.surface) and len(student.keyframes) == 1
    counts = json.loads((config.parent / "distill.json").read_text())["num_parameters"]
    assert counts["folded"] < counts["teacher"]
    distance, gradient = gap(teacher, config)
    assert 0 < distance < 0.5 and 0 < gradient < 0.5
    pipeline = student.config.pipeline.setup(device="cpu", test_mode="inference")
    assert isinstance(pipeline, SdfPipeline)
    state = torch.load(student.checkpoint, weights_only=True)["pipeline"]
    pipeline.load_pipeline(state, 3)
    assert len(pipeline.mapper.keyframes) == 1, "a stream can go on with the student"


def test_refining_brings_distances_and_gradients_nearer(teacher: Path, tmp_path: Path) -> None:
    closed = distill(teacher, tmp_path / "closed", "--num-features", 3)
    steps = ("--refine-steps", 100, "--refine-learning-rate", 3e-3)
    refined = distill(teacher, tmp_path / "refined", "--num-features", 3, *steps)
    (distance, gradient), (refined_distance, refined_gradient) = gap(teacher, closed), gap(teacher, refined)
    assert refined_distance < distance and refined_gradient < gradient
    assert refined_distance + refined_gradient < 0.8 * (distance + gradient)


def test_an_interrupted_refinement_goes_on(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--num-features", 3, "--refine-steps", 100)
    whole = distill(teacher, tmp_path / "whole", *arguments)
    from eugen3d.cli.distill_progress import DistillProgress

    save = DistillProgress.save_refine

    def interrupted(self: DistillProgress, *state: object) -> None:
        save(self, *state)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(DistillProgress, "save_refine", interrupted)
        distill(teacher, tmp_path / "parts", *arguments)
    assert (tmp_path / "parts.partial").exists() and not (tmp_path / "parts").exists()
    parts = distill(teacher, tmp_path / "parts", *arguments)
    assert gap(whole, parts) == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["low-rank", "snnk", "narrow"])
def test_the_other_kinds_are_distilled_alike(teacher: Path, tmp_path: Path, kind: str) -> None:
    steps = ("--fit-steps", 5) if kind == "narrow" else ()
    config = distill(teacher, tmp_path / kind, "--kind", kind, "--num-features", 4, *steps)
    assert load_sdf_run(config, "cpu").model.query().distance(torch.zeros(1, 3)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--sampling.downscale-factor", 2), "--sampling.downscale-factor: found for"),
        (("--coarse-layers", 1), "--coarse-layers: found for"),
        (("--layers", 9), "--layers: '9' matches none of the teacher's dense layers"),
        (("--sampling.num-rays", 1), "--sampling.num-rays: 1 rays give"),
    ],
)
def test_what_cannot_be_is_refused(teacher: Path, tmp_path: Path, capsys, arguments, expected: str) -> None:
    line = refused(capsys, "distill", "--load-config", teacher, "--output-dir", tmp_path / "s", *arguments)
    assert line.startswith(f"error: {expected}") and not (tmp_path / "s").exists()


def test_a_teacher_without_keyframes_is_refused(make_sdf_run: MakeRun, tmp_path: Path, capsys) -> None:
    config = make_sdf_run(lambda state: state.pop("mapper_progress"), kind="linear")
    line = refused(capsys, "distill", "--load-config", config, "--output-dir", tmp_path / "s")
    assert "step-000000003.ckpt: holds no keyframes" in line


def test_a_score_compares_errors_and_queries(make_sdf_run: MakeRun, wall_sequence, tmp_path: Path) -> None:
    data = wall_sequence(count=20)
    first = make_sdf_run(kind="linear", name="dense", data=data)
    second = make_sdf_run(name="eugen", data=data, seed=1)
    output, report = tmp_path / "score.json", tmp_path / "score.html"
    run("score", "--load-config", first, second, "--output", output, "--report", report, "--threads", 1)
    result = json.loads(output.read_text())
    dense, eugen = result["runs"]
    assert (dense["name"], eugen["name"], result["num_frames"]) == ("dense", "eugen", 2)
    assert dense["speedup"] == 1.0 and eugen["speedup"] > 0 and eugen["seconds_per_query"] > 0
    assert dense["num_parameters"] > eugen["num_parameters"] and dense["sdf_error"] != eugen["sdf_error"]
    assert {"surface_sdf_error", "gradient_cosine_distance", "depth_error", "hit_rate"} <= dense.keys()
    page = report.read_text()
    assert page.count("<img") == 2 * 3 and "eugen" in page


def test_scores_of_other_kinds_do_not_mix(make_sdf_run: MakeRun, make_run: MakeRun, wall_sequence, capsys) -> None:
    data = wall_sequence(count=20)
    field, nerf = make_sdf_run(name="field", data=data), make_run("nerf")
    assert "nerf/config.yml: is no run of eugen-isdf" in refused(capsys, "score", "--load-config", field, nerf)
    for flag, values in (("--downscale-factor", [2]), ("--scales", [1, 2])):
        message = refused(capsys, "score", "--load-config", field, flag, *values)
        assert message.startswith(f"error: {flag}: found for runs of eugen-isdf")
    missing = make_sdf_run(name="missing", data=data.parent / "gone")
    assert "was found neither here" in refused(capsys, "score", "--load-config", missing)
