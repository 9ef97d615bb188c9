"""`eugen3d decode` and `eugen3d distill` on runs of eugen-siren."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import trimesh

from eugen3d.cli.main import main
from eugen3d.cli.runs import save_run
from eugen3d.cli.siren_runs import is_siren_run, load_siren_run
from eugen3d.datasets.signals import grid_coordinates
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.methods.eugen_siren import eugen_siren
from eugen3d.models.siren_pipeline import SirenPipeline

MakeRun = Callable[..., Path]


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command is refused with."""
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def make_siren_run(tmp_path: Path) -> MakeRun:
    """A function that fits a small dense network to a file for some steps and returns its config.yml."""

    def make(data: Path, steps: int = 60, name: str = "run", rate: float = 3e-3, **model: Any) -> Path:
        config = copy.deepcopy(eugen_siren.config)
        manager, settings = config.pipeline.datamanager, config.pipeline.model
        manager.data, manager.num_points = data, 512  # pyright: ignore[reportAttributeAccessIssue]
        defaults = {"layer": LayerConfig("linear"), "num_layers": 3, "layer_width": 24}
        for key, value in (defaults | model).items():
            setattr(settings, key, value)
        settings.signal = manager.open_or_exit().format  # pyright: ignore[reportAttributeAccessIssue]
        torch.manual_seed(0)
        pipeline = SirenPipeline(copy.deepcopy(config.pipeline), "cpu")  # pyright: ignore[reportArgumentType]
        optimizer = torch.optim.Adam(pipeline.parameters(), rate)
        for step in range(steps):
            optimizer.zero_grad()
            torch.stack(list(pipeline.get_train_loss_dict(step)[1].values())).sum().backward()
            optimizer.step()
        save_run(config, pipeline.state_dict(), steps - 1, tmp_path / name)
        return tmp_path / name / "config.yml"

    return make


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    rows, columns = np.mgrid[:12, :16] / 16
    pixels = np.stack([250 * rows, 250 * columns, 128 + 100 * np.sin(6 * rows)], axis=-1).astype(np.uint8)
    iio.imwrite(tmp_path / "picture.png", pixels)
    return tmp_path / "picture.png"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "sound.wav", 0.5 * np.sin(np.arange(4000) / 9), 8000, subtype="PCM_24")
    return tmp_path / "sound.wav"


def test_a_picture_comes_back_at_its_size_and_at_any_other(make_siren_run, picture: Path, tmp_path: Path) -> None:
    config = make_siren_run(picture, 200)
    picture_read = iio.imread(picture).astype(float)
    picture.unlink()  # the run alone is enough
    run("decode", "--load", config, "--output", tmp_path / "same.png")
    same = iio.imread(tmp_path / "same.png")
    assert same.shape == (12, 16, 3) and same.dtype == np.uint8
    assert 0 < np.abs(same - picture_read).mean() < 8
    run("decode", "--load", config, "--output", tmp_path / "large.png", "--size", 36, 48)
    large = iio.imread(tmp_path / "large.png")
    assert large.shape == (36, 48, 3)
    middles = large[1::3, 1::3]  # the middle of every three pixels is where one of the picture's is
    assert np.abs(middles.astype(int) - same).max() <= 1
    for backend in ("native", "auto"):
        run("decode", "--load", config, "--output", tmp_path / f"{backend}.png", "--runtime", backend)
        assert np.abs(iio.imread(tmp_path / f"{backend}.png").astype(int) - same).max() <= 1


def test_a_sound_comes_back_at_any_rate(make_siren_run, sound: Path, tmp_path: Path) -> None:
    config = make_siren_run(sound, 100, omega_0=300.0)
    run("decode", "--load", config, "--output", tmp_path / "same.wav")
    same, rate = soundfile.read(tmp_path / "same.wav")
    assert (len(same), rate, soundfile.info(tmp_path / "same.wav").subtype) == (4000, 8000, "PCM_24")
    original, _ = soundfile.read(sound)
    assert np.square(same - original).mean() < 0.3 * np.square(original).mean()
    run("decode", "--load", config, "--output", tmp_path / "fast.wav", "--rate", 24000)
    fast, rate = soundfile.read(tmp_path / "fast.wav")
    assert (len(fast), rate) == (12000, 24000)
    np.testing.assert_allclose(fast[1::3], same, atol=1e-5)


