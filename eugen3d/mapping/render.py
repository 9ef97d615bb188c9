"""Depth from a field of signed distance: from samples on rays, as a mapper tests frames, and by sphere tracing."""

import dataclasses

import torch
from torch import Tensor, nn

from eugen3d.mapping.config import RaySamplingConfig, TraceConfig
from eugen3d.mapping.query import SdfQuery
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


def trace_rays(query: SdfQuery, origins: Tensor, directions: Tensor, config: TraceConfig) -> tuple[Tensor, Tensor]:
    """Where rays meet the surface, by sphere tracing (Hart 1996).

    Approximate: the field's distances are, so a ray may end up to `tolerance` before the surface, or stop where it
    passes one so closely that its steps run out.

    Args:
        origins: (n, 3), metres.
        directions: (n, 3), unit.

    Returns:
        The distance (n,) along the ray to where it ended, `far_plane` where that is farther, and whether (n,) it met a
        surface there. A ray whose steps ran out ended near one.
    """
    distance = torch.full_like(origins[:, 0], config.near_plane)
    is_hit = torch.zeros_like(distance, dtype=torch.bool)
    active = torch.arange(len(origins), device=origins.device)
    for _ in range(config.num_steps):
        if not len(active):
            break
        steps = query.distance(origins[active] + distance[active, None] * directions[active])
        is_hit[active] = steps < config.tolerance
        moving = active[steps >= config.tolerance]
        distance[moving] += steps[steps >= config.tolerance]
        active = moving[distance[moving] < config.far_plane]
    return distance.clamp(max=config.far_plane), is_hit
