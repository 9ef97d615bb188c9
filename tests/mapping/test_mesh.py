"""The zero level of a field as triangles: of a sphere, whose surface is known."""

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor, nn

from eugen3d.mapping import SdfQuery
from eugen3d.mapping.mesh import count_blocks, find_blocks, keep_near, march, march_box


class Sphere(nn.Module):
    """The exact distance to a sphere of radius 0.7 around (0.2, 0, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return (x - torch.tensor([0.2, 0.0, 0.0])).norm(dim=-1) - self.radius


def test_marching_a_sphere_gives_its_closed_surface() -> None:
    query = SdfQuery(Sphere())
    lower, upper = np.array([-0.6, -0.8, -0.8]), np.array([1.0, 0.8, 0.8])
    vertices, faces = march(query, lower, 0.04, find_blocks(query, lower, upper, 0.04, np.inf))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    radii = np.linalg.norm(vertices - [0.2, 0, 0], axis=1)
    assert np.abs(radii - 0.7).max() < 5e-4
    assert mesh.is_watertight and mesh.is_winding_consistent, "blocks meet without a seam"
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.343, rel=0.01), "positive: faces look outside"
    assert count_blocks(lower, upper, 0.04).tolist() == [2, 2, 2]


def test_blocks_that_cannot_hold_surface_are_left_out() -> None:
    query, lower, upper = SdfQuery(Sphere()), np.full(3, -3.0), np.full(3, 3.0)
    every, some = (find_blocks(query, lower, upper, 0.05, max_slope) for max_slope in (np.inf, 1.0))
    assert len(every) == 64 and 8 <= len(some) < 48
    for ours, theirs in zip(march(query, lower, 0.05, some), march(query, lower, 0.05, every), strict=True):
        assert len(ours) == len(theirs) > 100


def test_where_there_is_no_surface_there_are_no_triangles() -> None:
    query, lower = SdfQuery(Sphere()), np.full(3, 2.0)
    vertices, faces = march(query, lower, 0.1, find_blocks(query, lower, lower + 1, 0.1, np.inf))
    assert vertices.shape == (0, 3) and faces.shape == (0, 3)


def test_surface_far_from_what_was_seen_is_cut_off() -> None:
    whole = march(SdfQuery(Sphere()), np.full(3, -1.0), 0.08, np.zeros((1, 3), int))
    vertices, faces = keep_near(whole, np.array([[0.9, 0.0, 0.0]]), 0.3)
    assert 0 < len(faces) < 0.2 * len(whole[1])
    assert (np.linalg.norm(vertices - [0.9, 0, 0], axis=1) <= 0.3).all()
    assert set(faces.ravel()) == set(range(len(vertices)))


def test_a_box_has_the_voxels_it_is_asked_for() -> None:
    query, lower = SdfQuery(Sphere()), np.array([-0.6, -0.8, -0.8])
    vertices, faces = march_box(query, lower, 0.1, (16, 16, 16))
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
    half, _ = march_box(query, lower, 0.1, (8, 16, 16))
    assert half[:, 0].max() == pytest.approx(0.2, abs=1e-6) and vertices[:, 0].max() > 0.85
    rest, _ = march_box(query, lower, 0.1, (8, 16, 16), np.array([8, 0, 0]))
    assert rest[:, 0].min() == pytest.approx(0.2, abs=1e-6), "the next box begins where the first ends"
