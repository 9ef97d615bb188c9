"""What `ns-eval` measures of a field of signed distance: depth in frames it has not seen, errors against a mesh.

The same can be asked of what is no field, such as fused depth: `SignedDistances` and `Trace` are all that is needed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor
from torchvision.utils import save_image

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.datasets.depth_layouts import mesh_path
from eugen3d.mapping import trace_rays
from eugen3d.mapping.keyframes import frame_to
from eugen3d.mapping.rays import rays_at
from eugen3d.metrics.sdf import sdf_error, sdf_metrics
from eugen3d.metrics.surface import surface_metrics
from eugen3d.metrics.triangle_mesh import TriangleMesh
from eugen3d.metrics.visibility import sample_visible_surface, sample_visible_volume, visible
from eugen3d.models.isdf import EUGenIsdfModel

Trace = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes rays' origins and unit directions (n, 3) to the surface's distance (n,) and whether (n,) there is one."""


class SignedDistances(Protocol):
    """What is asked for distances: a field's `SdfQuery`, or what stands for a field."""

    def distance(self, points: Tensor) -> Tensor:
        """Signed distances (n,) in metres at points (n, 3)."""
        ...

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and their gradients (n, 3)."""
        ...


@dataclass(frozen=True)
class SdfEvaluationConfig:
    """How much of the frames that were not trained on is measured."""

    num_rays: int = 2000
    """Pixels with a measurement of a frame whose rays are traced."""
    num_points: int = 1000
    """Points of a frame, on its surface and before it, whose distances are compared with the mesh's."""
    behind_surface: float = 0.1
    """How far behind the measured surface these points reach, in metres."""
    seed: int = 0
    """Of pixels and points."""

    def __post_init__(self) -> None:
        if self.num_rays < 1 or self.num_points < 1 or self.behind_surface < 0:
            raise ValueError("num_rays and num_points are at least 1, behind_surface at least 0")


def evaluate(
    model: EUGenIsdfModel,
    path: Path,
    frames: Iterable[DepthFrame],
    config: SdfEvaluationConfig,
    output_path: Path | None = None,
    with_std: bool = False,
) -> dict[str, float | None]:
    """The errors of a model's field, as `field_errors` has them.

    Args:
        path: the sequence's folder; the mesh that it names (`mesh_file_path`) is what distances are compared with.
        frames: what is evaluated on.
        output_path: where pictures of the frames' views go.
        with_std: whether depth_error_std is wanted: between frames.

    Raises:
        SceneError: there is no frame.
        ValueError: the mesh cannot be used.
    """
    held_out = [frame_to(frame, model.device) for frame in frames]
    if not held_out:
        raise SceneError(f"{path}: has no frame for evaluation, expected a run whose eval_interval keeps some")
    query = model.query()
    trace = partial(trace_rays, query, config=model.config.trace)
    metrics = field_errors(query, trace, held_out, load_truth(path), config, with_std)
    if output_path is not None:
        _save_views(model, held_out, output_path)
    return metrics


def load_truth(path: Path) -> TriangleMesh | None:
    """The mesh of what a sequence shows; None where it names none.

    Raises:
        ValueError: the mesh cannot be used.
    """
    mesh = mesh_path(path)
    return None if mesh is None else TriangleMesh.load(mesh)


