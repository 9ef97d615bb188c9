"""Depth frames fused into a truncated signed distance function: the classical way to a surface, a baseline of fields.

Curless & Levoy, "A volumetric method for building complex models from range images" (1996): every voxel holds the
weighted mean of the distances along the optical axis from it to what the frames measured at its pixel, truncated. The
grid is dense and the surface scikit-image's marching cubes: enough to compare with, and no dependency more.

Symbols: D the running mean, as a share of the truncation t; W the sum of the weights, here the number of measurements;
d = measured depth - depth of the voxel, metres, positive before the surface.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes
from torch import Tensor

from eugen3d.mapping import TraceConfig
from eugen3d.mapping.mesh import Triangles
from eugen3d.metrics.triangle_mesh import TriangleMesh
from eugen3d.metrics.visibility import DepthView, project, unproject

SLAB_VOXELS = 1 << 20
"""Voxels that are updated at a time, which bounds the memory between the steps."""


class TsdfVolume:
    """A dense grid of voxels over a box.

    Args:
        lower: the box's least corner (3,), metres, where the first voxel's centre is.
        upper: its greatest; the last voxels may lie beyond.
        voxel: the distance between neighbouring centres, metres.
        truncation: t, metres.

    Attributes:
        tsdf: D, (nx, ny, nz) float32, -1 to 1; 0 where nothing was measured.
        weight: W, (nx, ny, nz) float32; 0 where nothing was measured.
    """

    def __init__(self, lower: Tensor, upper: Tensor, voxel: float, truncation: float) -> None:
        self.lower, self.voxel, self.truncation = lower.float(), voxel, truncation
        shape = grid_shape(lower, upper, voxel)
        self.tsdf, self.weight = torch.zeros(shape), torch.zeros(shape)

    def integrate(self, view: DepthView) -> None:
        """Take in a frame: the voxels of its picture with d >= -t, each with the measurement of the pixel it is in.

        D becomes (W D + min(d / t, 1)) / (W + 1), and W becomes W + 1: all measurements count the same, which served
        `data/room` better than weights that fall with the depth.
        """
        first, last = self._range_of(view)
        depth = view.depth.reshape(-1)
        rows = max(SLAB_VOXELS // max(int((last - first)[1:].prod()), 1), 1)
        for start in range(int(first[0]), int(last[0]), rows):
            ends = [(start, min(start + rows, int(last[0]))), *zip(first[1:].tolist(), last[1:].tolist(), strict=True)]
            slab = tuple(slice(*pair) for pair in ends)
            axes = [self.lower[axis] + self.voxel * torch.arange(*pair) for axis, pair in enumerate(ends)]
            points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
            pixel, z, inside = project(points.view(-1, 3), view)
            measured = depth[pixel]
            share = (measured - z) / self.truncation
            seen = inside & (measured > 0) & (share >= -1)
            added = seen.float().view(points.shape[:3])
            self.weight[slab] += added
            step = (share.clamp(max=1.0).view(added.shape) - self.tsdf[slab]) * added
            self.tsdf[slab] += step / self.weight[slab].clamp(min=1.0)

    def triangles(self) -> Triangles:
        """The zero level in the cubes whose eight corners were all measured, none where there is none."""
        nothing = np.zeros((0, 3)), np.zeros((0, 3), np.int64)
        known, tsdf = (self.weight > 0).numpy(), self.tsdf.numpy()
        for axis in range(3):
            ahead = np.roll(known, 1, axis)  # marching cubes asks the mask at the last corner of a cube
            ahead[(slice(None),) * axis + (0,)] = False
            known = known & ahead
        if not known.any() or not tsdf.min() < 0 < tsdf.max():
            return nothing
        try:
            vertices, faces, _, _ = marching_cubes(tsdf, 0.0, gradient_direction="descent", mask=known)
        except RuntimeError:  # no surface in these cubes
            return nothing
        return self.lower.double().numpy() + self.voxel * vertices.astype(np.float64), faces.astype(np.int64)

    def is_inside(self, points: Tensor) -> Tensor:
        """Whether D is negative at points (n, 3), linearly interpolated between the voxels that were measured.

        Where none of them was, space counts as free.
        """
        index = ((points.double() - self.lower.double()) / self.voxel).numpy().T
        values = map_coordinates(self.tsdf.numpy(), index, order=1, mode="grid-constant", cval=0.0)
        return torch.from_numpy(values < 0)

    def _range_of(self, view: DepthView) -> tuple[Tensor, Tensor]:
        """The first voxel (3,) that a frame can change, and the one behind the last."""
        lower, upper = reach(view, self.truncation)
        camera = view.camera_to_world[:, 3]
        half_pixel = 0.5 * float(view.depth.max() + self.truncation) / min(view.intrinsics[:2])
        lower, upper = torch.minimum(lower, camera) - half_pixel, torch.maximum(upper, camera) + half_pixel
        end = torch.tensor(self.tsdf.shape)
        first = ((lower - self.lower) / self.voxel).floor().long().clamp(min=0)
        last = ((upper - self.lower) / self.voxel).ceil().long() + 1
        return torch.minimum(first, end), torch.minimum(last.clamp(min=0), end)


@dataclass(frozen=True)
class FusedMesh(TriangleMesh):
    """The surface of a volume as a field to measure.

    The signed distance is the Euclidean one to the fused surface, as planners compute it: D is along the optical axis
    and truncated, which would do the baseline wrong. Its sign is that of D, which knows where the open surface has its
    solid; where nothing was measured, and farther than t behind a surface, space counts as free.

    Args:
        volume: what the triangles are the surface of.
    """

    volume: TsdfVolume

    @classmethod
    def of(cls, volume: TsdfVolume) -> "FusedMesh":
        """The mesh of a volume.

        Raises:
            ValueError: it has no surface.
        """
        return cls(*volume.triangles(), volume)

    def contains(self, points: Tensor) -> Tensor:
        """Whether D is negative at points (n, 3)."""
        return self.volume.is_inside(points)

    def trace(self, origins: Tensor, directions: Tensor, config: TraceConfig) -> tuple[Tensor, Tensor]:
        """Where rays meet the triangles, in the form of `eugen3d.mapping.trace_rays`.

        Args:
            origins: (n, 3), metres.
            directions: (n, 3), unit.
            config: between which planes.
        """
        near = config.near_plane
        distance = near + self.first_hits(origins + near * directions, directions)
        is_hit = distance < config.far_plane
        return distance.clamp(max=config.far_plane), is_hit

    distance = TriangleMesh.signed_distance
    distance_and_gradient = TriangleMesh.signed_distance_and_gradient


def grid_shape(lower: Tensor, upper: Tensor, voxel: float) -> tuple[int, int, int]:
    """How many voxels a box takes along every axis."""
    x, y, z = (((upper - lower).double() / voxel - 1e-6).ceil().clamp(min=1).long() + 1).tolist()
    return x, y, z


def reach(view: DepthView, margin: float) -> tuple[Tensor, Tensor]:
    """The corners (3,) of the box around what a frame measured, and up to so many metres of depth before and behind it.

    Args:
        view: a frame with a measurement.
    """
    pixels = view.depth.nonzero()
    depth = view.depth[pixels[:, 0], pixels[:, 1]]
    points = torch.cat([unproject(view, pixels, depth + offset) for offset in (-margin, margin)])
    return points.amin(dim=0), points.amax(dim=0)


def enclosing(boxes: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The corners of the box around boxes, at least one."""
    lower, upper = zip(*boxes, strict=True)
    return torch.stack(lower).amin(dim=0), torch.stack(upper).amax(dim=0)
