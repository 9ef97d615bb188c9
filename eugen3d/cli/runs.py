"""Run folders of nerfstudio: `config.yml` and `nerfstudio_models/step-*.ckpt`, read strictly and written whole."""

import copy
import dataclasses
import io
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManager
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from torch import Tensor, nn

from eugen3d.cli.config_file import read_config
from eugen3d.cli.errors import UsageError, first_line
from eugen3d.cli.files import naming, whole_folder
from eugen3d.metrics.lazy_lpips import LazyLpips, lazy_lpips
from eugen3d.models.distilled import settings_of
from eugen3d.models.stacks import TORCH_FLAG

__all__ = ["Run", "RunConfig", "UsageError", "folder_names", "load_config", "load_run", "resolve_device", "save_run"]

TestMode = Literal["test", "val", "inference"]


@dataclass
class RunConfig(TrainerConfig):
    """A trainer's configuration whose run folder is named outright, not composed of experiment, method and time."""

    run_dir: Path = Path("run")
    """The run folder."""

    def get_base_dir(self) -> Path:
        """The run folder; nerfstudio looks for checkpoints in it."""
        return self.run_dir


@dataclass
class Run:
    """A trained model, ready to be evaluated."""

    name: str
    """The run folder's name."""
    config: TrainerConfig
    pipeline: VanillaPipeline
    checkpoint: Path
    step: int


def folder_names(config_paths: Sequence[Path]) -> list[str]:
    """The names of the folders that runs' config.yml lie in; folders of one name are told apart by a number."""
    names: list[str] = []
    for path in config_paths:
        name, number = path.resolve().parent.name, 2
        while name in names:
            name, number = f"{path.resolve().parent.name}-{number}", number + 1
        names.append(name)
    return names


def load_config(path: Path) -> TrainerConfig:
    """The configuration of a run, from its `config.yml`; nothing that the file names is called.

    A scene folder that the file gives relative to the folder where training ran is looked for from here and from the
    folders above the file.

    Raises:
        UsageError: the file or the scene is missing, or the file is no configuration.
    """
    config = read_config(path)
    manager = config.pipeline.datamanager
    if not isinstance(manager, VanillaDataManagerConfig):
        raise UsageError(f"{path}: datamanager {type(manager).__name__} is not supported, expected one of single rays")
    found = find_scene(path, Path(manager.data or manager.dataparser.data))
    config.data = manager.data = manager.dataparser.data = found
    return config


def find_scene(config_path: Path, data: Path | None) -> Path:
    """The folder or file that a run names as its scene, looked for from here and from the folders above its config.yml.

    Raises:
        UsageError: it is nowhere.
    """
    places = [Path(), *config_path.resolve().parents]
    found = None if data is None else next((place / data for place in places if (place / data).exists()), None)
    if found is None:
        raise UsageError(f"{config_path}: its scene {data} was found neither here nor in a folder above the file")
    return found


def load_run(config_path: Path, device: str, test_mode: TestMode = "test", **model_overrides: Any) -> Run:
    """Load a run's latest checkpoint, strictly, in evaluation mode.

    Args:
        config_path: the run's `config.yml`; checkpoints are looked for beside it, wherever the folder was moved.
        device: "cpu", "cuda" or "cuda:0".
        test_mode: nerfstudio's: "test" and "val" read the train images and that split's, "inference" none.
        model_overrides: fields of the model's configuration to set, for instance `runtime="compiled"`.

    Raises:
        UsageError: what is there cannot be loaded; the message names the file.
    """
    target = resolve_device(device)
    config = load_config(config_path)
    checkpoint, step = find_checkpoint(config_path.parent / config.relative_model_dir)
    state = read_state(checkpoint)
    model = settings_of(config.pipeline.model)
    for key, value in model_overrides.items():
        if not hasattr(model, key):
            raise UsageError(f"{config_path}: method {config.method_name!r} has no model setting {key!r}")
        setattr(model, key, value)
    # a copy, since nerfstudio writes tensors into the configuration of what it sets up
    settings = copy.deepcopy(config.pipeline)
    if settings.datamanager._target is ParallelDataManager:
        settings.datamanager._target = VanillaDataManager  # the same rays, without processes of its own
    _refuse_tcnn(checkpoint, state)
    with lazy_lpips():
        pipeline: VanillaPipeline = settings.setup(device=target, test_mode=test_mode)
    pipeline.model.update_to_step(step)  # a model's grids can have grown in training
    state = _without_lpips(state, pipeline)
    check_state(checkpoint, state, pipeline.state_dict())
    pipeline.load_pipeline(state, step)
    pipeline.eval()
    return Run(config_path.resolve().parent.name, config, pipeline, checkpoint, step)


