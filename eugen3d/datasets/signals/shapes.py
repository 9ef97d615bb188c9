"""Shapes: triangle meshes, and clouds of points with normals, brought into the cube [-1, 1]^3."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import igl
import numpy as np
import torch
from torch import Tensor

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.signals.mesh_checks import check_edges, merged_mesh
from eugen3d.datasets.signals.reading import check_found, decoding
from eugen3d.datasets.signals.signal import ShapeFormat

SHAPE_SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".xyz")
MARGIN = 0.9
"""Where the longest side of the bounding box ends in the cube."""
NORMALS = ("nx", "ny", "nz")


@dataclass(frozen=True, eq=False)
class ShapeSignal:
    """Points of a surface with its normals; positions are those of the cube."""

    format: ShapeFormat
    points: Tensor
    """(n, 3) float32: the cloud's own, or the middles of a mesh's faces."""
    normals: Tensor
    """(n, 3) float32, of length 1 and outwards where the faces turn so."""
    vertices: Tensor | None = None
    """(num_vertices, 3) float32; None for a cloud."""
    faces: Tensor | None = None
    """(num_faces, 3) int64, turning outwards; None for a cloud."""

    def draw(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw points (count, 3) and their normals (count, 3), with replacement.

        Those of a mesh are uniform by area, with the normals of the faces; those of a cloud are its own points.
        """
        device = self.points.device
        if self.vertices is None or self.faces is None:
            index = torch.randint(len(self.points), (count,), generator=generator, device=device)
            return self.points[index], self.normals[index]
        areas, normals = self._areas, self._face_normals
        target = torch.rand(count, generator=generator, device=device, dtype=areas.dtype) * areas[-1]
        index = torch.searchsorted(areas, target, right=True).clamp_max_(len(areas) - 1)
        a, b, c = self.vertices[self.faces[index]].unbind(dim=1)
        u, v = torch.rand(2, count, 1, generator=generator, device=device)
        u, v = torch.where(u + v > 1.0, 1.0 - u, u), torch.where(u + v > 1.0, 1.0 - v, v)
        return a + u * (b - a) + v * (c - a), normals[index]

    def draw_around(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Draw points (count, 3) uniformly in the cube, and signs (count,): -1 in a closed mesh, 1 outside of it.

        The signs of anything else are None. They are those of the winding number (Jacobson et al. 2013), approximated
        as Barill et al. (2018) do.
        """
        device = self.points.device
        points = 2 * torch.rand(count, 3, generator=generator, device=device) - 1
        if not self.format.is_closed or self.vertices is None or self.faces is None:
            return points, None
        arrays = (tensor.cpu().numpy() for tensor in (self.vertices.double(), self.faces, points.double()))
        winding = torch.from_numpy(np.array(igl.fast_winding_number(*arrays)))
        return points, torch.where(winding > 0.5, -1.0, 1.0).to(points)

    @cached_property
    def _crosses(self) -> Tensor:
        assert self.vertices is not None and self.faces is not None
        a, b, c = self.vertices.double()[self.faces].unbind(dim=1)
        return torch.linalg.cross(b - a, c - a)

    @cached_property
    def _areas(self) -> Tensor:
        """Twice the area of the faces up to each."""
        return self._crosses.norm(dim=1).cumsum(dim=0)

    @cached_property
    def _face_normals(self) -> Tensor:
        return torch.nn.functional.normalize(self._crosses, dim=1, eps=1e-300).float()


def read_shape(path: Path, *, allow_open: bool = False) -> ShapeSignal:
    """Read a mesh, whose vertices at one position become one, or a cloud of points with normals (.ply, .xyz).

    A mesh's faces are turned outwards where it is closed. Faces that meet one vertex twice are dropped.

    Args:
        path: the file; a .xyz holds rows of x y z nx ny nz.
        allow_open: take a mesh with open edges, too.

    Raises:
        SceneError: the file is missing or broken, a coordinate is not finite, there are neither faces nor normals, all
            points are one, the mesh is open, or its faces turn both ways.
    """
    import trimesh

    check_found(path, "a shape")
    suffix = path.suffix.lower()
    with decoding(path, "a shape"):
        if suffix == ".xyz":
            rows = np.loadtxt(path, ndmin=2, comments="#")
            if len(rows) and rows.shape[1] != 6:
                raise SceneError(f"{path}: found rows of {rows.shape[1]} numbers, expected x y z nx ny nz")
            return _cloud(path, rows[:, :3], rows[:, 3:])
        options: dict[str, Any] = {} if suffix == ".ply" else {"force": "mesh"}
        options |= {"skip_materials": True} if suffix == ".obj" else {}
        loaded: Any = trimesh.load(path, process=False, **options)
    vertices = np.asarray(loaded.vertices, np.float64)
    faces = np.asarray(getattr(loaded, "faces", np.zeros((0, 3))), np.int64)
    if len(faces):
        return _mesh(path, vertices, faces, allow_open)
    data = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    if data is None or not all(_has(data, name) for name in NORMALS):
        expected = "a mesh, or a point cloud with normals (.ply, .xyz)"
        raise SceneError(f"{path}: found {len(vertices)} points with neither faces nor normals, expected {expected}")
    return _cloud(path, vertices, np.column_stack([np.asarray(data[name]).reshape(-1) for name in NORMALS]))


def _has(data: Any, name: str) -> bool:
    return name in (data.dtype.names if isinstance(data, np.ndarray) else data)


def _mesh(path: Path, vertices: np.ndarray, faces: np.ndarray, allow_open: bool) -> ShapeSignal:
    _check_finite(path, vertices[np.unique(faces)], "vertices")
    vertices, faces = merged_mesh(vertices, faces)
    if not len(faces):
        raise SceneError(f"{path}: found only faces without extent, expected a mesh")
    faces, num_open = check_edges(path, vertices, faces)
    if num_open and not allow_open:
        expected = "a closed mesh, or a point cloud with normals"
        raise SceneError(f"{path}: found a mesh with {num_open} open edges, expected {expected}")
    shape_format, vertices = _placed(path, vertices, is_closed=not num_open)
    a, b, c = vertices[faces].swapaxes(0, 1)
    cross = np.cross(b - a, c - a)
    length = np.linalg.norm(cross, axis=1)
    has_area = length > 0.0
    if not has_area.any():
        raise SceneError(f"{path}: found only faces without area, expected a mesh")
    middles, normals = (a + b + c)[has_area] / 3.0, cross[has_area] / length[has_area, None]
    corners = torch.from_numpy(np.ascontiguousarray(faces))
    return ShapeSignal(shape_format, _tensor(middles), _tensor(normals), _tensor(vertices), corners)


def _cloud(path: Path, points: np.ndarray, normals: np.ndarray) -> ShapeSignal:
    if not len(points):
        raise SceneError(f"{path}: found no points, expected a point cloud with normals")
    normals = np.asarray(normals, np.float64)
    _check_finite(path, points, "points")
    _check_finite(path, normals, "normals")
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    if not length.all():
        raise SceneError(f"{path}: found {int((length == 0).sum())} normals of length 0, expected directions")
    shape_format, points = _placed(path, points, is_closed=False)
    return ShapeSignal(shape_format, _tensor(points), _tensor(normals / length))


def _placed(path: Path, points: np.ndarray, *, is_closed: bool) -> tuple[ShapeFormat, np.ndarray]:
    """The format, and the points in the cube."""
    lower, upper = points.min(axis=0), points.max(axis=0)
    extent = float((upper - lower).max())
    if extent == 0.0:
        raise SceneError(f"{path}: found all points at one position, expected a shape with an extent")
    center, scale = 0.5 * (lower + upper), MARGIN / (0.5 * extent)
    x, y, z = (float(coordinate) for coordinate in center)
    shape_format = ShapeFormat((x, y, z), scale, is_closed, path.suffix.lower(), path.stat().st_size)
    return shape_format, (points - center) * scale


def _check_finite(path: Path, array: np.ndarray, name: str) -> None:
    unusable = int((~np.isfinite(array)).any(axis=1).sum())
    if unusable:
        raise SceneError(f"{path}: found {unusable} {name} that are not finite, expected finite ones")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
