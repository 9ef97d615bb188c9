"""`eugen3d bake`: a run with a grid of where its scene is, by which it renders faster."""

import dataclasses
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.model_components.ray_generators import RayGenerator
from rich.console import Console

from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.grid_refinement import CHECK_EVERY, GridRefinement
from eugen3d.cli.partial import PartialFile
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.refinement import Photographs
from eugen3d.cli.renders import file_hash
from eugen3d.cli.runs import Run, load_config, load_run, save_run
from eugen3d.cli.teacher_rows import SamplingConfig
from eugen3d.cli.teachers import NerfTeacher, teacher_of
from eugen3d.cli.views import Split, Views, choose_evenly, load_views
from eugen3d.metrics.image import image_metrics
from eugen3d.models.distilled import settings_of
from eugen3d.models.nerf import EUGenNerfModelConfig
from eugen3d.models.occupancy import Cells, OccupancyConfig, OccupancyGrid
from eugen3d.models.zipnerf import EUGenZipNerfModelConfig

TRIES = ((0.1, 0), (0.01, 0), (0.1, 1), (0.01, 1), (0.001, 1), (0.0001, 1))
"""Thresholds of what a cell takes of a ray's light, and by how many cells the occupied ones are dilated, the grids that
skip most first. The first is taken that loses no more than half of the bound beside the last one."""
SHARES = (1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1, 3 / 2, 2)
"""How many samples of a ray are tried with it, in shares of those without; the first within the bound is taken."""
SPREADS = (0.2, 0.05)
"""Which part of them is tried to be spread evenly over what is occupied; the better one is taken."""
NUM_RAYS, CHUNK_RAYS = 1 << 18, 1 << 11
"""How many rays of the training views a grid is baked from at most, and how many at once."""
CONSOLE = Console(highlight=False)
TIMED_TURNS = 3  # how often a view is rendered with and without skipping