def field_errors(
    query: SignedDistances,
    trace: Trace,
    frames: list[DepthFrame],
    truth: TriangleMesh | None,
    config: SdfEvaluationConfig,
    with_std: bool = False,
) -> dict[str, float | None]:
    """The errors of a field in frames that it has not seen, in metres where they are distances.

    depth_error is the mean over frames of the mean |z - z'| of traced and measured depth over the rays that meet the
    field's surface, hit_rate the share of rays that do. Where the truth is known, the rest is `sdf_metrics` in the
    volume that the frames saw, and surface_sdf_error the mean |s - d| at the points they measured.

    Args:
        frames: at least one.
        truth: the mesh of what the frames show.
        with_std: whether depth_error_std is wanted: between frames.
    """
    scores = [depth_error(trace, frame, config) for frame in frames]
    found = torch.tensor([error for error, _ in scores if error is not None])
    metrics: dict[str, float | None] = {"num_frames": float(len(frames))}
    metrics["depth_error"] = float(found.mean()) if len(found) else None
    if with_std:
        metrics["depth_error_std"] = float(found.std()) if len(found) > 1 else None
    metrics["hit_rate"] = sum(hit_rate for _, hit_rate in scores) / len(scores)
    return metrics if truth is None else metrics | _mesh_errors(query, truth, frames, config)


def surface_errors(
    mesh: TriangleMesh, truth: TriangleMesh, frames: list[DepthFrame], config: SdfEvaluationConfig
) -> dict[str, float]:
    """`surface_metrics` of a mesh where frames saw: before what they measured, and `behind_surface` behind it.

    Raises:
        ValueError: no point of one of the meshes is there.
    """
    region = partial(visible, views=frames, behind=config.behind_surface)
    return surface_metrics(mesh, truth, region=region, seed=config.seed)


def depth_error(trace: Trace, frame: DepthFrame, config: SdfEvaluationConfig) -> tuple[float | None, float]:
    """The mean |z - z'| of a frame's traced and measured depth, None where no ray meets a surface; the share of hits.

    Rays go through drawn pixels with a measurement.
    """
    generator = torch.Generator().manual_seed(config.seed)
    measured = frame.depth.nonzero()
    drawn = torch.randperm(len(measured), generator=generator)[: config.num_rays].to(measured.device)
    rays = rays_at(frame, *measured[drawn].unbind(dim=1))
    length = rays.directions.norm(dim=1)
    distance, is_hit = trace(rays.origins, rays.directions / length[:, None])
    error = (distance / length - rays.depth).abs()[is_hit]
    return float(error.mean()) if len(error) else None, float(is_hit.float().mean())


def _mesh_errors(
    query: SignedDistances, mesh: TriangleMesh, frames: list[DepthFrame], config: SdfEvaluationConfig
) -> dict[str, float | None]:
    points = sample_visible_volume(frames, config.num_points, behind=config.behind_surface, seed=config.seed)
    truth, true_gradient = mesh.signed_distance_and_gradient(points)
    distance, gradient = query.distance_and_gradient(points)
    surface = sample_visible_surface(frames, config.num_points, seed=config.seed)
    at_surface = sdf_error(query.distance(surface), mesh.signed_distance(surface))
    return sdf_metrics(distance, truth, gradient, true_gradient) | {"surface_sdf_error": at_surface}


def frame_outputs(model: EUGenIsdfModel, frame: DepthFrame) -> dict[str, Tensor]:
    """What a frame's camera sees of a model's field, (height, width, ...) each."""
    height, width = frame.depth.shape
    fx, fy, cx, cy = frame.intrinsics
    camera = Cameras(frame.camera_to_world[None], fx, fy, cx, cy, width, height).to(model.device)
    return model.get_outputs_for_camera(camera)


def frame_views(model: EUGenIsdfModel, frame: DepthFrame) -> dict[str, Tensor]:
    """Pictures (height, width, 3) of what a frame's camera sees of a model's field: lit, its normals, and its depth,
    white at the farthest measured."""
    outputs = frame_outputs(model, frame)
    depth = (outputs["depth"] / frame.depth.max()).clamp(max=1.0).expand(-1, -1, 3)
    return {"rgb": outputs["rgb"], "normals": outputs["normals"], "depth": depth}


def _save_views(model: EUGenIsdfModel, frames: list[DepthFrame], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        for name, image in frame_views(model, frame).items():
            save_image(image.permute(2, 0, 1).cpu(), folder / f"eval_{name}_{number:04d}.png")
