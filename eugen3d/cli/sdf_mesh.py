"""The surface of a run of eugen-isdf: where it is looked for, and what of it is kept."""

import math

import numpy as np
from rich.progress import Progress

from eugen3d.cli.errors import UsageError
from eugen3d.cli.sdf_runs import SdfRun
from eugen3d.mapping import SdfQuery
from eugen3d.mapping.mesh import Triangles, count_blocks, find_blocks, keep_near, march

Bounds = tuple[float, float, float, float, float, float]
"""x, y and z of the least corner of a box, then of the greatest, in metres."""
MARGIN = 0.1
"""How far beyond what was seen the mesh may reach by default, in metres."""
MAX_BLOCKS = 1_000_000
SEEN_WITHIN = 0.15
MAX_SLOPE = 2.0


def mesh_of_run(
    run: SdfRun,
    query: SdfQuery,
    voxel: float,
    bar: Progress,
    *,
    bounds: Bounds | None = None,
    seen_within: float = SEEN_WITHIN,
    max_slope: float = MAX_SLOPE,
) -> Triangles:
    """The zero level of a run's field as triangles, by marching cubes.

    Args:
        query: the run's field.
        voxel: side of a voxel in metres.
        bar: where the blocks are counted.
        bounds: the box to look in; None: around what the keyframes saw.
        seen_within: surface is kept within so many metres of what the keyframes saw, where they are known; inf: all is.
        max_slope: the largest slope that the field is taken to have; blocks are left out by it. inf: none is.

    Raises:
        UsageError: the box takes too many blocks, there is none, or no surface is in it.
    """
    lower, upper = _box(run, bounds)
    count = int(count_blocks(lower, upper, voxel).prod())
    if count > MAX_BLOCKS:
        size = " x ".join(f"{side:.3g}" for side in upper - lower)
        raise UsageError(f"--voxel {voxel}: a box of {size} m takes {count:,} blocks, expected a larger voxel")
    blocks = find_blocks(query, lower, upper, voxel, max_slope)
    shown = bar.add_task("blocks", total=len(blocks))
    triangles = march(query, lower, voxel, blocks, lambda: bar.advance(shown))
    bar.remove_task(shown)
    if len(run.surface) and math.isfinite(seen_within):
        triangles = keep_near(triangles, run.surface.numpy(), seen_within)
    if not len(triangles[1]):
        raise UsageError(f"{run.config_path}: its field has no surface in the box from {lower} to {upper}")
    return triangles


def _box(run: SdfRun, bounds: Bounds | None) -> tuple[np.ndarray, np.ndarray]:
    if bounds is not None:
        return np.array(bounds[:3]), np.array(bounds[3:])
    if not len(run.surface):
        raise UsageError(f"{run.config_path}: its checkpoint holds no keyframes, expected --bounds")
    surface = run.surface.double().numpy()
    return surface.min(axis=0) - MARGIN, surface.max(axis=0) + MARGIN
