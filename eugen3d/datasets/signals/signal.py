"""What a signal is: its values on a grid, and the format that they came in, as plain values that YAML can hold."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

SignalKind = Literal["image", "sound", "video"]


@dataclass(frozen=True)
class SignalFormat:
    """The format of a file of samples, enough to write one of any size and rate in it."""

    kind: SignalKind
    """What the samples are of."""
    size: tuple[int, ...]
    """Height and width; the number of samples; or frames, height and width."""
    channels: int
    """Values at each point of the grid, such as 3 for red, green and blue."""
    suffix: str
    """The file's ending in lower case, such as ".png"; that of the frames in a folder."""
    dtype: str
    """The type of a stored value: "uint8", "uint16", "float32", "int24" for 24-bit sound, and so on."""
    low: float
    """The stored value that becomes -1."""
    high: float
    """The stored value that becomes 1. Sounds count full scale as 1: theirs are -peak and peak."""
    rate: float | None = None
    """Samples or frames per second; None where the file does not say."""
    encoding: str | None = None
    """How the values are stored: the sample type of a sound, the compression of EXR, the codec of a video."""
    container: str | None = None
    """The kind of file where its suffix does not tell, such as "WAVEX" for a .wav; None: as the suffix says."""
    channel_names: tuple[str, ...] = ()
    """The names of an EXR file's channels, in the order of the values'."""
    is_folder: bool = False
    """Whether a video is a folder of frames."""
    num_bytes: int = 0
    """The size of the file, or of all frames of the folder."""


@dataclass(frozen=True)
class ShapeFormat:
    """Where a shape was before it was brought into the cube [-1, 1]^3: world = center + position / scale."""

    center: tuple[float, float, float]
    """The middle of the bounding box, in world units."""
    scale: float
    """Lengths of the cube per world unit: the longest side of the bounding box reaches from -0.9 to 0.9."""
    is_closed: bool
    """Whether it is a mesh without open edges; False for a point cloud."""
    suffix: str
    """The file's ending in lower case, such as ".obj"."""
    num_bytes: int = 0
    """The size of the file."""


@dataclass(frozen=True, eq=False)
class SampledSignal:
    """An image, a sound or a video."""

    format: SignalFormat
    values: Tensor
    """(*size, channels) float32 in [-1, 1]."""


def normalized(stored: np.ndarray, low: float, high: float) -> Tensor:
    """Map low to -1 and high to 1; float32 of the shape of `stored`, kept in [-1, 1].

    8 and 16-bit values are mapped in single precision, all others in double precision and rounded then.
    """
    exact = torch.from_numpy(np.ascontiguousarray(stored)).to(_working_dtype(stored.dtype.name), copy=True)
    return exact.sub_(low).mul_(2.0 / (high - low)).sub_(1.0).clamp_(-1.0, 1.0).float()


def stored_values(signal_format: SignalFormat, values: Tensor) -> np.ndarray:
    """The inverse of `normalized`: clamped and rounded for images and videos of integers, else float64 as they are.

    Raises:
        ValueError: a value is not finite.
    """
    if not torch.isfinite(values).all():
        raise ValueError("a value is not finite, so no file can hold the signal")
    low, high = signal_format.low, signal_format.high
    exact = values.detach().cpu().to(_working_dtype(signal_format.dtype), copy=True)
    scaled = exact.add_(1.0).mul_(0.5 * (high - low)).add_(low)
    if signal_format.kind == "sound" or signal_format.dtype.startswith("float"):
        return scaled.numpy()
    return scaled.clamp_(low, high).round_().numpy().astype(signal_format.dtype)


def _working_dtype(name: str) -> torch.dtype:
    return torch.float32 if name in ("uint8", "uint16") else torch.float64
