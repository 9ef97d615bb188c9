"""The zero level of a field of signed distance as triangles: marching cubes, block after block."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 32
"""Voxels of a block a side."""

Triangles = tuple[np.ndarray, np.ndarray]
"""Vertices (n, 3) in metres and faces (m, 3), counter-clockwise seen from outside."""


class Distances(Protocol):
    """A field of signed distance, such as an `SdfQuery`."""

    def distance(self, points: Tensor) -> Tensor:
        """Signed distances (n,) at points (n, 3)."""
        ...


def count_blocks(lower: np.ndarray, upper: np.ndarray, voxel: float) -> np.ndarray:
    """How many blocks a box takes along every axis, (3,)."""
    return np.maximum(np.ceil((upper - lower) / (BLOCK * voxel) - 1e-9), 1).astype(int)


def find_blocks(query: Distances, lower: np.ndarray, upper: np.ndarray, voxel: float, max_slope: float) -> np.ndarray:
    """Indices (n, 3) of the blocks of a box that may hold surface.

    None can where the distance at a block's middle, over the largest slope, is more than half its diagonal.

    Args:
        lower, upper: the corners of the box, (3,), metres; the last blocks may reach beyond.
        voxel: side of a voxel, metres.
        max_slope: the largest slope that the field is taken to have, 1 for exact distances; infinite: all may.
    """
    blocks = np.stack(np.meshgrid(*map(np.arange, count_blocks(lower, upper, voxel)), indexing="ij"), axis=-1)
    blocks, side = blocks.reshape(-1, 3), BLOCK * voxel
    distance = query.distance(torch.from_numpy(lower + side * (blocks + 0.5)).float()).abs().numpy()
    return blocks[distance <= max_slope * side * np.sqrt(3) / 2]


def march(
    query: Distances, lower: np.ndarray, voxel: float, blocks: np.ndarray, advance: Callable[[], None] = lambda: None
) -> Triangles:
    """The surface in blocks of voxels, by marching cubes (Lewiner et al. 2003), one block's grid in memory at a time.

    Args:
        lower: where the first block begins, (3,), metres.
        voxel: side of a voxel, metres.
        blocks: (n, 3) indices.
        advance: called after every block.
    """
    vertices, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for block in blocks:
        inside, triangles = march_box(query, lower, voxel, (BLOCK, BLOCK, BLOCK), BLOCK * block)
        vertices.append(inside)
        faces.append(triangles + count)
        count += len(inside)
        advance()
    return _joined(np.concatenate(vertices), np.concatenate(faces), voxel)


def march_box(
    query: Distances, lower: np.ndarray, voxel: float, counts: tuple[int, int, int], first: np.ndarray | None = None
) -> Triangles:
    """The surface in one box of voxels, its whole grid in memory.

    Args:
        lower: where the grid begins, (3,), metres.
        voxel: side of a voxel, metres.
        counts: voxels along every axis.
        first: (3,), indices of the box's first voxel in the grid; None: zeros.
    """
    from skimage.measure import marching_cubes

    first = np.zeros(3, int) if first is None else first
    axes = [  # boxes that touch see the very same points there
        torch.from_numpy(lower[axis] + voxel * (first[axis] + np.arange(counts[axis] + 1))).float() for axis in range(3)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    values = query.distance(grid.view(-1, 3)).view(grid.shape[:3]).numpy()
    if not values.min() < 0 < values.max():
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="descent")
    return lower + voxel * (first + vertices), faces.astype(np.int64)


def keep_near(triangles: Triangles, points: np.ndarray, distance: float) -> Triangles:
    """The triangles whose corners are all within a distance of some of the points (n, 3)."""
    from scipy.spatial import KDTree

    vertices, faces = triangles
    is_near = np.isfinite(KDTree(points).query(vertices, distance_upper_bound=distance)[0])
    return _used(vertices, faces[is_near[faces].all(axis=1)])


def _joined(vertices: np.ndarray, faces: np.ndarray, voxel: float) -> Triangles:
    """The same with vertices that two blocks have in common made one, and triangles left out that this closes up."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    if not len(vertices):
        return vertices, faces
    first, second = KDTree(vertices).query_pairs(1e-3 * voxel, output_type="ndarray").T
    links = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(vertices),) * 2)
    _, group = connected_components(links, directed=False)
    _, representative = np.unique(group, return_index=True)
    faces = group[faces]
    is_open = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return _used(vertices[representative], faces[is_open])


def _used(vertices: np.ndarray, faces: np.ndarray) -> Triangles:
    kept, inverse = np.unique(faces, return_inverse=True)
    return vertices[kept], inverse.reshape(faces.shape)
