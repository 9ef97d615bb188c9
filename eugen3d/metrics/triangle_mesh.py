"""Exact distances to a triangle mesh: the ground truth that signed distance fields are measured against.

Closest points are libigl's, by a tree of bounding boxes in double precision, so they are exact up to rounding. The sign
is that of the generalised winding number (Jacobson et al. 2013, "Robust inside-outside segmentation"): right where
parts overlap or touch, and sensible at holes. It is evaluated by a tree with far-field expansions (Barill et al. 2018,
"Fast winding numbers for soups and clouds"), and summed exactly wherever that is not clearly 0 or 1.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import igl
import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 20
"""Points evaluated at once on a grid, which bounds the memory of doubles between the steps."""
UNSURE = 0.25
"""A fast winding number this close to the threshold of one half is replaced by the exact one."""


@dataclass(frozen=True)
class TriangleMesh:
    """Triangles whose faces turn outwards, away from the solid; units are the caller's, such as metres.

    Args:
        vertices: (num_vertices, 3) float64.
        faces: (num_faces, 3) int64, indices into `vertices`.

    Raises:
        ValueError: a shape is wrong, a vertex is not finite, a face names a vertex that is not there, there is no face.
    """

    vertices: np.ndarray
    faces: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "vertices", np.ascontiguousarray(self.vertices, np.float64))
        object.__setattr__(self, "faces", np.ascontiguousarray(self.faces, np.int64))
        for name, array in (("vertices", self.vertices), ("faces", self.faces)):
            if array.ndim != 2 or array.shape[1] != 3:
                raise ValueError(f"{name} are of shape {array.shape}, expected (number, 3)")
        if not len(self.faces):
            raise ValueError("the mesh has no faces")
        if not np.isfinite(self.vertices).all():
            raise ValueError("a vertex is not finite")
        if self.faces.min() < 0 or self.faces.max() >= len(self.vertices):
            raise ValueError(f"a face names a vertex outside 0 to {len(self.vertices) - 1}")

    @classmethod
    def load(cls, path: Path) -> "TriangleMesh":
        """Read the triangles of a .ply, .obj, .off or .stl file; texture seams do not split vertices.

        Raises:
            ValueError: the file is missing or holds no triangle mesh; the message is one line that names it.
        """
        if not path.is_file():
            raise ValueError(f"{path}: not found, expected a triangle mesh")
        try:
            vertices, faces = igl.read_triangle_mesh(str(path))[:2]
            return cls(np.asarray(vertices), np.asarray(faces))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: cannot be used as a triangle mesh ({error})") from error

    @cached_property
    def is_closed(self) -> bool:
        """Whether every edge is met as often in one direction as in the other, so that there is an inside."""
        used = np.unique(self.vertices, axis=0, return_inverse=True)[1].reshape(-1)[self.faces]
        ends = np.concatenate([used[:, [0, 1]], used[:, [1, 2]], used[:, [2, 0]]])
        ends = ends[ends[:, 0] != ends[:, 1]]
        edges, group = np.unique(np.sort(ends, axis=1), axis=0, return_inverse=True)
        balance = np.bincount(group.reshape(-1), np.where(ends[:, 0] < ends[:, 1], 1, -1), minlength=len(edges))
        return not balance.any()

    @cached_property
    def volume(self) -> float:
        """The volume inside, negative where the faces turn inwards; means nothing for an open mesh."""
        a, b, c = (self.vertices[self.faces] - self.vertices.mean(axis=0)).swapaxes(0, 1)
        return float(np.sum(a * np.cross(b, c)) / 6.0)

    def closest(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unsigned distances (n,), the closest points (n, 3) and the faces that they lie on (n,).

        Args:
            points: (n, 3); results have their dtype and device, and are computed in float64.

        Raises:
            ValueError: a point is not finite, or the shape is wrong.
        """
        queries = _queries(points)
        if not len(queries):
            return points.new_zeros(0), points.new_zeros(0, 3), torch.zeros(0, dtype=torch.long, device=points.device)
        squared, faces, closest = igl.point_mesh_squared_distance(queries, self.vertices, self.faces)
        distance, index = np.sqrt(squared), torch.from_numpy(np.asarray(faces))
        return _like(distance, points), _like(np.asarray(closest), points), index.to(points.device)

    def first_hits(self, origins: Tensor, directions: Tensor) -> Tensor:
        """How far along rays the first face is, (n,), in lengths of the directions; inf: there is none.

        Faces are met from either side.

        Args:
            origins: (n, 3); results have their dtype and device, and are computed in float64.
            directions: (n, 3).

        Raises:
            ValueError: a coordinate is not finite, or the shape is wrong.
        """
        if not len(origins):
            return origins.new_zeros(0)
        rays = _queries(origins), _queries(directions)
        face, distance, _ = self._tree.intersect_ray_first(self.vertices, self.faces, *rays)
        return _like(np.where(np.asarray(face) < 0, np.inf, distance), origins)

    def contains(self, points: Tensor) -> Tensor:
        """Whether points (n, 3) are in the solid: their winding number is over one half. (n,) bool.

        Raises:
            ValueError: the mesh is closed and turned inside out, or a point is not finite.
        """
        if self.is_closed and self.volume < 0.0:
            raise ValueError("the faces of the mesh turn inwards; signed distances need them to turn outwards")
        queries = _queries(points)
        if not len(queries):
            return torch.zeros(0, dtype=torch.bool, device=points.device)
        winding = np.array(igl.fast_winding_number(self.vertices, self.faces, queries))
        unsure = np.abs(winding - 0.5) < UNSURE
        if unsure.any():
            winding[unsure] = igl.winding_number(self.vertices, self.faces, queries[unsure])
        return torch.from_numpy(winding > 0.5).to(points.device)

    def signed_distance(self, points: Tensor) -> Tensor:
        """Distances (n,) of points (n, 3), negative in the solid. Errors as in `closest` and `contains`."""
        return torch.where(self.contains(points), -1.0, 1.0).to(points.dtype) * self.closest(points)[0]

    def signed_distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances (n,) and their gradients (n, 3), unit vectors away from the solid.

        On the surface the gradient is the normal of the face; on the medial axis it is one of several.
        """
        distance, closest, faces = self.closest(points)
        sign = torch.where(self.contains(points), -1.0, 1.0).to(points.dtype)
        offset = sign[:, None] * (points - closest)
        length = offset.norm(dim=1, keepdim=True)
        rounding = 1e-6 if points.dtype == torch.float64 else 1e-4
        scale = max(float(np.abs(self.vertices).max()), 1e-30)
        normals = _like(self.normals, points)[faces]
        return sign * distance, torch.where(length > rounding * scale, offset / length.clamp_min(1e-30), normals)

    @cached_property
    def normals(self) -> np.ndarray:
        """Unit normals of the faces, (num_faces, 3); zero where a face has no area."""
        a, b, c = self.vertices[self.faces].swapaxes(0, 1)
        cross = np.cross(b - a, c - a)
        return cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)

    @cached_property
    def vertex_normals(self) -> np.ndarray:
        """Unit normals of the vertices, (num_vertices, 3): of the faces around, weighted by their areas."""
        return np.asarray(igl.per_vertex_normals(self.vertices, self.faces, igl.PER_VERTEX_NORMALS_WEIGHTING_TYPE_AREA))

    def signed_distance_grid(self, lower: Tensor, spacing: float, shape: tuple[int, int, int]) -> Tensor:
        """Signed distances (nx, ny, nz) float32 at lower + spacing * (i, j, k), evaluated in pieces.

        Args:
            lower: (3,), the grid's first point.
            spacing: the distance between neighbouring points.
            shape: the number of points along x, y and z.
        """
        first = lower.double().cpu()
        numbers = torch.arange(shape[0] * shape[1] * shape[2])
        pieces = []
        for flat in numbers.split(CHUNK):
            index = torch.stack(torch.unravel_index(flat, shape), dim=-1)
            pieces.append(self.signed_distance(first + spacing * index.double()).float())
        return (torch.cat(pieces) if pieces else torch.zeros(0)).reshape(shape)

    @cached_property
    def _tree(self) -> igl.AABB:
        tree = igl.AABB()
        tree.init(self.vertices, self.faces)
        return tree

    def sample_surface(self, count: int, seed: int = 0) -> Tensor:
        """Points (count, 3) float64 drawn uniformly by area from the surface."""
        return self.sample_surface_and_faces(count, seed)[0]

    def sample_surface_and_faces(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The points of `sample_surface`, and the faces that they lie on, (count,)."""
        generator = np.random.default_rng(seed)
        a, b, c = self.vertices[self.faces].swapaxes(0, 1)
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        faces = generator.choice(len(area), count, p=area / area.sum())
        u, v = generator.random((2, count, 1))
        u, v = np.where(u + v > 1.0, (1.0 - u, 1.0 - v), (u, v))
        points = a[faces] + u * (b - a)[faces] + v * (c - a)[faces]
        return torch.from_numpy(points), torch.from_numpy(faces)


def _queries(points: Tensor) -> np.ndarray:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points are of shape {tuple(points.shape)}, expected (number, 3)")
    queries = np.ascontiguousarray(points.detach().double().cpu().numpy())
    if not np.isfinite(queries).all():
        raise ValueError("a point is not finite")
    return queries


def _like(array: np.ndarray, points: Tensor) -> Tensor:
    return torch.from_numpy(array).to(points)
