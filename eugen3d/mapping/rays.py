"""Rays of depth images and the samples on them.

Symbols: a pixel's direction d has length 1 along the optical axis, so that origin + z·d is the point at depth z and
‖d‖·Δz the metres that a step Δz in depth is.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.mapping.config import RaySamplingConfig
from eugen3d.mapping.normals import normals_at

BLOCKS = 8
"""Blocks of an image a side, whose losses active sampling goes by."""


class Rays(NamedTuple):
    """Rays of one or several frames."""

    origins: Tensor
    """(n, 3), metres."""
    directions: Tensor
    """(n, 3), of length 1 along the optical axis."""
    depth: Tensor
    """(n,), of the surface, metres along the optical axis."""
    normals: Tensor
    """(n, 3), unit, of the surface, on the camera's side; NaN where there is none."""
    blocks: Tensor
    """(n,), the block of the image that the pixel stands in, row by row."""

    @staticmethod
    def cat(parts: "list[Rays]") -> "Rays":
        """The rays of all parts, in order."""
        return Rays(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Samples(NamedTuple):
    """Samples on rays, the one on the surface first."""

    depth: Tensor
    """(n, samples), metres along the optical axis."""
    points: Tensor
    """(n, samples, 3), metres."""


def rays_at(frame: DepthFrame, rows: Tensor, columns: Tensor) -> Rays:
    """The rays through pixels of a frame.

    Args:
        rows, columns: (n,) int64.
    """
    fx, fy, cx, cy = frame.intrinsics
    right, up = (columns + 0.5 - cx) / fx, -(rows + 0.5 - cy) / fy
    in_camera = torch.stack([right, up, -torch.ones_like(right)], dim=-1)
    rotation, origin = frame.camera_to_world[:, :3], frame.camera_to_world[:, 3]
    height, width = frame.depth.shape
    return Rays(
        origin.expand(len(rows), 3),
        in_camera @ rotation.T,
        frame.depth[rows, columns],
        normals_at(frame, rows, columns),
        rows * BLOCKS // height * BLOCKS + columns * BLOCKS // width,
    )


def draw_rays(
    frame: DepthFrame, count: int, config: RaySamplingConfig, generator: torch.Generator, losses: Tensor | None = None
) -> Rays:
    """Rays through random pixels of a frame; those without a usable measurement or a normal are left out.

    Args:
        losses: (64,), mean loss of the image's blocks, by which pixels are drawn where sampling is active.
        generator: on the CPU.
    """
    height, width = frame.depth.shape
    if config.pixels == "active" and losses is not None and losses.sum() > 0:
        blocks = torch.multinomial(losses.cpu(), count, replacement=True, generator=generator)
        within = torch.rand(2, count, generator=generator)
        rows = ((blocks // BLOCKS + within[0]) / BLOCKS * height).long().clamp(max=height - 1)
        columns = ((blocks % BLOCKS + within[1]) / BLOCKS * width).long().clamp(max=width - 1)
    else:
        rows = torch.randint(height, (count,), generator=generator)
        columns = torch.randint(width, (count,), generator=generator)
    device = frame.depth.device
    rays = rays_at(frame, rows.to(device), columns.to(device))
    usable = (rays.depth > config.min_depth) & (rays.depth <= config.max_depth) & rays.normals.isfinite().all(dim=-1)
    return Rays(*(tensor[usable] for tensor in rays))


def draw_samples(rays: Rays, config: RaySamplingConfig, generator: torch.Generator) -> Samples:
    """Samples on rays: the surface, around it, and one in each of equal parts up to behind it, in this order."""
    count, device = len(rays.depth), rays.depth.device
    surface, end = rays.depth[:, None], rays.depth[:, None] + config.behind_surface
    around = config.surface_std * torch.randn(count, config.num_surface_samples, generator=generator).to(device)
    near = torch.minimum((surface + around).clamp(min=config.min_depth), end)
    parts = config.num_stratified_samples
    jitter = torch.rand(count, parts, generator=generator).to(device)
    share = (torch.arange(parts, device=device) + jitter) / parts
    depth = torch.cat([surface, near, config.min_depth + share * (end - config.min_depth)], dim=1)
    return Samples(depth, rays.origins[:, None] + depth[..., None] * rays.directions[:, None])
