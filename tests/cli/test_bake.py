"""`eugen3d bake` on a small run, and what the commands do with what it wrote."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.trainer import TrainerConfig
from torch import Tensor

from eugen3d.cli.bake import _random_rays
from eugen3d.cli.grid_refinement import GridRefinement
from eugen3d.cli.main import main
from eugen3d.cli.partial import PartialFile
from eugen3d.cli.refinement import Photographs
from eugen3d.cli.runs import load_run, save_run
from eugen3d.layers import LayerConfig
from eugen3d.models.distilled import DistilledModelConfig

MakeRun = Callable[..., Path]
KEYS = [  # in this order
    "resolution",
    "densities",
    "threshold",
    "dilation",
    "occupied",
    "refine_steps",
    "num_samples",
    "spread",
    "psnr_drop",
    "psnr_dense",
    "seconds_dense",
    "seconds_skipped",
    "speedup",
    "split",
    "views",
    "downscale_factor",
    "device",
    "versions",
    "date",
]
FLAGS = ("--resolution", "8", "--downscale-factor", "1", "--num-views", "1")
REFINE = ("--max-psnr-drop", "9", "--refine-num-rays", "32", "--refine-steps")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["bake", *arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def bake(config: Path, output: Path, *flags: str) -> dict[str, Any]:
    main(["bake", "--load-config", str(config), "--output-dir", str(output), *FLAGS, *flags])
    return json.loads((output / "bake.json").read_text())


def test_a_grid_is_baked_from_rays_through_pixels_of_all_views() -> None:
    width, height, focal = torch.tensor([[6], [4], [6]]), torch.tensor([[4], [8], [4]]), 5.0
    poses = torch.eye(4)[:3].expand(3, 3, 4)
    cameras = Cameras(poses, focal, focal, width / 2, height / 2, width, height)
    rays = _random_rays(cameras, torch.Generator().manual_seed(0))
    assert len(rays) == 24 + 32 + 24 and rays.camera_indices is not None
    views = rays.camera_indices[:, 0]
    assert set(views.tolist()) == {0, 1, 2}
    x, y = (focal * rays.directions[:, axis] / -rays.directions[:, 2] for axis in (0, 1))
    assert (x.abs() < width[views, 0] / 2).all() and (y.abs() < height[views, 0] / 2).all()
    assert x[views == 0].abs().max() > 2 and y[views == 1].abs().max() > 3


def test_it_writes_a_run_with_a_grid(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(bounding_radius=1.4)
    result = bake(config, tmp_path / "baked")
    assert list(result) == KEYS
    assert result["psnr_drop"] <= 0.05 and 0 < result["occupied"] <= 1 and result["speedup"] > 0
    run, plain = load_run(tmp_path / "baked" / "config.yml", "cpu"), load_run(config, "cpu")
    model: Any = run.pipeline.model
    assert run.step == plain.step and model.config.occupancy.resolution == 8 and model.config.occupancy.skipping
    found = model.config.occupancy
    assert (found.num_samples, found.spread) == (result["num_samples"], result["spread"])
    assert model.occupancy.cells().any() and not model.occupancy.cells().all()
    for key, value in plain.pipeline.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    again = bake(tmp_path / "baked" / "config.yml", tmp_path / "again")
    assert again["occupied"] == result["occupied"], "a baked run can be baked anew"


def test_students_are_baked_too(make_run: MakeRun, tiny_config: TrainerConfig, tmp_path: Path) -> None:
    run = load_run(make_run(), "cpu")
    config = copy.deepcopy(run.config)
    config.pipeline.model = DistilledModelConfig.of(config.pipeline.model)
    save_run(config, run.pipeline.state_dict(), run.step, tmp_path / "student")
    bake(tmp_path / "student" / "config.yml", tmp_path / "baked")
    loaded: Any = load_run(tmp_path / "baked" / "config.yml", "cpu")
    assert isinstance(loaded.config.pipeline.model, DistilledModelConfig)
    assert loaded.pipeline.model.occupancy.resolution == 8


def state_of(config: Path) -> dict[str, Tensor]:
    return load_run(config, "cpu").pipeline.model.state_dict()


@pytest.mark.parametrize("kind", ["eugen", "linear", "student"])
def test_the_field_that_renders_is_refined_alone(
    make_run: MakeRun, tiny_config: TrainerConfig, tmp_path: Path, kind: str
) -> None:
    config = make_run(**{} if kind == "eugen" else {"layer": LayerConfig("linear")})
    if kind == "student":
        flags = "--num-features", "4", "--layers", "1", "--refine-steps", "1", "--refine-num-rays", "16"
        main(["distill", "--load-config", str(config), "--output-dir", str(tmp_path / "s"), *flags])
        config = tmp_path / "s" / "config.yml"
    result = bake(config, tmp_path / "baked", *REFINE, "3")
    assert (result["refine_steps"], result["split"]) == (3, "val") and not (tmp_path / "baked.partial").exists()
    before, after = state_of(config), state_of(tmp_path / "baked" / "config.yml")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("fields.fine.") for key in changed)
    assert all(key in changed for key in before if key.startswith("fields.fine.") and key.endswith("bias"))
    model: Any = load_run(tmp_path / "baked" / "config.yml", "cpu").pipeline.model
    assert not model.config.occupancy.training, "another training is not by the grid"


@pytest.mark.parametrize(("flags", "expected"), [(("--num-samples", "7"), 7), ((), 1)])
def test_it_is_refined_at_the_samples_that_are_asked_for_or_half_of_those_found(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], expected: int
) -> None:
    refined: list[int] = []
    run = GridRefinement.run

    def noting(self: GridRefinement, *args: Any) -> None:
        refined.append(self.teacher.model.config.occupancy.num_samples)
        run(self, *args)

    monkeypatch.setattr(GridRefinement, "run", noting)
    result = bake(make_run(), tmp_path / "baked", *REFINE, "1", *flags)
    assert refined == [expected] and result["num_samples"] == (7 if flags else 2)


def test_refining_brings_pictures_at_few_samples_nearer(make_run: MakeRun, tmp_path: Path) -> None:
    config = make_run(bounding_radius=1.4)
    drops = [bake(config, tmp_path / steps, *REFINE, steps, "--split", "train")["psnr_drop"] for steps in ("1", "300")]
    assert drops[1] < drops[0] - 0.1


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupted_refinement_goes_on(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """Interrupted once what was kept, before the first step or later, is in its file."""
    config, flags = make_run(), (*REFINE, "60")
    expected = bake(config, tmp_path / "whole", *flags)
    write, calls, steps = PartialFile.write, iter(range(1, 10)), []
    with monkeypatch.context() as patch:

        def interrupt(self: PartialFile, content: dict[str, Any]) -> None:
            write(self, content)
            if next(calls) == number:
                raise KeyboardInterrupt

        patch.setattr(PartialFile, "write", interrupt)
        with pytest.raises(SystemExit) as stopped:
            bake(config, tmp_path / "baked", *flags)
    assert stopped.value.code == 130 and not (tmp_path / "baked").exists()
    args = "--load-config", str(config), "--output-dir", str(tmp_path / "baked"), *FLAGS
    assert "of a call with other settings" in refused(capsys, *args, *REFINE, "61")
    kept = (tmp_path / "baked.partial").read_bytes()
    (tmp_path / "baked.partial").write_bytes(kept[:100])
    assert "baked.partial: cannot be read" in refused(capsys, *args, *flags)
    (tmp_path / "baked.partial").write_bytes(kept)
    batch = Photographs.batch
    monkeypatch.setattr(Photographs, "batch", lambda self, step, rays: (steps.append(step), batch(self, step, rays))[1])
    found = bake(config, tmp_path / "baked", *flags)
    assert steps == list(range(50 * (number - 1), 60)) and not (tmp_path / "baked.partial").exists()
    assert all(found[key] == expected[key] for key in KEYS[: KEYS.index("psnr_dense") + 1])
    states = [state_of(tmp_path / name / "config.yml") for name in ("whole", "baked")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_refinement_beyond_the_bound_is_kept_for_a_larger_one(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = make_run(), tmp_path / "baked"
    args = "--load-config", str(config), "--output-dir", str(output), *FLAGS, *REFINE, "2"
    message = refused(capsys, *args, "--max-psnr-drop", "-90")
    assert "expected a larger bound" in message and str(tmp_path / "baked.partial") in message
    monkeypatch.setattr(GridRefinement, "_take_step", None)  # not to be called
    assert bake(config, output, *REFINE, "2")["refine_steps"] == 2


def test_score_tells_runs_with_and_without_skipping_apart(make_run: MakeRun, tmp_path: Path) -> None:
    bake(make_run(), tmp_path / "baked")
    load, output = ("--load-config", str(tmp_path / "baked" / "config.yml")), tmp_path / "s.json"
    results, renders = [], tmp_path / "s_renders"
    for flag in ("--skip", "--no-skip"):
        main(["score", *load, "--output", str(output), "--device", "cpu", "--threads", "1", "--num-images", "1", flag])
        results.append((json.loads(output.read_text()), [path.read_bytes() for path in renders.rglob("*.json")]))
    assert [result["skip"] for result, _ in results] == [True, False]
    assert results[0][1] and results[0][1] != results[1][1], "the second was not taken from the first's renders"


def test_what_cannot_be_baked_is_refused(
    make_run: MakeRun, make_sdf_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config, output = str(make_run()), str(tmp_path / "out")
    args = ("--load-config", config, "--output-dir", output, *FLAGS)
    assert "--resolution 1" in refused(capsys, *args, "--resolution", "1")
    assert "--downscale-factor 0" in refused(capsys, *args, "--downscale-factor", "0")
    assert "--num-views 9" in refused(capsys, *args, "--num-views", "9")
    assert "--num-samples 0" in refused(capsys, *args, "--num-samples", "0")
    assert "--refine-steps -1" in refused(capsys, *args, "--refine-steps", "-1")
    assert "--refine-num-rays 0" in refused(capsys, *args, "--refine-num-rays", "0")
    assert "the views of split test" in refused(capsys, *args, "--split", "test", "--num-views", "9")
    assert "expected a larger bound" in refused(capsys, *args, "--max-psnr-drop", "-90")
    assert "exists already" in refused(capsys, *args, "--output-dir", str(tmp_path / "run"))
    assert str(tmp_path / "sdf") in refused(capsys, "--load-config", str(make_sdf_run(name="sdf")), *args[2:])
    assert not (tmp_path / "out").exists()


def test_a_student_of_a_baked_run_has_no_grid(make_run: MakeRun, tmp_path: Path) -> None:
    bake(make_run(), tmp_path / "baked")
    flags = "--layers", "none", "--refine-steps", "1", "--refine-num-rays", "16"
    main(
        [
            "distill",
            "--load-config",
            str(tmp_path / "baked" / "config.yml"),
            "--output-dir",
            str(tmp_path / "s"),
            *flags,
        ]
    )
    student: Any = load_run(tmp_path / "s" / "config.yml", "cpu").pipeline.model
    assert student.occupancy is None and student.config.occupancy.resolution == 0
