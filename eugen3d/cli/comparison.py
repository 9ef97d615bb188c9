"""Runs side by side on the same views: loaded, checked against each other, rendered in turn and measured.

What is rendered are the folded models, in float32. Runs are timed in turn: all of them on one view, then all on the
next, another one first each time, so that a machine that slows down slows all of them.
"""

import hashlib
import math
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import first_line
from eugen3d.cli.renders import Record, RenderStore, file_hash, fingerprint
from eugen3d.cli.runs import UsageError, folder_names, load_run, resolve_device
from eugen3d.cli.teachers import NerfTeacher, teacher_of
from eugen3d.cli.views import Crop, Split, choose_evenly, load_views, match_files
from eugen3d.metrics.image import image_metrics
from eugen3d.metrics.lpips import LpipsMetric, LpipsNet, LpipsUnavailableError, find_backbone, load_lpips
from eugen3d.runtime import Backend
from eugen3d.runtime.machine import synchronize

WARM_UP_RAYS = 1024


@dataclass
class ComparisonConfig:
    """Which runs are compared, and on what."""

    load_config: tuple[Path, ...]
    """The runs' config.yml, the one that the others are compared with first."""
    names: tuple[str, ...] = ()
    """Short names of the runs, in the same order; by default the names of their folders."""
    num_images: int | None = None
    """How many views are rendered, evenly chosen; by default all of the split."""
    downscale_factor: int = 1
    """Divides both sides of the views."""
    crop: Crop | None = None
    """x0 y0 width height: the part of the (reduced) views to render."""
    split: Split = "test"
    """Which images of the scene."""
    background_color: Literal["white", "black"] | None = None
    """What lies behind the scene; by default what the runs were trained with."""
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    """cpu or cuda."""
    runtime: Backend = "eager"
    """How the folded fields are evaluated."""
    skip: bool = True
    """Whether runs that `eugen3d bake` has given a grid skip what it says is empty."""
    threads: int | None = None
    """Threads on a CPU; by default torch's choice."""
    lpips_net: LpipsNet = "alex"
    """The backbone of LPIPS."""
    lpips_backbone: Path | None = None
    """The backbone's weights as torchvision has them; by default those in torch hub's cache."""

    def run_names(self) -> list[str]:
        """The names of the runs; folders of one name are told apart by a number."""
        return list(self.names) or folder_names(self.load_config)

    def check(self) -> None:
        """Refuse what no run could be compared with."""
        if not self.load_config:
            raise UsageError("--load-config: found nothing, expected at least one run's config.yml")
        names, runs = self.run_names(), len(self.load_config)
        if len(names) != runs:
            raise UsageError(f"--names: found {len(names)} names, expected one for each of the {runs} runs")
        for name in names:
            if names.count(name) > 1 or not name or name.startswith(".") or "/" in name or "\\" in name:
                raise UsageError(f"--names {name!r}: expected names that differ and can name a folder")
        for flag, value in (("downscale-factor", self.downscale_factor), ("threads", self.threads)):
            if value is not None and value < 1:
                raise UsageError(f"--{flag} {value}: expected at least 1")


