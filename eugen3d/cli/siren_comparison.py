"""Runs of eugen-siren side by side: how well each stands for the file, its size, and the time to decode it."""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from eugen3d.cli.comparison_settings import ComparisonConfig
from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.runs import find_scene
from eugen3d.cli.siren_exhibits import Exhibit, make_exhibits
from eugen3d.cli.siren_runs import SirenRun, load_siren_run
from eugen3d.datasets import SceneError
from eugen3d.datasets.signal_datamanager import SignalDataManagerConfig
from eugen3d.datasets.signals import SampledSignal, ShapeSignal, grid_coordinates, open_signal
from eugen3d.metrics.cost import dense_parameters, flops_per_row
from eugen3d.metrics.lpips import LpipsMetric, LpipsUnavailableError, load_lpips
from eugen3d.models.siren_evaluation import evaluate, fitted_images
from eugen3d.runtime.machine import synchronize

NUM_POINTS = 65_536
"""Points that are decoded for a timing, at most."""
ROUNDS = 7
"""How often every run is timed; the first time does not count."""
OF_VIEWS = ("num_images", "downscale_factor", "scales", "crop", "split", "background_color")
BYTES_PER_PARAMETER = 4
"""Of the folded network, in float32."""


class SirenComparison:
    """The runs of one call, loaded.

    Raises:
        UsageError: a run cannot be loaded, a flag is of no use for them, or they stand for other files.
    """

    def __init__(self, settings: ComparisonConfig, console: Console) -> None:
        for name in OF_VIEWS:
            if getattr(settings, name) != getattr(ComparisonConfig, name):
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag}: found for runs of eugen-siren, expected it to be left out")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings, self.console = settings, console
        self.names = settings.run_names()
        self.runs = [load_siren_run(path, settings.device) for path in settings.load_config]
        self.file = self._file(self.runs[0])
        for run in self.runs[1:]:
            if (other := self._file(run)) != self.file:
                raise UsageError(f"{run.config_path}: stands for {other}, expected {self.file} as the first run")
        manager = self.runs[0].config.pipeline.datamanager
        assert isinstance(manager, SignalDataManagerConfig)
        try:
            self.signal = open_signal(self.file, allow_open=manager.allow_open)
        except SceneError as error:
            raise UsageError(str(error)) from None
        for run in self.runs:
            run.model.config.runtime = settings.runtime
        self.lpips, self.lpips_reason = self._load_lpips()

    def run(self) -> dict[str, Any]:
        """Measure all runs and return the result."""
        evaluation = self.runs[0].config.pipeline.evaluation  # pyright: ignore[reportAttributeAccessIssue]
        with progress_bar(self.console) as bar:
            shown_ = bar.add_task("measuring", total=len(self.runs) + ROUNDS)
            metrics = []
            for run in self.runs:
                metrics.append(evaluate(run.model, self.signal, evaluation) | self._lpips_of(run))
                bar.advance(shown_)
            bar.update(shown_, description="timing")
            times = self._time(lambda: bar.advance(shown_))
        form = self.signal.format
        return {
            "device": device_name(torch.device(self.settings.device)),
            "precision": "float32",
            "signal": self.file.name,
            "kind": getattr(form, "kind", "shape"),
            "size": list(getattr(form, "size", ())),
            "file_bytes": form.num_bytes,
            "decoded_points": len(self._points()),
            "lpips_reason": self.lpips_reason,
            "versions": versions(torch.device(self.settings.device)),
            "date": now(),
            "threads": torch.get_num_threads(),
            "runs": [self._run_result(which, metrics[which], times) for which in range(len(self.runs))],
        }

    def exhibits(self) -> list[Exhibit]:
        """The file, then what every run makes of it."""
        models = [run.model for run in self.runs]
        return make_exhibits(self.signal, dict(zip(self.names, models, strict=True)))

    def _run_result(self, which: int, metrics: dict[str, float | None], times: list[list[float]]) -> dict[str, Any]:
        run = self.runs[which]
        folded = run.model.folded()
        count = sum(p.numel() for p in dense_parameters(folded))
        ratios = [one / own for one, own in zip(times[0], times[which], strict=True)]
        return {
            "name": self.names[which],
            "method": run.config.method_name,
            **{
                name: None if value is not None and not math.isfinite(value) else value
                for name, value in metrics.items()
            },
            "num_parameters": count,
            "folded_bytes": BYTES_PER_PARAMETER * count,
            "checkpoint_bytes": run.checkpoint.stat().st_size,
            "flops_per_sample": flops_per_row(folded),
            "seconds_per_decode": statistics.median(times[which]),
            "speedup": statistics.median(ratios),
        }

    def _points(self) -> Tensor:
        if isinstance(self.signal, ShapeSignal):
            return 2 * torch.rand(NUM_POINTS, 3, generator=torch.Generator().manual_seed(0)) - 1
        return grid_coordinates(self.signal.format.size, 0, NUM_POINTS)

    def _time(self, advance: Callable[[], None]) -> list[list[float]]:
        """Per run and round the seconds of values at points, by the folded fields, all runs in turn, another one first
        each round."""
        points = self._points().to(self.settings.device)
        times: list[list[float]] = [[] for _ in self.runs]
        for turn in range(ROUNDS):
            for position in range(len(self.runs)):
                which = (turn + position) % len(self.runs)
                synchronize(points.device)
                start = time.perf_counter()
                self.runs[which].model.values_at(points)
                synchronize(points.device)
                if turn:
                    times[which].append(time.perf_counter() - start)
            advance()
        return times

    @property
    def _has_pictures(self) -> bool:
        return isinstance(self.signal, SampledSignal) and self.signal.format.kind != "sound"

    def _lpips_of(self, run: SirenRun) -> dict[str, float | None]:
        """LPIPS of an image, or of a video's first frame; None where there is no backbone."""
        if not self._has_pictures:
            return {}
        if self.lpips is None:
            return {"lpips": None}
        images = fitted_images(run.model, self.signal)
        fitted, file = (images[name].to(self.settings.device) for name in ("fitted", "file"))
        return {"lpips": float(self.lpips(fitted, file))}

    def _load_lpips(self) -> tuple[LpipsMetric | None, str | None]:
        if not self._has_pictures:
            return None, None
        try:
            metric = load_lpips(self.settings.lpips_net, self.settings.lpips_backbone).to(self.settings.device)
        except LpipsUnavailableError as error:
            if self.settings.lpips_backbone:
                raise UsageError(f"--lpips-backbone {error}") from None
            return None, str(error)
        assert isinstance(self.signal, SampledSignal)
        if min(self.signal.format.size[-2:]) < metric.min_side:
            return None, f"the pictures are under {metric.min_side} pixels a side, too small for its backbone"
        return metric, None

    def _file(self, run: SirenRun) -> Path:
        manager = run.config.pipeline.datamanager
        assert isinstance(manager, SignalDataManagerConfig)
        return find_scene(run.config_path, manager.data).resolve()


def _finite(value: float | None) -> float | None:
    """A number that JSON can hold."""
    return value if value is not None and math.isfinite(value) else None
