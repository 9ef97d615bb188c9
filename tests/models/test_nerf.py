"""eugen-nerf as nerfstudio runs it, on a scene of eight tiny views."""

import copy
import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from eugen3d.datasets import SceneDataManagerConfig, SceneDataParserConfig
from eugen3d.fields import NerfField
from eugen3d.layers import EUGenConfig, LayerConfig, LowRankConfig
from eugen3d.models.nerf import EUGenNerfModel, EUGenNerfModelConfig


def make_pipeline(scene: Path, seed: int = 0, **options: Any) -> VanillaPipeline:
    torch.manual_seed(seed)
    random.seed(seed)  # nerfstudio shuffles its images by it
    settings: dict[str, Any] = {
        "layer": LayerConfig("eugen", EUGenConfig(num_features=8)),
        "num_layers": 3,
        "replaced_layers": (1, 2),
        "layer_width": 32,
        "view_width": 16,
        "num_coarse_samples": 8,
        "num_importance_samples": 8,
        "training_precision": "float32",
    }
    config = VanillaPipelineConfig(
        datamanager=SceneDataManagerConfig(
            dataparser=SceneDataParserConfig(data=scene), train_num_rays_per_batch=64, eval_num_rays_per_batch=64
        ),
        model=EUGenNerfModelConfig(**(settings | options)),
    )
    return config.setup(device="cpu", test_mode="val")


def model_of(pipeline: VanillaPipeline) -> EUGenNerfModel:
    return cast(EUGenNerfModel, pipeline.model)


def train(pipeline: VanillaPipeline, steps: int = 3, learning_rate: float = 1e-2) -> None:
    optimizer = torch.optim.Adam(pipeline.get_param_groups()["fields"], lr=learning_rate)
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


def test_the_same_seed_trains_to_the_same_weights(blender_scene: Path) -> None:
    states = []
    for seed in (1, 1, 2):
        pipeline = make_pipeline(blender_scene, seed)
        fresh = copy.deepcopy(model_of(pipeline).state_dict())
        train(pipeline)
        states.append(model_of(pipeline).state_dict())
        moved = [name for name in fresh if "weight" in name and torch.equal(fresh[name], states[-1][name])]
        assert moved == [], "training changes every weight"
    first, second, third = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


@pytest.mark.parametrize(
    "layer",
    [
        LayerConfig("linear"),
        LayerConfig("eugen", EUGenConfig(8, order=2)),
        LayerConfig("eugen", EUGenConfig(8, projection_rank=4)),
        LayerConfig("low-rank", low_rank=LowRankConfig(8)),
        LayerConfig("snnk"),
        LayerConfig("sine"),
    ],
    ids=lambda layer: layer.kind,
)
def test_training_lowers_the_loss(blender_scene: Path, layer: LayerConfig) -> None:
    pipeline = make_pipeline(blender_scene, layer=layer)

    def loss() -> float:
        return sum(float(part.detach()) for part in pipeline.get_train_loss_dict(0)[1].values())

    before = sum(loss() for _ in range(5)) / 5
    train(pipeline, steps=40)
    assert sum(loss() for _ in range(5)) / 5 < 0.8 * before


def test_outputs_have_their_shapes_and_ranges(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene)
    outputs = render(pipeline, some_rays(pipeline))
    for suffix in ("", "_coarse"):
        assert outputs["rgb" + suffix].shape == (50, 3)
        assert outputs["accumulation" + suffix].shape == (50, 1)
        assert ((outputs["rgb" + suffix] >= 0) & (outputs["rgb" + suffix] <= 1)).all()
        depth = outputs["depth" + suffix]
        assert depth.shape == (50, 1) and ((depth >= 2) & (depth <= 6)).all(), "between the near and the far plane"


def test_rendering_uses_folded_fields_and_equals_the_unfolded_ones(
    blender_scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(blender_scene)
    train(pipeline)
    model, rays = model_of(pipeline), some_rays(pipeline)
    folded = render(pipeline, rays)
    assert set(model._folded) == {"coarse", "fine"}
    thin = sum(p.numel() for name in model._folded for p in model._folded_field(name).parameters())
    assert thin < sum(p.numel() for p in model.fields.parameters())
    monkeypatch.setattr(model, "_folded_field", lambda name: model.fields[name])
    unfolded = render(pipeline, rays)
    for name, value in unfolded.items():
        torch.testing.assert_close(folded[name], value, rtol=1e-3, atol=1e-4)


def test_rendering_after_more_training_uses_the_new_weights(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene)
    rays = some_rays(pipeline)
    before = render(pipeline, rays)
    assert torch.equal(render(pipeline, rays)["rgb"], before["rgb"])
    pipeline.train()
    train(pipeline)
    after = render(pipeline, rays)
    assert (after["rgb"] - before["rgb"]).abs().max() > 1e-3
    fresh = make_pipeline(blender_scene)
    fresh.load_state_dict(pipeline.state_dict())
    torch.testing.assert_close(render(fresh, rays)["rgb"], after["rgb"])


def test_rendering_after_loading_uses_the_loaded_weights(blender_scene: Path) -> None:
    pipeline, other = make_pipeline(blender_scene, seed=1), make_pipeline(blender_scene, seed=2)
    rays = some_rays(pipeline)
    theirs = render(other, rays)["rgb"]
    assert not torch.allclose(render(pipeline, rays)["rgb"], theirs)
    pipeline.load_pipeline(other.state_dict(), step=0)
    torch.testing.assert_close(render(pipeline, rays)["rgb"], theirs)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "other width"])
