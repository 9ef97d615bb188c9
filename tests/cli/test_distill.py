"""`eugen3d distill`, in this process, on an untrained teacher of eight neurons a layer."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import eugen3d.cli.main
from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.refinement import Photographs
from eugen3d.cli.runs import Run, load_run
from eugen3d.distill import Distiller
from eugen3d.distill.solve import RIDGES
from eugen3d.fields import NerfField
from eugen3d.layers import EUGenConfig, EUGenLinear, KindConfig, LayerConfig, LowRankConfig, SNNKConfig
from eugen3d.models.distilled import DistilledModelConfig
from eugen3d.models.nerf import EUGenNerfModel

Make = Callable[..., Path]
FEW_RAYS = ("--sampling.num-rays", "300", "--sampling.pair-fraction", "0.5")


@pytest.fixture
def teacher(make_run: Make) -> Path:
    """Three dense layers, of which the last two can be replaced."""
    return make_run("teacher", layer=LayerConfig("linear"), replaced_layers=(), num_layers=3)


def distill(teacher: Path, output: Path, *arguments: str) -> Path:
    """Run the command; the config.yml it wrote."""
    few = () if "--sampling.num-rays" in arguments else FEW_RAYS
    required = ("--load-config", str(teacher), "--output-dir", str(output))
    eugen3d.cli.main.main(["distill", *required, "--num-features", "4", *few, *arguments])
    return output / "config.yml"


def refused(capsys: pytest.CaptureFixture[str], teacher: Path, output: Path, *arguments: str) -> str:
    """The one line that the command ends with, after exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        distill(teacher, output, *arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def load(config: Path) -> Run:
    return load_run(config, "cpu", "inference")


def state_of(config: Path) -> dict[str, Tensor]:
    return load(config).pipeline.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def fine_field(config: Path) -> NerfField:
    return cast(NerfField, cast(EUGenNerfModel, load(config).pipeline.model).fields["fine"])


def layers_of(config: Path) -> dict[str, KindConfig]:
    """What stands in the place of which layers."""
    model = load(config).config.pipeline.model
    assert isinstance(model, DistilledModelConfig)
    return model.layers


def result_of(config: Path) -> dict[str, Any]:
    return json.loads((config.parent / "distill.json").read_text())


def interrupt_call(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, after: bool = False) -> None:
    """Let call `number` of a function, counted from 1, be interrupted before or after it does its work."""
    function, calls = getattr(owner, name), iter(range(1, 10**6))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        this = next(calls) == number
        if this and not after:
            raise KeyboardInterrupt
        returned = function(*args, **kwargs)
        if this:
            raise KeyboardInterrupt
        return returned

    monkeypatch.setattr(owner, name, interrupted)


def test_the_student_is_a_run_that_loads(teacher: Path, tmp_path: Path) -> None:
    path = distill(teacher, tmp_path / "student")
    run, before = load(path), state_of(teacher)
    config = run.config.pipeline.model
    assert isinstance(config, DistilledModelConfig) and not config.merged and run.step == 7
    names = [f"fields.{field}.trunk.{index}" for field in ("coarse", "fine") for index in (1, 2)]
    assert config.layers == dict.fromkeys(names, EUGenConfig(4, use_norm=False))
    trunk = fine_field(path).trunk
    kinds = [type(block[0]) for block in trunk if isinstance(block, nn.Sequential)]
    assert kinds == [nn.Linear, EUGenLinear, EUGenLinear]
    after = run.pipeline.state_dict()
    same_as_before = {key for key, value in after.items() if key in before and torch.equal(value, before[key])}
    assert "_model.fields.fine.trunk.0.0.weight" in same_as_before
    for name in ("density_head.0.weight", "view.0.weight", "rgb_head.0.weight"):
        assert f"_model.fields.fine.{name}" not in same_as_before, "what comes after is refitted"
    assert not (tmp_path / "student.partial").exists()
    assert same(before, state_of(teacher)), "the teacher stays"


def test_the_result_file(teacher: Path, tmp_path: Path) -> None:
    path = distill(teacher, tmp_path / "student", "--order", "2", "--use-norm")
    result = result_of(path)
    assert list(result) == ["layers", "num_parameters", "seconds"]
    names = [f"{field}.trunk.{index}" for field in ("coarse", "fine") for index in (1, 2)]
    assert [layer["name"] for layer in result["layers"]] == names
    for layer in result["layers"]:
        assert list(layer) == ["name", "num_features", "order", "rows", "relative_error", "ridge", "condition"]
        rows = 300 * (4 if layer["name"].startswith("coarse") else 9) // 2  # the fine field sees both kinds of samples
        assert (layer["num_features"], layer["order"], layer["rows"]) == (4, 2, rows)
        assert 0 < layer["relative_error"] < 1 and layer["ridge"] in RIDGES and layer["condition"] > 1
    assert list(result["num_parameters"]) == ["teacher", "student", "folded"]
    assert list(result["seconds"]) == ["sample", "solve", "fit", "refine"]
    seconds = result["seconds"]
    assert seconds["sample"] > 0 and seconds["solve"] > 0 and seconds["fit"] == seconds["refine"] == 0


def test_parameters_are_counted_by_hand(teacher: Path, tmp_path: Path) -> None:
    """Both fields of 8 neurons, m = 4. Folded, the readouts go into what follows them: 8→4, 4→4, 4→1 and 4→view."""
    counts = result_of(distill(teacher, tmp_path / "student"))["num_parameters"]
    first, view, rgb = 63 * 8 + 8, (8 + 27) * 8 + 8, 8 * 3 + 3
    dense, density = 8 * 8 + 8, 8 + 1
    layer = (8 * 4 + 4) + (4 * 8 + 8)
    folded_view = (4 + 27) * 8 + 8
    assert counts["teacher"] == 2 * (first + 2 * dense + density + dense + view + rgb)
    assert counts["student"] == 2 * (first + 2 * layer + density + dense + view + rgb)
    assert counts["folded"] == 2 * (first + (8 * 4 + 4) + (4 * 4 + 4) + (4 + 1) + folded_view + rgb)


def test_the_same_seed_gives_the_same_student(teacher: Path, tmp_path: Path) -> None:
    arguments = "--projection", "orthogonal", "--fit-steps", "3"
    first = state_of(distill(teacher, tmp_path / "first", *arguments))
    assert same(first, state_of(distill(teacher, tmp_path / "second", *arguments)))
    assert not same(first, state_of(distill(teacher, tmp_path / "third", *arguments, "--seed", "1")))


def test_the_same_seed_refines_alike(teacher: Path, tmp_path: Path) -> None:
    """Python's own random state, with which nerfstudio shuffles the images, plays no part."""
    arguments = "--refine-steps", "3", "--refine-num-rays", "32"
    first = state_of(distill(teacher, tmp_path / "first", *arguments))
    random.seed(7)
    assert same(first, state_of(distill(teacher, tmp_path / "second", *arguments)))


def test_layers_by_name_and_index(teacher: Path, tmp_path: Path) -> None:
    path = distill(teacher, tmp_path / "student", "--layers", "trunk.2", "--phi", "identity")
    assert list(layers_of(path)) == ["fields.coarse.trunk.2", "fields.fine.trunk.2"]
    assert [layer["name"] for layer in result_of(path)["layers"]] == ["coarse.trunk.2", "fine.trunk.2"]
    other = distill(teacher, tmp_path / "other", "--layers", "2", "--phi", "identity")
    assert same(state_of(path), state_of(other))


def test_the_coarse_field_can_have_layers_of_its_own(teacher: Path, tmp_path: Path) -> None:
    path = distill(teacher, tmp_path / "student", "--layers", "2", "--coarse-layers", "1", "2")
    assert list(layers_of(path)) == [f"fields.{name}" for name in ("coarse.trunk.1", "coarse.trunk.2", "fine.trunk.2")]
    names = [layer["name"] for layer in result_of(path)["layers"]]
    assert names == ["coarse.trunk.1", "coarse.trunk.2", "fine.trunk.2"]
    refined = distill(path, tmp_path / "refined", "--layers", "none", "--refine-steps", "1")
    assert result_of(refined)["num_parameters"]["folded"] == result_of(path)["num_parameters"]["folded"]


@pytest.mark.parametrize("kind", ["low-rank", "snnk"])
def test_the_baselines_are_distilled_alike(teacher: Path, tmp_path: Path, kind: str) -> None:
    path = distill(teacher, tmp_path / "student", "--kind", kind, "--layers", "2", "--coarse-layers", "2")
    config = {"low-rank": LowRankConfig(4), "snnk": SNNKConfig(4)}[kind]
    assert layers_of(path) == dict.fromkeys(["fields.coarse.trunk.2", "fields.fine.trunk.2"], config)
    assert all(0 < layer["relative_error"] < 1 for layer in result_of(path)["layers"])


def test_a_narrow_network_is_trained_at_the_rows(teacher: Path, tmp_path: Path) -> None:
    arguments = "--kind", "narrow", "--fit-learning-rate", "0.01"
    paths = [distill(teacher, tmp_path / steps, *arguments, "--fit-steps", steps) for steps in ("1", "200")]
    config = load(paths[1]).config.pipeline.model
    assert (getattr(config, "layer_width", 0), getattr(config, "view_width", 0)) == (4, 4)
    result = result_of(paths[1])
    assert result["layers"] == [] and result["num_parameters"]["folded"] < result["num_parameters"]["teacher"] / 1.5
    rows = torch.rand(500, 3) * 2 - 1, torch.nn.functional.normalize(torch.randn(500, 3), dim=1)
    expected = fine_field(teacher)(*rows)[1]
    short, long = (float((fine_field(path)(*rows)[1] - expected).square().mean()) for path in paths)
    assert long < 0.7 * short


def test_an_interrupted_narrow_network_goes_on(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "--kind", "narrow", "--fit-steps", "3"
    expected = distill(teacher, tmp_path / "whole", *arguments)
    with monkeypatch.context() as patch:
        interrupt_call(patch, DistillProgress, "add", 1, after=True)
        with pytest.raises(SystemExit):
            distill(teacher, tmp_path / "student", *arguments)
    assert same(state_of(distill(teacher, tmp_path / "student", *arguments)), state_of(expected))


def test_an_existing_folder_is_refused(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "student").mkdir()
    message = refused(capsys, teacher, tmp_path / "student")
    assert "exists already, expected a folder to be made" in message
    assert not any((tmp_path / "student").iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--layers", "trunk.7"), "--layers: 'trunk.7' matches none of the teacher's dense layers"),
        (("--layers", "none"), "--layers none: found no --refine-steps"),
        (("--num-features", "2000"), "--sampling.num-rays: 300 rays give 1200 rows, expected at least"),
        (("--num-features", "0"), "--num-features is 0, expected at least 1"),
        (("--coarse-layers", "trunk.7"), "--coarse-layers: 'trunk.7' matches none of the teacher's dense layers"),
        (("--kind", "low-rank", "--num-features", "0"), "--num-features is 0, expected at least 1"),
        (("--kind", "narrow"), "--kind narrow: found no --fit-steps, expected some"),
        (
            ("--kind", "narrow", "--fit-steps", "1", "--fit-target", "layer"),
            "--fit-target layer: found beside --kind narrow",
        ),
        (("--fit-steps", "-1"), "--fit-steps: is -1, expected 0 or more"),
        (("--fit-sweeps", "-1"), "--fit-sweeps: is -1, expected 0 or more"),
        (("--refine-steps", "-3"), "--refine-steps: is -3, expected 0 or more"),
        (("--refine-patience", "0"), "--refine-patience: is 0, expected 1 or more"),
        (("--refine-novel-poses", "1.5"), "--refine-novel-poses: is 1.5, expected 0 to 1"),
        (("--refine-teacher", "gone.yml"), "--refine-teacher: found no --refine-steps, expected some"),
        (
            ("--refine-teacher", "gone.yml", "--refine-steps", "1"),
            "--refine-teacher gone.yml: not found, expected a run's config.yml",
        ),
        (("--device", "tpu"), "--device tpu: is unknown"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_answered_with_one_line(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in refused(capsys, teacher, tmp_path / "student", *arguments)
    assert not list(tmp_path.glob("student*"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pair-fraction", "0"),
        ("image-fraction", "1.5"),
        ("weighted-fraction", "-0.1"),
        ("num-rays", "0"),
        ("downscale-factor", "0"),
    ],
)
def test_bad_sampling_is_answered_with_one_line(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    arguments = f"--sampling.{name}", value
    assert f"--sampling.{name}: is {value}" in refused(capsys, teacher, tmp_path / "student", *arguments)


def test_a_student_is_no_teacher(make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, make_run("eugen"), tmp_path / "student")
    assert "its layers are 'eugen' already, expected 'linear'" in message


@pytest.mark.parametrize("number", [1, 2, 10, 21])
def test_an_interrupted_call_goes_on(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """Interrupted before the task of that number; what the second call does is the rest alone."""
    arguments = "--projection", "gaussian", "--fit-steps", "4", "--fit-sweeps", "1"
    expected = distill(teacher, tmp_path / "whole", *arguments)
    with monkeypatch.context() as patch:
        interrupt_call(patch, Distiller, "run", number)
        with pytest.raises(SystemExit) as stop:
            distill(teacher, tmp_path / "student", *arguments)
    assert stop.value.code == 130 and "interrupted" in capsys.readouterr().err
    partial = tmp_path / "student.partial"
    assert partial.exists() == (number > 1) and not (tmp_path / "student").exists()
    done: list[str] = []
    add = DistillProgress.add
    with monkeypatch.context() as patch:
        patch.setattr(DistillProgress, "add", lambda self, name, *rest: (done.append(name), add(self, name, *rest)))
        path = distill(teacher, tmp_path / "student", *arguments)
    closed = ["trunk.1 replace", "trunk.1 fit 0", "trunk.2 replace", "trunk.2 fit 0"]
    layers = ["trunk.0", "trunk.1", "trunk.2", "density_head", "feature", "view", "rgb_head"]
    refits = [f"{layer} refit" for layer in layers[3:]]
    tasks = [*closed, *refits, *(f"{layer} fit 1" for layer in layers)]
    assert done == [f"{field}.{task}" for field in ("coarse", "fine") for task in tasks][number - 1 :]
    assert not partial.exists()
    assert same(state_of(path), state_of(expected))
    assert result_of(path)["layers"] == result_of(expected)["layers"]


def test_progress_of_other_settings_is_not_continued(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_call(patch, Distiller, "run", 2)
        with pytest.raises(SystemExit):
            distill(teacher, tmp_path / "student")
    assert "student.partial: is of a call with other settings" in refused(
        capsys, teacher, tmp_path / "student", "--seed", "1"
    )
    (tmp_path / "student.partial").write_bytes(b"cut off")
    assert "student.partial: cannot be read" in refused(capsys, teacher, tmp_path / "student")


def test_refining_leaves_a_merged_student_that_loads(teacher: Path, tmp_path: Path) -> None:
    student = distill(teacher, tmp_path / "student")
    refined = distill(student, tmp_path / "refined", "--layers", "none", "--refine-steps", "2")
    run = load(refined)
    config, model = run.config.pipeline.model, cast(EUGenNerfModel, run.pipeline.model)
    assert isinstance(config, DistilledModelConfig) and config.merged and config.layers == layers_of(student)
    result = result_of(refined)
    assert result["layers"] == [] and result["seconds"]["refine"] > 0
    folded = result_of(student)["num_parameters"]["folded"]
    assert result["num_parameters"]["folded"] == folded == sum(p.numel() for p in model.fields.parameters())
    again = distill(refined, tmp_path / "again", "--layers", "none", "--refine-steps", "2")
    assert result_of(again)["num_parameters"]["folded"] == folded


def test_refining_in_the_same_call_lowers_the_loss(teacher: Path, tmp_path: Path) -> None:
    arguments = "--refine-num-rays", "64", "--refine-learning-rate", "0.01"
    start = distill(teacher, tmp_path / "start", "--refine-steps", "1", *arguments)
    refined = distill(teacher, tmp_path / "refined", "--refine-steps", "60", *arguments)
    assert (
        load_run(start, "cpu").pipeline.get_average_eval_image_metrics()["psnr"]
        < (load_run(refined, "cpu").pipeline.get_average_eval_image_metrics()["psnr"])
    )


def test_an_interrupted_refinement_goes_on(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "--refine-steps", "60", "--refine-num-rays", "32", "--refine-learning-rate", "0.01"
    expected = distill(teacher, tmp_path / "whole", *arguments)
    with monkeypatch.context() as patch:
        interrupt_call(patch, DistillProgress, "save_refine", 1, after=True)
        with pytest.raises(SystemExit):
            distill(teacher, tmp_path / "student", *arguments)
    assert (tmp_path / "student.partial").exists()
    steps: list[int] = []
    batch = Photographs.batch
    with monkeypatch.context() as patch:
        patch.setattr(
            Photographs, "batch", lambda self, number, rays: (steps.append(number), batch(self, number, rays))[1]
        )
        path = distill(teacher, tmp_path / "student", *arguments)
    assert steps == [1, *range(52, 62)], "the validation batch, and the steps that were left"
    assert same(state_of(path), state_of(expected))
