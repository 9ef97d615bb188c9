"""Surface normals from depth images, at single pixels: whole images of them are never needed, nor kept."""

import torch
from torch import Tensor

from eugen3d.datasets.depth_frame import DepthFrame

REACH = 2
"""Pixels between a pixel and its neighbours: directly beside it the noise of the depth would be all that counts."""
RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
"""The eight neighbours, rows and columns, all the way round."""


def normals_at(frame: DepthFrame, rows: Tensor, columns: Tensor) -> Tensor:
    """Unit normals (n, 3) in world axes, on the camera's side; NaN where the depth around a pixel tells none.

    Of the eight pairs of neighbours a quarter turn apart, the pair that is nearest to the pixel in space spans the
    surface: across an edge of the depth it is far.

    Args:
        rows, columns: (n,) int64.
    """
    here = _points(frame, rows, columns)
    ring = torch.stack([_points(frame, rows + REACH * i, columns + REACH * j) for i, j in RING]) - here
    quarter = ring.roll(-2, dims=0)
    spread = torch.nan_to_num(ring.norm(dim=-1) + quarter.norm(dim=-1), nan=torch.inf)
    best = spread.argmin(dim=0)
    each = torch.arange(len(rows), device=rows.device)
    normals = torch.linalg.cross(ring[best, each], quarter[best, each])
    normals = normals / normals.norm(dim=-1, keepdim=True)  # NaN where the three are on a line, too
    facing = torch.where((normals * here).sum(dim=-1, keepdim=True) > 0, -normals, normals)
    return facing @ frame.camera_to_world[:, :3].T


def _points(frame: DepthFrame, rows: Tensor, columns: Tensor) -> Tensor:
    """Points (n, 3) of pixels in camera axes; NaN outside the image and where there is no measurement."""
    height, width = frame.depth.shape
    fx, fy, cx, cy = frame.intrinsics
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    depth = frame.depth[rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    depth = torch.where(inside & (depth > 0), depth, torch.nan)
    return torch.stack([depth * (columns + 0.5 - cx) / fx, -depth * (rows + 0.5 - cy) / fy, -depth], dim=-1)
