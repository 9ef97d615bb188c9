"""`eugen3d bench fusion`: TSDF fusion of an RGB-D sequence beside eugen-isdf's fields, measured in the same frames."""

import json
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from eugen3d.cli.bench.fusion_view import table
from eugen3d.cli.bench.measured import MeasuredSoFar
from eugen3d.cli.bench.tsdf import FusedMesh, TsdfVolume, enclosing, grid_shape, reach
from eugen3d.cli.conditions import device_name, load_average, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.export_mesh import FORMATS, encode_mesh
from eugen3d.cli.files import write_whole
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.runs import folder_names
from eugen3d.cli.sdf_mesh import mesh_of_run
from eugen3d.cli.sdf_runs import SdfRun, load_sdf_run
from eugen3d.datasets import BadFrameError, DepthFrame
from eugen3d.datasets.depth_datamanager import DepthDataManager, DepthDataManagerConfig
from eugen3d.mapping import TraceConfig, trace_rays
from eugen3d.metrics.triangle_mesh import TriangleMesh
from eugen3d.models.isdf_evaluation import SdfEvaluationConfig, field_errors, load_truth, surface_errors

CPU = torch.device("cpu")
FUSION = "tsdf-fusion"
MAX_VOXELS = 1 << 27
"""A grid of so many takes 1 GiB, and marching cubes about as much again."""
TRUNCATION_VOXELS = 4.0
Row = dict[str, Any]


