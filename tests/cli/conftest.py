"""Run folders of small untrained models on a scene of 16 x 16 views."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.engine.trainer import TrainerConfig

from eugen3d.cli.runs import save_run
from eugen3d.layers import EUGenConfig, LayerConfig

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