def test_a_checkpoint_that_does_not_fit_is_refused(blender_scene: Path, damage: str) -> None:
    """Through nerfstudio's own path, which would go on with a partial load."""
    pipeline = make_pipeline(blender_scene)
    state = dict(pipeline.state_dict())
    name = "_model.fields.fine.density_head.0.weight"
    if damage == "missing":
        del state[name]
    elif damage == "unexpected":
        state["_model.fields.fine.extra"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(1, 33)
    before = copy.deepcopy(model_of(pipeline).state_dict())
    with pytest.raises(RuntimeError, match=r"fields\.fine\.(density_head\.0\.weight|extra)"):
        pipeline.load_pipeline(state, step=0)
    pipeline.load_pipeline(dict(pipeline.state_dict()), step=0)
    assert before.keys() == model_of(pipeline).state_dict().keys()


def test_the_other_kind_of_layer_is_refused(blender_scene: Path) -> None:
    dense = make_pipeline(blender_scene, layer=LayerConfig("linear"))
    with pytest.raises(RuntimeError, match="Missing key"):
        make_pipeline(blender_scene).load_pipeline(dense.state_dict(), step=0)


@pytest.mark.parametrize("color", ["white", "black", "random"])
def test_backgrounds(blender_scene: Path, color: str) -> None:
    """In an empty scene the colour is the background's; against a transparent image the loss is then zero."""
    pipeline = make_pipeline(blender_scene, background_color=color)
    model = model_of(pipeline)
    with torch.no_grad():
        for field in model.fields.values():
            assert isinstance(field, NerfField)
            head = field.density_head[-1]
            assert isinstance(head, torch.nn.Linear)
            head.bias.fill_(-1e4)
    rays = some_rays(pipeline)
    expected = torch.full((50, 3), 1.0 if color == "white" else 0.0)
    torch.testing.assert_close(render(pipeline, rays)["rgb"], expected)
    pipeline.train()
    outputs = model(rays)
    transparent = torch.rand(50, 4)
    transparent[:, 3] = 0
    losses = model.get_loss_dict(outputs, {"image": transparent})
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        {"rgb_loss_coarse": 0, "rgb_loss_fine": 0}, abs=1e-12
    )
    opaque = transparent.clone()
    opaque[:, 3] = 1
    assert all(value > 0.01 for value in model.get_loss_dict(outputs, {"image": opaque}).values())


def test_the_random_background_differs_from_ray_to_ray(blender_scene: Path) -> None:
    """A half transparent prediction of the right colour is no minimum: it shows through what lies behind."""
    pipeline = make_pipeline(blender_scene, background_color="random")
    image = torch.cat([torch.full((50, 3), 0.5), torch.ones(50, 1)], dim=1)
    outputs = {name: torch.full((50, 3), 0.25) for name in ("rgb", "rgb_coarse")}
    outputs |= {name: torch.full((50, 1), 0.5) for name in ("accumulation", "accumulation_coarse")}
    first, second = (model_of(pipeline).get_loss_dict(outputs, {"image": image})["rgb_loss_fine"] for _ in range(2))
    assert first > 0.01 and first != second


def test_image_metrics_and_panels(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene)
    image = torch.rand(16, 16, 4)
    outputs = {"rgb": torch.rand(16, 16, 3), "rgb_coarse": torch.rand(16, 16, 3)}
    outputs |= {"depth": torch.full((16, 16, 1), 4.0), "accumulation": torch.rand(16, 16, 1)}
    metrics, panels = model_of(pipeline).get_image_metrics_and_images(outputs, {"image": image})
    target = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    assert metrics["psnr"] == pytest.approx(-10 * (outputs["rgb"] - target).square().mean().log10().item(), rel=1e-4)
    torch.testing.assert_close(panels["img"][:, :16], target)
    assert {name: panel.shape[0] for name, panel in panels.items()} == {"img": 16, "accumulation": 16, "depth": 16}


def test_training_in_bfloat16_keeps_float32_parameters(blender_scene: Path) -> None:
    pipeline = make_pipeline(blender_scene, training_precision="bfloat16")
    exact = make_pipeline(blender_scene)
    for each in (pipeline, exact):
        train(each)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model_of(pipeline).parameters())
    pairs = zip(model_of(pipeline).fields.parameters(), model_of(exact).fields.parameters(), strict=True)
    assert 0 < max((p - q).abs().max().item() for p, q in pairs) < 0.1


def test_fixed_projections_are_not_optimised(blender_scene: Path) -> None:
    layer = LayerConfig("eugen", EUGenConfig(8, train_projections=False))
    model = model_of(make_pipeline(blender_scene, layer=layer))
    optimised = {id(p) for p in model.get_param_groups()["fields"]}
    frozen = [name for name, p in model.fields.named_parameters() if id(p) not in optimised]
    assert frozen and all(".features." in name for name in frozen)
