"""`eugen3d query`: signed distances and gradients of a trained field at points from a file."""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console

from eugen3d.cli.errors import UsageError, first_line
from eugen3d.cli.files import write_whole
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.sdf_runs import load_sdf_run
from eugen3d.mapping import SdfQuery
from eugen3d.runtime import Backend

CHUNK = 1 << 16
"""Points that are read and evaluated at a time."""
Values = Literal["distance", "distance+gradient"]


@dataclass
class Query:
    """Signed distances in metres, negative behind surfaces, and their gradients, by the folded field of a run."""

    load_config: Path
    """The run's config.yml."""
    points: Path
    """An .npy file of points (n, 3) in metres, in the axes of the sequence's poses."""
    output: Path
    """The .npz file to write: distance (n,) and gradient (n, 3), float32."""
    values: Values = "distance+gradient"
    """What to write; gradients take about as long as the distances."""
    runtime: Backend = "eager"
    """How distances without gradients are evaluated."""
    device: str = "cpu"
    """cpu or cuda."""

    def main(self) -> None:
        """Run the command."""
        if self.output.suffix != ".npz" or self.output.is_dir():
            raise UsageError(f"--output {self.output}: expected the name of an .npz file")
        points = _open_points(self.points)
        query = SdfQuery(load_sdf_run(self.load_config, self.device).model.field, self.runtime)
        start = time.perf_counter()
        arrays = self._evaluate(query, points)
        seconds = time.perf_counter() - start
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
        write_whole(self.output, buffer.getvalue())
        console = Console(highlight=False)
        rate = f", {len(points) / seconds:,.0f} a second" if len(points) else ""
        console.print(f"{len(points):,} points in {seconds:.2f} s{rate}")
        if len(points):
            distance = arrays["distance"]
            console.print(f"distances from {distance.min():.3f} to {distance.max():.3f} m")
        console.print(f"wrote {self.output}", soft_wrap=True)

    def _evaluate(self, query: SdfQuery, points: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays to write; of the points one chunk at a time is in memory."""
        arrays = {"distance": np.empty(len(points), np.float32)}
        if self.values == "distance+gradient":
            arrays["gradient"] = np.empty((len(points), 3), np.float32)
        with progress_bar() as bar:
            shown = bar.add_task("points", total=len(points))
            for begin in range(0, len(points), CHUNK):
                part = slice(begin, begin + CHUNK)
                chunk = np.asarray(points[part], np.float32)
                bad = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
                if len(bad):
                    raise UsageError(f"--points {self.points}: point {begin + bad[0]} is not finite")
                tensor = torch.from_numpy(chunk)
                values = [query.distance(tensor)] if len(arrays) == 1 else query.distance_and_gradient(tensor)
                for array, value in zip(arrays.values(), values, strict=True):
                    array[part] = value.numpy()
                bar.advance(shown, len(chunk))
        return arrays


def _open_points(path: Path) -> np.ndarray:
    """The points (n, 3), left on the disk until they are looked at."""
    try:
        points = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"--points {path}: not found, expected an .npy file of points (n, 3)") from None
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"--points {path}: is no .npy file of points (n, 3) ({first_line(error)})") from None
    if not isinstance(points, np.ndarray):
        raise UsageError(f"--points {path}: holds several arrays, expected an .npy file of points (n, 3)")
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu":
        raise UsageError(f"--points {path}: found {points.dtype} of shape {points.shape}, expected numbers (n, 3)")
    return points
