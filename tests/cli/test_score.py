"""`eugen3d score` on untrained models of a scene of 16 x 16 views."""

import base64
import dataclasses
import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torchvision
import yaml
from nerfstudio.scripts.eval import ComputePSNR

import eugen3d.cli.comparison
from eugen3d.cli.comparison_settings import ComparisonConfig
from eugen3d.cli.main import main
from eugen3d.cli.plots import Point, scatter
from eugen3d.cli.report import error_map
from eugen3d.cli.runs import UsageError, load_run
from eugen3d.cli.teachers import NerfTeacher
from eugen3d.cli.views import choose_evenly, load_views
from eugen3d.datasets.reduced import reduce_image
from eugen3d.layers import LayerConfig

Make = Callable[..., Path]

KEYS = [  # in this order
    "device",
    "precision",
    "scene",
    "split",
    "background_color",
    "resolution",
    "crop",
    "versions",
    "date",
    "threads",
    "skip",
    "runs",
]
RUN_KEYS = [  # in this order
    "name",
    "method",
    "psnr",
    "ssim",
    "lpips",
    "lpips_reason",
    "num_parameters",
    "checkpoint_bytes",
    "flops_per_sample",
    "seconds_per_frame",
    "speedup",
    "images",
    "scales",
]
SCALE_KEYS = [  # in this order
    "scale",
    "resolution",
    "psnr",
    "ssim",
    "lpips",
    "lpips_reason",
    "seconds_per_frame",
    "speedup",
    "images",
]


