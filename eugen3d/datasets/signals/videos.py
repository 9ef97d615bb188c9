"""Videos: files that FFmpeg decodes, and folders of frames."""

import re
from fractions import Fraction
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.signals.images import IMAGE_SUFFIXES, encode_picture, read_picture, value_range
from eugen3d.datasets.signals.reading import check_found, decoding
from eugen3d.datasets.signals.signal import SampledSignal, SignalFormat, normalized

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".avi": "libx264", ".webm": "libvpx-vp9"}
"""What a file of each suffix is encoded with, whatever the one read was."""
VIDEO_SUFFIXES = tuple(CODECS)


def read_video(path: Path) -> SampledSignal:
    """Read a video as 8-bit RGB, all frames of it.

    Raises:
        SceneError: the file is missing, broken or cut short, or holds no frame of at least 2 x 2 pixels.
    """
    check_found(path, "a video")
    with decoding(path, "a video"):
        if path.suffix.lower() in (".mp4", ".mov"):
            _check_length(path)
        with iio.imopen(path, "r", plugin="pyav") as file:
            meta, frames = file.metadata(), list(file.iter())
    _check_frames(path, [frame.shape for frame in frames])
    rate = float(meta.get("fps") or 0.0) or None
    size = (len(frames), *frames[0].shape[:2])
    codec = str(meta.get("codec")) if meta.get("codec") else None
    num_bytes = path.stat().st_size
    video_format = SignalFormat(
        "video", size, 3, path.suffix.lower(), "uint8", 0.0, 255.0, rate=rate, encoding=codec, num_bytes=num_bytes
    )
    return SampledSignal(video_format, normalized(np.stack(frames), 0.0, 255.0))


def read_frame_folder(path: Path) -> SampledSignal:
    """Read a folder of frames in natural order (frame2 before frame10); other files in it do not count.

    Raises:
        SceneError: there is no frame, a frame cannot be read, or frames differ in kind of file, size or type of pixels.
    """
    files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    files.sort(key=lambda file: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)])
    suffixes = sorted({file.suffix.lower() for file in files})
    if len(suffixes) > 1:
        raise SceneError(f"{path}: found frames of {' and '.join(suffixes)}, expected one kind of file")
    pictures = [read_picture(file) for file in files]
    _check_frames(path, [picture.pixels.shape for picture in pictures])
    first = pictures[0]
    for file, picture in zip(files, pictures, strict=True):
        if (picture.pixels.dtype, picture.channel_names) != (first.pixels.dtype, first.channel_names):
            found, expected = (" ".join((p.pixels.dtype.name, *p.channel_names)) for p in (picture, first))
            raise SceneError(f"{file}: found {found}, expected {expected} as in the first frame")
    stored = np.stack([picture.pixels for picture in pictures])
    low, high = value_range(path, stored)
    video_format = SignalFormat(
        "video",
        stored.shape[:3],
        stored.shape[3],
        suffixes[0],
        stored.dtype.name,
        low,
        high,
        encoding=first.encoding,
        channel_names=first.channel_names,
        is_folder=True,
        num_bytes=sum(file.stat().st_size for file in files),
    )
    return SampledSignal(video_format, normalized(stored, low, high))


def encode_video(video_format: SignalFormat, stored: np.ndarray, rate: float) -> bytes:
    """The content of a video file of frames (frames, height, width, 3) uint8, at FFmpeg's usual quality.

    Colour has half the resolution, as players expect it, unless a side of the frames is odd.
    """
    is_even = stored.shape[1] % 2 == 0 and stored.shape[2] % 2 == 0
    return iio.imwrite(
        "<bytes>",
        stored,
        extension=video_format.suffix,
        plugin="pyav",
        codec=CODECS[video_format.suffix],
        fps=float(Fraction(rate).limit_denominator(1001)),
        out_pixel_format="yuv420p" if is_even else "yuv444p",
    )


def write_frame_folder(video_format: SignalFormat, stored: np.ndarray, folder: Path) -> None:
    """Write frames (frames, height, width, channels) into a folder as 00000.png and so on."""
    digits = max(5, len(str(len(stored) - 1)))
    for index, frame in enumerate(stored):
        (folder / f"{index:0{digits}d}{video_format.suffix}").write_bytes(encode_picture(video_format, frame))


def _check_frames(path: Path, shapes: list[tuple[int, ...]]) -> None:
    if not shapes:
        raise SceneError(f"{path}: found no frames, expected a video")
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            found, expected = (" x ".join(map(str, s)) for s in (shape, shapes[0]))
            raise SceneError(f"{path}: frame {index} is of {found} values, expected {expected} as the first")
    if min(shapes[0][:2]) < 2:
        raise SceneError(f"{path}: found frames of {shapes[0][1]} x {shapes[0][0]} pixels, expected 2 x 2 or more")


def _check_length(path: Path) -> None:
    """FFmpeg takes an MP4 that is cut short for one of fewer frames; its outermost boxes tell their lengths."""
    length, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position + 8 <= length:
            file.seek(position)
            size = int.from_bytes(file.read(4), "big")
            if file.read(4) and size == 1:
                size = int.from_bytes(file.read(8), "big")
            if size < 8:  # 0: up to the end
                return
            position += size
    if position > length:
        raise SceneError(f"{path}: found {length} bytes, expected {position}: the file is cut short")
