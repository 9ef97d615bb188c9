"""The views of a split that runs are compared on: file names, cameras and reference images, at one resolution."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from eugen3d.cli.runs import Run, UsageError
from eugen3d.datasets.reduced import reduce_image

Split = Literal["test", "val", "train"]
Crop = tuple[int, int, int, int]

MIN_SIDE = 11  # pixels: SSIM's window


@dataclass
class Views:
    """A split of a run's scene, reduced and cropped.

    Args:
        dataset: the split.
        downscale_factor: by how much both sides are divided; rows and columns beyond a multiple of it are left out.
        crop: x0, y0, width and height in pixels of the reduced image.
        scale: by how much both sides of what is left are divided once more; of a crop, the same part is seen.
    """

    dataset: InputDataset
    downscale_factor: int = 1
    crop: Crop | None = None
    scale: int = 1

    def __post_init__(self) -> None:
        paths = [Path(path) for path in self.dataset.image_filenames]
        parent = os.path.commonpath([path.parent for path in paths])
        self.files = [path.relative_to(parent).as_posix() for path in paths]
        """File names, below the folder that all share, in the split's order."""

    def resolution(self, index: int) -> tuple[int, int]:
        """Width and height of a view in pixels."""
        _, _, width, height = self._window(index)
        return width // self.scale, height // self.scale

    def camera(self, index: int) -> Cameras:
        """The camera of a view, shape (1,)."""
        x0, y0, _, _ = self._window(index)
        width, height = self.resolution(index)
        camera = copy.deepcopy(self.dataset.cameras[index : index + 1])
        camera.rescale_output_resolution(1 / self.downscale_factor)
        camera.cx, camera.cy = camera.cx - x0, camera.cy - y0
        camera.rescale_output_resolution(1 / self.scale)
        camera.width, camera.height = torch.full_like(camera.width, width), torch.full_like(camera.height, height)
        return camera

    def reference(self, index: int) -> Tensor:
        """The image of a view, (height, width, 3 or 4) in [0, 1]; alpha is straight."""
        x0, y0, width, height = self._window(index)
        image = reduce_image(self.dataset[index]["image"], self.downscale_factor)
        return reduce_image(image[y0 : y0 + height, x0 : x0 + width], self.scale)

    def _window(self, index: int) -> Crop:
        """What is seen of a view, in pixels at scale 1."""
        camera = self.dataset.cameras[index]
        width, height = (int(side) // self.downscale_factor for side in (camera.width, camera.height))
        x0, y0, crop_width, crop_height = self.crop or (0, 0, width, height)
        if min(x0, y0, crop_width - 1, crop_height - 1) < 0 or x0 + crop_width > width or y0 + crop_height > height:
            found = " ".join(map(str, (x0, y0, crop_width, crop_height)))
            raise UsageError(f"--crop {found}: expected a window inside the {width} x {height} pixels of the views")
        if min(crop_width, crop_height) // self.scale < MIN_SIDE:
            where = f"--scales {self.scale}: " if self.scale > 1 else ""
            size = f"{crop_width // self.scale} x {crop_height // self.scale} pixels"
            raise UsageError(
                f"{where}the views are {size}, expected at least {MIN_SIDE} a side; change the reduction or crop"
            )
        return x0, y0, crop_width, crop_height


def load_views(run: Run, split: Split, downscale_factor: int = 1, crop: Crop | None = None) -> Views:
    """A split of a run's scene; "test" is what `ns-eval` evaluates."""
    manager = run.pipeline.datamanager
    if not isinstance(manager, VanillaDataManager):
        raise UsageError(f"{run.name}: its datamanager {type(manager).__name__} gives no single views")
    manager.test_split = split
    dataset = manager.create_eval_dataset()
    if not len(dataset):
        raise UsageError(f"--split {split}: the scene of {run.name} has no such images")
    return Views(dataset, downscale_factor, crop)


def choose_evenly(count: int, num_images: int | None) -> list[int]:
    """Indices of `num_images` of `count` views, evenly spread, the first and the last among them."""
    if num_images is None:
        return list(range(count))
    if not 1 <= num_images <= count:
        raise UsageError(f"--num-images {num_images}: the split has {count} images, expected 1 to {count}")
    return [round(position) for position in np.linspace(0, count - 1, num_images)]


def match_files(names: Sequence[str], views: Sequence[Views]) -> None:
    """Refuse runs whose splits hold different files."""
    first = set(views[0].files)
    for name, other in zip(names[1:], views[1:], strict=True):
        different = first ^ set(other.files)
        if different:
            file = min(different)
            has, lacks = (names[0], name) if file in first else (name, names[0])
            raise UsageError(
                f"runs have different images: {has} has {file}, {lacks} does not ({len(different)} in all)"
            )
