"""From a file to a signal and back, whatever its kind."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.signals.images import IMAGE_SUFFIXES, encode_picture, read_image
from eugen3d.datasets.signals.shapes import SHAPE_SUFFIXES, ShapeSignal, read_shape
from eugen3d.datasets.signals.signal import SampledSignal, SignalFormat, stored_values
from eugen3d.datasets.signals.sounds import SOUND_SUFFIXES, encode_sound, read_sound
from eugen3d.datasets.signals.videos import (
    VIDEO_SUFFIXES,
    encode_video,
    read_frame_folder,
    read_video,
    write_frame_folder,
)

Reader = Callable[[Path], SampledSignal | ShapeSignal]
KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, *SOUND_SUFFIXES, *VIDEO_SUFFIXES, *SHAPE_SUFFIXES)
"""Endings of the files that can be read, in lower case."""


def open_signal(path: Path, *, allow_open: bool = False) -> SampledSignal | ShapeSignal:
    """Read the image, sound, video or shape in a file, told by its suffix; a folder is a video of frames.

    Args:
        path: the file or folder.
        allow_open: take a mesh with open edges, too; its `is_closed` is False.

    Raises:
        SceneError: there is none, its suffix is unknown, or it cannot be used; the message is one line that names it.
    """
    if path.is_dir():
        return read_frame_folder(path)
    readers: dict[tuple[str, ...], Reader] = {
        IMAGE_SUFFIXES: read_image,
        SOUND_SUFFIXES: read_sound,
        VIDEO_SUFFIXES: read_video,
        SHAPE_SUFFIXES: partial(read_shape, allow_open=allow_open),
    }
    for suffixes, read in readers.items():
        if path.suffix.lower() in suffixes:
            return read(path)
    found = f"found the suffix {path.suffix!r}" if path.exists() else "not found"
    raise SceneError(f"{path}: {found}, expected a folder of frames or one of {' '.join(KNOWN_SUFFIXES)}")


def encode_signal(signal_format: SignalFormat, values: Tensor, rate: float | None = None) -> bytes:
    """The content of a file of these values, in the format that the signal came in.

    Values are clamped to the range of integers and rounded; floating-point formats hold them as they are.

    Args:
        signal_format: the format; its size does not matter.
        values: (*size, channels) in [-1, 1], of any size.
        rate: samples or frames per second; None: the format's own.

    Raises:
        ValueError: the shape is not of the format's kind, a value is not finite, there is no rate, or the format is a
            folder (see `write_frames`).
    """
    if signal_format.is_folder:
        raise ValueError("a folder of frames is no single file: write_frames writes it")
    _check_shape(signal_format, values)
    stored = stored_values(signal_format, values)
    if signal_format.kind == "image":
        return encode_picture(signal_format, stored)
    rate = signal_format.rate if rate is None else rate
    if rate is None:
        raise ValueError(f"the rate of the {signal_format.kind} is unknown, expected one to write it with")
    return (encode_sound if signal_format.kind == "sound" else encode_video)(signal_format, stored, rate)


def write_frames(signal_format: SignalFormat, values: Tensor, folder: Path) -> None:
    """Write frames (frames, height, width, channels) into a folder, in the format of those that the signal came in.

    Raises:
        ValueError: the format is no folder's, the shape is not a video's, or a value is not finite.
        OSError: a frame cannot be written.
    """
    if not signal_format.is_folder:
        raise ValueError(f"a {signal_format.kind} in a {signal_format.suffix} file has no folder of frames")
    _check_shape(signal_format, values)
    write_frame_folder(signal_format, stored_values(signal_format, values), folder)


def _check_shape(signal_format: SignalFormat, values: Tensor) -> None:
    if values.ndim != len(signal_format.size) + 1 or values.shape[-1] != signal_format.channels:
        names = {"image": "height, width", "sound": "samples", "video": "frames, height, width"}[signal_format.kind]
        raise ValueError(f"values are of shape {tuple(values.shape)}, expected ({names}, {signal_format.channels})")
