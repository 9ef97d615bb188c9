"""Mesh against mesh, where the distances are known."""

import numpy as np
import pytest
import trimesh

from eugen3d.metrics.surface import surface_metrics
from eugen3d.metrics.triangle_mesh import TriangleMesh


def square(height: float, half: float = 1.0) -> TriangleMesh:
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    return TriangleMesh(np.column_stack([corners, np.full(4, height)]), np.array([(0, 1, 2), (0, 2, 3)]))


def test_parallel_squares_are_their_distance_apart() -> None:
    metrics = surface_metrics(square(0.03), square(0.0), num_samples=500)
    assert metrics == pytest.approx(
        {"accuracy": 0.03, "completion": 0.03, "chamfer": 0.03, "precision": 1.0, "recall": 1.0, "f_score": 1.0}
    )
    far = surface_metrics(square(0.08), square(0.0), num_samples=500)
    assert far["chamfer"] == pytest.approx(0.08) and far["precision"] == far["recall"] == far["f_score"] == 0.0


def test_half_a_surface_is_accurate_but_not_complete() -> None:
    count = 40_000
    metrics = surface_metrics(square(0.0, half=0.5), square(0.0), num_samples=count)
    assert metrics["accuracy"] == pytest.approx(0.0, abs=1e-12) and metrics["precision"] == 1.0
    recall = 0.25 + 4 * 0.5 * 0.05 * 2 / 4 + np.pi * 0.05**2 / 4  # the square, its rim and the rim's corners
    assert metrics["recall"] == pytest.approx(recall, abs=5 * (recall * (1 - recall) / count) ** 0.5)
    assert metrics["f_score"] == pytest.approx(2 * metrics["recall"] / (1 + metrics["recall"]))
    assert metrics["completion"] > 0.1 and metrics["chamfer"] == pytest.approx(metrics["completion"] / 2)


def test_concentric_spheres() -> None:
    small, large = (trimesh.creation.icosphere(subdivisions=4, radius=radius) for radius in (1.0, 1.1))
    meshes = [TriangleMesh(np.asarray(m.vertices), np.asarray(m.faces)) for m in (small, large)]
    metrics = surface_metrics(meshes[0], meshes[1], num_samples=2000)
    assert metrics["accuracy"] == pytest.approx(0.1, abs=2e-3) and metrics["completion"] == pytest.approx(0.1, abs=2e-3)


def test_only_the_region_counts() -> None:
    upper = surface_metrics(
        square(0.0, half=0.5), square(0.0), num_samples=4000, region=lambda points: points.abs().amax(dim=1) < 0.5
    )
    assert upper["completion"] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="no point of the reconstructed mesh is in the region"):
        surface_metrics(square(0.0), square(0.0), num_samples=10, region=lambda points: points[:, 0] > 5)
