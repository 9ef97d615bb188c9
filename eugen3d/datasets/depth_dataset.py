"""Depth frames as nerfstudio's own viewer and `ns-render` ask for them: cameras, and pictures one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor
from torch.utils.data import Dataset

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.depth_checks import BadFrameError, nearest_rigid
from eugen3d.datasets.depth_files import FrameFiles, read_frame, read_pose


class DepthDataset(Dataset):
    """Frames whose poses can be used. Poses are read when they are first asked for, the rest of a frame every time.

    Args:
        path: the folder, for messages.
        files: the frames.
        size: the height and width of their depth.
    """

    def __init__(self, path: Path, files: Sequence[FrameFiles], size: tuple[int, int]) -> None:
        self._path, self._files, self._size = path, files, size

    def __len__(self) -> int:
        return len(self._posed)

    def __bool__(self) -> bool:
        """True also without frames: nerfstudio asks by it whether there is a dataset."""
        return True

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A frame's number, `image` (height, width, 3) from 0 to 1 and `depth_image` (height, width, 1) in metres.

        The image of a frame without a picture is its depth in shades of grey. A frame that cannot be read is black.
        """
        try:
            frame, _ = read_frame(self._posed[index][0], self._size)
        except BadFrameError:
            return self._item(index, torch.zeros(*self._size, 3), torch.zeros(self._size))
        grey = (frame.depth / frame.depth.max())[..., None].expand(-1, -1, 3)
        return self._item(index, grey if frame.rgb is None else frame.rgb / 255, frame.depth)

    @property
    def cameras(self) -> Cameras:
        """The frames' cameras, without lens distortion.

        Raises:
            SceneError: there is no frame with a pose.
        """
        return self._dataparser_outputs.cameras

    @cached_property
    def _dataparser_outputs(self) -> DataparserOutputs:
        """What `ns-render dataset` looks for under this name."""
        if not self._posed:
            raise SceneError(f"{self._path}: none of {len(self._files)} frames has a pose to be seen from")
        poses = torch.from_numpy(np.stack([pose for _, pose in self._posed]).astype(np.float32))
        lenses = [files.camera.for_size(self._size).intrinsics for files, _ in self._posed]
        fx, fy, cx, cy = torch.tensor(lenses, dtype=torch.float32).T[..., None]
        names = [files.color or files.depth or Path(files.name) for files, _ in self._posed]
        return DataparserOutputs(names, Cameras(poses, fx, fy, cx, cy, width=self._size[1], height=self._size[0]))

    @cached_property
    def _posed(self) -> list[tuple[FrameFiles, np.ndarray]]:
        posed = []
        for files in self._files:
            try:
                posed.append((files, nearest_rigid(files.name, read_pose(files), files.axes)[0]))
            except BadFrameError:
                continue
        return posed

    def _item(self, index: int, image: Tensor, depth: Tensor) -> dict[str, Any]:
        return {"image_idx": index, "image": image, "depth_image": depth[..., None]}


@dataclass
class RenderableConfig(FullImageDatamanagerConfig):
    """The base of a datamanager's settings that `ns-render dataset` takes, which is nerfstudio's own two alone.

    None of the settings of nerfstudio's means anything for depth frames, so none can be set.
    """

    dataparser: Any = field(init=False, repr=False, default=None)
    camera_res_scale_factor: float = field(init=False, repr=False, default=1.0)
    eval_num_images_to_sample_from: int = field(init=False, repr=False, default=-1)
    eval_num_times_to_repeat_images: int = field(init=False, repr=False, default=-1)
    eval_image_indices: Any = field(init=False, repr=False, default=None)
    cache_images: Any = field(init=False, repr=False, default="cpu")
    cache_images_type: Any = field(init=False, repr=False, default="uint8")
    max_thread_workers: int | None = field(init=False, repr=False, default=None)
    train_cameras_sampling_strategy: Any = field(init=False, repr=False, default="random")
    train_cameras_sampling_seed: int = field(init=False, repr=False, default=42)
    fps_reset_every: int = field(init=False, repr=False, default=100)
