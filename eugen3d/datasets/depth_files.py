"""One frame's files, and how they are read: units, invalid values, colour brought onto depth, lens distortion."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np

from eugen3d.datasets.depth_checks import Axes, BadFrameError, checked_frame
from eugen3d.datasets.depth_frame import DepthFrame

SATURATED = 65535
"""The largest 16-bit value; like 0 it means no measurement."""

Distortion = tuple[float, float, float, float, float, float]
"""k1, k2, k3, k4 (radial: 1 + k1 r² + k2 r⁴ + k3 r⁶ + k4 r⁸), p1, p2 (tangential), as nerfstudio has them."""
NO_DISTORTION: Distortion = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class LensCamera:
    """A perspective camera with distortion; pixels, with the centre of the first one at (0.5, 0.5)."""

    fx: float
    fy: float
    cx: float
    cy: float
    size: tuple[int, int] | None = None
    """Height and width of the pictures that the above is for; None: those that there are."""
    distortion: Distortion = NO_DISTORTION

    def for_size(self, size: tuple[int, int]) -> "LensCamera":
        """The same camera with pictures of another size."""
        if self.size is None or self.size == size:
            return replace(self, size=size)
        down, across = size[0] / self.size[0], size[1] / self.size[1]
        return replace(self, fx=self.fx * across, cx=self.cx * across, fy=self.fy * down, cy=self.cy * down, size=size)

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        return (self.fx, self.fy, self.cx, self.cy)


@dataclass(frozen=True)
class FrameFiles:
    """Where one frame of a folder is."""

    name: str
    depth: Path | None
    """A 16-bit picture, or an .npy array; None where the folder names none."""
    pose: np.ndarray | Path | None
    """Camera to world, or the text file that holds it; None where the folder has none."""
    axes: Axes
    depth_unit: float
    """Metres per step of the depth's values."""
    camera: LensCamera
    """That of the depth."""
    color: Path | None = None
    color_camera: LensCamera | None = None
    """That of the colour where it is another one; both look from the same place."""
    time: float | None = None


def read_frame(files: FrameFiles, size: tuple[int, int] | None = None) -> tuple[DepthFrame, float]:
    """Read a frame, without its lens's distortion, and with the colour at the depth's pixels.

    Args:
        files: where it is.
        size: the height and width that the sequence's depth has.

    Returns:
        The frame, and how far its pose was from a rigid one (see `checked_frame`).

    Raises:
        BadFrameError: a file is missing or cannot be read, or the frame cannot be used.
    """
    if files.depth is None:
        raise BadFrameError(f"{files.name}: no depth is named")
    pose = read_pose(files)
    depth = read_depth(files.depth, files.depth_unit)
    rgb = None if files.color is None else _read_color(files.color)
    lens = files.camera.for_size((depth.shape[0], depth.shape[1]))
    pinhole = replace(lens, distortion=NO_DISTORTION)
    if rgb is not None:
        color_lens = (files.color_camera or lens).for_size((rgb.shape[0], rgb.shape[1]))
        rgb = _resampled(rgb, color_lens, pinhole, cv2.INTER_LINEAR)
    depth = _resampled(depth, lens, pinhole, cv2.INTER_NEAREST)
    return checked_frame(
        files.name, depth, pose, pinhole.intrinsics, axes=files.axes, size=size, rgb=rgb, time=files.time
    )


def read_pose(files: FrameFiles) -> np.ndarray:
    """A frame's pose as the folder has it.

    Raises:
        BadFrameError: there is none, or its file cannot be read.
    """
    if files.pose is None:
        raise BadFrameError(f"{files.name}: there is no pose")
    return read_numbers(files.pose, 4) if isinstance(files.pose, Path) else files.pose


def read_depth(path: Path, unit: float) -> np.ndarray:
    """Depth (height, width) float32 in metres, 0 where there is no measurement.

    Raises:
        BadFrameError: the file is missing, cannot be read, or is not of 16-bit integers (.npy: numbers).
    """
    if not path.is_file():
        raise BadFrameError(f"{path}: not found")
    try:
        values = np.load(path) if path.suffix == ".npy" else iio.imread(path)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadFrameError(f"{path}: cannot be read as depth ({error})") from error
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    numeric = np.issubdtype(values.dtype, np.floating) and path.suffix == ".npy"
    if values.ndim != 2 or not (numeric or values.dtype == np.uint16):
        raise BadFrameError(f"{path}: found {values.dtype} of shape {values.shape}, expected 16-bit depth, one channel")
    missing = ~np.isfinite(values) | (values <= 0)
    if not numeric:
        missing |= values == SATURATED
    return np.where(missing, 0.0, unit * values.astype(np.float64)).astype(np.float32)


def read_numbers(path: Path, columns: int) -> np.ndarray:
    """Rows of `columns` numbers, (rows, columns) float64, from a text file with # comments.

    Raises:
        BadFrameError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise BadFrameError(f"{path}: not found")
    rows = [line.split("#")[0].replace(",", " ").split() for line in path.read_text(errors="replace").splitlines()]
    try:
        numbers = np.array([[float(word) for word in row] for row in rows if row], np.float64)
    except ValueError as error:
        raise BadFrameError(f"{path}: found no rows of {columns} numbers ({error})") from error
    if numbers.ndim != 2 or numbers.shape[1] != columns:
        raise BadFrameError(f"{path}: found numbers of shape {numbers.shape}, expected rows of {columns}")
    return numbers


def _read_color(path: Path) -> np.ndarray:
    if not path.is_file():
        raise BadFrameError(f"{path}: not found")
    try:
        return np.asarray(iio.imread(path, mode="RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise BadFrameError(f"{path}: cannot be read as a picture ({error})") from error


def _resampled(image: np.ndarray, lens: LensCamera, target: LensCamera, interpolation: int) -> np.ndarray:
    """What a pinhole camera at the same place sees; 0 outside the picture. Depth along the axis stays what it is."""
    if lens == target:
        return image
    assert target.size is not None
    columns, rows = np.meshgrid(np.arange(target.size[1]) + 0.5, np.arange(target.size[0]) + 0.5)
    x, y = (columns - target.cx) / target.fx, (rows - target.cy) / target.fy
    x, y = _distorted(x, y, lens.distortion)
    source = (np.stack([lens.fx * x + lens.cx, lens.fy * y + lens.cy]) - 0.5).astype(np.float32)
    return cv2.remap(image, source[0], source[1], interpolation, borderMode=cv2.BORDER_CONSTANT)


def _distorted(x: np.ndarray, y: np.ndarray, distortion: Distortion) -> tuple[np.ndarray, np.ndarray]:
    """Where the lens puts a direction (Brown 1971)."""
    k1, k2, k3, k4, p1, p2 = distortion
    squared = x * x + y * y
    radial = 1.0 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4)))
    return (
        x * radial + 2.0 * p1 * x * y + p2 * (squared + 2.0 * x * x),
        y * radial + 2.0 * p2 * x * y + p1 * (squared + 2.0 * y * y),
    )
