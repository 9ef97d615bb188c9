"""A box room with a sphere in it, seen by a depth camera; its exact distances, and a small field."""

import math

import pytest
import torch
from torch import Tensor

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.fields import IsdfField, IsdfFieldConfig
from eugen3d.layers import EUGenConfig, LayerConfig


class Room:
    """A box around the origin, seen from inside, and a sphere in it."""

    half = torch.tensor([2.0, 1.5, 1.25])
    """Half its sides, metres."""
    centre, radius = torch.tensor([0.5, 0.0, -0.4]), 0.5
    """The sphere."""

    def distance(self, points: Tensor) -> Tensor:
        """The signed distance (n,) inside the room: to the nearest wall or the sphere."""
        walls = (self.half - points.abs()).min(dim=-1).values
        return torch.minimum(walls, (points - self.centre).norm(dim=-1) - self.radius)

    def frame(self, azimuth: float, side: int = 48, height: float = 0.0, time: float | None = None) -> DepthFrame:
        """What a camera of 90 degrees sees from a circle around the z axis, without noise."""
        pose = look(azimuth, height)
        focal, middle = side / 2, side / 2
        along = (torch.arange(side) + 0.5 - middle) / focal
        in_camera = torch.stack([*torch.meshgrid(along, -along, indexing="xy"), -torch.ones(side, side)], dim=-1)
        origin, directions = pose[:, 3], in_camera @ pose[:, :3].T
        to_walls = ((directions.sign() * self.half - origin) / directions).min(dim=-1).values
        length2, offset = directions.square().sum(dim=-1), origin - self.centre
        half_b = (directions * offset).sum(dim=-1)
        discriminant = half_b.square() - length2 * (offset.square().sum() - self.radius**2)
        to_sphere = (-half_b - discriminant.clamp(min=0).sqrt()) / length2
        hits = (discriminant > 0) & (to_sphere > 0)
        depth = torch.where(hits, torch.minimum(to_sphere, to_walls), to_walls)
        return DepthFrame(f"{azimuth:.2f}", depth, pose, (focal, focal, middle, middle), time=time)


def look(azimuth: float, height: float = 0.0, radius: float = 1.2) -> Tensor:
    """A camera (3, 4) on a circle around the z axis that looks at its middle; z is up."""
    back = torch.tensor([math.cos(azimuth), math.sin(azimuth), 0.0])
    up = torch.tensor([0.0, 0.0, 1.0])
    right = torch.linalg.cross(up, back)
    return torch.stack([right, up, back, radius * back + height * up], dim=1)


@pytest.fixture
def room() -> Room:
    """The room."""
    return Room()


@pytest.fixture
def small_field() -> IsdfField:
    """A field of three layers of 32, one of them EUGen, whose finest period is 1.6 m."""
    layer = LayerConfig("eugen", EUGenConfig(12, phi="softplus-100"))
    config = IsdfFieldConfig(3, 32, 0, 3, input_scale=1.0, layer=layer, replaced_layers=(1,))
    return IsdfField(config)
