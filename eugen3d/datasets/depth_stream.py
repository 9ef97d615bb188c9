"""Depth frames as they come: from any Python iterator, or from a folder that is being written to."""

import time
from collections.abc import Callable, Iterable, Iterator
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
    """Frames of a folder while it is being written to, as `FolderWatch` has them; waits for each.

    Raises:
        SceneError: no sequence was there when the time was up, or no frame of it could be used.
    """
    watch = FolderWatch(path, timeout, poll, depth_unit)
    try:
        while not watch.is_over:
            frame = watch.next_frame()
            if frame is not None:
                yield frame
            elif not watch.is_over:
                time.sleep(poll)
    finally:
        watch.report()


class FolderWatch:
    """A folder that is being written to, in any of the layouts of `open_depth_sequence`.

    A frame that cannot be read may still be being written, so it is tried again until a later one can be read or the
    time is up; then it counts as bad and is skipped.

    Args:
        path: the folder; it may come into being later.
        timeout: seconds without a new frame after which the sequence is over.
        poll: seconds between two looks; more where a look itself takes longer.
        depth_unit: metres per step of the depth's values; None: what the layout has.
        first: how many frames of the folder have been taken before.
        is_taken: by a frame's number, whether it is one of those wanted; None: all are.
        log: where frames are counted; None: a new one.

    Attributes:
        position: how many frames of the folder were taken, skipped or left out so far.
        is_over: whether no more frame is expected.
        log: what was used and skipped.
    """

    def __init__(
        self,
        path: Path,
        timeout: float = 5.0,
        poll: float = 0.1,
        depth_unit: float | None = None,
        *,
        first: int = 0,
        is_taken: Callable[[int], bool] | None = None,
        log: FrameLog | None = None,
    ) -> None:
        self.path, self.position, self.is_over = path, first, False
        self.log = log or FrameLog(str(path))
        self._timeout, self._poll, self._depth_unit, self._is_taken = timeout, poll, depth_unit, is_taken
        self._first, self._seen = first, set[str]()
        self._frames = self._watch()

    def next_frame(self) -> DepthFrame | None:
        """The next frame, or None where there is none now; does not wait.

        Raises:
            SceneError: no sequence was there when the time was up, or no frame of it could be used.
        """
        return next(self._frames, None)

    def report(self) -> None:
        """Say what was skipped, where anything could be used."""
        if self.log.num_used:
            self.log.report()

    def _watch(self) -> Iterator[DepthFrame | None]:
        deadline, next_look, size = time.monotonic() + self._timeout, 0.0, None
        while True:
            if (looked := time.monotonic()) < next_look:
                yield None
                continue
            waiting, trouble = self._listed()
            next_look = time.monotonic() + max(self._poll, time.monotonic() - looked)
            bad: list[tuple[FrameFiles, BadFrameError]] = []
            used = self.log.num_used
            for files in waiting:
                try:
                    frame, deviation = read_frame(files, size)
                except BadFrameError as error:
                    bad.append((files, error))
                    continue
                self._give_up(bad)
                self._pass(files)
                size = (frame.depth.shape[0], frame.depth.shape[1])
                self.log.use(deviation)
                yield frame
                deadline, next_look = time.monotonic() + self._timeout, 0.0
            if self.log.num_used > used:
                continue  # more may have come in the meantime
            if looked > deadline:
                self._give_up(bad)
                self.is_over = True
                if not self.log.num_used and not self._first:
                    first = f": {self.log.first_skipped[0]}" if self.log.first_skipped else f" in {self._timeout:g} s"
                    raise trouble or SceneError(f"{self.path}: no frame could be used{first}")
                return
            yield None

    def _listed(self) -> tuple[list[FrameFiles], SceneError | None]:
        """The frames not seen yet; or what is wrong with the folder, which may not be complete yet."""
        try:
            frames = list_frames(self.path, self._depth_unit)
        except SceneError as error:
            return [], error
        if not self._seen:
            self._seen = {files.name for files in frames[: self._first]}
        waiting = []
        for number, files in enumerate(frames):
            if files.name in self._seen:
                continue
            if self._is_taken is None or self._is_taken(number):
                waiting.append(files)
            else:
                self._pass(files)
        return waiting, None

    def _give_up(self, bad: list[tuple[FrameFiles, BadFrameError]]) -> None:
        for files, error in bad:
            self._pass(files)
            self.log.skip(error)
        bad.clear()

    def _pass(self, files: FrameFiles) -> None:
        self._seen.add(files.name)
        self.position = len(self._seen)


def _numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
