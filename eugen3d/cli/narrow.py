"""The plain network of equal cost, the opponent of every distillation: trained at the same rows as a student is."""

import dataclasses
import time
from collections.abc import Callable

import torch
from nerfstudio.engine.trainer import TrainerConfig
from rich.console import Console

from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.distill_settings import SHARE_OF_WIDTH, DistillSettings
from eugen3d.cli.errors import UsageError
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.teacher_rows import hash_seed
from eugen3d.distill import Loss, Network, Rows, fit_network
from eugen3d.models.isdf import EUGenIsdfModelConfig
from eugen3d.models.nerf import EUGenNerfModelConfig
from eugen3d.models.zipnerf import EUGenZipNerfModelConfig

WidthConfig = EUGenNerfModelConfig | EUGenIsdfModelConfig | EUGenZipNerfModelConfig


def narrow_config(settings: DistillSettings, config: TrainerConfig) -> WidthConfig:
    """The teacher's configuration with thinner layers, all dense.

    Raises:
        UsageError: the run is of a method whose width is no setting.
    """
    model = config.pipeline.model
    if not isinstance(model, WidthConfig):
        found = f"{settings.load_config} is of method {config.method_name!r}"
        raise UsageError(f"--kind narrow: {found}, expected an eugen-nerf, eugen-zipnerf or eugen-isdf")
    own_width = model.widths[-1] if isinstance(model, EUGenZipNerfModelConfig) else model.layer_width
    width = settings.num_features or max(1, own_width // SHARE_OF_WIDTH)
    if isinstance(model, EUGenIsdfModelConfig):
        return dataclasses.replace(model, layer_width=width)

    def thinner(other: int) -> int:
        return max(1, round(other * width / own_width))

    if isinstance(model, EUGenZipNerfModelConfig):
        density, bottleneck, _ = model.widths
        return dataclasses.replace(model, widths=(thinner(density), thinner(bottleneck), width))
    return dataclasses.replace(model, layer_width=width, view_width=thinner(model.view_width))


def train_narrow(
    settings: DistillSettings,
    teachers: dict[str, Network],
    students: dict[str, Network],
    rows: dict[str, Rows],
    make_loss: Callable[[Network, Rows], Loss],
    progress: DistillProgress,
) -> None:
    """Train freshly drawn networks at a teacher's rows, all layers at once, in place; what is done is kept."""
    config = settings.fit_config()
    with progress_bar(Console(), transient=False) as bar:
        shown = bar.add_task("training", total=len(students) * settings.fit_steps)
        for part, student in students.items():
            bar.update(shown, description=f"training {part}")
            if part in progress.layers:
                student.module.load_state_dict(progress.layers[part])
                bar.advance(shown, settings.fit_steps)
                continue
            start = time.perf_counter()
            generator = torch.Generator().manual_seed(hash_seed(settings.seed, part, "narrow"))
            loss = make_loss(teachers[part], rows[part].split()[0])
            fit_network(student, loss, config, generator, lambda: bar.advance(shown))
            progress.seconds["fit"] += time.perf_counter() - start
            progress.add(f"{part} narrow", part, student.module)
