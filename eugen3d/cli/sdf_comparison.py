"""Runs of eugen-isdf side by side: errors on the same held-out frames, size, and the time of a query, taken in turn."""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nerfstudio.engine.trainer import TrainerConfig
from rich.console import Console
from torch import Tensor

from eugen3d.cli.comparison_settings import ComparisonConfig
from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.renders import encode_png, to_bytes
from eugen3d.cli.runs import find_scene
from eugen3d.cli.sdf_report import SdfView
from eugen3d.cli.sdf_runs import load_sdf_run
from eugen3d.cli.views import choose_evenly
from eugen3d.datasets import BadFrameError, DepthFrame, SceneError
from eugen3d.datasets.depth_datamanager import DepthDataManagerConfig
from eugen3d.mapping import trace_rays
from eugen3d.mapping.keyframes import frame_to
from eugen3d.mapping.normals import normals_at
from eugen3d.mapping.rays import rays_at
from eugen3d.metrics.cost import dense_parameters, flops_per_row
from eugen3d.metrics.visibility import sample_visible_volume
from eugen3d.models.isdf_evaluation import field_errors, frame_outputs, load_truth
from eugen3d.runtime.machine import synchronize

NUM_POINTS = 16_384
"""Points of a query that is timed."""
ROUNDS = 7
"""How often every run is timed; the first time does not count."""
OF_PICTURES = ("downscale_factor", "scales", "crop", "split", "background_color", "lpips_net", "lpips_backbone")


class HeldOut(NamedTuple):
    """Frames of a sequence that the first run was not trained on."""

    folder: Path
    frames: list[DepthFrame]


