"""Runs of eugen-isdf: the field of a checkpoint and what was seen when it was trained, without the frames' folder."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from eugen3d.cli.config_file import read_config
from eugen3d.cli.errors import UsageError, first_line
from eugen3d.cli.runs import check_state, find_checkpoint, read_state, resolve_device
from eugen3d.mapping.keyframes import Keyframes, seen_points
from eugen3d.models.distilled import DistilledModelConfig
from eugen3d.models.isdf import EUGenIsdfModel, EUGenIsdfModelConfig
from eugen3d.models.isdf_pipeline import PROGRESS

PIXEL_STEP = 4
"""Every how manieth row and column of a keyframe counts as seen."""


@dataclass
class SdfRun:
    """A trained field of signed distance."""

    name: str
    """The run folder's name."""
    model: EUGenIsdfModel
    step: int
    surface: Tensor
    """(n, 3) points that the keyframes measured, metres; none where the checkpoint holds no keyframes."""
    data: Path | None
    """The sequence that it was trained on."""


def load_sdf_run(config_path: Path, device: str) -> SdfRun:
    """Load a run's latest checkpoint, strictly, in evaluation mode.

    Raises:
        UsageError: what is there cannot be loaded; the message names the file.
    """
    target = resolve_device(device)
    config = read_config(config_path)
    settings = config.pipeline.model
    plain = settings.teacher if isinstance(settings, DistilledModelConfig) else settings
    if not isinstance(plain, EUGenIsdfModelConfig):
        raise UsageError(f"{config_path}: is of method {config.method_name!r}, expected a run of eugen-isdf")
    checkpoint, step = find_checkpoint(config_path.parent / config.relative_model_dir)
    state = read_state(checkpoint)
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = settings.setup(scene_box=box, num_train_data=1).to(target).eval()
    assert isinstance(model, EUGenIsdfModel)
    progress = state.pop(PROGRESS, None)
    check_state(checkpoint, state, {f"_model.{key}": value for key, value in model.state_dict().items()})
    model.load_state_dict({key.removeprefix("_model."): value for key, value in state.items()})
    try:
        surface = _seen_points(progress)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise UsageError(f"{checkpoint}: its keyframes cannot be read ({first_line(error)})") from None
    return SdfRun(config_path.resolve().parent.name, model, step, surface, config.pipeline.datamanager.data)


def _seen_points(progress: Tensor | None) -> Tensor:
    """The points that the keyframes of a mapper's progress measured, thinned."""
    if progress is None:
        return torch.zeros(0, 3)
    state: dict[str, Any] = torch.load(io.BytesIO(progress.numpy().tobytes()), weights_only=True)
    keyframes = Keyframes(len(state["keyframes"]["entries"]))
    keyframes.load_state_dict(state["keyframes"], torch.device("cpu"))
    return seen_points(keyframes.entries, PIXEL_STEP)
