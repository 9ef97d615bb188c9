"""Colours of a mesh's vertices from the pictures of the frames that see them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.metrics.visibility import project

SEEN_WITHIN = 0.05
"""A vertex is what a pixel shows if its depth is within so many metres of the measured one, or within"""
SEEN_WITHIN_SHARE = 0.02
"""this share of it where that is more: sensors and fields are less sure of what is far."""
UNSEEN = 0.5
"""The grey of vertices that no picture shows."""


def vertex_colors(vertices: np.ndarray, normals: np.ndarray, frames: Iterable[DepthFrame]) -> tuple[np.ndarray, int]:
    """Colours (n, 4) uint8, opaque sRGB, of vertices (n, 3) in metres with unit normals (n, 3), and how many are seen.

    A vertex has the mean colour of the frames that see it, weighted by cos θ / z²: the share of a frame's picture that
    the surface around it takes, so that near and straight views count most. Frames without a picture are left out.
    """
    points, facing = torch.from_numpy(vertices).double(), torch.from_numpy(normals).double()
    total, weights = torch.zeros(len(points), 3, dtype=torch.float64), torch.zeros(len(points), dtype=torch.float64)
    for frame in frames:
        if frame.rgb is None:
            continue
        weight, pixel = _weights(points, facing, frame)
        total += weight[:, None] * frame.rgb.reshape(-1, 3)[pixel].double()
        weights += weight
    is_seen = weights > 0
    mean = total[is_seen] / weights[is_seen, None]
    colors = torch.full((len(points), 4), 255 * UNSEEN, dtype=torch.float64)
    colors[is_seen, :3], colors[:, 3] = mean, 255.0
    return colors.round().to(torch.uint8).numpy(), int(is_seen.sum())


def _weights(points: Tensor, normals: Tensor, frame: DepthFrame) -> tuple[Tensor, Tensor]:
    """How much a frame shows of points, 0 where it does not, and the pixels (n,) that they are at."""
    pixel, z, is_inside = project(points, frame)
    measured = frame.depth.reshape(-1)[pixel].double()
    towards = torch.nn.functional.normalize(frame.camera_to_world[:, 3].double() - points, dim=1)
    cosine = (towards * normals).sum(dim=1)
    tolerance = (SEEN_WITHIN_SHARE * measured).clamp(min=SEEN_WITHIN)
    is_seen = is_inside & (measured > 0) & ((z - measured).abs() < tolerance) & (cosine > 0)
    return torch.where(is_seen, cosine / z.square().clamp(min=1e-12), 0.0), pixel


def to_linear(colors: np.ndarray) -> np.ndarray:
    """Colours (n, 4) uint8 with linear light instead of sRGB (IEC 61966-2-1), as glTF has those of vertices."""
    values = colors[:, :3] / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.column_stack([np.round(255.0 * linear), colors[:, 3]]).astype(np.uint8)
