"""The zero level of a field of signed distance as triangles: marching cubes, block after block."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from eugen3d.mapping import SdfQuery

BLOCK = 32
"""Voxels of a block a side."""

Triangles = tuple[np.ndarray, np.ndarray]
"""Vertices (n, 3) in metres and faces (m, 3), counter-clockwise seen from outside."""


def num_blocks(lower: np.ndarray, upper: np.ndarray, voxel: float) -> int:
    """How many blocks a box takes."""
    return int(np.prod(_block_counts(lower, upper, voxel)))


def march(
    query: SdfQuery,
    lower: np.ndarray,
    upper: np.ndarray,
    voxel: float,
    max_slope: float,
    advance: Callable[[], None] = lambda: None,
) -> Triangles:
    """The surface inside a box, by marching cubes (Lewiner et al. 2003) on a grid of voxels.

    One block's grid is in memory at a time. A block is left out where the distance at its middle, over the largest
    slope, is more than half its diagonal: no surface can be in it.

    Args:
        lower, upper: the corners of the box, (3,), metres; the last block may reach beyond.
        voxel: side of a voxel, metres.
        max_slope: the largest slope that the field is taken to have, 1 for exact distances; infinite: no block is left
            out.
        advance: called after every block.
    """
    side = BLOCK * voxel
    vertices, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for corner in _corners(lower, upper, voxel):
        middle = torch.from_numpy((corner + side / 2)[None]).float()
        if abs(float(query.distance(middle))) <= max_slope * side * np.sqrt(3) / 2:
            block, triangles = _march_block(query, corner, voxel)
            vertices.append(block)
            faces.append(triangles + count)
            count += len(block)
        advance()
    return _joined(np.concatenate(vertices), np.concatenate(faces), voxel)


def keep_near(triangles: Triangles, points: np.ndarray, distance: float) -> Triangles:
    """The triangles whose corners are all within a distance of some of the points (n, 3)."""
    from scipy.spatial import cKDTree

    vertices, faces = triangles
    is_near = np.isfinite(cKDTree(points).query(vertices, distance_upper_bound=distance)[0])
    return _used(vertices, faces[is_near[faces].all(axis=1)])


def _block_counts(lower: np.ndarray, upper: np.ndarray, voxel: float) -> np.ndarray:
    return np.maximum(np.ceil((upper - lower) / (BLOCK * voxel) - 1e-9), 1).astype(int)


def _corners(lower: np.ndarray, upper: np.ndarray, voxel: float) -> Iterator[np.ndarray]:
    for index in itertools.product(*map(range, _block_counts(lower, upper, voxel))):
        yield lower + BLOCK * voxel * np.array(index)


def _march_block(query: SdfQuery, corner: np.ndarray, voxel: float) -> Triangles:
    from skimage.measure import marching_cubes

    axes = [torch.from_numpy(start + voxel * np.arange(BLOCK + 1)).float() for start in corner]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    values = query.distance(grid.view(-1, 3)).view(grid.shape[:3]).numpy()
    if not values.min() < 0 < values.max():
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    vertices, faces, _, _ = marching_cubes(values, 0.0, spacing=(voxel,) * 3, gradient_direction="ascent")
    return vertices + corner, faces.astype(np.int64)


def _joined(vertices: np.ndarray, faces: np.ndarray, voxel: float) -> Triangles:
    """The same with vertices that two blocks have in common made one, and triangles left out that this closes up."""
    _, first, inverse = np.unique(np.round(vertices / (1e-3 * voxel)), axis=0, return_index=True, return_inverse=True)
    faces = inverse.reshape(-1)[faces]
    is_open = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    return _used(vertices[first], faces[is_open])


def _used(vertices: np.ndarray, faces: np.ndarray) -> Triangles:
    kept, inverse = np.unique(faces, return_inverse=True)
    return vertices[kept], inverse.reshape(faces.shape)
