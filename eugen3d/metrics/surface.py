"""How good a reconstructed surface is: accuracy, completion, chamfer distance and F-score.

Distances are from points drawn on one mesh to the other mesh itself, not to points drawn on it, so they do not depend
on the density of samples.
"""

from collections.abc import Callable

from torch import Tensor

from eugen3d.metrics.triangle_mesh import TriangleMesh

Region = Callable[[Tensor], Tensor]
"""Which of some points (n, 3) count, (n,) bool; such as those that a camera saw."""


def surface_metrics(
    mesh: TriangleMesh,
    truth: TriangleMesh,
    *,
    threshold: float = 0.05,
    num_samples: int = 200_000,
    region: Region | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Compare a mesh with the true one.

    accuracy is the mean distance from the mesh to the truth, completion that from the truth to the mesh (both as in
    iSDF, Ortiz et al. 2022), chamfer their mean. precision and recall are the shares of those distances under the
    threshold, f_score their harmonic mean (Knapitsch et al. 2017).

    Args:
        mesh: what was reconstructed.
        truth: what should have been.
        threshold: metres, for precision, recall and F-score.
        num_samples: points drawn on each mesh, before the region leaves some out.
        region: which points count, on both meshes; None: all.
        seed: of the draws.

    Raises:
        ValueError: no point of one of the meshes is in the region.
    """
    from_mesh, from_truth = (
        _distances(source, target, name, num_samples, region, seed)
        for source, target, name in ((mesh, truth, "reconstructed"), (truth, mesh, "true"))
    )
    accuracy, completion = float(from_mesh.mean()), float(from_truth.mean())
    precision, recall = (float((distances < threshold).double().mean()) for distances in (from_mesh, from_truth))
    return {
        "accuracy": accuracy,
        "completion": completion,
        "chamfer": 0.5 * (accuracy + completion),
        "precision": precision,
        "recall": recall,
        "f_score": 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0,
    }


def _distances(
    source: TriangleMesh, target: TriangleMesh, name: str, count: int, region: Region | None, seed: int
) -> Tensor:
    points = source.sample_surface(count, seed)
    if region is not None:
        points = points[region(points)]
    if not len(points):
        raise ValueError(f"no point of the {name} mesh is in the region")
    return target.closest(points)[0]
