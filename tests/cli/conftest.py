"""Run folders of small untrained models: on a scene of 16 x 16 views, and of a depth frame."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.engine.trainer import TrainerConfig

from eugen3d.cli.runs import save_run
from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.mapping import SdfMapper
from eugen3d.methods.eugen_isdf_small import eugen_isdf_small
from eugen3d.models.isdf_pipeline import SdfPipeline

MakeRun = Callable[..., Path]


@pytest.fixture
def tiny_config(blender_scene: Path) -> TrainerConfig:
    """eugen-nerf with two layers of eight neurons, and four and four samples a ray."""
    config = copy.deepcopy(all_methods["eugen-nerf"])
    settings: dict[str, Any] = {
        "layer": LayerConfig("eugen", EUGenConfig(num_features=4)),
        "replaced_layers": (1,),
        "num_layers": 2,
        "layer_width": 8,
        "view_width": 8,
        "num_coarse_samples": 4,
        "num_importance_samples": 4,
    }
    for name, value in settings.items():
        setattr(config.pipeline.model, name, value)
    config.data = config.pipeline.datamanager.data = blender_scene
    config.experiment_name = "disc"
    return config


@pytest.fixture
def make_run(tiny_config: TrainerConfig, tmp_path: Path) -> MakeRun:
    """A function that writes a run folder and returns its config.yml."""

    def make(name: str = "run", seed: int = 0, change: Callable[[dict[str, Any]], Any] = dict, **model: Any) -> Path:
        config = copy.deepcopy(tiny_config)
        for key, value in model.items():
            setattr(config.pipeline.model, key, value)
        torch.manual_seed(seed)
        state = copy.deepcopy(config.pipeline).setup(device="cpu", test_mode="inference").state_dict()
        save_run(config, change(state), 7, tmp_path / name)
        return tmp_path / name / "config.yml"

    return make


@pytest.fixture
def make_sdf_run(tmp_path: Path) -> MakeRun:
    """A function that writes a run of a small untrained field with one keyframe, and returns its config.yml."""

    def make(
        change: Callable[[dict], object] = dict,
        name: str = "run",
        data: Path | None = None,
        kind: Literal["eugen", "linear"] = "eugen",
        seed: int = 0,
    ) -> Path:
        config = copy.deepcopy(eugen_isdf_small.config)
        config.pipeline.datamanager.data = data
        layer = LayerConfig(kind, EUGenConfig(4, phi="softplus-100"))
        for field, value in (("layer", layer), ("layer_width", 8), ("num_frequencies", 2)):
            setattr(config.pipeline.model, field, value)
        torch.manual_seed(seed)
        pipeline = copy.deepcopy(config.pipeline).setup(device="cpu", test_mode="inference")
        assert isinstance(pipeline, SdfPipeline) and isinstance(pipeline.mapper, SdfMapper)
        frame = DepthFrame("f", torch.full((16, 16), 2.0), torch.eye(3, 4), (8.0, 8.0, 8.0, 8.0), time=0.5)
        pipeline.mapper.add_keyframes([frame])
        folder = tmp_path / name / "nerfstudio_models"
        folder.mkdir(parents=True)
        (folder.parent / "config.yml").write_text(yaml.dump(config))
        state = pipeline.state_dict()
        change(state)
        torch.save({"step": 3, "pipeline": state}, folder / "step-000000003.ckpt")
        return folder.parent / "config.yml"

    return make