@pytest.fixture
def runs(make_run: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Two runs, dense and EUGen, as arguments; torch hub's cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-cache"))
    return [str(make_run("dense", layer=LayerConfig("linear"))), str(make_run("eugen", seed=1))]


@pytest.fixture
def large_views(blender_scene: Path) -> None:
    """The scene's test views are noise of 47 x 44 pixels, which leaves 23 x 22 of a half and 11 x 11 of a quarter."""
    noise = np.random.default_rng(0)
    for path in (blender_scene / "test").iterdir():
        iio.imwrite(path, noise.integers(0, 256, (44, 47, 4), np.uint8))


def score(output: Path, *arguments: str) -> dict[str, Any]:
    main(["score", "--output", str(output), "--device", "cpu", "--threads", "1", *arguments])
    return json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["score", "--device", "cpu", *arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_the_result_has_stable_keys(runs: list[str], tmp_path: Path) -> None:
    result = score(tmp_path / "s.json", "--load-config", *runs, "--names", "a", "b")
    assert list(result) == KEYS
    assert [list(run) for run in result["runs"]] == [RUN_KEYS, RUN_KEYS]
    assert (result["scene"], result["split"], result["background_color"]) == ("disc", "test", "white")
    assert (result["resolution"], result["crop"], result["precision"], result["threads"]) == (
        [16, 16],
        None,
        "float32",
        1,
    )
    first, second = result["runs"]
    assert (first["name"], second["name"], first["method"], first["speedup"]) == ("a", "b", "eugen-nerf", 1.0)
    assert [image["file"] for image in first["images"]] == ["r_0.png", "r_1.png"]
    assert first["psnr"] == pytest.approx(np.mean([image["psnr"] for image in first["images"]]))
    assert first["psnr"] != second["psnr"] and first["num_parameters"] > second["num_parameters"]
    assert first["lpips"] is None and "alexnet" in first["lpips_reason"]
    assert first["checkpoint_bytes"] == next(Path(runs[0]).parent.glob("*/*.ckpt")).stat().st_size
    assert first["seconds_per_frame"] > 0
    for run in result["runs"]:
        (scale,) = run["scales"]
        assert list(scale) == SCALE_KEYS and scale["scale"] == 1 and scale["resolution"] == result["resolution"]
        assert scale == scale | {key: run[key] for key in SCALE_KEYS[2:]}


def test_it_agrees_with_ns_eval(runs: list[str], tmp_path: Path) -> None:
    result = score(tmp_path / "s.json", "--load-config", *runs)
    for path, run in zip(runs, result["runs"], strict=True):
        ComputePSNR(load_config=Path(path), output_path=tmp_path / "eval.json").main()
        theirs = json.loads((tmp_path / "eval.json").read_text())["results"]
        assert run["psnr"] == pytest.approx(theirs["psnr"], abs=0.01)
        assert run["ssim"] == pytest.approx(theirs["ssim"], abs=0.001)


def test_a_second_call_goes_on(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--load-config", *runs]
    output, renders = tmp_path / "s.json", tmp_path / "s_renders"
    first = score(output, *arguments)
    rendered = count_renders(monkeypatch)
    assert score(output, *arguments) | {"date": 0} == first | {"date": 0}
    assert rendered == [] and "reused 2 of 2 views" in capsys.readouterr().out
    assert (renders / "dense" / "r_0.png").exists()

    other = (renders / "eugen" / "r_1.json").read_text()
    (renders / "eugen" / "r_0.json").unlink()  # one run's time is missing: both are timed again, on that view alone
    again = score(output, *arguments)
    assert len(rendered) == 2 + 2  # the warm-up of both, then the view
    assert "reused 1 of 2 views" in capsys.readouterr().out
    assert (renders / "eugen" / "r_1.json").read_text() == other
    turns = [json.loads((renders / name / "r_0.json").read_text())["turn"] for name in ("dense", "eugen")]
    assert turns[0] == turns[1] != json.loads(other)["turn"]
    assert [run["psnr"] for run in again["runs"]] == [run["psnr"] for run in first["runs"]]


def test_another_checkpoint_or_setting_is_rendered_anew(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "s.json"
    before = score(output, "--load-config", runs[0])
    rendered = count_renders(monkeypatch)
    score(output, "--load-config", runs[0], "--crop", "0", "0", "12", "16")
    assert len(rendered) == 1 + 2
    checkpoint = next(Path(runs[0]).parent.glob("*/*.ckpt"))
    state = torch.load(checkpoint, weights_only=True)
    state["pipeline"]["_model.fields.fine.rgb_head.0.bias"] += 1.0
    torch.save(state, checkpoint)
    after = score(output, "--load-config", runs[0])
    assert len(rendered) == 2 * (1 + 2) and after["runs"][0]["psnr"] != before["runs"][0]["psnr"]


def test_an_interrupted_call_leaves_no_result_and_is_continued(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "s.json"
    rendered = count_renders(monkeypatch, limit=2 + 3)  # in the second view
    with pytest.raises(SystemExit) as stopped:
        score(output, "--load-config", *runs)
    assert stopped.value.code == 130 and not output.exists()
    rendered.clear()
    score(output, "--load-config", *runs)
    assert "reused 1 of 2 views" in capsys.readouterr().out and len(rendered) == 2 + 2


def test_runs_take_turns_in_going_first(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = count_renders(monkeypatch)
    score(tmp_path / "s.json", "--load-config", *runs)
    a, b = rendered[0], rendered[1]
    assert a != b and rendered[2:] == [a, b, b, a]


@pytest.mark.usefixtures("large_views")
def test_every_scale_is_measured_like_views_of_that_size(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = score(tmp_path / "s.json", "--load-config", *runs, "--scales", "1", "4", "2")
    shown = capsys.readouterr().out
    assert result["resolution"] == [47, 44] and "at every scale" in shown
    for run in result["runs"]:
        assert list(run) == RUN_KEYS and [list(of) for of in run["scales"]] == [SCALE_KEYS] * 3
        assert run == run | {key: run["scales"][0][key] for key in SCALE_KEYS[2:]}
        assert len({round(of["psnr"], 3) for of in run["scales"]}) == 3
    for position, (scale, size) in enumerate([(1, [47, 44]), (4, [11, 11]), (2, [23, 22])]):
        alone = score(tmp_path / "a.json", "--load-config", *runs, "--downscale-factor", str(scale))
        assert alone["resolution"] == size
        for run, other in zip(result["runs"], alone["runs"], strict=True):
            of = run["scales"][position]
            assert (of["scale"], of["resolution"], of["images"]) == (scale, size, other["images"])
            assert of["seconds_per_frame"] > 0 and f"{of['psnr']:.2f}" in shown
    assert "at every scale" not in capsys.readouterr().out
    assert (tmp_path / "s_renders" / "dense" / "r_0.png").exists()
    assert iio.imread(tmp_path / "s_renders" / "dense" / "scale_4" / "r_1.png").shape == (11, 11, 3)
    first = score(tmp_path / "s.json", "--load-config", *runs, "--scales", "2", "1")
    assert first["resolution"] == [23, 22] and first["runs"][1]["psnr"] == result["runs"][1]["scales"][2]["psnr"]
    assert "reused 4 of 4 views" in capsys.readouterr().out


@pytest.mark.usefixtures("large_views")
def test_scales_go_on_and_take_turns(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--load-config", *runs, "--num-images", "1", "--scales", "1", "2"]
    rendered = count_renders(monkeypatch, limit=2 + 2 + 2 + 1)  # in the second scale
    with pytest.raises(SystemExit):
        score(tmp_path / "s.json", *arguments)
    a, b = rendered[:2]
    assert rendered == [a, b, a, b, a, b, b], "both warm up, render, warm up at the other scale, start with the second"
    rendered.clear()
    result = score(tmp_path / "s.json", *arguments)
    assert len(rendered) == 2 + 2 and "reused 1 of 2 views" in capsys.readouterr().out
    rendered.clear()
    assert score(tmp_path / "s.json", *arguments) | {"date": 0} == result | {"date": 0} and rendered == []
    for name in ("dense", "eugen"):
        (tmp_path / "s_renders" / name / "scale_2" / "r_0.json").write_text("{}")
    score(tmp_path / "s.json", *arguments)
    assert len(rendered) == 2 + 2


def test_reduced_and_cropped_views_are_what_the_full_view_shows(make_run: Make) -> None:
    run = load_run(make_run(), "cpu", "inference")
    full, cropped = load_views(run, "test"), load_views(run, "test", crop=(3, 2, 12, 11))
    rgb, part = (run.pipeline.model.get_outputs_for_camera(views.camera(1))["rgb"] for views in (full, cropped))
    torch.testing.assert_close(part, rgb[2:13, 3:15], atol=1e-5, rtol=0)
    assert not torch.allclose(part, rgb[:11, :12], atol=1e-3)
    assert torch.equal(cropped.reference(1), full.reference(1)[2:13, 3:15])


def test_a_reduced_camera_looks_through_the_same_window(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eugen3d.cli.views.MIN_SIDE", 1)
    run = load_run(make_run(), "cpu", "inference")
    full, third = (load_views(run, "test", factor).camera(0).generate_rays(0, keep_shape=True) for factor in (1, 3))
    assert third.shape == (5, 5)
    middles = full.directions[1:15:3, 1:15:3]  # the middle pixel of each block of three by three
    torch.testing.assert_close(third.directions, middles, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("large_views")
def test_a_scaled_crop_sees_the_same_part(make_run: Make) -> None:
    run = load_run(make_run(), "cpu", "inference")
    cropped = load_views(run, "test", crop=(2, 5, 37, 35))
    third = dataclasses.replace(cropped, scale=3)
    assert third.resolution(1) == (12, 11)
    torch.testing.assert_close(third.reference(1), reduce_image(cropped.reference(1), 3))
    full, part = (views.camera(1).generate_rays(0, keep_shape=True).directions for views in (cropped, third))
    torch.testing.assert_close(part, full[1:33:3, 1:36:3], atol=1e-5, rtol=0)
    assert not torch.allclose(part, full[:11, :12], atol=1e-2)


def test_reduction_averages_colours_by_their_alpha() -> None:
    image = torch.zeros(2, 2, 4)
    image[0, 0] = torch.tensor([1.0, 0.5, 0.0, 1.0])
    image[1, 1] = torch.tensor([0.0, 0.5, 1.0, 0.5])
    reduced = reduce_image(image, 2)[0, 0]
    torch.testing.assert_close(reduced, torch.tensor([1 / 1.5, 0.5, 0.5 / 1.5, 0.375]))
    white = reduced[:3] * reduced[3] + 1 - reduced[3]
    blended = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    torch.testing.assert_close(white, blended.mean((0, 1)))
    assert reduce_image(torch.rand(7, 5, 3), 2).shape == (3, 2, 3)
    assert torch.equal(reduce_image(torch.zeros(4, 4, 4), 2), torch.zeros(2, 2, 4))


def test_views_are_chosen_evenly() -> None:
    assert choose_evenly(20, None) == list(range(20))
    assert choose_evenly(20, 4) == [0, 6, 13, 19]
    assert choose_evenly(20, 1) == [0]
    with pytest.raises(UsageError, match="--num-images 21: the split has 20"):
        choose_evenly(20, 21)


def test_names_are_told_apart() -> None:
    paths = tuple(Path("x") / folder / name / "config.yml" for folder in "ab" for name in ("run", "other"))
    assert ComparisonConfig(paths).run_names() == ["run", "other", "run-2", "other-2"]


def test_bad_input_is_answered_with_one_line(
    runs: list[str], make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, black = runs[0], str(make_run("black", background_color="black"))
    for arguments, expected in [
        ([dense, "--scales", "0"], "--scales 0: expected whole numbers of at least 1, each once"),
        ([dense, "--scales", "1", "-2"], "--scales 1 -2: expected"),
        ([dense, "--scales", "1", "2", "2"], "--scales 1 2 2: expected"),
        ([dense, "--scales"], "--scales (none): expected"),
        ([dense, "--scales", "1", "2"], "--scales 2: the views are 8 x 8 pixels, expected at least 11 a side"),
        (["nowhere/config.yml"], "nowhere/config.yml: not found"),
        ([dense, "--names", "a", "b"], "--names: found 2 names, expected one for each of the 1 runs"),
        ([dense, "--names", "../a"], "--names '../a'"),
        ([dense, "--crop", "8", "0", "12", "12"], "--crop 8 0 12 12: expected a window inside the 16 x 16 pixels"),
        ([dense, "--downscale-factor", "2"], "8 x 8 pixels, expected at least 11"),
        ([dense, "--downscale-factor", "0"], "--downscale-factor 0"),
        ([dense, "--num-images", "3"], "--num-images 3: the split has 2 images"),
        ([dense, "--lpips-backbone", str(tmp_path / "none.pth")], "--lpips-backbone"),
        ([dense, "--output", str(tmp_path)], "is a folder"),
        ([dense, "--output", f"{dense}/s.json"], "config.yml"),
        ([dense, black], "runs have different backgrounds: dense white, black black"),
    ]:
        message = refused(capsys, "--output", str(tmp_path / "s.json"), "--load-config", *arguments)
        assert expected in message
    assert not (tmp_path / "s.json").exists() and not list(tmp_path.glob("s_renders/**/*.png"))
    result = score(tmp_path / "s.json", "--load-config", dense, black, "--background-color", "black")
    assert result["background_color"] == "black"


def test_runs_of_different_images_are_refused(
    runs: list[str], blender_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / "disc"
    shutil.copytree(blender_scene, other)
    shutil.copy(other / "test" / "r_0.png", other / "test" / "r_1.png")
    config = yaml.load(Path(runs[1]).read_text(), Loader=yaml.UnsafeLoader)
    config.data = config.pipeline.datamanager.data = other
    Path(runs[1]).write_text(yaml.dump(config))
    transforms = json.loads((other / "transforms_test.json").read_text())
    message = refused(capsys, "--output", str(tmp_path / "s.json"), "--load-config", *runs)
    assert "r_1.png: eugen and dense have different images (other pixels)" in message
    (other / "transforms_test.json").write_text(json.dumps(transforms | {"frames": transforms["frames"][:1]}))
    message = refused(capsys, "--output", str(tmp_path / "t.json"), "--load-config", *runs)
    assert "dense has r_1.png, eugen does not" in message


def test_a_full_disk_is_reported_with_the_file(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("eugen3d.cli.files.os.replace", fail)
    message = refused(capsys, "--output", str(tmp_path / "s.json"), "--load-config", runs[0])
    assert message == f"error: {tmp_path}/s_renders/dense/r_0.png: the disk is full, expected room to write\n"
    assert not list((tmp_path / "s_renders" / "dense").iterdir())


def test_views_too_small_for_lpips_are_measured_without(runs: list[str], tmp_path: Path) -> None:
    backbone = tmp_path / "alexnet.pth"
    torch.save(torchvision.models.alexnet().state_dict(), backbone)
    run = score(tmp_path / "s.json", "--load-config", runs[0], "--lpips-backbone", str(backbone))["runs"][0]
    assert run["lpips"] is None and "under 31 pixels a side" in run["lpips_reason"] and run["psnr"] > 0


@pytest.mark.usefixtures("large_views")
def test_lpips_is_measured_at_the_scales_that_are_large_enough(runs: list[str], tmp_path: Path) -> None:
    backbone = tmp_path / "alexnet.pth"
    torch.save(torchvision.models.alexnet().state_dict(), backbone)
    arguments = ["--load-config", runs[0], "--scales", "1", "2", "--lpips-backbone", str(backbone)]
    whole, half = score(tmp_path / "s.json", *arguments)["runs"][0]["scales"]
    assert whole["lpips"] > 0 and whole["lpips_reason"] is None
    assert half["lpips"] is None and "under 31 pixels a side" in half["lpips_reason"]


def test_lpips_is_reported_where_its_backbone_is(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Constant(torch.nn.Module):
        min_side = 1

        def forward(self, image: torch.Tensor, target: torch.Tensor) -> float:
            assert image.shape == target.shape == (16, 16, 3)
            return 0.25

    (tmp_path / "backbone.pth").touch()
    monkeypatch.setattr(eugen3d.cli.comparison, "load_lpips", lambda *_: Constant())
    arguments = ["--load-config", runs[0], "--lpips-backbone", str(tmp_path / "backbone.pth")]
    run = score(tmp_path / "s.json", *arguments)["runs"][0]
    assert (run["lpips"], run["lpips_reason"], run["images"][0]["lpips"]) == (0.25, None, 0.25)


def test_the_report_is_complete_in_itself(runs: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    result = score(
        tmp_path / "s.json",
        "--load-config",
        *runs,
        "--names",
        "a<b>",
        "b&c",
        "--report",
        str(report),
        "--num-images",
        "1",
    )
    page = report.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and "url(" not in page and "@import" not in page
    assert "a&lt;b&gt;" in page and "a<b>" not in page and "b&amp;c" in page
    assert f"{result['runs'][0]['images'][0]['psnr']:.2f} dB" in page
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", page))
    picture = (tmp_path / "s_renders" / "b&c" / "r_0.png").read_bytes()
    assert base64.b64encode(picture).decode() in page


@pytest.mark.usefixtures("large_views")
def test_the_report_shows_every_scale(runs: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    arguments = ["--load-config", *runs, "--report", str(report), "--report-images", "1"]
    result = score(tmp_path / "s.json", *arguments, "--scales", "1", "2", "4")
    page = report.read_text()
    assert "PSNR in dB at every scale" in page and '<th scope="col">1/4</th>' in page
    assert re.findall("<h3>(.*?)</h3>", page) == ["r_0.png", "r_0.png, 1/2", "r_0.png, 1/4"]
    assert page.count('<option value="2">r_0.png, 1/4</option>') == 1 and "1 of 2 views" in page
    for run in result["runs"]:
        for of, folder in zip(run["scales"], (".", "scale_2", "scale_4"), strict=True):
            picture = (tmp_path / "s_renders" / run["name"] / folder / "r_0.png").read_bytes()
            assert base64.b64encode(picture).decode() in page
            assert f"{of['psnr']:.2f}" in page and f"{of['images'][0]['psnr']:.2f} dB" in page
    score(tmp_path / "s.json", *arguments)
    assert "at every scale" not in report.read_text() and "<h3>r_0.png</h3>" in report.read_text()


def test_the_error_map_shows_the_error_on_its_scale() -> None:
    reference = np.full((1, 3, 3), 100, np.uint8)
    image = reference + np.array([0, 32, 120], np.uint8)[None, :, None]
    colours = error_map(image, reference)
    brightness = colours.astype(int).sum(axis=-1)[0]
    assert brightness[0] < brightness[1] < brightness[2]
    assert (error_map(image + 30, reference)[0, 2] == colours[0, 2]).all()  # beyond the scale's end


def test_labels_of_a_plot_do_not_overlap() -> None:
    points = [*(Point(f"run-{index}", 1.0, 25.0, index) for index in range(7)), Point("far", 2.0, 20.0, 7)]
    svg = scatter(points, "seconds", "dB")
    labels = re.findall(r'class="label" x="([\d.]+)"( text-anchor="end")? y="([\d.]+)"', svg)
    assert len(labels) == 8
    for index, (_, side, y) in enumerate(labels):
        assert all(abs(float(y) - float(b)) >= 15 for _, other, b in labels[:index] if other == side)
    assert svg.count("<circle") == 8


def count_renders(monkeypatch: pytest.MonkeyPatch, limit: int = 10**9) -> list[int]:
    """Note which model renders, in order, and interrupt the process after `limit` times, once."""
    rendered: list[int] = []
    render = NerfTeacher.timed_render

    def spy(model: Any, camera: Any) -> Any:
        if len(rendered) == limit:
            raise KeyboardInterrupt
        rendered.append(id(model))
        return render(model, camera)

    monkeypatch.setattr(NerfTeacher, "timed_render", spy)
    return rendered
