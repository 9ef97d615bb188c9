"""`eugen3d export-mesh`: the surface of a trained field of signed distance as a triangle mesh."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.mesh_colors import to_linear, vertex_colors
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.sdf_mesh import MAX_SLOPE, SEEN_WITHIN, Bounds, mesh_of_run
from eugen3d.cli.sdf_runs import SdfRun, load_sdf_run
from eugen3d.datasets import SceneError, open_depth_sequence
from eugen3d.mapping import SdfQuery
from eugen3d.mapping.mesh import Triangles
from eugen3d.runtime import Backend

FORMATS = (".ply", ".obj", ".glb")


@dataclass
class ExportMesh:
    """The surface of a run's field: marching cubes, the field's gradients as normals, colours of the frames."""

    load_config: Path
    """The run's config.yml."""
    output: Path
    """The file to write: .ply, .obj or .glb."""
    voxel: float = 0.03
    """Side of a voxel in metres."""
    bounds: Bounds | None = None
    """x, y and z of the least corner, then of the greatest, in metres; by default around what the keyframes saw."""
    seen_within: float = SEEN_WITHIN
    """Surface is kept within so many metres of what the keyframes saw: elsewhere the field is a guess. inf: all is."""
    max_slope: float = MAX_SLOPE
    """The largest slope that the field is taken to have; blocks without surface are left out by it. inf: none is."""
    num_color_frames: int = 50
    """How many frames of the run's sequence, evenly spread, colour the mesh where they have pictures; 0: no colours."""
    runtime: Backend = "eager"
    """How the folded field is evaluated."""
    device: str = "cpu"
    """cpu or cuda."""

    def main(self) -> None:
        """Run the command."""
        self._check()
        run = load_sdf_run(self.load_config, self.device)
        query = SdfQuery(run.model.field, self.runtime)
        with progress_bar() as bar:
            triangles = mesh_of_run(
                run,
                query,
                self.voxel,
                bar,
                bounds=self.bounds,
                seen_within=self.seen_within,
                max_slope=self.max_slope,
            )
        normals = _normals(query, triangles[0])
        colors, told = self._colors(run, triangles[0], normals)
        write_whole(self.output, encode_mesh(triangles, normals, self.output.suffix, colors))
        console = Console(highlight=False)
        console.print(f"{len(triangles[0]):,} vertices, {len(triangles[1]):,} triangles, voxels of {self.voxel} m")
        console.print(told, markup=False, soft_wrap=True)
        console.print(f"wrote {self.output}", soft_wrap=True)

    def _check(self) -> None:
        """Refuse settings that cannot be used, before anything is loaded."""
        if self.output.suffix not in FORMATS or self.output.is_dir():
            raise UsageError(f"--output {self.output}: expected a file's name that ends in one of {', '.join(FORMATS)}")
        if not (math.isfinite(self.voxel) and self.voxel > 0):
            raise UsageError(f"--voxel {self.voxel}: expected a positive number of metres")
        for flag, value in (("seen-within", self.seen_within), ("max-slope", self.max_slope)):
            if not value > 0:
                raise UsageError(f"--{flag} {value}: expected a positive number, or inf")
        if self.num_color_frames < 0:
            raise UsageError(f"--num-color-frames {self.num_color_frames}: expected at least 0")
        if self.bounds is not None:
            lower, upper = np.array(self.bounds[:3]), np.array(self.bounds[3:])
            if not (np.isfinite(self.bounds).all() and (lower < upper).all()):
                found = " ".join(f"{value:g}" for value in self.bounds)
                raise UsageError(f"--bounds {found}: expected the least x, y and z, then the greatest")

    def _colors(self, run: SdfRun, vertices: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray | None, str]:
        """Colours of vertices where the run's sequence has pictures, and what there is to say of them."""
        if not self.num_color_frames:
            return None, "no colours, as asked"
        if run.data is None:
            return None, "no colours: the run names no sequence"
        try:
            sequence = open_depth_sequence(run.data)
            frames = sequence.every(-(-len(sequence) // self.num_color_frames))
            if all(files.color is None for files in frames.files):
                return None, f"no colours: {run.data} has no pictures"
            colors, num_seen = vertex_colors(vertices, normals, frames)
        except SceneError as error:
            return None, f"no colours: {error}"
        return colors, f"colours of {len(frames)} frames on {num_seen / len(vertices):.0%} of the vertices"


def encode_mesh(triangles: Triangles, normals: np.ndarray, suffix: str, colors: np.ndarray | None = None) -> bytes:
    """A mesh file's content.

    Args:
        normals: (n, 3), unit, of the vertices.
        suffix: .ply, .obj or .glb.
        colors: (n, 4) uint8 sRGB, of the vertices; None: none.
    """
    import trimesh

    if colors is not None and suffix == ".glb":
        colors = to_linear(colors)
    mesh = trimesh.Trimesh(*triangles, vertex_normals=normals, vertex_colors=colors, process=False)
    content = mesh.export(file_type=suffix.removeprefix("."))
    return content.encode() if isinstance(content, str) else bytes(content)  # pyright: ignore[reportArgumentType]


def _normals(query: SdfQuery, vertices: np.ndarray) -> np.ndarray:
    """Unit normals (n, 3) of vertices: the field's gradients there."""
    _, gradient = query.distance_and_gradient(torch.from_numpy(vertices).float())
    return torch.nn.functional.normalize(gradient, dim=1).numpy()
