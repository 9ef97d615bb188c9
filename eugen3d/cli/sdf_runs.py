"""Runs of eugen-isdf: the field of a checkpoint and what was seen when it was trained, without the frames' folder."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor

from eugen3d.cli.config_file import read_config
from eugen3d.cli.errors import UsageError, first_line
from eugen3d.cli.runs import check_state, find_checkpoint, read_state, resolve_device
from eugen3d.mapping.keyframes import Keyframes, seen_points
from eugen3d.models.distilled import settings_of
from eugen3d.models.isdf import EUGenIsdfModel, EUGenIsdfModelConfig
from eugen3d.models.isdf_pipeline import PROGRESS, unpack_progress

PIXEL_STEP = 4
"""Every how manieth row and column of a keyframe counts as seen."""


@dataclass
class SdfRun:
    """A trained field of signed distance."""

    name: str
    """The run folder's name."""
    config_path: Path
    """Its config.yml."""
    config: TrainerConfig
    model: EUGenIsdfModel
    """In evaluation mode."""
    checkpoint: Path
    step: int
    progress: dict[str, Any] | None
    """Where the mapper stood, its keyframes included; None where the checkpoint does not say."""
    keyframes: Keyframes
    """What it was trained on last; none where the checkpoint holds none."""
    surface: Tensor
    """(n, 3) points that the keyframes measured, thinned, metres."""

    @property
    def data(self) -> Path | None:
        """The sequence that it was trained on."""
        return self.config.pipeline.datamanager.data


def is_sdf_run(config_path: Path) -> bool:
    """Whether a run is of a field of signed distance, distilled or not."""
    return isinstance(settings_of(read_config(config_path).pipeline.model), EUGenIsdfModelConfig)


def load_sdf_run(config_path: Path, device: str) -> SdfRun:
    """Load a run's latest checkpoint, strictly, in evaluation mode.

    Raises:
        UsageError: what is there cannot be loaded; the message names the file.
    """
    target = resolve_device(device)
    config = read_config(config_path)
    if not isinstance(settings_of(config.pipeline.model), EUGenIsdfModelConfig):
        raise UsageError(f"{config_path}: is of method {config.method_name!r}, expected a run of eugen-isdf")
    checkpoint, step = find_checkpoint(config_path.parent / config.relative_model_dir)
    state = read_state(checkpoint)
    model = set_up_model(config.pipeline.model).to(target).eval()
    assert isinstance(model, EUGenIsdfModel)
    packed = state.pop(PROGRESS, None)
    check_state(checkpoint, state, {f"_model.{key}": value for key, value in model.state_dict().items()})
    model.load_state_dict({key.removeprefix("_model."): value for key, value in state.items()})
    try:
        progress = None if packed is None else unpack_progress(packed)
        keyframes = _keyframes(progress)
    except (RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise UsageError(f"{checkpoint}: its keyframes cannot be read ({first_line(error)})") from None
    name, surface = config_path.resolve().parent.name, seen_points(keyframes.entries, PIXEL_STEP)
    return SdfRun(name, config_path, config, model, checkpoint, step, progress, keyframes, surface)


def set_up_model(config: ModelConfig) -> Model:
    """A freshly drawn model; the box of a scene is of no matter to it."""
    return config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1)


def _keyframes(progress: dict[str, Any] | None) -> Keyframes:
    if progress is None:
        return Keyframes(0)
    keyframes = Keyframes(len(progress["keyframes"]["entries"]))
    keyframes.load_state_dict(progress["keyframes"], torch.device("cpu"))
    return keyframes
