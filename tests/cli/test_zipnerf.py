"""eugen-zipnerf through the commands: distilled in closed form, layer by layer and end to end, loaded and scored."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.utils.eval_utils import eval_setup

import eugen3d.cli.main
from eugen3d.cli.runs import load_run, save_run
from eugen3d.cli.teacher_rows import SamplingConfig, sample_rows
from eugen3d.cli.teachers import teacher_of
from eugen3d.fields import HashGridConfig
from eugen3d.layers import LayerConfig, LowRankConfig
from eugen3d.models.distilled import DistilledModelConfig

SMALL: dict[str, Any] = {
    "layer": LayerConfig("linear"),
    "grid": HashGridConfig(num_levels=2, base_resolution=4, max_resolution=16, log2_hashmap_size=8),
    "proposal_resolutions": (8, 16),
    "num_samples": (6, 6, 5),
    "widths": (8, 8, 8),
    "contraction_radius": 4.0,
    "near_plane": 2.0,
    "far_plane": 6.0,
}


@pytest.fixture
def make_zip_run(blender_scene: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a run folder of a small untrained model and returns its config.yml."""

    def make(name: str = "run", **model: Any) -> Path:
        config = copy.deepcopy(all_methods["eugen-zipnerf"])
        for key, value in (SMALL | model).items():
            setattr(config.pipeline.model, key, value)
        config.data = config.pipeline.datamanager.data = blender_scene
        config.experiment_name = "disc"
        torch.manual_seed(0)
        pipeline = copy.deepcopy(config.pipeline).setup(device="cpu", test_mode="inference")
        for table in pipeline.model.get_param_groups()["grids"]:
            torch.nn.init.uniform_(table, -1, 1)  # else every sample looks alike
        save_run(config, pipeline.state_dict(), 7, tmp_path / name)
        return tmp_path / name / "config.yml"

    return make


def run(*arguments: object) -> None:
    eugen3d.cli.main.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("appearance_dim", [0, 2])
def test_the_head_is_seen_and_fed_row_by_row(make_zip_run: Callable[..., Path], appearance_dim: int) -> None:
    loaded = load_run(make_zip_run(appearance_dim=appearance_dim), "cpu")
    teacher = teacher_of(loaded)
    rays, _ = loaded.pipeline.datamanager.next_train(0)
    assert isinstance(rays, RayBundle)
    seen, network = teacher.samples(rays[:6])["field"], teacher.networks()["field"]
    assert teacher.samples_per_ray == {"field": 5} and seen.weights.shape == seen.deltas.shape == (6, 5)
    density, rgb = network(tuple(x.flatten(0, 1) for x in seen.inputs))[:2]
    assert density.shape == (30,) and rgb.shape == (30, 3)
    assert list(network.sites)[:1] == ["density"] and {"bottleneck", "view.0", "view.1"} < set(network.sites)
    assert teacher.has_appearance == bool(appearance_dim)
    assert [reader.name for reader in network.readers["bottleneck"]] == ["view.0", "view.1"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--num-features", 4),
        ("--num-features", 4, "--fit-steps", 2, "--fit-sweeps", 1),
        ("--kind", "low-rank", "--num-features", 4, "--refine-steps", 2, "--refine-num-rays", 16),
    ],
    ids=lambda flags: flags[-2].removeprefix("--"),
)
def test_distilled_runs_load_and_are_scored(
    make_zip_run: Callable[..., Path], tmp_path: Path, flags: tuple[object, ...]
) -> None:
    teacher, student = make_zip_run(), tmp_path / "student"
    sampling = "--sampling.num-rays", 256, "--sampling.pair-fraction", 1
    run("distill", "--load-config", teacher, "--output-dir", student, *sampling, *flags)
    report = json.loads((student / "distill.json").read_text())
    assert [layer["name"] for layer in report["layers"]] == ["field.density", "field.view.0", "field.view.1"]
    assert report["num_parameters"]["folded"] < report["num_parameters"]["teacher"]
    config, pipeline, _, _ = eval_setup(student / "config.yml", test_mode="inference")
    assert isinstance(config.pipeline.model, DistilledModelConfig)
    assert pipeline.model.proposals is not None
    output = tmp_path / "score.json"
    names = "--names", "teacher", "student"
    run("score", "--load-config", teacher, student / "config.yml", *names, "--output", output, "--num-images", 1)
    first, second = json.loads(output.read_text())["runs"]
    assert second["num_parameters"] < first["num_parameters"] and first["psnr"] != second["psnr"] is not None


def test_rows_are_of_four_sizes_of_pixels(make_zip_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_run(make_zip_run(appearance_dim=2), "cpu")
    teacher, manager = teacher_of(loaded), loaded.pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)
    seen: list[RayBundle] = []
    samples = teacher.samples
    monkeypatch.setattr(teacher, "samples", lambda rays: (seen.append(rays), samples(rays))[1])
    for factors, expected in (((), [1, 4, 16, 64]), ((2,), [4])):
        seen.clear()
        sample_rows(manager, teacher, SamplingConfig(num_rays=64, downscale_factor=factors), 8, 0)
        # the middle's pixel is the largest
        centre = manager.train_dataset.cameras.generate_rays(0, torch.tensor([[8.0, 8.0]]))
        areas = torch.cat([rays.pixel_area for rays in seen]) / centre.pixel_area
        shares = areas.flatten().log2().div(2).ceil().exp2().square().unique(return_counts=True)
        assert shares[0].tolist() == expected and shares[1].min() > 0.8 * shares[1].max()


def test_layers_that_are_there_already_are_refused(
    make_zip_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_zip_run(layer=LayerConfig("low-rank", low_rank=LowRankConfig(4)))
    with pytest.raises(SystemExit) as exit_:
        run("distill", "--load-config", path, "--output-dir", tmp_path / "student", "--layers", "view.0")
    assert exit_.value.code == 2 and "'low-rank' already" in capsys.readouterr().err


def test_a_narrow_head_is_trained_over_the_same_grid(make_zip_run: Callable[..., Path], tmp_path: Path) -> None:
    teacher, student = make_zip_run(), tmp_path / "student"
    flags = "--kind", "narrow", "--num-features", 4, "--fit-steps", 5, "--sampling.num-rays", 256
    run("distill", "--load-config", teacher, "--output-dir", student, *flags, "--sampling.pair-fraction", 1)
    models: list[Any] = [load_run(path, "cpu").pipeline.model for path in (teacher, student / "config.yml")]
    model, narrow = models
    assert narrow.config.widths == (4, 4, 4) and model.config.widths == (8, 8, 8)
    ours, theirs = narrow.state_dict(), model.state_dict()
    own = [key for key in ours if key.startswith("field.head.")]
    assert own and all(torch.equal(ours[key], theirs[key]) for key in ours.keys() - own)
    assert all(ours[key].shape != theirs[key].shape for key in own if key.endswith("weight"))
