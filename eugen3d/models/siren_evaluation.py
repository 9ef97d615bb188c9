"""How far a fitted signal is from the one in the file, by the measures of its kind."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import save_image

from eugen3d.datasets.signals import SampledSignal, ShapeSignal, grid_coordinates
from eugen3d.mapping.mesh import Triangles, find_blocks, march
from eugen3d.metrics.image import image_metrics
from eugen3d.metrics.shape import shape_metrics, solid_metrics
from eugen3d.metrics.sound import sound_metrics
from eugen3d.metrics.triangle_mesh import TriangleMesh

CHUNK = 1 << 18
"""Points of a signal that are evaluated at once."""


class Evaluable(Protocol):
    """A network that stands for a signal, such as an `EUGenSirenModel`."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def values_at(self, coordinates: Tensor) -> Tensor:
        """Values (n, channels) at coordinates (n, d) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class SirenEvaluationConfig:
    """How closely shapes are measured."""

    resolution: int = 128
    """Voxels along a side of the cube that holds the shape, of which its surface is made."""
    num_samples: int = 100_000
    """Points drawn on each surface, and in the cube."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        if self.resolution < 2 or self.num_samples < 1:
            raise ValueError("resolution is at least 2, num_samples at least 1")


def evaluate(
    model: Evaluable,
    signal: SampledSignal | ShapeSignal,
    config: SirenEvaluationConfig,
    output_path: Path | None = None,
) -> dict[str, float | None]:
    """Measure a fitted signal.

    Of images and videos psnr in dB and ssim (of a video the mean over its frames); of sounds what `sound_metrics` has;
    of shapes what `shape_metrics` has, in the units of the file, and `solid_metrics` where the shape is closed. A shape
    whose field has no surface has none of the former.

    Args:
        output_path: where pictures of images and of a video's first frame go, beside the file's.
    """
    if isinstance(signal, ShapeSignal):
        return _shape_errors(model, signal, config)
    fitted = values_of(model, signal.format.size).clamp(-1, 1).cpu()
    if output_path is not None and signal.format.kind != "sound":
        output_path.mkdir(parents=True, exist_ok=True)
        for name, picture in fitted_images(model, signal).items():
            save_image(picture.permute(2, 0, 1), output_path / f"{name}.png")
    if signal.format.kind == "sound":
        assert signal.format.rate is not None
        return dict(sound_metrics(fitted, signal.values, signal.format.rate))
    frames = [(fitted + 1) / 2], [(signal.values + 1) / 2]
    if signal.format.kind == "video":
        frames = frames[0][0].unbind(), frames[1][0].unbind()
    found = [image_metrics(one, other) for one, other in zip(*frames, strict=True)]
    error = float((fitted - signal.values).double().square().mean()) / 4
    ssim = sum(metrics["ssim"] for metrics in found) / len(found)
    return {"psnr": -10 * math.log10(error) if error else math.inf, "ssim": ssim}


def values_of(model: Evaluable, size: tuple[int, ...]) -> Tensor:
    """A signal's values (*size, channels) at any size, on the CPU; not clamped."""
    total = math.prod(size)
    parts = []
    for start in range(0, total, CHUNK):
        points = grid_coordinates(size, start, start + CHUNK, model.device)
        parts.append(model.values_at(points).cpu())
    return torch.cat(parts).view(*size, -1)


def surface_of(model: Evaluable, resolution: int) -> Triangles:
    """The zero level of a shape's field by marching cubes, in the cube [-1, 1]^3: vertices (n, 3) and faces (m, 3).

    What is inside is cut off at the sides of the cube: beyond them the field was never trained.
    """
    lower, voxel = -np.ones(3), 2.0 / resolution
    query = _InTheCube(model)
    return march(query, lower, voxel, find_blocks(query, lower, -lower, voxel, math.inf))


def fitted_images(model: Evaluable, signal: SampledSignal | ShapeSignal) -> dict[str, Tensor]:
    """Pictures (height, width, 3) of an image or of a video's first frame: the file's, and the fitted one."""
    if not isinstance(signal, SampledSignal) or signal.format.kind == "sound":
        return {}
    fitted = values_of(model, signal.format.size).clamp(-1, 1)
    pair = {"file": signal.values, "fitted": fitted}
    return {name: shown(values if signal.format.kind == "image" else values[0]) for name, values in pair.items()}


@dataclass(frozen=True)
class _Distances:
    """A shape's field, as marching asks for it."""

    model: Evaluable

    def distance(self, points: Tensor) -> Tensor:
        return torch.cat([self.model.values_at(part.to(self.model.device))[:, 0].cpu() for part in points.split(CHUNK)])


class _InTheCube(_Distances):
    """The same, cut off by the cube: the blocks that are marched reach beyond it."""

    def distance(self, points: Tensor) -> Tensor:
        beyond = points.abs().amax(dim=1).cpu() - 1.0
        return torch.maximum(super().distance(points), beyond)


def _shape_errors(model: Evaluable, signal: ShapeSignal, config: SirenEvaluationConfig) -> dict[str, float | None]:
    if signal.vertices is None or signal.faces is None:
        return _cloud_errors(model, signal)
    center, scale = np.array(signal.format.center), signal.format.scale
    truth = TriangleMesh(center + signal.vertices.numpy() / scale, signal.faces.numpy())
    vertices, faces = surface_of(model, config.resolution)
    metrics: dict[str, float | None] = dict.fromkeys(("chamfer", "chamfer_to_diagonal", "normal_consistency"))
    if len(faces):
        found = TriangleMesh(center + vertices / scale, faces)
        metrics |= shape_metrics(found, truth, num_samples=config.num_samples, seed=config.seed)
    if truth.is_closed:
        query = _Distances(model)
        metrics |= solid_metrics(
            lambda x: query.distance(((x - torch.from_numpy(center)) * scale).float()),
            truth,
            num_samples=config.num_samples,
            seed=config.seed,
        )
    return metrics


def _cloud_errors(model: Evaluable, signal: ShapeSignal) -> dict[str, float | None]:
    """The mean |s| at the points of a cloud, in the units of the file: there is no surface to compare with."""
    distance = _Distances(model).distance(signal.points).abs().mean()
    return {"surface_error": float(distance) / signal.format.scale}


def shown(values: Tensor) -> Tensor:
    """Values (height, width, channels) in [-1, 1] as colours (height, width, 3); an alpha channel is left out."""
    colors = (values + 1) / 2
    return colors[..., :1].expand(-1, -1, 3) if colors.shape[-1] < 3 else colors[..., :3]
