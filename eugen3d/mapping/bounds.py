"""Bounds of the distance at samples, each with the direction in which the distance grows (Ortiz et al. 2022, III-B).

A depth image tells no distances, but the distance at a point cannot exceed that to any surface point that was seen.
Behind the surface bounds are negative.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eugen3d.mapping.config import SdfLossConfig
from eugen3d.mapping.rays import Rays, Samples

CHUNK = 4096
"""Samples that are compared with all surface points at a time."""


class Bounds(NamedTuple):
    """What is known of the distance at samples."""

    distance: Tensor
    """(n, samples), metres."""
    gradient: Tensor
    """(n, samples, 3), unit; the normal on the surface itself."""


def find_bounds(rays: Rays, samples: Samples, config: SdfLossConfig) -> Bounds:
    """The bounds by the configured method."""
    if config.bounds == "ray":
        return bounds_by_ray(rays, samples)
    if config.bounds == "normal":
        return bounds_by_normal(rays, samples, config.truncation)
    return bounds_by_nearest(rays, samples)


def bounds_by_ray(rays: Rays, samples: Samples) -> Bounds:
    """The distance along the ray to its own surface; the gradient points back to the camera."""
    length = rays.directions.norm(dim=-1, keepdim=True)
    gradient = (-rays.directions / length)[:, None].expand_as(samples.points).clone()
    gradient[:, 0] = rays.normals
    return Bounds(length * (rays.depth[:, None] - samples.depth), gradient)


def bounds_by_normal(rays: Rays, samples: Samples, truncation: float) -> Bounds:
    """The distance to the plane through the ray's surface, up to the truncation; beyond, as much less as it is there.

    With the angle θ between ray and normal: b cos θ where the ray's bound b is under the truncation t, else
    b − t (1 − cos θ), so that the bound is continuous.
    """
    by_ray = bounds_by_ray(rays, samples)
    cosine = torch.cosine_similarity(-rays.directions, rays.normals, dim=-1).abs()[:, None]
    near = by_ray.distance < truncation
    distance = torch.where(near, by_ray.distance * cosine, by_ray.distance - truncation * (1 - cosine))
    return Bounds(distance, by_ray.gradient)


@torch.no_grad()
def bounds_by_nearest(rays: Rays, samples: Samples) -> Bounds:
    """The distance to the nearest surface point of all rays; the gradient points away from it, behind the surface
    towards it."""
    surface = samples.points[:, 0]
    points = samples.points.reshape(-1, 3)
    nearest = torch.empty(len(points), dtype=torch.int64, device=points.device)
    for start in range(0, len(points), CHUNK):
        part = slice(start, start + CHUNK)
        nearest[part] = torch.cdist(points[part], surface).argmin(dim=1)
    away = (points - surface[nearest]).view_as(samples.points)  # formed anew: cdist rounds small distances away
    sign = torch.where(samples.depth > rays.depth[:, None], -1.0, 1.0)
    distance = away.norm(dim=-1)
    gradient = sign[..., None] * away / distance[..., None]
    gradient = torch.where(distance[..., None] > 0, gradient, rays.normals[:, None])
    gradient[:, 0] = rays.normals
    return Bounds(sign * distance, gradient)