def test_a_folder_of_frames_comes_back_as_one(make_siren_run, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for index in range(3):
        iio.imwrite(tmp_path / "frames" / f"{index}.png", np.full((6, 8), 60 * index + 20, np.uint8))
    config = make_siren_run(tmp_path / "frames", 100, omega_0=3.0)
    run("decode", "--load", config, "--output", tmp_path / "back", "--size", 5, 6, 8)
    frames = [iio.imread(path) for path in sorted((tmp_path / "back").iterdir())]
    assert len(frames) == 5 and all(frame.shape == (6, 8) for frame in frames)
    assert frames[0].mean() < frames[2].mean() < frames[4].mean()


def test_a_shape_comes_back_where_it_was(make_siren_run, tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(2, 2.0)
    ball.apply_translation([5.0, 0.0, 0.0])
    ball.export(tmp_path / "ball.obj")
    config = make_siren_run(tmp_path / "ball.obj", 300, rate=1e-3, omega_0=4.0)
    run("decode", "--load", config, "--output", tmp_path / "back.ply", "--resolution", 24)
    back: Any = trimesh.load(tmp_path / "back.ply")
    radius = np.linalg.norm(back.vertices - [5.0, 0.0, 0.0], axis=1)
    assert np.median(radius) == pytest.approx(2.0, abs=0.3)


def test_the_student_of_a_picture_is_a_run_like_any_other(make_siren_run, picture: Path, tmp_path: Path) -> None:
    teacher = make_siren_run(picture, 200, name="teacher")
    for name, flags in {"same": (), "low-rank": ("--kind", "low-rank"), "refined": ("--refine-steps", 100)}.items():
        flags = ("--layers", 1, 2, "--num-features", 24 if name == "same" else 8, "--phi", "identity", *flags)
        if name == "low-rank":
            flags = (*flags[:5], "--kind", "low-rank")
        run("distill", "--load-config", teacher, "--output-dir", tmp_path / name, *flags)
    runs = {name: load_siren_run(tmp_path / name / "config.yml", "cpu") for name in ("same", "low-rank", "refined")}
    x = grid_coordinates((12, 16))  # what refinement knows is the picture, not the teacher between its pixels
    wanted = load_siren_run(teacher, "cpu").model.values_at(x)
    error = {name: float((one.model.values_at(x) - wanted).norm() / wanted.norm()) for name, one in runs.items()}
    assert error["same"] < 1e-2 and error["same"] < error["refined"] < error["low-rank"]
    assert is_siren_run(tmp_path / "refined" / "config.yml")
    counts = json.loads((tmp_path / "low-rank" / "distill.json").read_text())["num_parameters"]
    assert counts["folded"] < counts["teacher"]
    run("decode", "--load", tmp_path / "same" / "config.yml", "--output", tmp_path / "back.png")
    assert iio.imread(tmp_path / "back.png").shape == (12, 16, 3)


def test_a_shape_is_distilled_with_its_gradients(make_siren_run, tmp_path: Path) -> None:
    trimesh.creation.icosphere(2).export(tmp_path / "ball.obj")
    teacher = make_siren_run(tmp_path / "ball.obj", 30, name="teacher", omega_0=4.0)
    run(
        *("distill", "--load-config", teacher, "--output-dir", tmp_path / "student", "--layers", 1, 2),
        *("--phi", "identity", "--num-features", 20, "--sampling.max-rows", 6000),
    )
    x = 2 * torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) - 1
    wanted, found = (
        load_siren_run(path, "cpu").model.values_at(x) for path in (teacher, tmp_path / "student" / "config.yml")
    )
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.2


def test_what_cannot_be_decoded_is_refused(make_siren_run, picture: Path, sound: Path, tmp_path: Path, capsys) -> None:
    config, of_sound = make_siren_run(picture, 1), make_siren_run(sound, 1, name="sound")
    call = ("decode", "--load", config, "--output")
    for arguments, reason in (
        ((*call, tmp_path / "a.jpg"), "expected a file's name that ends in .png, as the image had"),
        ((*call, tmp_path / "a.png", "--size", 4), "--size 4: expected height width, at least 1 each"),
        ((*call, tmp_path / "a.png", "--size", 4, 0), "--size 4 0: expected height width"),
        ((*call, tmp_path / "a.png", "--rate", 10), "--rate 10: expected a positive one of a sound or a video"),
        (("decode", "--load", of_sound, "--output", tmp_path / "a.wav", "--rate", -1), "--rate -1: expected"),
        (("decode", "--load", tmp_path / "no.yml", "--output", tmp_path / "a.wav"), "no.yml: not found"),
    ):
        assert reason in refused(capsys, *arguments)
    assert not list(tmp_path.glob("a.*"))
    line = refused(capsys, "distill", "--load-config", config, "--output-dir", tmp_path / "s", "--coarse-layers", "1")
    assert line.startswith("error: --coarse-layers: found for")


@pytest.mark.parametrize(
    ("precision", "kept", "share"), [("float32", 90, 1.0), ("float16", 50, 0.7), ("int8", 30, 0.6)]
)
def test_a_compressed_run_stands_for_the_same(
    make_siren_run, picture: Path, tmp_path: Path, capsys, precision: str, kept: float, share: float
) -> None:
    config, file = make_siren_run(picture, 100, layer_width=48), tmp_path / "small.safetensors"
    run("compress", "--load-config", config, "--output", file, "--precision", precision)
    found = float(capsys.readouterr().out.partition("within ")[2].partition(" dB")[0])
    assert found > kept
    (config.parent / "config.yml").unlink()
    run("decode", "--load", file, "--output", tmp_path / "back.png", "--size", 24, 32)
    assert iio.imread(tmp_path / "back.png").shape == (24, 32, 3)
    parameters = 4 * (2 * 48 + 48 + 2 * (48 * 48 + 48) + 3 * 48 + 3)
    assert file.stat().st_size < share * parameters + 2500, "but for the header"


def test_a_compressed_shape_and_a_folded_run_of_eugen_layers(make_siren_run, tmp_path: Path) -> None:
    trimesh.creation.icosphere(2).export(tmp_path / "ball.obj")
    layer = LayerConfig("eugen", EUGenConfig(8, 2, "sine"))
    config = make_siren_run(tmp_path / "ball.obj", 20, omega_0=4.0, layer=layer)
    run("compress", "--load-config", config, "--output", tmp_path / "a.safetensors", "--precision", "float32")
    run("decode", "--load", tmp_path / "a.safetensors", "--output", tmp_path / "a.obj", "--resolution", 16)
    run("decode", "--load", config, "--output", tmp_path / "b.obj", "--resolution", 16)
    assert (tmp_path / "a.obj").read_bytes() == (tmp_path / "b.obj").read_bytes()


def test_a_compressed_file_that_is_none_is_refused(make_siren_run, picture: Path, tmp_path: Path, capsys) -> None:
    config, file = make_siren_run(picture, 1), tmp_path / "a.safetensors"
    assert "ends in .safetensors" in refused(capsys, "compress", "--load-config", config, "--output", tmp_path / "a.st")
    decode = ("decode", "--load", file, "--output", tmp_path / "a.png")
    assert "a.safetensors: not found" in refused(capsys, *decode)
    run("compress", "--load-config", config, "--output", file)
    content = file.read_bytes()
    file.write_bytes(content[:-7])
    assert "a.safetensors: cannot be read" in refused(capsys, *decode)
    file.write_bytes(content.replace(b"0.bias", b"7.bias"))
    assert "a.safetensors: is broken (0.bias is missing)" in refused(capsys, *decode)
    safetensors.torch.save_file({"x": torch.zeros(1)}, file)
    assert "a.safetensors: holds other tensors" in refused(capsys, *decode)
    assert not (tmp_path / "a.png").exists()


def test_runs_are_scored_against_the_file_that_they_stand_for(
    make_siren_run, picture: Path, sound: Path, tmp_path: Path, capsys
) -> None:
    good, poor = make_siren_run(picture, 200, name="good"), make_siren_run(picture, 5, name="poor", layer_width=8)
    output, report = tmp_path / "score.json", tmp_path / "score.html"
    run("score", "--load-config", good, poor, "--output", output, "--report", report)
    result = json.loads(output.read_text())
    assert (result["signal"], result["kind"], result["size"]) == ("picture.png", "image", [12, 16])
    first, second = result["runs"]
    assert first["psnr"] > second["psnr"] + 5 and first["ssim"] > second["ssim"]
    assert second["num_parameters"] == 2 * 8 + 8 + 2 * (64 + 8) + 24 + 3 and first["speedup"] == 1
    assert report.read_text().count("<img ") == 3
    of_sound = make_siren_run(sound, 30, name="sound", omega_0=300.0)
    run("score", "--load-config", of_sound, "--output", output, "--report", report)
    assert json.loads(output.read_text())["runs"][0]["snr"] > 0 and report.read_text().count("<audio ") == 2
    capsys.readouterr()
    assert "stands for" in refused(capsys, "score", "--load-config", good, of_sound)
    for flag, values in (("--num-images", [2]), ("--scales", [1, 2])):
        message = refused(capsys, "score", "--load-config", good, flag, *values)
        assert f"{flag}: found for runs of eugen-siren" in message


def test_a_scored_shape_is_seen(make_siren_run, tmp_path: Path) -> None:
    trimesh.creation.icosphere(2).export(tmp_path / "ball.obj")
    config = make_siren_run(tmp_path / "ball.obj", 300, rate=1e-3, omega_0=4.0)
    run("score", "--load-config", config, "--output", tmp_path / "s.json", "--report", tmp_path / "s.html")
    (scored,) = json.loads((tmp_path / "s.json").read_text())["runs"]
    assert scored["sign_accuracy"] > 0.9 and scored["chamfer_to_diagonal"] < 0.1
    assert (tmp_path / "s.html").read_text().count("<img ") == 2