class Comparison:
    """The runs of one call, loaded and checked against each other.

    Raises:
        UsageError: a run cannot be loaded, or the runs cannot be compared.
    """

    def __init__(self, settings: ComparisonConfig, store: RenderStore, console: Console) -> None:
        settings.check()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings, self.store, self.console = settings, store, console
        self.device = resolve_device(settings.device)
        self.names = settings.run_names()
        self.lpips, self.lpips_reason = self._load_lpips()
        overrides = {"background_color": settings.background_color} if settings.background_color else {}
        self.runs = [load_run(path, settings.device, "inference", **overrides) for path in settings.load_config]
        self.models = [teacher_of(run) for run in self.runs]
        for model in self.models:
            model.set_runtime(settings.runtime)
            model.set_skipping(settings.skip)
        self.background_color = self._background_color()
        self.views = [load_views(r, settings.split, settings.downscale_factor, settings.crop) for r in self.runs]
        match_files(self.names, self.views)
        self.indices = choose_evenly(len(self.views[0].files), settings.num_images)
        resolutions = [self.views[0].resolution(index) for index in self.indices]
        self.resolution = resolutions[0]
        if self.lpips and min(map(min, resolutions)) < self.lpips.min_side:
            self.lpips_reason = f"the views are under {self.lpips.min_side} pixels a side, too small for its backbone"
            self.lpips = None

    def run(self) -> dict[str, Any]:
        """Measure every view of every run, or take what an earlier call measured, and return the result."""
        records: list[list[Record]] = []
        fingerprints = [self._run_fingerprint(index) for index in range(len(self.runs))]
        reused, is_warm = 0, False
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as progress:
            task = progress.add_task("rendering", total=len(self.indices) * len(self.runs))
            for turn, index in enumerate(self.indices):
                file, reference = self.views[0].files[index], self._reference(index)
                reference_hash = hashlib.sha256(reference.numpy().tobytes()).hexdigest()
                keys = [fingerprint([part, file, reference_hash]) for part in fingerprints]
                found = [self.store.read(name, file, key) for name, key in zip(self.names, keys, strict=True)]
                kept = [record for record in found if record is not None]
                if len(kept) == len(self.runs) and len({record.turn for record in kept}) == 1:
                    reused += 1
                    records.append(kept)
                    progress.advance(task, len(self.runs))
                    continue
                if not is_warm:
                    progress.update(task, description="warming up")
                    self._warm_up(index)
                    progress.update(task, description="rendering")
                    is_warm = True
                records.append(self._measure(turn, file, reference, keys, lambda: progress.advance(task)))
        if reused:
            views = "view" if len(self.indices) == 1 else "views"
            self.console.print(f"reused {reused} of {len(self.indices)} {views} from {self.store.folder}")
        return self._result([list(column) for column in zip(*records, strict=True)])

    def _measure(
        self, turn: int, file: str, reference: Tensor, keys: list[str], advance: Callable[[], None]
    ) -> list[Record]:
        """Render one view with every run, another one first each turn, then compute the metrics and keep them."""
        count, turn_id = len(self.runs), uuid.uuid4().hex
        rendered: dict[int, tuple[Tensor, float]] = {}
        for position in range(count):
            which = (turn + position) % count
            camera = self.views[which].camera(self.views[which].files.index(file))
            rendered[which] = _render(self.models[which], camera.to(self.device))
            advance()
        records = []
        for which, (rgb, seconds) in sorted(rendered.items()):
            target = self.blended(which, reference).to(rgb.device)
            lpips = self.lpips(rgb, target) if self.lpips else None
            record = Record(key=keys[which], turn=turn_id, seconds=seconds, lpips=lpips, **image_metrics(rgb, target))
            self.store.write(self.names[which], file, record, rgb)
            records.append(record)
        return records

    def _reference(self, index: int) -> Tensor:
        """The reference image of a view; refused where the runs do not all have the same."""
        file, first = self.views[0].files[index], self.views[0].reference(index)
        for name, views in zip(self.names[1:], self.views[1:], strict=True):
            image = views.reference(views.files.index(file))
            if image.shape != first.shape or not torch.equal(image, first):
                sizes = f"{_size(image)} and {_size(first)} pixels" if image.shape != first.shape else "other pixels"
                raise UsageError(f"{file}: {name} and {self.names[0]} have different images ({sizes})")
        return first

    def blended(self, which: int, image: Tensor) -> Tensor:
        """A reference image over the background of a run."""
        return self.models[which].blend(image)

    def _warm_up(self, index: int) -> None:
        """Render a strip with every run, untimed: fields are folded, compiled and in the cache afterwards."""
        file = self.views[0].files[index]
        for name, model, views in zip(self.names, self.models, self.views, strict=True):
            camera = views.camera(views.files.index(file))
            rows = min(int(camera.height), math.ceil(WARM_UP_RAYS / int(camera.width)))
            camera.height = torch.full_like(camera.height, rows)
            try:
                _render(model, camera.to(self.device))
            except RuntimeError as error:
                runtime = self.settings.runtime
                if runtime == "eager":
                    raise
                raise UsageError(f"--runtime {runtime}: {name} cannot be compiled ({first_line(error)})") from None

    def _load_lpips(self) -> tuple[LpipsMetric | None, str | None]:
        try:
            return load_lpips(self.settings.lpips_net, self.settings.lpips_backbone).to(self.device), None
        except LpipsUnavailableError as error:
            if self.settings.lpips_backbone:
                raise UsageError(f"--lpips-backbone {error}") from None
            return None, str(error)

    def _background_color(self) -> str:
        """The colour that all runs render over; where it is random in training, they render over black."""
        colors = [model.background_color for model in self.models]
        for name, color in zip(self.names, colors, strict=True):
            if color != colors[0]:
                raise UsageError(
                    f"runs have different backgrounds: {self.names[0]} {colors[0]}, {name} {color}; "
                    "give --background-color white or black"
                )
        return colors[0]

    def _run_fingerprint(self, which: int) -> str:
        """What the numbers of a run depend on, apart from the view."""
        settings, run = self.settings, self.runs[which]
        backbone = find_backbone(settings.lpips_net, settings.lpips_backbone) if self.lpips else None
        return fingerprint(
            {
                "checkpoint": file_hash(run.checkpoint),
                "config": file_hash(settings.load_config[which]),
                "lpips": [settings.lpips_net, file_hash(backbone)] if backbone else None,
                "conditions": [device_name(self.device), versions(self.device), settings.runtime, settings.skip],
                "views": [settings.split, settings.downscale_factor, settings.crop, self.background_color],
            }
        )

    def _result(self, records: list[list[Record]]) -> dict[str, Any]:
        settings, data = self.settings, Path(self.runs[0].config.data or "").resolve()
        return {
            "device": device_name(self.device),
            "precision": "float32",
            "scene": data.name if data.is_dir() else data.parent.name,
            "split": settings.split,
            "background_color": self.background_color,
            "resolution": list(self.resolution),
            "crop": list(settings.crop) if settings.crop else None,
            "versions": versions(self.device),
            "date": now(),
            "threads": torch.get_num_threads(),
            "skip": settings.skip,
            "runs": [self._run_result(which, own, records[0]) for which, own in enumerate(records)],
        }

    def _run_result(self, which: int, records: list[Record], first: list[Record]) -> dict[str, Any]:
        """One run's entry; its speedup is the median of the views' ratios of seconds."""
        cost, run = self.models[which].cost(), self.runs[which]
        files = [self.views[0].files[index] for index in self.indices]
        return {
            "name": self.names[which],
            "method": run.config.method_name,
            **{key: _mean([getattr(record, key) for record in records]) for key in ("psnr", "ssim", "lpips")},
            "lpips_reason": self.lpips_reason,
            "num_parameters": cost.num_parameters,
            "checkpoint_bytes": run.checkpoint.stat().st_size,
            "flops_per_sample": cost.flops_per_sample,
            "seconds_per_frame": statistics.median(record.seconds for record in records),
            "speedup": statistics.median(a.seconds / b.seconds for a, b in zip(first, records, strict=True)),
            "images": [
                {"file": file, "psnr": _finite(r.psnr), "ssim": _finite(r.ssim), "lpips": _finite(r.lpips)}
                for file, r in zip(files, records, strict=True)
            ],
        }


def _render(model: NerfTeacher, camera: Cameras) -> tuple[Tensor, float]:
    """The picture (height, width, 3) that a camera takes, and the seconds that it took."""
    device = torch.device(camera.device)
    synchronize(device)
    start = time.perf_counter()
    rgb = model.render(camera)
    synchronize(device)
    return rgb, time.perf_counter() - start


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return _finite(statistics.fmean(numbers)) if numbers else None


def _finite(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it, as for the PSNR of equal images."""
    return value if value is not None and math.isfinite(value) else None


def _size(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
