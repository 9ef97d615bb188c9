"""eugen-zipnerf as nerfstudio runs it, on a scene of eight tiny views."""

import copy
import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from eugen3d.datasets import SceneDataManagerConfig, SceneDataParserConfig
from eugen3d.fields import HashGridConfig
from eugen3d.layers import EUGenConfig, LayerConfig, LowRankConfig
from eugen3d.models.zipnerf import EUGenZipNerfModel, EUGenZipNerfModelConfig, ZipNerfLossConfig
from eugen3d.runtime.machine import why_no_cuda

GRID = HashGridConfig(num_levels=3, base_resolution=4, max_resolution=32, features_per_level=2, log2_hashmap_size=10)


def make_pipeline(scene: Path, seed: int = 0, scales: tuple[int, ...] = (1,), **options: Any) -> VanillaPipeline:
    torch.manual_seed(seed)
    random.seed(seed)  # nerfstudio shuffles its images by it
    settings: dict[str, Any] = {
        "layer": LayerConfig("eugen", EUGenConfig(num_features=8)),
        "grid": GRID,
        "proposal_resolutions": (8, 16),
        "num_samples": (8, 8, 6),
        "widths": (16, 16, 16),
        "contraction_radius": 4.0,
        "near_plane": 2.0,
        "far_plane": 6.0,
        "background_color": "white",
    }
    config = VanillaPipelineConfig(
        datamanager=SceneDataManagerConfig(
            dataparser=SceneDataParserConfig(data=scene),
            scales=scales,
            train_num_rays_per_batch=64,
            eval_num_rays_per_batch=64,
        ),
        model=EUGenZipNerfModelConfig(**(settings | options)),
    )
    return config.setup(device="cpu", test_mode="val")


def model_of(pipeline: VanillaPipeline) -> EUGenZipNerfModel:
    return cast(EUGenZipNerfModel, pipeline.model)


def train(pipeline: VanillaPipeline, steps: int = 3) -> None:
    groups = pipeline.get_param_groups()
    optimizer = torch.optim.Adam([*groups["fields"], *groups["grids"]], lr=1e-2, eps=1e-15)
    for step in range(steps):
        _, losses, _ = pipeline.get_train_loss_dict(step)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()


def some_rays(pipeline: VanillaPipeline, count: int = 50) -> RayBundle:
    camera = pipeline.datamanager.train_dataset.cameras[:1]  # pyright: ignore[reportOptionalMemberAccess]
    return camera.generate_rays(0).flatten()[100 : 100 + count]


@torch.no_grad()
def render(pipeline: VanillaPipeline, rays: RayBundle) -> dict[str, Tensor]:
    return pipeline.eval().model(copy.deepcopy(rays))


@pytest.mark.parametrize(
    "layer",
    [LayerConfig("linear"), LayerConfig("eugen", EUGenConfig(8)), LayerConfig("low-rank", low_rank=LowRankConfig(8))],
    ids=lambda layer: layer.kind,
)
def test_training_lowers_the_loss(blender_scene: Path, layer: LayerConfig) -> None:
    pipeline = make_pipeline(blender_scene, layer=layer, scales=(1, 2))

    def loss() -> float:
        return float(pipeline.get_train_loss_dict(0)[1]["rgb_loss"].detach())

    before = sum(loss() for _ in range(5)) / 5
    train(pipeline, steps=60)
    assert sum(loss() for _ in range(5)) / 5 < 0.6 * before


def test_both_losses_of_colours_are_there(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene, losses=ZipNerfLossConfig(color="mse"))
    model, batch = model_of(pipeline), {"image": torch.rand(4, 3)}
    outputs = {"rgb": torch.rand(4, 3), "accumulation": torch.ones(4, 1)}
    error = outputs["rgb"] - batch["image"]
    torch.testing.assert_close(model.get_loss_dict(outputs, batch)["rgb_loss"], error.square().mean())
    model.config.losses.color = "charbonnier"
    torch.testing.assert_close(model.get_loss_dict(outputs, batch)["rgb_loss"], error.abs().mean(), rtol=1e-3, atol=0)


def test_tiny_cuda_nn_is_refused_in_one_line_where_there_is_none(
    blender_scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if why_no_cuda() is None:
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit) as stopped:
        make_pipeline(blender_scene, grid_backend="tcnn")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --pipeline.model.grid-backend tcnn: ")


def test_every_parameter_is_trained_and_in_one_group(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene, appearance_dim=2)
    model = model_of(pipeline)
    groups = model.get_param_groups()
    assert len(groups["grids"]) == 3
    trained = {name: p for name, p in model.named_parameters() if name != "device_indicator_param"}
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, trained.values()))
    fresh = copy.deepcopy(model.state_dict())
    train(pipeline, 5)
    assert [name for name, value in trained.items() if torch.equal(fresh[name], value)] == []