class SdfComparison:
    """The runs of one call, loaded.

    Raises:
        UsageError: a run cannot be loaded, or a flag is of no use for them.
    """

    def __init__(self, settings: ComparisonConfig, console: Console) -> None:
        for name in OF_PICTURES:
            if getattr(settings, name) != getattr(ComparisonConfig, name):
                raise UsageError(
                    f"--{name.replace('_', '-')}: found for runs of eugen-isdf, expected it to be left out"
                )
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings, self.console = settings, console
        self.names = settings.run_names()
        self.runs = [load_sdf_run(path, settings.device) for path in settings.load_config]
        self.held_out = _held_out(settings, self.runs[0].config)
        for path, run in zip(settings.load_config[1:], self.runs[1:], strict=True):
            if find_scene(path, run.data).resolve() != self.held_out.folder:
                raise UsageError(f"{path}: was trained on {run.data}, expected {self.held_out.folder} as the first run")
        for run in self.runs:
            run.model.config.runtime = settings.runtime
        self.queries = [run.model.query() for run in self.runs]

    def run(self) -> dict[str, Any]:
        """Measure all runs and return the result."""
        evaluation = self.runs[0].config.pipeline.evaluation  # pyright: ignore[reportAttributeAccessIssue]
        try:
            truth = load_truth(self.held_out.folder)
        except (SceneError, ValueError) as error:
            raise UsageError(str(error)) from None
        with progress_bar(self.console) as bar:
            shown = bar.add_task("measuring", total=len(self.runs) + ROUNDS)
            metrics = []
            for run, query in zip(self.runs, self.queries, strict=True):
                frames = [frame_to(frame, run.model.device) for frame in self.held_out.frames]
                trace = partial(trace_rays, query, config=run.model.config.trace)
                try:
                    metrics.append(field_errors(query, trace, frames, truth, evaluation))
                except ValueError as error:
                    raise UsageError(f"{run.config_path}: {error}") from None
                bar.advance(shown)
            bar.update(shown, description="timing")
            times = self._time(lambda: bar.advance(shown))
        first = times[0]
        return {
            "device": device_name(torch.device(self.settings.device)),
            "precision": "float32",
            "scene": self.held_out.folder.name,
            "num_frames": len(self.held_out.frames),
            "query_points": NUM_POINTS,
            "versions": versions(torch.device(self.settings.device)),
            "date": now(),
            "threads": torch.get_num_threads(),
            "runs": [self._run_result(which, metrics[which], times[which], first) for which in range(len(self.runs))],
        }

    def pictures(self, num_frames: int) -> list[SdfView]:
        """Some of the frames, evenly chosen, with what their cameras see of every run's surface."""
        views, frames = [], self.held_out.frames
        for index in choose_evenly(len(frames), min(num_frames, len(frames))):
            frame, renders, errors = frames[index], [], []
            for run in self.runs:
                outputs = frame_outputs(run.model, frame)
                renders.append(encode_png(to_bytes(outputs["normals"].cpu())))
                errors.append(_depth_error(outputs, frame))
            views.append(SdfView(frame.name, encode_png(to_bytes(_measured_normals(frame))), renders, errors))
        return views

    def _run_result(
        self, which: int, metrics: dict[str, float | None], times: list[list[float]], first: list[list[float]]
    ) -> dict[str, Any]:
        run, folded = self.runs[which], self.queries[which].folded
        own = {key: value for key, value in metrics.items() if key != "num_frames"}
        seconds = dict(zip(("query", "distance"), zip(*times, strict=True), strict=True))
        others = dict(zip(("query", "distance"), zip(*first, strict=True), strict=True))
        speedups = {
            key: statistics.median(a / b for a, b in zip(others[key], seconds[key], strict=True)) for key in seconds
        }
        return {
            "name": self.names[which],
            "method": run.config.method_name,
            **own,
            "num_parameters": sum(p.numel() for p in dense_parameters(folded)),
            "checkpoint_bytes": run.checkpoint.stat().st_size,
            "flops_per_sample": flops_per_row(folded),
            "seconds_per_query": statistics.median(seconds["query"]),
            "speedup": speedups["query"],
            "seconds_per_distance_query": statistics.median(seconds["distance"]),
            "distance_speedup": speedups["distance"],
        }

    def _time(self, advance: Callable[[], None]) -> list[list[list[float]]]:
        """Per run and round the seconds of distances with gradients, and of distances alone, by the folded fields.

        All runs are timed in turn, another one first each round.
        """
        points = sample_visible_volume(self.held_out.frames, NUM_POINTS // max(len(self.held_out.frames), 1) + 1)
        points = points[torch.randperm(len(points))[:NUM_POINTS]].to(self.settings.device)
        times: list[list[list[float]]] = [[] for _ in self.runs]
        for turn in range(ROUNDS):
            for position in range(len(self.runs)):
                which = (turn + position) % len(self.runs)
                query = self.queries[which]
                calls: list[Callable[[Tensor], Any]] = [query.distance_and_gradient, query.distance]
                seconds = [_seconds(call, points) for call in calls]
                if turn:
                    times[which].append(seconds)
            advance()
        return times


def _seconds(call: Callable[[Tensor], Any], points: Tensor) -> float:
    synchronize(points.device)
    start = time.perf_counter()
    call(points)
    synchronize(points.device)
    return time.perf_counter() - start


def _depth_error(outputs: dict[str, Tensor], frame: DepthFrame) -> float | None:
    """The mean |z - z'| of what a camera sees of a field, where there is a surface and a measurement."""
    height, width = frame.depth.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    length = rays_at(frame, rows.flatten(), columns.flatten()).directions.norm(dim=1).view(height, width)
    seen = (outputs["accumulation"][..., 0].cpu() > 0) & (frame.depth > 0)
    error = (outputs["depth"][..., 0].cpu() / length - frame.depth).abs()[seen]
    return float(error.mean()) if len(error) else None


def _measured_normals(frame: DepthFrame) -> Tensor:
    """The normals of a depth image as colours (height, width, 3), black where the depth tells none."""
    height, width = frame.depth.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    normals = normals_at(frame, rows.flatten(), columns.flatten()).view(height, width, 3)
    return torch.nan_to_num((normals + 1) / 2, nan=0.0)


def _held_out(settings: ComparisonConfig, config: TrainerConfig) -> HeldOut:
    """Frames that the first run was not trained on, as its datamanager chooses them."""
    path = settings.load_config[0]
    manager = config.pipeline.datamanager
    assert isinstance(manager, DepthDataManagerConfig)
    manager.data = find_scene(path, manager.data).resolve()
    if settings.num_images is not None:
        manager.max_eval_frames = sys.maxsize
    try:
        frames = list(manager.setup(device="cpu", test_mode="test").eval_frames())
    except (BadFrameError, SceneError) as error:
        raise UsageError(str(error)) from None
    if not frames:
        raise UsageError(f"{path}: its sequence has no frame for evaluation, expected an eval_interval that keeps some")
    return HeldOut(manager.data, [frames[index] for index in choose_evenly(len(frames), settings.num_images)])
