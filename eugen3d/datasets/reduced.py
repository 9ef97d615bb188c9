"""Views of a scene at several sizes: cameras and pictures reduced by whole factors."""

import copy
import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.ray_generators import RayGenerator
from torch import Tensor


def at_scales(cameras: Cameras, scales: Sequence[int]) -> Cameras:
    """All cameras reduced by the first factor, then all by the next one; what no whole pixel fits into is left out."""
    reduced = [copy.deepcopy(cameras) for _ in scales]
    for part, scale in zip(reduced, scales, strict=True):
        part.rescale_output_resolution(1 / scale)
    columns = {
        field.name: [getattr(part, field.name) for part in reduced]
        for field in dataclasses.fields(cameras)
        if isinstance(getattr(cameras, field.name), Tensor)
    }
    return dataclasses.replace(reduced[0], **{name: torch.cat(values) for name, values in columns.items()})


class ReducedRayGenerator(RayGenerator):
    """nerfstudio's, for views at several sizes, one size after the other as in `at_scales`.

    Rays name the camera that they come from, whatever the size.
    """

    def __init__(self, cameras: Cameras, scales: Sequence[int]) -> None:
        super().__init__(at_scales(cameras, scales))
        self.num_views = len(cameras)

    def forward(self, ray_indices: Tensor) -> RayBundle:
        """Rays through pixels (n, 3): index of the view at a size, row and column."""
        rays = super().forward(ray_indices)
        assert rays.camera_indices is not None
        rays.camera_indices = rays.camera_indices % self.num_views
        return rays


def reduce_image(image: Tensor, factor: int) -> Tensor:
    """Reduce an image (height, width, 3 or 4) by a whole factor; colours are averaged by their alpha."""
    if factor == 1:
        return image
    height, width = image.shape[0] // factor, image.shape[1] // factor
    pixels = image[: height * factor, : width * factor].numpy()
    if image.shape[-1] == 3:
        return torch.from_numpy(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))
    premultiplied = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)
    reduced = torch.from_numpy(cv2.resize(premultiplied, (width, height), interpolation=cv2.INTER_AREA))
    colour, alpha = reduced[..., :3], reduced[..., 3:]
    return torch.cat([torch.where(alpha > 0, colour / alpha.clamp_min(1e-12), 0.0), alpha], dim=-1).clamp(0, 1)
