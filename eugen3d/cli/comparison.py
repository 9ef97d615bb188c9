"""Runs side by side on the same views: loaded, checked against each other, rendered in turn and measured.

What is rendered are the folded models, in float32. Runs are timed in turn: all of them on one view, then all on the
next, another one first each time, so that a machine that slows down slows all of them. Smaller scales of the views show
aliasing: a reference's pixel is the mean of what it covers, a renderer that samples its centre misses the rest.
"""

import dataclasses
import hashlib
import math
import statistics
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from eugen3d.cli.comparison_settings import ComparisonConfig
from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import first_line
from eugen3d.cli.renders import Record, RenderStore, file_hash, fingerprint
from eugen3d.cli.runs import UsageError, load_run, resolve_device
from eugen3d.cli.teachers import teacher_of
from eugen3d.cli.views import Views, choose_evenly, load_views, match_files
from eugen3d.metrics.image import image_metrics
from eugen3d.metrics.lpips import LpipsMetric, LpipsUnavailableError, find_backbone, load_lpips

WARM_UP_RAYS = 1024


@dataclass(frozen=True)
class Scale:
    """What runs are compared on at one of the scales."""

    scale: int
    views: list[Views]
    """Those of each run."""
    resolution: tuple[int, int]
    """Width and height of the first view that is rendered."""
    lpips: LpipsMetric | None
    lpips_reason: str | None


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
        lpips = self._load_lpips()
        overrides = {"background_color": settings.background_color} if settings.background_color else {}
        self.runs = [load_run(path, settings.device, "inference", **overrides) for path in settings.load_config]
        self.models = [teacher_of(run) for run in self.runs]
        for model in self.models:
            model.set_runtime(settings.runtime)
            model.set_skipping(settings.skip)
        self.background_color = self._background_color()
        views = [load_views(r, settings.split, settings.downscale_factor, settings.crop) for r in self.runs]
        match_files(self.names, views)
        self.indices = choose_evenly(len(views[0].files), settings.num_images)
        self.files = [views[0].files[index] for index in self.indices]
        self.scales = [self._at_scale(views, scale, *lpips) for scale in settings.scales]

    def run(self) -> dict[str, Any]:
        """Measure every view of every run at every scale, or take what an earlier call measured; return the result."""
        records: list[list[list[Record]]] = []
        count, reused = len(self.scales) * len(self.indices), 0
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as progress:
            task = progress.add_task("rendering", total=count * len(self.runs))
            for at in self.scales:
                fingerprints = [self._run_fingerprint(which, at) for which in range(len(self.runs))]
                of_scale, is_warm = [], False
                for file, index in zip(self.files, self.indices, strict=True):
                    reference = self._reference(at, index)
                    reference_hash = hashlib.sha256(reference.numpy().tobytes()).hexdigest()
                    keys = [fingerprint([part, file, reference_hash]) for part in fingerprints]
                    kept = self._kept(at, file, keys)
                    if kept is not None:
                        reused += 1
                        of_scale.append(kept)
                        progress.advance(task, len(self.runs))
                        continue
                    if not is_warm:
                        progress.update(task, description="warming up")
                        self._warm_up(at, index)
                        progress.update(task, description="rendering")
                        is_warm = True
                    turn = len(records) * len(self.indices) + len(of_scale)
                    of_scale.append(self._measure(at, turn, file, reference, keys, lambda: progress.advance(task)))
                records.append(of_scale)
        if reused:
            views = "view" if count == 1 else "views"
            self.console.print(f"reused {reused} of {count} {views} from {self.store.folder}")
        return self._result(records)

    def _kept(self, at: Scale, file: str, keys: list[str]) -> list[Record] | None:
        """What an earlier call measured on a view, where that was all runs in one turn."""
        found = [self.store.read(name, file, at.scale, key) for name, key in zip(self.names, keys, strict=True)]
        kept = [record for record in found if record is not None]
        return kept if len(kept) == len(self.runs) and len({record.turn for record in kept}) == 1 else None

    def _measure(
        self, at: Scale, turn: int, file: str, reference: Tensor, keys: list[str], advance: Callable[[], None]
    ) -> list[Record]:
        """Render one view with every run, another one first each turn, then compute the metrics and keep them."""
        count, turn_id = len(self.runs), uuid.uuid4().hex
        rendered: dict[int, tuple[Tensor, float]] = {}
        for position in range(count):
            which = (turn + position) % count
            camera = at.views[which].camera(at.views[which].files.index(file))
            rendered[which] = self.models[which].timed_render(camera.to(self.device))
            advance()
        records = []
        for which, (rgb, seconds) in sorted(rendered.items()):
            target = self.blended(which, reference).to(rgb.device)
            lpips = at.lpips(rgb, target) if at.lpips else None
            record = Record(key=keys[which], turn=turn_id, seconds=seconds, lpips=lpips, **image_metrics(rgb, target))
            self.store.write(self.names[which], file, at.scale, record, rgb)
            records.append(record)
        return records

    def _reference(self, at: Scale, index: int) -> Tensor:
        """The reference image of a view; refused where the runs do not all have the same."""
        file, first = at.views[0].files[index], at.views[0].reference(index)
        for name, views in zip(self.names[1:], at.views[1:], strict=True):
            image = views.reference(views.files.index(file))
            if image.shape != first.shape or not torch.equal(image, first):
                sizes = f"{_size(image)} and {_size(first)} pixels" if image.shape != first.shape else "other pixels"
                raise UsageError(f"{file}: {name} and {self.names[0]} have different images ({sizes})")
        return first

    def blended(self, which: int, image: Tensor) -> Tensor:
        """A reference image over the background of a run."""
        return self.models[which].blend(image)

    def _warm_up(self, at: Scale, index: int) -> None:
        """Render a strip with every run, untimed: fields are folded, compiled and in the cache afterwards."""
        file = at.views[0].files[index]
        for name, model, views in zip(self.names, self.models, at.views, strict=True):
            camera = views.camera(views.files.index(file))
            rows = min(int(camera.height), math.ceil(WARM_UP_RAYS / int(camera.width)))
            camera.height = torch.full_like(camera.height, rows)
            try:
                model.timed_render(camera.to(self.device))
            except RuntimeError as error:
                runtime = self.settings.runtime
                if runtime == "eager":
                    raise
                raise UsageError(f"--runtime {runtime}: {name} cannot be compiled ({first_line(error)})") from None

    def _at_scale(self, views: list[Views], scale: int, lpips: LpipsMetric | None, reason: str | None) -> Scale:
        """The views at one scale; LPIPS is left out where they are too small for its backbone."""
        own = [dataclasses.replace(of_run, scale=scale) for of_run in views]
        resolutions = [own[0].resolution(index) for index in self.indices]
        if lpips and min(map(min, resolutions)) < lpips.min_side:
            reason = f"the views are under {lpips.min_side} pixels a side, too small for its backbone"
            lpips = None
        return Scale(scale, own, resolutions[0], lpips, reason)

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

    def _run_fingerprint(self, which: int, at: Scale) -> str:
        """What the numbers of a run depend on, apart from the view."""
        settings, run = self.settings, self.runs[which]
        backbone = find_backbone(settings.lpips_net, settings.lpips_backbone) if at.lpips else None
        factor = settings.downscale_factor * at.scale
        return fingerprint(
            {
                "checkpoint": file_hash(run.checkpoint),
                "config": file_hash(settings.load_config[which]),
                "lpips": [settings.lpips_net, file_hash(backbone)] if backbone else None,
                "conditions": [
                    *(device_name(self.device), versions(self.device), settings.runtime),
                    *([] if settings.skip else ["nothing skipped"]),
                ],
                "views": [settings.split, factor, settings.crop, self.background_color],
            }
        )

    def _result(self, records: list[list[list[Record]]]) -> dict[str, Any]:
        """The result of what was measured at every scale, on every view, of every run."""
        settings, data = self.settings, Path(self.runs[0].config.data or "").resolve()
        return {
            "device": device_name(self.device),
            "precision": "float32",
            "scene": data.name if data.is_dir() else data.parent.name,
            "split": settings.split,
            "background_color": self.background_color,
            "resolution": list(self.scales[0].resolution),
            "crop": list(settings.crop) if settings.crop else None,
            "versions": versions(self.device),
            "date": now(),
            "threads": torch.get_num_threads(),
            "skip": settings.skip,
            "runs": [self._run_result(which, records) for which in range(len(self.runs))],
        }

    def _run_result(self, which: int, records: list[list[list[Record]]]) -> dict[str, Any]:
        """One run's entry: what was measured at the first scale, the cost, then every scale by itself."""
        cost, run = self.models[which].cost(), self.runs[which]
        scales = [self._scale_result(which, at, own) for at, own in zip(self.scales, records, strict=True)]
        first = scales[0]
        return {
            "name": self.names[which],
            "method": run.config.method_name,
            **{key: first[key] for key in ("psnr", "ssim", "lpips", "lpips_reason")},
            "num_parameters": cost.num_parameters,
            "checkpoint_bytes": run.checkpoint.stat().st_size,
            "flops_per_sample": cost.flops_per_sample,
            **{key: first[key] for key in ("seconds_per_frame", "speedup", "images")},
            "scales": scales,
        }

    def _scale_result(self, which: int, at: Scale, records: list[list[Record]]) -> dict[str, Any]:
        """One run at one scale; its speedup is the median of the views' ratios of seconds."""
        own = [of_view[which] for of_view in records]
        return {
            "scale": at.scale,
            "resolution": list(at.resolution),
            **{key: _mean([getattr(record, key) for record in own]) for key in ("psnr", "ssim", "lpips")},
            "lpips_reason": at.lpips_reason,
            "seconds_per_frame": statistics.median(record.seconds for record in own),
            "speedup": statistics.median(of_view[0].seconds / of_view[which].seconds for of_view in records),
            "images": [
                {"file": file, "psnr": _finite(r.psnr), "ssim": _finite(r.ssim), "lpips": _finite(r.lpips)}
                for file, r in zip(self.files, own, strict=True)
            ],
        }


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return _finite(statistics.fmean(numbers)) if numbers else None


def _finite(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it, as for the PSNR of equal images."""
    return value if value is not None and math.isfinite(value) else None


def _size(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
