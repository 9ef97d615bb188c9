"""Runs of eugen-siren: the network of a checkpoint and the format of what it stands for, without the file itself."""

from dataclasses import dataclass
from pathlib import Path

from nerfstudio.engine.trainer import TrainerConfig

from eugen3d.cli.config_file import read_config
from eugen3d.cli.errors import UsageError
from eugen3d.cli.runs import check_state, find_checkpoint, read_state, resolve_device
from eugen3d.cli.sdf_runs import set_up_model
from eugen3d.datasets.signals import ShapeFormat, SignalFormat
from eugen3d.models.distilled import settings_of
from eugen3d.models.siren import EUGenSirenModel, EUGenSirenModelConfig


@dataclass
class SirenRun:
    """A fitted signal."""

    config_path: Path
    """Its config.yml."""
    config: TrainerConfig
    model: EUGenSirenModel
    """In evaluation mode."""
    signal: SignalFormat | ShapeFormat
    """The format of what was fitted."""
    checkpoint: Path
    step: int


def is_siren_run(config_path: Path) -> bool:
    """Whether a run is of a signal, distilled or not."""
    return isinstance(settings_of(read_config(config_path).pipeline.model), EUGenSirenModelConfig)


def load_siren_run(config_path: Path, device: str) -> SirenRun:
    """Load a run's latest checkpoint, strictly, in evaluation mode.

    Raises:
        UsageError: what is there cannot be loaded; the message names the file.
    """
    target = resolve_device(device)
    config = read_config(config_path)
    plain = settings_of(config.pipeline.model)
    if not isinstance(plain, EUGenSirenModelConfig) or plain.signal is None:
        raise UsageError(f"{config_path}: is of method {config.method_name!r}, expected a run of eugen-siren")
    checkpoint, step = find_checkpoint(config_path.parent / config.relative_model_dir)
    state = read_state(checkpoint)
    model = set_up_model(config.pipeline.model).to(target).eval()
    assert isinstance(model, EUGenSirenModel)
    check_state(checkpoint, state, {f"_model.{key}": value for key, value in model.state_dict().items()})
    model.load_state_dict({key.removeprefix("_model."): value for key, value in state.items()})
    return SirenRun(config_path, config, model, plain.signal, checkpoint, step)
