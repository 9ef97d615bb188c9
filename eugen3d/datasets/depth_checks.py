"""What makes a depth frame usable: its pose, its depth and its sizes; and the count of those that are not."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.depth_frame import DepthFrame

Axes = Literal["opengl", "opencv"]
"""A camera's axes: x right, y up, z backward; or x right, y down, z forward."""
RIGID_WITHIN = 1e-2
"""Largest entry of |RᵀR - I| of a rotation that is taken for a rounded one and projected; beyond, the pose is wrong."""
ROUNDED_BEYOND = 1e-4
"""From here on a projection is reported; below, it is that of single precision and short decimals."""
NUM_NAMED = 3
"""How many skipped frames a report names."""


class BadFrameError(SceneError):
    """One frame that cannot be used, in a sequence that can; the message is one line that names it."""


def checked_frame(
    name: str,
    depth: np.ndarray,
    pose: np.ndarray,
    intrinsics: tuple[float, float, float, float],
    *,
    axes: Axes,
    size: tuple[int, int] | None = None,
    rgb: np.ndarray | None = None,
    time: float | None = None,
) -> tuple[DepthFrame, float]:
    """A frame, and how far its rotation was from one before it was projected (the largest entry of |RᵀR - I|).

    Args:
        name: what messages call it.
        depth: (height, width) metres; not finite or not positive where there is no measurement.
        pose: (3, 4) or (4, 4), camera to world in metres.
        intrinsics: fx, fy, cx, cy in pixels, the centre of the first pixel at (0.5, 0.5).
        axes: those of the pose's camera.
        size: the height and width that the sequence has.
        rgb: (height, width, 3) uint8.
        time: seconds since the sequence began.

    Raises:
        BadFrameError: the frame cannot be used.
    """
    if depth.ndim != 2:
        raise BadFrameError(f"{name}: depth is of shape {depth.shape}, expected (height, width)")
    if size is not None and depth.shape != size:
        raise BadFrameError(f"{name}: depth is {_size(depth.shape)} pixels, expected {_size(size)} as in the others")
    if rgb is not None and (rgb.shape != (*depth.shape, 3) or rgb.dtype != np.uint8):
        raise BadFrameError(f"{name}: colour is {rgb.shape} {rgb.dtype}, expected {(*depth.shape, 3)} uint8")
    if not (np.isfinite(intrinsics).all() and intrinsics[0] > 0 and intrinsics[1] > 0):
        raise BadFrameError(f"{name}: intrinsics are {intrinsics}, expected finite fx, fy, cx, cy and positive lengths")
    valid = np.isfinite(depth) & (depth > 0.0)
    if not valid.any():
        raise BadFrameError(f"{name}: depth has no measurement")
    rigid, deviation = nearest_rigid(name, np.asarray(pose, np.float64), axes)
    frame = DepthFrame(
        name=name,
        depth=torch.from_numpy(np.where(valid, depth, 0.0).astype(np.float32)),
        camera_to_world=torch.from_numpy(rigid.astype(np.float32)),
        intrinsics=intrinsics,
        rgb=None if rgb is None else torch.from_numpy(np.ascontiguousarray(rgb)),
        time=time,
    )
    return frame, deviation


def nearest_rigid(name: str, pose: np.ndarray, axes: Axes) -> tuple[np.ndarray, float]:
    """The pose (3, 4) with OpenGL axes whose rotation is the nearest to what was given, and how far that was off.

    The nearest rotation in the Frobenius norm is U Vᵀ of the singular value decomposition (Kabsch 1976).

    Raises:
        BadFrameError: it is no pose, not finite, or its rotation is off by more than rounding.
    """
    if pose.shape not in {(3, 4), (4, 4)}:
        raise BadFrameError(f"{name}: pose is of shape {pose.shape}, expected (4, 4)")
    if not np.isfinite(pose).all():
        raise BadFrameError(f"{name}: pose is not finite")
    if pose.shape == (4, 4) and not np.allclose(pose[3], [0.0, 0.0, 0.0, 1.0], atol=1e-6):
        raise BadFrameError(f"{name}: pose ends in the row {pose[3].tolist()}, expected 0, 0, 0, 1")
    rotation = pose[:3, :3]
    deviation = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if deviation > RIGID_WITHIN or np.linalg.det(rotation) < 0.0:
        found = f"RᵀR is off by {deviation:.2g} and det R is {np.linalg.det(rotation):.3g}"
        raise BadFrameError(f"{name}: pose has no rotation, {found}, expected 0 and 1")
    u, _, vt = np.linalg.svd(rotation)
    flip = np.array([1.0, 1.0, 1.0] if axes == "opengl" else [1.0, -1.0, -1.0])
    return np.column_stack([u @ vt * flip, pose[:3, 3]]), deviation


@dataclass
class FrameLog:
    """Counts frames as they come, in bounded memory, and says at the end what was wrong."""

    source: str
    """What the report begins with, such as the folder."""
    num_used: int = 0
    num_skipped: int = 0
    first_skipped: list[str] = field(default_factory=list)
    """The messages of the first few skipped frames."""
    num_projected: int = 0
    """Used frames whose rotation was off by more than single precision and short decimals explain."""
    largest_deviation: float = 0.0

    def use(self, deviation: float) -> None:
        self.num_used += 1
        self.num_projected += deviation > ROUNDED_BEYOND
        self.largest_deviation = max(self.largest_deviation, deviation)

    def skip(self, error: BadFrameError) -> None:
        self.num_skipped += 1
        if len(self.first_skipped) < NUM_NAMED:
            self.first_skipped.append(str(error))

    def lines(self) -> list[str]:
        """What there is to say: nothing where all was well."""
        total, lines = self.num_used + self.num_skipped, []
        if self.num_skipped:
            more = ", …" if self.num_skipped > len(self.first_skipped) else ""
            lines.append(
                f"{self.source}: skipped {self.num_skipped} of {total} frames: {'; '.join(self.first_skipped)}{more}"
            )
        if self.num_projected:
            lines.append(
                f"{self.source}: the rotations of {self.num_projected} of {total} poses were off by up to "
                f"{self.largest_deviation:.1g} and were projected onto the nearest ones"
            )
        return lines

    def report(self) -> None:
        for line in self.lines():
            CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