def save_run(config: TrainerConfig, state: Mapping[str, Tensor], step: int, output_dir: Path) -> RunConfig:
    """Write a run folder that nerfstudio's commands and `load_run` load; it appears whole or not at all.

    Args:
        config: what rebuilds the model; it stays as it is, the written copy names `output_dir` as its run folder.
        state: the pipeline's state, `pipeline.state_dict()`.
        step: the training step that the checkpoint is named after.
        output_dir: the run folder to make.

    Returns:
        The configuration as it was written.

    Raises:
        UsageError: `output_dir` exists and is not an empty folder.
        OSError: it cannot be written; `filename` names the file.
    """
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise UsageError(f"{output_dir}: exists already, expected a folder to be made")
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainerConfig)}
    run_config = RunConfig(**values | {"timestamp": output_dir.name, "load_dir": None}, run_dir=output_dir)
    run_config.relative_model_dir = Path("nerfstudio_models")
    checkpoint: dict[str, Any] = {"step": step, "pipeline": _copied(state)}
    buffer = io.BytesIO()
    torch.save(checkpoint | {"optimizers": {}, "schedulers": {}, "scalers": {}}, buffer)
    manager, outputs = config.pipeline.datamanager, None
    if isinstance(manager, VanillaDataManagerConfig):  # others keep the axes of the data
        parser = dataclasses.replace(manager.dataparser, data=Path(manager.data or manager.dataparser.data)).setup()
        outputs = parser.get_dataparser_outputs(split="train")
    with whole_folder(output_dir) as folder:
        for relative, content in {
            "config.yml": yaml.dump(run_config).encode(),
            f"nerfstudio_models/step-{step:09d}.ckpt": buffer.getvalue(),
        }.items():
            with naming(output_dir / relative):
                (folder / relative).parent.mkdir(exist_ok=True)
                (folder / relative).write_bytes(content)
        if outputs is not None:
            outputs.save_dataparser_transform(folder / "dataparser_transforms.json")
    return run_config


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A compact copy on the CPU; what stands under several names is one tensor still."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    keys = {name: (x.data_ptr(), x.shape, x.stride(), x.dtype) for name, x in state.items()}
    for name, x in state.items():
        if keys[name] not in copies:
            copies[keys[name]] = x.detach().cpu().clone()
    return {name: copies[key] for name, key in keys.items()}


def resolve_device(name: str) -> torch.device:
    """The device of that name, or a `UsageError` where it is not there."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: is unknown, expected cpu or cuda")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: found {torch.cuda.device_count()} CUDA devices, expected it to be there")
    return device


def find_checkpoint(folder: Path) -> tuple[Path, int]:
    """The latest `step-*.ckpt` in a folder, and its step."""
    steps = {int(match[1]): path for path in folder.glob("step-*.ckpt") if (match := _STEP.fullmatch(path.name))}
    if not steps:
        raise UsageError(f"{folder}: found no checkpoint, expected step-*.ckpt; has the run been trained and saved?")
    return steps[max(steps)], max(steps)


_STEP = re.compile(r"step-(\d+)\.ckpt")
_NUMPY = [np.float64(0).__reduce__()[0], np.dtype, type(np.dtype(np.float64))]
"""What a number of numpy is unpickled by: none of it runs anything that the file names."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The pipeline's state in a checkpoint, of finite tensors; nothing else in the file is unpickled.

    Numbers of numpy are allowed: nerfstudio's schedules leave them in the optimizers' states.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, KeyError, ValueError, AttributeError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise UsageError(f"{path}: cannot be read as a checkpoint, {size} bytes ({first_line(error)})") from None
    state = checkpoint.get("pipeline") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path}: has no pipeline state, expected a checkpoint that nerfstudio or eugen3d wrote")
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise UsageError(f"{path}: {key} has {count} values of {value.numel()} that are not finite")
    # nerfstudio trains on several devices with the model wrapped
    return {key.removeprefix("module.").replace("_model.module.", "_model.", 1): value for key, value in state.items()}


def _refuse_tcnn(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse MLPs of tiny-cuda-nn, whose parameters are one flat vector each."""
    for key in state:
        if key.endswith((".tcnn_encoding.params", ".model.params")):
            name = key.removeprefix("_model.").rpartition(".")[0]
            raise UsageError(f"{path}: {name} is tiny-cuda-nn's, expected torch modules: train with {TORCH_FLAG}")


def _without_lpips(state: Mapping[str, Tensor], pipeline: nn.Module) -> dict[str, Tensor]:
    """The state less the backbones of metrics that are built when they are used."""
    lazy = tuple(f"{name}." for name, module in pipeline.named_modules() if isinstance(module, LazyLpips))
    return {key: value for key, value in state.items() if not key.startswith(lazy)}


def check_state(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse a state whose keys or shapes are not the pipeline's."""
    for problem, keys in (
        ("lacks", [key for key in expected if key not in state]),
        ("has the unexpected", [key for key in state if key not in expected]),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UsageError(f"{path}: {problem} {keys[0]}{more}, expected what config.yml describes")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            found, wanted = tuple(state[key].shape), tuple(value.shape)
            raise UsageError(f"{path}: {key} has shape {found}, expected {wanted} as config.yml describes")