@dataclass
class Bake:
    """Write a run again with a grid of where its scene is, by which rendering samples rays.

    What is empty or behind surfaces is not evaluated, and no proposal is needed.

    Runs are those of eugen-nerf, eugen-zipnerf and what was distilled from them. What they train to later, the grid
    does not know: bake last. Its field can learn to be rendered at fewer samples, where the grid places them.
    """

    load_config: Path
    """The run's config.yml."""
    output_dir: Path
    """The run folder to make."""
    resolution: int = 256
    """Cells along a side of the grid; each is a byte of the checkpoint."""
    max_psnr_drop: float = 0.05
    """dB by which the mean PSNR of the views may fall."""
    num_samples: int | None = None
    """Of a ray; by default the fewest that are within the bound."""
    num_views: int = 2
    """How many views, evenly chosen, that is measured on."""
    split: Split | None = None
    """Of which split they are: by default train, and with --refine-steps val, since training views flatter a field that
    is refined on them. A scene that has no split of that name has its test views in it, where it is not of Blender's
    layout."""
    downscale_factor: int = 4
    """Divides both sides of the views."""
    refine_steps: int = 0
    """Gradient steps on the photographs' rays over the field that renders, at --num-samples, by default at half of the
    fewest that are within the bound without them."""
    refine_num_rays: int = 1024
    """Rays per such step."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Of the points at which density is looked up, and of the batches."""

    def main(self) -> None:
        """Run the command; interrupted while it refines, it keeps what is done and continues when called again."""
        self._check()
        _refuse_others(self.load_config, load_config(self.load_config))
        random.seed(self.seed)  # the order in which nerfstudio keeps the images decides which rays a batch has
        run = load_run(self.load_config, self.device, "test" if self.refine_steps else "inference")
        split = self.split or ("val" if self.refine_steps else "train")
        views = load_views(run, split, self.downscale_factor)
        if not 1 <= self.num_views <= len(views.files):
            raise UsageError(
                f"--num-views {self.num_views}: expected 1 to {len(views.files)}, the views of split {split}"
            )
        chosen = choose_evenly(len(views.files), self.num_views)
        trial = Trial(teacher_of(run), views, chosen)
        file = PartialFile(self.output_dir, self._of_call(run.checkpoint))
        try:
            result = self._bake(run, trial, file)
        except KeyboardInterrupt:
            if file.path.exists():
                CONSOLE.print(f"interrupted; what is done is kept in {file.path}, the same command continues from it")
            raise
        settings_of(run.config.pipeline.model).occupancy = trial.model.config.occupancy
        result |= {
            "split": split,
            "views": [views.files[index] for index in chosen],
            "downscale_factor": self.downscale_factor,
            "device": device_name(trial.model.device),
            "versions": versions(trial.model.device),
            "date": now(),
        }
        state = {f"_model.{key}": value for key, value in trial.model.state_dict().items()}
        save_run(run.config, state, run.step, self.output_dir)
        write_whole(self.output_dir / "bake.json", json.dumps(result, indent=2) + "\n")
        file.remove()
        CONSOLE.print(
            f"{result['speedup']:.2f} times as fast as without skipping, at {result['psnr_drop']:+.3f} dB lost"
        )
        CONSOLE.print(f"wrote {self.output_dir}/config.yml and bake.json", soft_wrap=True)

    def _bake(self, run: Run, trial: "Trial", file: PartialFile) -> dict[str, Any]:
        """Give a model its grid, and the field that is rendered by it.

        Returns:
            What `bake.json` says of them.
        """
        model, dataset, kept = trial.model, run.pipeline.datamanager.train_dataset, file.read()
        assert dataset is not None
        dense = kept["psnr_dense"] if kept else trial.psnr(skipping=False)
        model.config.occupancy = OccupancyConfig(self.resolution)
        model.occupancy = OccupancyGrid(self.resolution, model.scene_radius).to(model.device)
        if not kept:
            grid = self._choose_grid(trial, self._look_up_cells(model, dataset.cameras), dense)
            kept = {"psnr_dense": dense, "grid": grid, "count": self._choose_count(trial, dense)}
        count = kept["count"]
        if self.refine_steps:
            self._refine(run, trial, file, kept)
            count = self._choose_count(trial, dense)
        if count["psnr_drop"] > self.max_psnr_drop:
            then = f"; what was refined is kept in {file.path} for the former" if self.refine_steps else ""
            lost = f"{count['num_samples']} samples a ray lose {count['psnr_drop']:.3f} dB"
            raise UsageError(
                f"--max-psnr-drop {self.max_psnr_drop}: {lost}; "
                f"expected a larger bound, --resolution or --refine-steps{then}"
            )
        return kept["grid"] | {"refine_steps": self.refine_steps} | count | {"psnr_dense": dense} | trial.times()

    def _look_up_cells(self, model: Any, cameras: Cameras) -> dict[str, Cells]:
        """Look up what a model's grid may hold, by several means."""
        generator = torch.Generator(model.device).manual_seed(self.seed)
        with progress_bar() as bar:
            task = bar.add_task("looking densities up", total=1.0)
            rays = _random_rays(cameras.to(model.device), generator)
            chunks = [rays[at : at + CHUNK_RAYS] for at in range(0, len(rays), CHUNK_RAYS)]
            cells = model.look_up_cells(chunks, generator, lambda share: bar.advance(task, share))
        if not any(each.alpha.any() for each in cells.values()):
            raise UsageError(f"{self.load_config}: its field is empty, expected a run that was trained")
        return cells

    def _choose_grid(self, trial: "Trial", candidates: dict[str, Cells], dense: float) -> dict[str, Any]:
        """Leave the model with the grid that skips most of those that lose little.

        Args:
            candidates: what it may hold; what renders best is taken.
            dense: the views' PSNR without a grid.

        Returns:
            What was chosen.
        """
        grid: OccupancyGrid = trial.model.occupancy
        careful: dict[str, float] = {}
        for name, cells in candidates.items():
            grid.occupy(cells, *TRIES[-1])
            careful[name] = trial.psnr_at(trial.own_count, SPREADS[0])
            lost = f"{dense - careful[name]:+.3f} dB lost"
            CONSOLE.print(f"densities of {name}: {lost} by {trial.own_count} samples a ray")
        source = max(careful, key=careful.__getitem__)
        for threshold, dilation in TRIES:
            occupied = grid.occupy(candidates[source], threshold, dilation)
            drop = careful[source] - trial.psnr_at(trial.own_count, SPREADS[0])
            CONSOLE.print(
                f"threshold {threshold:g}, dilated by {dilation}: {occupied:.1%} occupied, {drop:+.3f} dB lost by that"
            )
            if drop <= self.max_psnr_drop / 2:
                break
        return {
            "resolution": self.resolution,
            "densities": source,
            "threshold": threshold,
            "dilation": dilation,
            "occupied": occupied,
        }

    def _choose_count(self, trial: "Trial", dense: float) -> dict[str, Any]:
        """Leave the model with the fewest samples of a ray that are within the bound, or else the best number of them.

        Returns:
            What was chosen, and what it loses.
        """
        counts = [self.num_samples] if self.num_samples else [math.ceil(share * trial.own_count) for share in SHARES]
        tried: list[dict[str, Any]] = []
        for num_samples in counts:
            for spread in SPREADS:
                drop = dense - trial.psnr_at(num_samples, spread)
                CONSOLE.print(f"{num_samples} samples a ray, {spread:g} of them spread evenly: {drop:+.3f} dB lost")
                tried.append({"num_samples": num_samples, "spread": spread, "psnr_drop": drop})
            if min(count["psnr_drop"] for count in tried) <= self.max_psnr_drop:
                break
        best = min(tried, key=lambda count: count["psnr_drop"])
        trial.place_samples(best["num_samples"], best["spread"])
        return best

    def _refine(self, run: Run, trial: "Trial", file: PartialFile, kept: dict[str, Any]) -> None:
        """Fit the field that renders to fewer samples.

        Args:
            kept: what the file holds, or has to hold beside the refinement.
        """
        manager, count = run.pipeline.datamanager, kept["count"]
        assert isinstance(manager, VanillaDataManager)
        scales = SamplingConfig().scales(trial.teacher, manager.train_dataset.cameras)
        photographs = Photographs(manager, scales, self.seed)
        refinement = GridRefinement(trial.teacher, run.config, photographs, self.refine_num_rays)
        if "refinement" in kept:
            refinement.load_state(kept["refinement"])
        num_samples = self.num_samples or math.ceil(count["num_samples"] / 2)
        trial.place_samples(num_samples, count["spread"])
        with progress_bar() as bar:
            task = bar.add_task(f"refining at {num_samples} samples a ray", total=self.refine_steps)

            def show(step: int) -> None:
                bar.update(task, completed=step)
                if step % CHECK_EVERY == 0 or step == self.refine_steps:
                    file.write(kept | {"refinement": refinement.state()})

            show(refinement.step)
            refinement.run(self.refine_steps, show)

    def _of_call(self, checkpoint: Path) -> dict[str, Any]:
        """What has to be the same for another call to go on: not the bound, which may turn out to be too strict."""
        settings = dataclasses.asdict(self)
        for key in ("load_config", "output_dir", "device", "max_psnr_drop"):
            settings.pop(key)
        return settings | {"run": file_hash(checkpoint)}

    def _check(self) -> None:
        """Refuse settings that cannot be used, before anything is loaded."""
        if self.resolution < 2:
            raise UsageError(f"--resolution {self.resolution}: expected at least 2 cells")
        if not math.isfinite(self.max_psnr_drop):
            raise UsageError(f"--max-psnr-drop {self.max_psnr_drop}: expected a number of dB")
        for flag, value, least in (
            ("--downscale-factor", self.downscale_factor, 1),
            ("--num-samples", self.num_samples, 1),
            ("--refine-steps", self.refine_steps, 0),
            ("--refine-num-rays", self.refine_num_rays, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{flag} {value}: expected at least {least}")
        if self.output_dir.exists() and not (self.output_dir.is_dir() and not any(self.output_dir.iterdir())):
            raise UsageError(f"--output-dir {self.output_dir}: exists already, expected a folder to be made")


def _refuse_others(path: Path, config: TrainerConfig) -> None:
    if not isinstance(settings_of(config.pipeline.model), EUGenNerfModelConfig | EUGenZipNerfModelConfig):
        expected = "eugen-nerf, eugen-zipnerf or a student of theirs"
        raise UsageError(f"{path}: method {config.method_name!r} has no grid of what is occupied, expected {expected}")


def _random_rays(cameras: Cameras, generator: torch.Generator) -> RayBundle:
    """Through pixels of cameras, NUM_RAYS at most, as many as there are pixels where these are fewer."""
    pixels = (cameras.height * cameras.width)[:, 0]
    count = min(NUM_RAYS, int(pixels.sum()))
    view, row, column = torch.rand(3, count, generator=generator, device=cameras.device, dtype=torch.float64)
    view = (view * len(cameras)).long()
    row, column = (row * cameras.height[view, 0]).long(), (column * cameras.width[view, 0]).long()
    return RayGenerator(cameras)(torch.stack([view, row, column], dim=-1))


class Trial:
    """Views on which it is tried what rendering by a grid loses, and how fast it is.

    Args:
        teacher: of a model with a grid.
        chosen: the numbers of the views.
    """

    def __init__(self, teacher: NerfTeacher, views: Views, chosen: Sequence[int]) -> None:
        self.teacher, self.model = teacher, teacher.model
        self.own_count = max(teacher.samples_per_ray.values())
        """Samples of a ray that the field which renders has without a grid."""
        self._cameras = [views.camera(index).to(self.model.device) for index in chosen]
        self._targets = [teacher.blend(views.reference(index)).to(self.model.device) for index in chosen]

    def psnr(self, skipping: bool) -> float:
        """Their mean PSNR in dB."""
        self.teacher.set_skipping(skipping)
        pairs = zip(self._cameras, self._targets, strict=True)
        return statistics.fmean(image_metrics(self.teacher.render(camera), target)["psnr"] for camera, target in pairs)

    def psnr_at(self, num_samples: int, spread: float) -> float:
        """The same by the grid, with so many samples of a ray."""
        self.place_samples(num_samples, spread)
        return self.psnr(skipping=True)

    def place_samples(self, num_samples: int, spread: float) -> None:
        """Give a ray so many samples, and choose how evenly they are spread."""
        own = self.model.config.occupancy
        self.model.config.occupancy = dataclasses.replace(own, num_samples=num_samples, spread=spread)

    def times(self) -> dict[str, float]:
        """Median seconds of views without and with skipping, rendered in turn, and the median of their ratios."""
        turns = [
            [self._seconds(camera, skipping) for skipping in (False, True)]
            for camera in self._cameras
            for _ in range(TIMED_TURNS)
        ]
        dense, skipped = (statistics.median(column) for column in zip(*turns, strict=True))
        return {
            "seconds_dense": dense,
            "seconds_skipped": skipped,
            "speedup": statistics.median(own / other for own, other in turns),
        }

    def _seconds(self, camera: Cameras, skipping: bool) -> float:
        self.teacher.set_skipping(skipping)
        return self.teacher.timed_render(camera)[1]
