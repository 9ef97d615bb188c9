"""Depth frames as they come: from any Python iterator, or from a folder that is being written to."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.depth_checks import Axes, BadFrameError, FrameLog, checked_frame
from eugen3d.datasets.depth_files import FrameFiles, read_frame
from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.datasets.depth_layouts import list_frames

Array = np.ndarray | Tensor
LiveItem = tuple[Array | None, Array, Array, tuple[float, float, float, float]]
"""rgb (height, width, 3) uint8 or None, depth (height, width) metres, pose (4, 4) or (3, 4), fx fy cx cy in pixels."""


def live_sequence(source: Iterable[LiveItem], *, axes: Axes = "opengl", name: str = "live") -> Iterator[DepthFrame]:
    """Turn whatever comes from a camera into frames; bad ones are skipped and reported once at the end.

    Args:
        source: (rgb, depth, pose, intrinsics), each as `LiveItem` says; depth is 0 or not finite where there is no
            measurement, poses are camera to world.
        axes: the camera's axes that poses are given in.
        name: what reports call the source.

    Raises:
        SceneError: an item is no such tuple, or its depth is of integers, whose unit nobody knows.
    """
    log, size = FrameLog(name), None
    try:
        for number, item in enumerate(source):
            label = f"{name} {number}"
            if not isinstance(item, tuple | list) or len(item) != 4:
                raise SceneError(f"{label}: found {type(item).__name__}, expected (rgb, depth, pose, intrinsics)")
            rgb, depth, pose = (None if x is None else _numpy(x) for x in item[:3])
            if depth is not None and not np.issubdtype(depth.dtype, np.floating):
                raise SceneError(f"{label}: depth is {depth.dtype}, expected floating-point metres")
            try:
                if depth is None or pose is None:
                    raise BadFrameError(f"{label}: there is no {'depth' if depth is None else 'pose'}")
                fx, fy, cx, cy = (float(x) for x in item[3])
                frame, deviation = checked_frame(label, depth, pose, (fx, fy, cx, cy), axes=axes, size=size, rgb=rgb)
            except BadFrameError as error:
                log.skip(error)
                continue
            size = (frame.depth.shape[0], frame.depth.shape[1])
            log.use(deviation)
            yield frame
    finally:
        log.report()


def watch_depth_folder(
    path: Path, timeout: float = 5.0, poll: float = 0.1, depth_unit: float | None = None
) -> Iterator[DepthFrame]:
    """Frames of a folder while it is being written to, in any of the layouts of `open_depth_sequence`.

    A frame that cannot be read may still be being written, so it is tried again until a later one can be read or the
    time is up; then it counts as bad, is skipped, and reported once at the end.

    Args:
        path: the folder; it may come into being later.
        timeout: seconds without a new frame after which the sequence is over.
        poll: seconds between two looks; more where a look itself takes longer.
        depth_unit: metres per step of the depth's values; None: what the layout has.

    Raises:
        SceneError: no sequence was there when the time was up, or no frame of it could be used.
    """
    log, size = FrameLog(str(path)), None
    seen: set[str] = set()
    deadline = time.monotonic() + timeout
    try:
        while True:
            looked = time.monotonic()
            waiting, trouble = _listed(path, depth_unit, seen)
            pause = max(poll, time.monotonic() - looked)
            bad: list[tuple[FrameFiles, BadFrameError]] = []
            for files in waiting:
                try:
                    frame, deviation = read_frame(files, size)
                except BadFrameError as error:
                    bad.append((files, error))
                    continue
                _give_up(bad, log, seen)
                seen.add(files.name)
                size = (frame.depth.shape[0], frame.depth.shape[1])
                log.use(deviation)
                yield frame
                deadline = time.monotonic() + timeout
            if time.monotonic() > deadline:
                _give_up(bad, log, seen)
                if not log.num_used:
                    first = f": {log.first_skipped[0]}" if log.first_skipped else f" in {timeout:g} s"
                    raise trouble or SceneError(f"{path}: no frame could be used{first}")
                return
            time.sleep(pause)
    finally:
        if log.num_used:
            log.report()


def _listed(path: Path, depth_unit: float | None, seen: set[str]) -> tuple[list[FrameFiles], SceneError | None]:
    """The frames not seen yet; or what is wrong with the folder, which may not be complete yet."""
    try:
        return [files for files in list_frames(path, depth_unit) if files.name not in seen], None
    except SceneError as error:
        return [], error


def _give_up(bad: list[tuple[FrameFiles, BadFrameError]], log: FrameLog, seen: set[str]) -> None:
    for files, error in bad:
        seen.add(files.name)
        log.skip(error)
    bad.clear()


def _numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
