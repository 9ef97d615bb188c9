"""A datamanager of depth frames: a recorded sequence played as a stream, at a frame rate or as fast as is asked."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
from torch.nn import Parameter

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.depth_checks import BadFrameError, FrameLog
from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.datasets.depth_sequence import DepthSequence, open_depth_sequence


@dataclass
class DepthDataManagerConfig(DataManagerConfig):
    """Depth frames of a folder in any layout that `open_depth_sequence` knows."""

    _target: type = field(default_factory=lambda: DepthDataManager)
    """Target class to instantiate."""
    data: Path | None = None
    """The sequence's folder."""
    stream: bool = True
    """Whether frames come one after the other, or all at once, to be trained on together."""
    frame_rate: float | None = None
    """Frames of the sequence a second; those that come while the last one is still worked on are left out. None: every
    frame, as soon as it is asked for."""
    frame_step: int = 1
    """Every how manieth frame of the folder the sequence has."""
    max_batch_frames: int = 64
    """How many frames are trained on together where they do not stream, evenly spread."""

    def __post_init__(self) -> None:
        if self.frame_rate is not None and not self.frame_rate > 0:
            raise ValueError(f"frame_rate is {self.frame_rate}, expected a positive number, or None")
        if self.frame_step < 1 or self.max_batch_frames < 1:
            raise ValueError("frame_step and max_batch_frames are at least 1")


class DepthDataManager(DataManager):
    """Gives depth frames as they are due. It has no rays: who trains on them draws their own.

    Bad frames are left out, counted, and reported once at the end.

    Args:
        clock: seconds that never go back.

    Attributes:
        position: the frame of the sequence that comes next; bad frames count.
        rays_per_batch: rays that are drawn of the frames in a training step, for the trainer's statistics.
    """

    config: DepthDataManagerConfig

    def __init__(
        self,
        config: DepthDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: str = "val",
        clock: Callable[[], float] = time.monotonic,
        **_: Any,
    ) -> None:
        super().__init__()
        self.config, self.device, self.test_mode = config, device, test_mode
        self.position, self.rays_per_batch = 0, 1
        self._clock, self._start = clock, None
        self.sequence: DepthSequence | None = None
        if test_mode == "inference":
            return
        self.sequence = _open(config)
        self.train_dataset = self.sequence  # pyright: ignore[reportAttributeAccessIssue] (the trainer asks for one)
        self._log = FrameLog(str(config.data))

    @property
    def is_stream(self) -> bool:
        """Whether frames come one after the other."""
        return self.config.stream

    @property
    def is_over(self) -> bool:
        """Whether the stream has ended."""
        return self.position >= len(self._sequence())

    def next_frame(self) -> DepthFrame | None:
        """The frame that is due, or None where none is yet, it is bad, or the stream has ended."""
        sequence = self._sequence()
        if self._start is None:
            self._start = self._clock(), self.position  # a resumed stream plays on from where it was
        start, first = self._start
        index = self.position
        if self.config.frame_rate is not None:
            index = first + int((self._clock() - start) * self.config.frame_rate)
            if index < self.position:
                return None
        self.position = min(index + 1, len(sequence))
        frame = self._read(index) if index < len(sequence) else None
        if self.is_over:
            self._log.report()
        return frame

    def all_frames(self) -> list[DepthFrame]:
        """Frames from the whole sequence, evenly spread, bad ones left out."""
        count = len(self._sequence())
        step = -(-count // self.config.max_batch_frames)
        frames = [frame for index in range(0, count, step) if (frame := self._read(index)) is not None]
        self.position = count
        self._log.report()
        return frames

    def get_train_rays_per_batch(self) -> int:
        """Rays of a training step, as who draws them says."""
        return self.rays_per_batch

    def get_eval_rays_per_batch(self) -> int:
        """None."""
        return 0

    def get_datapath(self) -> Path:
        """The sequence's folder."""
        return self.config.data or Path()

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """None."""
        return {}

    def _sequence(self) -> DepthSequence:
        if self.sequence is None:
            raise ValueError("a datamanager for inference has no frames, expected one for training")
        return self.sequence

    def _read(self, index: int) -> DepthFrame | None:
        try:
            frame = self._sequence()[index]
        except BadFrameError as error:
            self._log.skip(error)
            return None
        self._log.use(0.0)
        return frame


def _open(config: DepthDataManagerConfig) -> DepthSequence:
    """The sequence; what cannot be used ends the process with one line and exit code 2, as in the other methods."""
    try:
        if config.data is None:
            raise SceneError("--data: found none, expected a folder with depth frames")
        return open_depth_sequence(config.data).every(config.frame_step)
    except SceneError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
