"""Run folders: written whole, read strictly, and never executed."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.eval_utils import eval_setup

import eugen3d.cli.files
from eugen3d.cli.files import write_whole
from eugen3d.cli.runs import UsageError, load_config, load_run, save_run
from eugen3d.models.nerf import EUGenNerfModel

Make = Callable[..., Path]
WEIGHT = "_model.fields.fine.rgb_head.0.weight"


def checkpoint_of(config: Path) -> Path:
    return next((config.parent / "nerfstudio_models").glob("*.ckpt"))


def refused(config: Path) -> str:
    with pytest.raises(UsageError) as error:
        load_run(config, "cpu", "inference")
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_is_saved_loads_again_equal(make_run: Make) -> None:
    saved: dict[str, Any] = {}
    path = make_run(change=lambda state: saved.update(state) or state)
    run = load_run(path, "cpu", "inference")
    loaded = run.pipeline.state_dict()
    assert (run.name, run.step, run.checkpoint) == ("run", 7, checkpoint_of(path))
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[key], saved[key]) for key in saved)
    assert not run.pipeline.model.training
    other = load_run(make_run("other", seed=1), "cpu", "inference").pipeline.state_dict()
    assert not torch.equal(other[WEIGHT], loaded[WEIGHT])


def test_nerfstudio_loads_what_is_saved(make_run: Make) -> None:
    path = make_run()
    config, pipeline, checkpoint, step = eval_setup(path, test_mode="inference")
    assert (config.get_base_dir(), checkpoint, step) == (path.parent, checkpoint_of(path), 7)
    ours = load_run(path, "cpu", "inference").pipeline.state_dict()
    assert all(torch.equal(value.cpu(), ours[key]) for key, value in pipeline.state_dict().items())
    assert (path.parent / "dataparser_transforms.json").exists()


def test_a_moved_folder_loads(make_run: Make, tmp_path: Path) -> None:
    path = make_run()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.move(path.parent, tmp_path / "deep" / "er" / "moved")
    run = load_run(tmp_path / "deep" / "er" / "moved" / "config.yml", "cpu", "inference")
    assert run.name == "moved" and run.checkpoint.is_relative_to(tmp_path / "deep")


def test_a_relative_scene_is_found_above_the_config(
    make_run: Make, blender_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run()
    assert load_config(path).data == blender_scene
    config = yaml.load(path.read_text(), Loader=yaml.UnsafeLoader)
    config.data = config.pipeline.datamanager.data = Path("disc")
    path.write_text(yaml.dump(config))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(path).data == tmp_path.resolve() / "disc"
    shutil.rmtree(blender_scene)
    with pytest.raises(UsageError, match=r"scene disc was found neither here"):
        load_config(path)


def test_overrides_reach_the_model(make_run: Make) -> None:
    run = load_run(make_run(), "cpu", "inference", background_color="black")
    assert cast(EUGenNerfModel, run.pipeline.model).renderer_rgb.background_color == "black"
    with pytest.raises(UsageError, match="no model setting 'colour'"):
        load_run(run.config.get_base_dir() / "config.yml", "cpu", "inference", colour="black")


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "config.yml") == f"{tmp_path / 'config.yml'}: not found, expected a run's config.yml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is not valid YAML (line 1"),
        ("a: 1", "holds a dict, expected nerfstudio's TrainerConfig"),
        ("", "holds a NoneType"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    message = refused(path)
    assert message.startswith(f"{path}: ") and expected in message


@pytest.mark.parametrize(
    "tag",
    [
        "object/apply:os.system ['touch {canary}']",
        "object/new:subprocess.Popen [['touch', '{canary}']]",
        "object/apply:nerfstudio.utils.scripts.run_command ['touch {canary}']",
        "object/apply:nerfstudio.utils.scripts.subprocess.run [['touch', '{canary}']]",
        "object/apply:builtins.open ['{canary}', 'w']",
        "object/apply:torch.load ['{canary}']",
        "object/apply:eugen3d.cli.files.write_whole ['{canary}', 'x']",
        "object:subprocess.Popen {{args: 'touch {canary}'}}",
        "name:os.system ''",
        "name:nerfstudio.utils.scripts.run_command ''",
        "name:nerfstudio.utils.eval_utils.os ''",
        "module:antigravity ''",
    ],
)
def test_a_config_that_names_other_code_is_refused_and_not_executed(make_run: Make, tmp_path: Path, tag: str) -> None:
    canary, path = tmp_path / "canary", make_run()
    path.write_text(path.read_text().replace("prompt: null", f"prompt: !!python/{tag.format(canary=canary)}"))
    message = refused(path)
    assert message.startswith(f"{path}: ") and ("refused the tag" in message or "is not valid YAML" in message)
    assert tag.partition(" ")[0] in message
    assert not canary.exists()


def test_settings_are_validated_and_missing_ones_have_defaults(make_run: Make) -> None:
    path = make_run()
    text = path.read_text()
    path.write_text(text.replace("    runtime: eager\n", ""))
    assert load_config(path).pipeline.model.runtime == "eager"  # pyright: ignore[reportAttributeAccessIssue]
    path.write_text(text.replace("kind: eugen", "kind: spline"))
    assert "layer kind 'spline' is unknown" in refused(path)


def test_a_missing_checkpoint_is_reported_with_its_folder(make_run: Make) -> None:
    path = make_run()
    checkpoint_of(path).unlink()
    assert refused(path).startswith(f"{path.parent / 'nerfstudio_models'}: found no checkpoint")


def test_the_latest_checkpoint_is_loaded(make_run: Make) -> None:
    path = make_run()
    checkpoint = checkpoint_of(path)
    shutil.copy(checkpoint, checkpoint.with_name("step-000000123.ckpt"))
    checkpoint.with_name("step-last.ckpt").touch()
    assert load_run(path, "cpu", "inference").step == 123


@pytest.mark.parametrize("size", [0, 1, 1000, -100])
def test_a_truncated_checkpoint_is_refused(make_run: Make, size: int) -> None:
    path = make_run()
    checkpoint = checkpoint_of(path)
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    assert refused(path).startswith(f"{checkpoint}: cannot be read as a checkpoint, {checkpoint.stat().st_size} bytes")


def test_a_checkpoint_that_would_run_code_is_refused(make_run: Make, tmp_path: Path) -> None:
    path = make_run()
    torch.save({"pipeline": _Attack(tmp_path / "canary"), "step": 0}, checkpoint_of(path))
    assert "cannot be read as a checkpoint" in refused(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s | {WEIGHT: s[WEIGHT] * torch.nan}, f"{WEIGHT} has 24 values of 24 that are not finite"),
        (lambda s: s | {WEIGHT: s[WEIGHT][:2]}, f"{WEIGHT} has shape (2, 8), expected (3, 8)"),
        (lambda s: {k: v for k, v in s.items() if k != WEIGHT}, f"lacks {WEIGHT}"),
        (lambda s: s | {"_model.extra": torch.zeros(1)}, "has the unexpected _model.extra"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    make_run: Make, change: Callable[[dict[str, Any]], dict[str, Any]], expected: str
) -> None:
    path = make_run(change=change)
    assert refused(path).startswith(f"{checkpoint_of(path)}: {expected}")


def test_an_absent_device_is_refused(make_run: Make) -> None:
    for device in ("tpu", "cuda:99"):
        with pytest.raises(UsageError, match=f"--device {device}"):
            load_run(make_run(device.replace(":", "")), device)


def test_an_existing_folder_is_not_overwritten(tiny_config: TrainerConfig, make_run: Make) -> None:
    path = make_run()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        save_run(tiny_config, {}, 0, path.parent)
    assert path.read_bytes() == before


def test_a_failed_save_leaves_nothing(
    tiny_config: TrainerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(eugen3d.cli.files.os, "rename", fail)
    with pytest.raises(OSError, match="No space") as error:
        save_run(tiny_config, {"_model.x": torch.zeros(1)}, 0, tmp_path / "run")
    assert error.value.filename == str(tmp_path / "run")
    assert sorted(tmp_path.iterdir()) == before


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "score.json"
    write_whole(path, "old")
    monkeypatch.setattr(eugen3d.cli.files.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


class _Attack:
    """Unpickles by touching a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_run_trained_on_several_devices_loads(make_run: Callable[..., Path]) -> None:
    """nerfstudio wraps the model then, and its keys carry the wrapper's name."""
    plain = load_run(make_run("plain"), "cpu", "inference").pipeline.state_dict()
    wrapped = make_run(
        "wrapped", change=lambda state: {key.replace("_model.", "_model.module."): v for key, v in state.items()}
    )
    loaded = load_run(wrapped, "cpu", "inference").pipeline.state_dict()
    assert loaded.keys() == plain.keys() and all(torch.equal(loaded[key], value) for key, value in plain.items())