def test_the_same_seed_trains_to_the_same_weights(blender_scene: Path) -> None:
    states = []
    for seed in (1, 1, 2):
        pipeline = make_pipeline(blender_scene, seed)
        train(pipeline)
        states.append(model_of(pipeline).state_dict())
    first, second, third = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_rendering_is_repeatable_and_inside_the_planes(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene)
    outputs, again = (render(pipeline, some_rays(pipeline)) for _ in range(2))
    assert set(outputs) == {"rgb", "accumulation", "depth"}
    assert all(torch.equal(outputs[name], again[name]) for name in outputs)
    assert outputs["rgb"].shape == (50, 3) and outputs["depth"].shape == (50, 1)
    assert ((outputs["depth"] >= 2) & (outputs["depth"] <= 6)).all()


def test_rendering_uses_the_folded_head_and_equals_the_unfolded_one(
    blender_scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(blender_scene)
    train(pipeline)
    model, rays = model_of(pipeline), some_rays(pipeline)
    folded = render(pipeline, rays)
    assert sum(p.numel() for p in model._evaluation().parameters()) < sum(
        p.numel() for p in model.field.head.parameters()
    )
    monkeypatch.setattr(model, "_evaluation", lambda: model.field.head)
    for name, value in render(pipeline, rays).items():
        torch.testing.assert_close(folded[name], value, rtol=1e-3, atol=1e-4)


def test_the_head_sees_what_is_rendered(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene, appearance_dim=2)
    model = model_of(pipeline).eval()
    inputs, weights, deltas = model.head_samples(some_rays(pipeline, 7))
    assert [tuple(x.shape) for x in inputs] == [(7, 6, model.field.features.out_dim), (7, 6, 3), (7, 6, 2)]
    assert weights.shape == deltas.shape == (7, 6) and (weights.sum(dim=1) <= 1 + 1e-5).all() and (deltas >= 0).all()
    assert not model.sampler_pdf.training and not model.sampler_first.training


def test_appearance_is_a_photographs_own_in_training_and_the_mean_in_rendering(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene, appearance_dim=2)
    model, rays = model_of(pipeline), some_rays(pipeline, 5)
    before = render(pipeline, rays)["rgb"]
    with torch.no_grad():
        table = model.appearance.embedding.weight  # pyright: ignore[reportOptionalMemberAccess]
        table[0] += 5
        table[1] -= 5
    torch.testing.assert_close(render(pipeline, rays)["rgb"], before, rtol=1e-4, atol=1e-5)
    colors = []
    for index in (0, 1):
        torch.manual_seed(0)
        rays.camera_indices = torch.full((5, 1), index)
        with torch.no_grad():
            colors.append(model.train()(copy.deepcopy(rays))["rgb"])
    assert not torch.allclose(*colors, atol=1e-3)


def test_a_photograph_has_one_appearance_at_all_sizes(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene, appearance_dim=2, scales=(1, 2))
    model, rays = model_of(pipeline).train(), some_rays(pipeline, 5)
    count = model.num_train_data // 2
    assert model.appearance is not None and len(model.appearance.embedding.weight) == count
    colors = []
    for index in (1, 1 + count, 0):
        torch.manual_seed(0)
        rays.camera_indices = torch.full((5, 1), index)
        with torch.no_grad():
            model.appearance.embedding.weight[0] = 5
            colors.append(model(copy.deepcopy(rays))["rgb"])
    assert torch.equal(colors[0], colors[1]) and not torch.equal(colors[0], colors[2])


def test_proposals_are_followed_little_by_little(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene)
    model = model_of(pipeline)
    (callback,) = model.get_training_callbacks(TrainingCallbackAttributes(None, None, None, None))
    callback.run_callback(0)
    assert model._anneal == 0
    callback.run_callback(500)
    assert model._anneal == pytest.approx(10 * 0.5 / 5.5)
    callback.run_callback(5000)
    assert model._anneal == 1


def test_a_state_that_does_not_fit_is_refused(blender_scene: Path) -> None:
    model = model_of(make_pipeline(blender_scene))
    state = {name: value for name, value in model.state_dict().items() if "rgb_head" not in name}
    with pytest.raises(RuntimeError, match="rgb_head"):
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": (8, 8)}, "num_samples is"),
        ({"num_samples": (8, 0, 4)}, "num_samples is"),
        ({"proposal_resolutions": (8,)}, "num_samples is"),
        ({"proposal_resolutions": (8,), "num_samples": (8, 8)}, "losses.pulses is"),
        ({"contraction_radius": 0.0}, "contraction_radius is"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EUGenZipNerfModelConfig(**settings)
