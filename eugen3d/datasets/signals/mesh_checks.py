"""What makes a mesh the boundary of a solid: vertices that are shared, no open edges, faces that turn outwards."""

from pathlib import Path

import numpy as np

from eugen3d.datasets.dataparser import SceneError


def merged_mesh(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One vertex for each position that a face meets, and the faces that meet three; positions must be equal exactly.

    Faces of three vertices in one line stay, for without them their neighbours' edges would be open.
    """
    corners = vertices[faces.reshape(-1)] + 0.0  # -0 becomes 0
    used, index = np.unique(corners, axis=0, return_inverse=True)
    merged = index.reshape(faces.shape)
    a, b, c = merged.T
    kept = merged[(a != b) & (b != c) & (c != a)]
    numbers, packed = np.unique(kept, return_inverse=True)
    return used[numbers], packed.reshape(kept.shape).astype(np.int64)


def check_edges(path: Path, vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, int]:
    """The faces, turned outwards where there is an outside, and the number of open edges.

    An edge is open where an odd number of faces meet.

    Raises:
        SceneError: faces turn both ways, and turning some round does not help.
    """
    num_open, num_unlike = _edges(faces)
    if num_unlike:
        import trimesh

        mesh = trimesh.Trimesh(vertices, faces, process=False)
        trimesh.repair.fix_winding(mesh)
        faces = np.asarray(mesh.faces, np.int64)
        num_unlike = _edges(faces)[1]
    if num_unlike:
        raise SceneError(f"{path}: found {num_unlike} edges whose faces turn both ways, expected all to turn outwards")
    if num_open == 0 and _volume(vertices, faces) < 0.0:
        faces = np.ascontiguousarray(faces[:, ::-1])
    return faces, num_open


def _edges(faces: np.ndarray) -> tuple[int, int]:
    """How many edges are open, and how many others are met more often in one direction than in the other."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    keys = ends.min(axis=1) * (int(faces.max()) + 1) + ends.max(axis=1)
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    balance = np.bincount(group, np.where(ends[:, 0] < ends[:, 1], 1, -1), minlength=len(counts))
    is_open = counts % 2 == 1
    return int(is_open.sum()), int((~is_open & (balance != 0)).sum())


def _volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices - vertices.mean(axis=0))[faces].swapaxes(0, 1)
    return float(np.sum(a * np.cross(b, c)) / 6.0)
