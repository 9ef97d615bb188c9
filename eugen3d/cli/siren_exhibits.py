"""What a page shows of a signal and of the networks that stand for it: pictures, sounds to play, shapes lit."""

import io
import wave
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eugen3d.cli.renders import encode_png, to_bytes
from eugen3d.datasets.signals import SampledSignal, ShapeSignal
from eugen3d.metrics.triangle_mesh import TriangleMesh
from eugen3d.models.siren_evaluation import Evaluable, shown, surface_of, values_of

SIDE = 320
"""Of a shape's picture, pixels."""
RESOLUTION = 128
"""Voxels along a side of the cube of which a shape's surface is made."""
VIEW = (0.5, 0.4, 0.75)
"""From where a shape is looked at."""


@dataclass(frozen=True)
class Exhibit:
    """Something to look at or to listen to."""

    name: str
    media_type: str
    """"image/png" or "audio/wav"."""
    content: bytes


def make_exhibits(signal: SampledSignal | ShapeSignal, models: Mapping[str, Evaluable]) -> list[Exhibit]:
    """The file's, then every model's; of a video the first frame. A cloud of points has none of its own."""
    if isinstance(signal, ShapeSignal):
        surfaces = {name: surface_of(model, RESOLUTION) for name, model in models.items()}
        if signal.vertices is not None and signal.faces is not None:
            surfaces = {"file": (signal.vertices.numpy(), signal.faces.numpy())} | surfaces
        return [Exhibit(name, "image/png", picture_of_mesh(*surface)) for name, surface in surfaces.items()]
    values = {name: values_of(model, signal.format.size) for name, model in models.items()}
    return [_of_samples(signal, name, one.clamp(-1, 1)) for name, one in ({"file": signal.values} | values).items()]


def picture_of_mesh(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """A picture of a mesh in the cube [-1, 1]^3, lit from the camera; black where there is none."""
    light = torch.zeros(SIDE * SIDE)
    if len(faces):
        mesh, toward = TriangleMesh(vertices, faces), torch.nn.functional.normalize(torch.tensor(VIEW), dim=0)
        across = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), toward), dim=0)
        up = torch.linalg.cross(toward, across)
        down, right = torch.meshgrid(*[torch.linspace(-1.3, 1.3, SIDE)] * 2, indexing="ij")
        origins = 4 * toward + right.reshape(-1, 1) * across - down.reshape(-1, 1) * up
        distance = mesh.first_hits(origins, -toward.expand(len(origins), 3))
        is_hit = distance.isfinite()
        _, _, face = mesh.closest(origins[is_hit] - distance[is_hit, None] * toward)
        cosine = torch.from_numpy(mesh.normals[face.numpy()]).float() @ toward
        light[is_hit] = 0.15 + 0.85 * cosine.abs()
    return encode_png(to_bytes(light.view(SIDE, SIDE, 1).expand(-1, -1, 3)))


def _of_samples(signal: SampledSignal, name: str, values: Tensor) -> Exhibit:
    if signal.format.kind == "sound":
        return Exhibit(name, "audio/wav", _wav(values, signal.format.rate or 1.0))
    picture = shown(values if signal.format.kind == "image" else values[0])
    return Exhibit(name, "image/png", encode_png(to_bytes(picture)))


def _wav(values: Tensor, rate: float) -> bytes:
    """A 16-bit WAV file of (samples, channels) in [-1, 1], which every browser plays."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(2)
        file.setframerate(round(rate))
        file.writeframes((values.cpu().numpy() * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()