@dataclass
class BenchFusion:
    """Fuse the frames that a run of eugen-isdf trains on, and measure the fused surface and runs on those it does not.

    Measured is what `ns-eval` measures of a run, at the same pixels and points, and the mesh. Depth of the fused
    surface is where rays meet it; its signed distances are Euclidean, with the sign of the truncated ones.
    """

    data: Path
    """The sequence's folder."""
    runs: tuple[Path, ...] = ()
    """config.yml of runs of eugen-isdf on the same frames, measured beside it."""
    voxel: float = 0.03
    """Side of a voxel in metres, of the fusion and of the runs' meshes."""
    truncation: float | None = None
    """How far from a surface distances are kept, in metres; by default four voxels."""
    eval_interval: int = 10
    """Every how manieth frame is not fused but measured on, as in the runs."""
    frame_step: int = 1
    """Every how manieth frame of the folder the sequence has, as in the runs."""
    evaluation: SdfEvaluationConfig = field(default_factory=SdfEvaluationConfig)
    """Where is measured."""
    output: Path | None = None
    """A JSON file for the result. What is measured is kept beside it until it is written: interrupted, the same call on
    the same machine goes on from there."""
    mesh: Path | None = None
    """A .ply, .obj or .glb file for the fused surface."""

    def main(self) -> None:
        """Run the command."""
        self.check()
        runs = {name: load_sdf_run(path, "cpu") for name, path in self._named_runs()}
        for run in runs.values():
            self._check_split(run)
        console = Console()
        steps = {name: run.step for name, run in runs.items()}
        measured = MeasuredSoFar.open(self.output, self._conditions() | {"steps": steps})
        if len(measured):
            console.print(f"going on from {measured.path}", highlight=False, soft_wrap=True)
        result = self._measure(runs, measured)
        if self.output:
            write_whole(self.output, json.dumps(result, indent=2) + "\n")
        measured.remove()
        console.print(table(result))
        for name, run in runs.items():
            if run.data is None or run.data.resolve() != self.data.resolve():
                console.print(f"{name} was trained on {run.data}", style="yellow", highlight=False, soft_wrap=True)
        for path in filter(None, (self.output, self.mesh)):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)

    def check(self) -> None:
        """Refuse settings that cannot be used, before anything is loaded."""
        if not (math.isfinite(self.voxel) and self.voxel > 0):
            raise UsageError(f"--voxel {self.voxel}: expected a positive number of metres")
        if self.truncation is not None and not (math.isfinite(self.truncation) and self.truncation >= self.voxel):
            raise UsageError(f"--truncation {self.truncation}: expected at least a voxel of {self.voxel} m")
        for flag, value, least in (("eval-interval", self.eval_interval, 2), ("frame-step", self.frame_step, 1)):
            if value < least:
                raise UsageError(f"--{flag} {value}: expected at least {least}")
        if self.output is not None and self.output.is_dir():
            raise UsageError(f"--output {self.output}: is a folder, expected a file's name")
        if self.mesh is not None and (self.mesh.suffix not in FORMATS or self.mesh.is_dir()):
            raise UsageError(f"--mesh {self.mesh}: expected a file's name that ends in one of {', '.join(FORMATS)}")

    def _named_runs(self) -> list[tuple[str, Path]]:
        return list(zip(folder_names(self.runs), self.runs, strict=True))

    def _check_split(self, run: SdfRun) -> None:
        """Refuse a run that may have seen the frames that are measured on, and one without a mesh's bounds."""
        for flag in ("eval_interval", "frame_step"):
            found, expected = getattr(run.config.pipeline.datamanager, flag), getattr(self, flag)
            if found != expected:
                name = f"--{flag.replace('_', '-')}"
                raise UsageError(f"{run.config_path}: was trained with {flag} {found}, expected {expected} as {name}")
        if not len(run.surface):
            raise UsageError(f"{run.config_path}: its checkpoint holds no keyframes, expected those that it saw")

    def _conditions(self) -> dict[str, Any]:
        """What the measurements depend on."""
        settings = {key: value for key, value in asdict(self).items() if key != "output"}
        return {
            "hardware": device_name(CPU),
            "threads": torch.get_num_threads(),
            "versions": versions(CPU),
            "settings": json.loads(json.dumps(settings, default=str)),
        }

    def _measure(self, runs: dict[str, SdfRun], measured: MeasuredSoFar) -> dict[str, Any]:
        load, source = load_average(), self._source()
        frames = list(source.eval_frames())
        if not frames:
            raise UsageError(f"--data {self.data}: has no frame to measure on, expected every {self.eval_interval}th")
        try:
            truth = load_truth(self.data)
        except ValueError as error:
            raise UsageError(str(error)) from None
        with progress_bar() as bar:
            shown = bar.add_task("contestants", total=1 + len(runs))
            contest = Contest(frames, truth, self.evaluation)
            fused = measured.take(FUSION, lambda: self._fuse(source, contest, bar))
            bar.advance(shown)
            rows = [fused["row"]]
            for name, run in runs.items():
                rows.append(measured.take(f"run {name}", partial(self._measure_run, name, run, contest, bar)))
                bar.advance(shown)
        return {"date": now(), "load_average": load, **self._conditions(), "volume": fused["volume"], "rows": rows}

    def _source(self) -> DepthDataManager:
        """The frames, split as those of a run."""
        return DepthDataManager(
            DepthDataManagerConfig(data=self.data, eval_interval=self.eval_interval, frame_step=self.frame_step)
        )

    def _fuse(self, source: DepthDataManager, contest: "Contest", bar: Progress) -> dict[str, Any]:
        volume = self._empty_volume(source, bar)
        assert source.sequence is not None
        shown, seconds = bar.add_task("fusing frames", total=len(source.sequence)), []
        for frame in training_frames(source):
            start = time.perf_counter()
            volume.integrate(frame)
            seconds.append(time.perf_counter() - start)
            bar.update(shown, completed=source.position)
        bar.remove_task(shown)
        if not seconds:
            raise UsageError(f"--data {self.data}: none of its frames can be fused, {source.num_skipped} were skipped")
        try:
            surface = FusedMesh.of(volume)
        except ValueError:
            raise UsageError(f"--data {self.data}: its frames fuse to no surface, expected a smaller --voxel") from None
        errors = field_errors(surface, partial(surface.trace, config=TraceConfig()), contest.frames, *contest.against)
        row = _row(FUSION, statistics.median(seconds), surface, errors | contest.mesh_errors(FUSION, surface))
        if self.mesh:
            content = encode_mesh((surface.vertices, surface.faces), surface.vertex_normals, self.mesh.suffix)
            write_whole(self.mesh, content)
        about = {
            "shape": list(volume.tsdf.shape),
            "bytes": volume.tsdf.nbytes + volume.weight.nbytes,
            "truncation": volume.truncation,
            "num_frames": len(seconds),
        }
        return {"row": row, "volume": about}

    def _empty_volume(self, source: DepthDataManager, bar: Progress) -> TsdfVolume:
        """A volume around all that the sequence measured, with free space before it and what may be known behind it.

        Bad frames are counted when they are fused.
        """
        assert source.sequence is not None
        truncation = TRUNCATION_VOXELS * self.voxel if self.truncation is None else self.truncation
        boxes = []
        shown = bar.add_task("bounds of frames", total=len(source.sequence))
        for index in range(len(source.sequence)):
            with suppress(BadFrameError):
                boxes.append(reach(source.sequence[index], truncation))
            bar.advance(shown)
        bar.remove_task(shown)
        lower, upper = enclosing(boxes)
        shape = grid_shape(lower, upper, self.voxel)
        if math.prod(shape) > MAX_VOXELS:
            size = " x ".join(map(str, shape))
            raise UsageError(f"--voxel {self.voxel}: takes a grid of {size}, expected one of {MAX_VOXELS:,} at most")
        return TsdfVolume(lower, upper, self.voxel, truncation)

    def _measure_run(self, name: str, run: SdfRun, contest: "Contest", bar: Progress) -> Row:
        query = run.model.query()
        surface = TriangleMesh(*mesh_of_run(run, query, self.voxel, bar))
        trace = partial(trace_rays, query, config=run.model.config.trace)
        errors = field_errors(query, trace, contest.frames, *contest.against)
        return _row(name, None, surface, errors | contest.mesh_errors(name, surface))


@dataclass(frozen=True)
class Contest:
    """What all contestants are measured on."""

    frames: list[DepthFrame]
    truth: TriangleMesh | None
    config: SdfEvaluationConfig

    @property
    def against(self) -> tuple[TriangleMesh | None, SdfEvaluationConfig]:
        """The last arguments of `field_errors`."""
        return self.truth, self.config

    def mesh_errors(self, name: str, surface: TriangleMesh) -> dict[str, float]:
        """The errors of a contestant's mesh; none where the truth is not known."""
        if self.truth is None:
            return {}
        try:
            return surface_errors(surface, self.truth, self.frames, self.config)
        except ValueError as error:
            raise UsageError(f"{name}: its mesh cannot be measured in the frames' view ({error})") from None


def training_frames(source: DepthDataManager) -> Iterator[DepthFrame]:
    """The frames of a sequence that a run trains on, in their order, without bad ones."""
    while not source.is_over:
        if (frame := source.next_frame()) is not None:
            yield frame


def _row(name: str, seconds: float | None, surface: TriangleMesh, errors: dict[str, float | None]) -> Row:
    return {
        "name": name,
        "seconds_per_frame": seconds,
        "num_vertices": len(surface.vertices),
        "num_faces": len(surface.faces),
        "metrics": errors,
    }
