"""`eugen3d bake`: a run with a grid of where its scene is, by which it renders faster."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.trainer import TrainerConfig
from rich.console import Console
from torch import Tensor

from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.runs import load_config, load_run, save_run
from eugen3d.cli.teachers import NerfTeacher, teacher_of
from eugen3d.cli.views import choose_evenly, load_views
from eugen3d.metrics.image import image_metrics
from eugen3d.models.distilled import settings_of
from eugen3d.models.nerf import EUGenNerfModelConfig
from eugen3d.models.occupancy import OccupancyConfig, OccupancyGrid
from eugen3d.models.zipnerf import EUGenZipNerfModelConfig

TRIES = ((0.1, 0), (0.01, 0), (0.1, 1), (0.01, 1), (0.001, 1), (0.0001, 1))
"""Thresholds of what a cell takes of a ray's light, and by how many cells the occupied ones are dilated, the grids that
skip most first. The first is taken that loses no more than half of the bound beside the last one."""
SHARES = (1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 3 / 2, 2)
"""How many samples of a ray are tried with it, in shares of those without; the first within the bound is taken."""
TIMED_TURNS = 3  # how often a view is rendered with and without skipping


@dataclass
class Bake:
    """Write a run again with a grid of where its scene is, by which rendering samples rays.

    What is empty or behind surfaces is not evaluated, and no proposal is needed.

    Runs are those of eugen-nerf, eugen-zipnerf and what was distilled from them. What they train to later, the grid
    does not know: bake last.
    """

    load_config: Path
    """The run's config.yml."""
    output_dir: Path
    """The run folder to make."""
    resolution: int = 256
    """Cells along a side of the grid; each is a byte of the checkpoint."""
    max_psnr_drop: float = 0.05
    """dB by which the mean PSNR of the views may fall."""
    num_views: int = 2
    """How many training views, evenly chosen, that is measured on."""
    downscale_factor: int = 4
    """Divides both sides of the views."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Of the points at which density is looked up."""

    def main(self) -> None:
        """Run the command."""
        self._check()
        _refuse_others(self.load_config, load_config(self.load_config))
        run = load_run(self.load_config, self.device, "inference")
        views = load_views(run, "train", self.downscale_factor)
        teacher: NerfTeacher = teacher_of(run)
        model: Any = run.pipeline.model
        if not 1 <= self.num_views <= len(views.files):
            raise UsageError(f"--num-views {self.num_views}: expected 1 to {len(views.files)}, the training views")
        chosen = choose_evenly(len(views.files), self.num_views)
        cameras = [views.camera(index).to(model.device) for index in chosen]
        targets = [teacher.blend(views.reference(index)) for index in chosen]
        with progress_bar() as bar:
            task = bar.add_task("looking densities up", total=1.0)
            model.config.occupancy = OccupancyConfig(self.resolution)
            model.occupancy = grid = OccupancyGrid(self.resolution, model.scene_radius).to(model.device)
            generator = torch.Generator(model.device).manual_seed(self.seed)
            cells = model.look_up_cells(generator, lambda share: bar.advance(task, share))
        if not cells.alpha.any():
            raise UsageError(f"{self.load_config}: its field is empty, expected a run that was trained")
        dense = _psnr(teacher, cameras, targets, skipping=False)

        def render(num_samples: int) -> float:
            model.config.occupancy = OccupancyConfig(self.resolution, num_samples)
            return _psnr(teacher, cameras, targets, skipping=True)

        console, own_count = Console(highlight=False), max(teacher.samples_per_ray.values())
        grid.occupy(cells, *TRIES[-1])
        full = render(own_count)
        for threshold, dilation in TRIES:
            occupied = grid.occupy(cells, threshold, dilation)
            drop = full - render(own_count)
            console.print(
                f"threshold {threshold:g}, dilated by {dilation}: {occupied:.1%} occupied, {drop:+.3f} dB lost by that"
            )
            if drop <= self.max_psnr_drop / 2:
                break
        drops: list[float] = []
        for share in SHARES:
            num_samples = math.ceil(share * own_count)
            drops.append(dense - render(num_samples))
            console.print(f"{num_samples} samples a ray: {drops[-1]:+.3f} dB lost")
            if drops[-1] <= self.max_psnr_drop:
                break
        else:
            raise UsageError(
                f"--max-psnr-drop {self.max_psnr_drop}: the best number of samples loses {min(drops):.3f} dB; "
                "expected a larger bound or --resolution"
            )
        settings_of(run.config.pipeline.model).occupancy = model.config.occupancy
        result = {
            "resolution": self.resolution,
            "threshold": threshold,
            "dilation": dilation,
            "occupied": occupied,
            "num_samples": num_samples,
            "psnr_dense": dense,
            "psnr_drop": drops[-1],
            **_times(teacher, cameras),
            "views": [views.files[index] for index in chosen],
            "downscale_factor": self.downscale_factor,
            "device": device_name(model.device),
            "versions": versions(model.device),
            "date": now(),
        }
        state = {f"_model.{key}": value for key, value in model.state_dict().items()}
        save_run(run.config, state, run.step, self.output_dir)
        write_whole(self.output_dir / "bake.json", json.dumps(result, indent=2) + "\n")
        console.print(f"{result['speedup']:.2f} times as fast as without skipping, at {drops[-1]:+.3f} dB lost")
        console.print(f"wrote {self.output_dir}/config.yml and bake.json", soft_wrap=True)

    def _check(self) -> None:
        """Refuse settings that cannot be used, before anything is loaded."""
        if self.resolution < 2:
            raise UsageError(f"--resolution {self.resolution}: expected at least 2 cells")
        if not math.isfinite(self.max_psnr_drop):
            raise UsageError(f"--max-psnr-drop {self.max_psnr_drop}: expected a number of dB")
        if self.downscale_factor < 1:
            raise UsageError(f"--downscale-factor {self.downscale_factor}: expected at least 1")
        if self.output_dir.exists() and not (self.output_dir.is_dir() and not any(self.output_dir.iterdir())):
            raise UsageError(f"--output-dir {self.output_dir}: exists already, expected a folder to be made")


