"""A datamanager of depth frames: a recorded sequence played as a stream, or a folder that is being written to."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from torch.nn import Parameter

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.depth_checks import BadFrameError, FrameLog
from eugen3d.datasets.depth_dataset import DepthDataset, RenderableConfig
from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.datasets.depth_sequence import DepthSequence, open_depth_sequence
from eugen3d.datasets.depth_stream import FolderWatch
from eugen3d.datasets.stop import stop

T = TypeVar("T")


@dataclass
class DepthDataManagerConfig(RenderableConfig):
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
    watch_timeout: float | None = None
    """For a folder that is being written to: seconds without a new frame after which it is complete. Every frame is
    taken then, in turn. None: it is complete from the start."""
    frame_step: int = 1
    """Every how manieth frame of the folder the sequence has."""
    eval_interval: int = 10
    """Every how manieth frame of the sequence is not trained on, but kept for evaluation; 0: none."""
    max_eval_frames: int = 20
    """How many of these evaluation looks at, evenly spread."""
    max_batch_frames: int = 64
    """How many frames are trained on together where they do not stream, evenly spread."""

    def __post_init__(self) -> None:
        if self.frame_rate is not None and not self.frame_rate > 0:
            raise ValueError(f"frame_rate is {self.frame_rate}, expected a positive number, or None")
        if self.frame_step < 1 or self.max_batch_frames < 1 or self.max_eval_frames < 1:
            raise ValueError("frame_step, max_batch_frames and max_eval_frames are at least 1")
        if self.eval_interval < 0 or self.eval_interval == 1:
            raise ValueError(f"eval_interval is {self.eval_interval}, expected 0 or at least 2 frames")
        if self.watch_timeout is not None:
            if not self.watch_timeout > 0:
                raise ValueError(f"watch_timeout is {self.watch_timeout}, expected a positive number, or None")
            if not self.stream or self.frame_rate is not None:
                raise ValueError("with watch_timeout frames come as they are written: expected stream, no frame_rate")

    def open_or_exit(self) -> DepthSequence | None:
        """The sequence of the folder; None where the folder is one that is being written to.

        What cannot be used ends the process with one line and exit code 2, as in the other methods.
        """
        folder = _or_exit(lambda: _folder(self))
        if self.watch_timeout is not None:
            return None
        return _or_exit(lambda: open_depth_sequence(folder).every(self.frame_step))


class DepthDataManager(VanillaDataManager):  # ns-render spiral asks for one; only its type is inherited
    """Gives depth frames as they are due. It has no rays: who trains on them draws their own.

    Bad frames are left out, counted, and reported once at the end.

    Args:
        clock: seconds that never go back.

    Attributes:
        position: the frame of the sequence that comes next; bad frames and those for evaluation count.
        rays_per_batch: rays that are drawn of the frames in a training step, for the trainer's statistics.
        sequence: the frames of a folder that is complete; None without one.
    """

    config: DepthDataManagerConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    train_dataset: DepthDataset  # pyright: ignore[reportIncompatibleVariableOverride]
    eval_dataset: DepthDataset  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        config: DepthDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: str = "val",
        clock: Callable[[], float] = time.monotonic,
        **_: Any,
    ) -> None:
        DataManager.__init__(self)
        self.config, self.device, self.test_mode, self.world_size = config, device, test_mode, 1
        self.position, self.rays_per_batch = 0, 1
        self._clock, self._start = clock, None
        self._watch: FolderWatch | None = None
        self._log = FrameLog(str(config.data))
        self.sequence: DepthSequence | None = None
        if test_mode == "inference":
            return
        config = dataclasses.replace(config, watch_timeout=None) if test_mode == "test" else config
        self.sequence = config.open_or_exit()
        if self.sequence is None:  # nobody knows yet what will be written
            self.train_dataset = DepthDataset(self.get_datapath(), [], (0, 0))
        else:
            trained = [index for index in range(len(self.sequence)) if not self._is_held_out(index)]
            self.train_dataset, self.eval_dataset = self._dataset(trained), self._dataset(self._eval_indices())
        if test_mode == "test":
            self.train_dataparser_outputs = _or_exit(lambda: self.train_dataset._dataparser_outputs)

    @property
    def is_stream(self) -> bool:
        """Whether frames come one after the other."""
        return self.config.stream

    @property
    def is_over(self) -> bool:
        """Whether the stream has ended."""
        if self.sequence is None:
            return self._watch is not None and self._watch.is_over
        return self.position >= len(self.sequence)

    @property
    def num_skipped(self) -> int:
        """Bad frames so far."""
        return self._log.num_skipped

    def next_frame(self) -> DepthFrame | None:
        """The frame that is due, or None where none is yet, it is bad, or the stream has ended."""
        if self.config.watch_timeout is not None and self.sequence is None:
            return self._next_written(self.config.watch_timeout)
        sequence = self._sequence()
        if self._start is None:
            self._start = self._clock(), self.position  # a resumed stream plays on from where it was
        start, first = self._start
        index = self.position
        if self.config.frame_rate is not None:
            index = first + int((self._clock() - start) * self.config.frame_rate)
            if index < self.position:
                return None
        elif self._is_held_out(index):
            index += 1
        self.position = min(index + 1, len(sequence))
        frame = self._read(index) if index < len(sequence) and not self._is_held_out(index) else None
        if self.is_over:
            self._log.report()
        return frame

    def all_frames(self) -> list[DepthFrame]:
        """Frames from the whole sequence, evenly spread, without bad ones and those for evaluation."""
        count = len(self._sequence())
        taken = [index for index in range(count) if not self._is_held_out(index)]
        step = -(-len(taken) // self.config.max_batch_frames)
        frames = [frame for index in taken[::step] if (frame := self._read(index)) is not None]
        self.position = count
        self._log.report()
        return frames

    def eval_frames(self) -> Iterator[DepthFrame]:
        """Frames that are not trained on, evenly spread, bad ones left out."""
        return (frame for index in self._eval_indices() if (frame := self._read(index)) is not None)

    @cached_property
    def eval_dataloader(self) -> FixedIndicesEvalDataloader:
        """Cameras and pictures of the frames that are not trained on, for `ns-render`."""
        return FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)  # pyright: ignore[reportArgumentType]

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

    def _is_held_out(self, index: int) -> bool:
        """The last frame of every interval, so that the first frame is trained on."""
        interval = self.config.eval_interval
        return interval > 0 and index % interval == interval - 1

    def _eval_indices(self) -> list[int]:
        held_out = [index for index in range(len(self._sequence())) if self._is_held_out(index)]
        return held_out[:: -(-len(held_out) // self.config.max_eval_frames) or 1]

    def _dataset(self, indices: list[int]) -> DepthDataset:
        sequence = self._sequence()
        return DepthDataset(sequence.path, [sequence.files[index] for index in indices], sequence.size)

    def _is_wanted(self, number: int) -> bool:
        """Whether a frame of the folder is trained on."""
        index, rest = divmod(number, self.config.frame_step)
        return rest == 0 and not self._is_held_out(index)

    def _sequence(self) -> DepthSequence:
        if self.sequence is None:
            raise ValueError("a datamanager for inference has no frames, expected one for training")
        return self.sequence

    def _next_written(self, timeout: float) -> DepthFrame | None:
        """The next frame of a folder that is being written to, where there is one now."""
        if self._watch is None:
            self._watch = FolderWatch(
                _folder(self.config), timeout, first=self.position, is_taken=self._is_wanted, log=self._log
            )
        frame = _or_exit(self._watch.next_frame)
        self.position = self._watch.position
        if self._watch.is_over:
            self._log.report()
        return frame

    def _read(self, index: int) -> DepthFrame | None:
        try:
            frame = self._sequence()[index]
        except BadFrameError as error:
            self._log.skip(error)
            return None
        self._log.use(0.0)
        return frame


def _folder(config: DepthDataManagerConfig) -> Path:
    if config.data is None:
        raise SceneError("--data: found none, expected a folder with depth frames")
    return config.data


def _or_exit(get: Callable[[], T]) -> T:
    """What can be had, or the end of the process."""
    try:
        return get()
    except SceneError as error:
        stop(str(error))
