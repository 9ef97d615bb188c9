"""Depth from a field of signed distance: from samples on rays, as a mapper tests frames."""

import dataclasses

import torch
from torch import Tensor, nn

from eugen3d.mapping.config import RaySamplingConfig
from eugen3d.mapping.rays import Rays, draw_samples


@torch.no_grad()
def render_depth(
    field: nn.Module, rays: Rays, config: RaySamplingConfig, behind_surface: float, generator: torch.Generator
) -> Tensor:
    """Depth (n,) along the optical axis where rays go inside; 0 where no sample is.

    The first sample with a negative distance, moved back by that distance.

    Args:
        behind_surface: how far behind the measured surface samples reach, in metres.
    """
    samples = draw_samples(rays, dataclasses.replace(config, behind_surface=behind_surface), generator)
    depth, order = samples.depth.sort(dim=1)
    distance = field(samples.points.reshape(-1, 3)).view(depth.shape).gather(1, order)
    is_inside = distance < 0
    first = is_inside.int().argmax(dim=1, keepdim=True)
    found = (depth + distance / rays.directions.norm(dim=-1, keepdim=True)).gather(1, first).squeeze(1)
    return torch.where(is_inside.any(dim=1), found, 0.0)