def _refuse_others(path: Path, config: TrainerConfig) -> None:
    if not isinstance(settings_of(config.pipeline.model), EUGenNerfModelConfig | EUGenZipNerfModelConfig):
        expected = "eugen-nerf, eugen-zipnerf or a student of theirs"
        raise UsageError(f"{path}: method {config.method_name!r} has no grid of what is occupied, expected {expected}")


def _psnr(teacher: NerfTeacher, cameras: list[Cameras], targets: list[Tensor], skipping: bool) -> float:
    """The mean PSNR of views in dB."""
    teacher.set_skipping(skipping)
    pictures = [teacher.render(camera) for camera in cameras]
    pairs = zip(pictures, targets, strict=True)
    return statistics.fmean(image_metrics(picture, target.to(picture.device))["psnr"] for picture, target in pairs)


def _times(teacher: NerfTeacher, cameras: list[Cameras]) -> dict[str, float]:
    """Median seconds of views without and with skipping, rendered in turn, and the median of their ratios."""
    turns = [
        [_seconds(teacher, camera, skipping) for skipping in (False, True)]
        for camera in cameras
        for _ in range(TIMED_TURNS)
    ]
    dense, skipped = (statistics.median(column) for column in zip(*turns, strict=True))
    return {
        "seconds_dense": dense,
        "seconds_skipped": skipped,
        "speedup": statistics.median(own / other for own, other in turns),
    }


def _seconds(teacher: NerfTeacher, camera: Cameras, skipping: bool) -> float:
    teacher.set_skipping(skipping)
    return teacher.timed_render(camera)[1]
