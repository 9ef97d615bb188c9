"""OpenEXR files: the first part's channels, each of half or single precision."""

import tempfile
from pathlib import Path

import numpy as np
import OpenEXR

LEADING = ("R", "G", "B", "A")
"""Channels that come first and in this order; others follow by name."""


def read_exr(path: Path) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Pixels (height, width, channels), float16 where all channels are half, or float32; compression and names.

    Raises:
        ValueError: a channel holds integers, or is of another size than the others.
        Exception: whatever OpenEXR raises at a broken file.
    """
    with OpenEXR.File(str(path), separate_channels=True) as file:
        planes = {name: channel.pixels for name, channel in file.channels().items()}
        compression = file.header()["compression"].name
    names = tuple(sorted(planes, key=lambda name: (LEADING.index(name) if name in LEADING else len(LEADING), name)))
    for name in names:
        if planes[name].dtype.kind != "f":
            raise ValueError(f"channel {name} holds {planes[name].dtype}, expected floating-point numbers")
        if planes[name].shape != planes[names[0]].shape:
            raise ValueError(f"channel {name} is of shape {planes[name].shape}, {names[0]} of {planes[names[0]].shape}")
    return np.stack([planes[name] for name in names], axis=-1), compression, names


def encode_exr(pixels: np.ndarray, names: tuple[str, ...], compression: str | None) -> bytes:
    """The content of a file of scan lines with one channel for each name, of pixels (height, width, channels)."""
    chosen = getattr(OpenEXR, compression or "ZIP_COMPRESSION")
    header = {"compression": chosen, "type": OpenEXR.scanlineimage}
    planes = {name: np.ascontiguousarray(pixels[..., index]) for index, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.exr"
        with OpenEXR.File(header, planes) as file:
            file.write(str(path))
        return path.read_bytes()
