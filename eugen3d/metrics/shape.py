"""How good a shape is that was fitted: distances between surfaces, normals, and what is inside.

Closest points, distances and signs are exact (see `TriangleMesh`); means are over random points. All lengths are in the
meshes' units.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from eugen3d.metrics.triangle_mesh import TriangleMesh

Field = Callable[[Tensor], Tensor]
"""Signed distances, or anything of their sign (negative in the solid), (n,) or (n, 1) at points (n, 3) float32."""
ENLARGEMENT = 1.1
"""How much longer than the bounding box's the sides of the box are that points are drawn in."""
CHUNK = 1 << 16
"""Points that a field is evaluated at at once."""


def shape_metrics(
    mesh: TriangleMesh, truth: TriangleMesh, *, num_samples: int = 100_000, seed: int = 0
) -> dict[str, float]:
    """Compare a mesh with the true one.

    - chamfer: the mean distance from points of the mesh to the truth, and that from the truth to the mesh; their mean.
    - chamfer_to_diagonal: chamfer in diagonals of the truth's bounding box.
    - normal_consistency: the mean |n·n'| of the normal n at a point of one mesh and n' of the face of the other that is
      closest to it (Mescheder et al. 2019, "Occupancy networks"), averaged over both ways; 1 where all are parallel.

    Args:
        mesh: what was found.
        truth: what should have been.
        num_samples: points drawn on each mesh, and in the box.
        seed: of the draws.
    """
    to_truth, forth = _distance_and_consistency(mesh, truth, num_samples, seed)
    to_mesh, back = _distance_and_consistency(truth, mesh, num_samples, seed)
    chamfer = 0.5 * (to_truth + to_mesh)
    return {
        "chamfer": chamfer,
        "chamfer_to_diagonal": chamfer / float(np.linalg.norm(np.ptp(truth.vertices, axis=0))),
        "normal_consistency": 0.5 * (forth + back),
    }


def solid_metrics(
    field: Field, truth: TriangleMesh, *, num_samples: int = 100_000, seed: int = 0
) -> dict[str, float | None]:
    """Compare the signs of a field with a closed mesh, at uniform points of its bounding box enlarged by 10 %.

    - iou: volume of the intersection over that of the union; None where neither holds a point.
    - sign_accuracy: the share of the points at which the sign is right.

    Args:
        field: what is judged; it is called with float32 on the CPU, without gradients being recorded.
        truth: the true solid.
        num_samples: points drawn.
        seed: of the draws.

    Raises:
        ValueError: the truth is closed and turned inside out.
    """
    lower, upper = truth.vertices.min(axis=0), truth.vertices.max(axis=0)
    offset = np.random.default_rng(seed).random((num_samples, 3)) - 0.5
    points = torch.from_numpy(0.5 * (lower + upper) + ENLARGEMENT * (upper - lower) * offset)
    with torch.no_grad():
        values = torch.cat([field(piece).reshape(-1).cpu() for piece in points.float().split(CHUNK)])
    found, true = values < 0.0, truth.contains(points)
    union = int((found | true).sum())
    return {
        "iou": int((found & true).sum()) / union if union else None,
        "sign_accuracy": float((found == true).double().mean()),
    }


def _distance_and_consistency(source: TriangleMesh, target: TriangleMesh, count: int, seed: int) -> tuple[float, float]:
    points, faces = source.sample_surface_and_faces(count, seed)
    distance, _, closest = target.closest(points)
    cosine = np.sum(source.normals[faces.numpy()] * target.normals[closest.numpy()], axis=1)
    return float(distance.mean()), float(np.abs(cosine).mean())
