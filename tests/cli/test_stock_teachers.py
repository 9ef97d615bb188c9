"""nerfstudio's own methods as teachers: untrained runs of a few neurons, distilled, loaded again and scored."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.utils.eval_utils import eval_setup

import eugen3d.cli.main
from eugen3d.cli.runs import UsageError, load_run
from eugen3d.cli.stock_teachers import run_field
from eugen3d.cli.teachers import teacher_of
from eugen3d.metrics.lazy_lpips import lazy_lpips
from eugen3d.models.distilled import DistilledModelConfig

NET: dict[str, Any] = {"hidden_dim": 8, "log2_hashmap_size": 4, "num_levels": 2, "max_res": 8, "use_linear": False}
SMALL: dict[str, Any] = {
    "implementation": "torch",
    "log2_hashmap_size": 5,
    "num_levels": 2,
    "proposal_net_args_list": [NET, NET],
    "num_proposal_samples_per_ray": (6, 5),
    "num_nerf_samples_per_ray": 4,
    "num_coarse_samples": 4,
    "num_importance_samples": 4,
    "num_uniform_samples": 6,
    "num_samples": 5,
    "init_resolution": 8,
    "final_resolution": 8,
}
SAMPLES = {
    "nerfacto": {"field": 4},
    "vanilla-nerf": {"coarse": 4, "fine": 9},
    "mipnerf": {"field": 8},
    "tensorf": {"field": 5},
}


def stock_run(method: str, scene: Path, folder: Path) -> Path:
    """What `ns-train` leaves of a method, LPIPS's backbone in its checkpoint included."""
    config = copy.deepcopy(all_methods[method])
    for name, value in SMALL.items():
        if hasattr(config.pipeline.model, name):
            setattr(config.pipeline.model, name, value)
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=scene)
    config.data = config.pipeline.datamanager.data = scene
    settings = copy.deepcopy(config.pipeline)
    settings.datamanager._target = VanillaDataManager
    with lazy_lpips():
        state = settings.setup(device="cpu", test_mode="inference").state_dict()
    path = folder / method / "config.yml"
    (path.parent / "nerfstudio_models").mkdir(parents=True)
    path.write_text(yaml.dump(config))
    state |= {"_model.lpips.net.net.slice1.0.weight": torch.zeros(3)}
    torch.save({"step": 7, "pipeline": state}, path.parent / "nerfstudio_models" / "step-000000007.ckpt")
    return path


@pytest.mark.parametrize("method", SAMPLES)
def test_fields_are_seen_and_fed_row_by_row(method: str, blender_scene: Path, tmp_path: Path) -> None:
    run = load_run(stock_run(method, blender_scene, tmp_path), "cpu")
    teacher = teacher_of(run)
    assert teacher.samples_per_ray == SAMPLES[method]
    rays, _ = run.pipeline.datamanager.next_train(0)
    assert isinstance(rays, RayBundle)
    seen, networks = teacher.samples(rays[:6]), teacher.networks()
    for part, samples in seen.items():
        count = SAMPLES[method][part]
        assert samples.weights.shape == samples.deltas.shape == (6, count)
        batch = tuple(x.flatten(0, 1) for x in samples.inputs)
        density, rgb = networks[part](batch)[:2]
        assert density.shape == (6 * count,) and rgb.shape == (6 * count, 3)
        if part != "field" or method == "nerfacto":  # one pass: the weights follow from the densities
            optical = density.view(6, count) * samples.deltas
            before = torch.cat([torch.zeros(6, 1), optical.cumsum(dim=1)[:, :-1]], dim=1)
            torch.testing.assert_close(samples.weights, (1 - (-optical).exp()) * (-before).exp(), rtol=1e-4, atol=1e-5)
        changed = run_field(networks[part].module, (batch[0] + 0.3, *batch[1:]))
        assert not torch.allclose(changed[0], density) or not torch.allclose(changed[1], rgb)


@pytest.mark.slow
@pytest.mark.parametrize("method", SAMPLES)
def test_a_student_loads_with_nerfstudio_and_scores_as_there(
    method: str, blender_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    teacher = stock_run(method, blender_scene, tmp_path)
    few = "--num-features", "4", "--sampling.num-rays", "1000", "--sampling.pair-fraction", "0.5"
    common = ["distill", "--load-config", str(teacher), "--output-dir"]
    extra = ("--layers", "0") if method == "vanilla-nerf" else ()
    eugen3d.cli.main.main([*common, str(tmp_path / "student"), *few, *extra, "--refine-steps", "1"])
    student = tmp_path / "student" / "config.yml"
    config, pipeline, _, _ = eval_setup(student, test_mode="inference")
    assert isinstance(config.pipeline.model, DistilledModelConfig) and config.method_name == method
    counts = json.loads((student.parent / "distill.json").read_text())["num_parameters"]
    assert counts["folded"] < counts["teacher"]
    arguments = ["--output", str(tmp_path / "score.json"), "--device", "cpu", "--names", "teacher", "student"]
    eugen3d.cli.main.main(["score", "--load-config", str(teacher), str(student), *arguments])
    entry = json.loads((tmp_path / "score.json").read_text())["runs"][1]
    assert entry["num_parameters"] == counts["folded"]
    loaded = load_run(student, "cpu")
    with pytest.warns(UserWarning, match="LPIPS is not measured"):
        metrics = loaded.pipeline.get_average_eval_image_metrics()
    assert metrics["psnr"] == pytest.approx(entry["psnr"], abs=1e-3)
    state = pipeline.state_dict()
    removed = next(key for key in state if key.startswith("_model.field") and key.endswith("weight"))
    with pytest.raises(RuntimeError, match="Missing key"):
        pipeline.load_pipeline({key: value for key, value in state.items() if key != removed}, 7)


def test_what_is_no_teacher_is_refused(blender_scene: Path, tmp_path: Path) -> None:
    path = stock_run("nerfacto", blender_scene, tmp_path)
    run = load_run(path, "cpu", "inference")
    setattr(run.pipeline, "_model", torch.nn.Linear(2, 2))  # noqa: B010 - no model at all
    with pytest.raises(UsageError, match="method 'nerfacto', expected eugen-nerf, eugen-zipnerf, vanilla-nerf"):
        teacher_of(run)
    checkpoint = next(path.parent.rglob("*.ckpt"))
    saved = torch.load(checkpoint)
    torch.save(saved | {"pipeline": {"_model.field.mlp_head.tcnn_encoding.params": torch.zeros(5)}}, checkpoint)
    with pytest.raises(UsageError, match=r"field.mlp_head.* is tiny-cuda-nn's.*--pipeline.model.implementation torch"):
        load_run(path, "cpu", "inference")
