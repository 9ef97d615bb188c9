"""A datamanager that reads scenes of either layout, keeps alpha, and can draw the foreground's pixels more often."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor

from eugen3d.datasets.dataparser import SceneDataParserConfig, SceneError
from eugen3d.datasets.reduced import reduce_image
from eugen3d.datasets.stop import stop


@dataclass
class ForegroundPixelSamplerConfig(PixelSamplerConfig):
    """Pixels drawn uniformly, those of the foreground more often."""

    _target: type = field(default_factory=lambda: ForegroundPixelSampler)
    """Target class to instantiate."""
    foreground_weight: float = 1.0
    """How many times as likely a pixel with alpha is drawn as one without; at least 1."""

    def __post_init__(self) -> None:
        if self.foreground_weight < 1:
            raise ValueError(f"foreground_weight is {self.foreground_weight}, expected at least 1")


class ForegroundPixelSampler(PixelSampler):
    """Draws pixels of RGBA images by rejection: one without alpha is kept with probability 1/foreground_weight."""

    config: ForegroundPixelSamplerConfig

    def collate_image_dataset_batch(
        self, batch: dict[str, Any], num_rays_per_batch: int, keep_full_image: bool = False
    ) -> dict[str, Any]:
        """As nerfstudio's, with pixels drawn by weight where the images have an alpha channel and there is no mask."""
        self._alpha = batch["image"][..., 3] if batch["image"].shape[-1] == 4 else None
        return super().collate_image_dataset_batch(batch, num_rays_per_batch, keep_full_image)

    def collate_image_dataset_batch_list(
        self, batch: dict[str, Any], num_rays_per_batch: int, keep_full_image: bool = False
    ) -> dict[str, Any]:
        """As nerfstudio's: the pixels of images of different sizes are drawn uniformly."""
        self._alpha = None
        return super().collate_image_dataset_batch_list(batch, num_rays_per_batch, keep_full_image)

    def sample_method(
        self,
        batch_size: int,
        num_images: int,
        image_height: int,
        image_width: int,
        mask: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Indices (batch_size, 3) of image, row and column."""
        draw = super().sample_method
        if self._alpha is None or mask is not None or self.config.foreground_weight <= 1:
            return draw(batch_size, num_images, image_height, image_width, mask, device)
        kept, count = [], 0
        while count < batch_size:
            indices = draw(batch_size, num_images, image_height, image_width, None, device)
            alpha = self._alpha[tuple(indices.T.to(self._alpha.device))].to(indices.device)
            keep = (alpha > 0) | (torch.rand(batch_size, device=indices.device) * self.config.foreground_weight < 1)
            kept.append(indices[keep])
            count += len(kept[-1])
        return torch.cat(kept)[:batch_size]


class SceneDataset(InputDataset):
    """nerfstudio's dataset, with images at several scales, and an unreadable one reported by its name."""

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """The image, (height, width, 3 or 4)."""
        try:
            image = super().get_numpy_image(image_idx)
        except (OSError, SyntaxError, ValueError) as error:
            raise SceneError(f"{self.image_filenames[image_idx]}: cannot be read as an image ({error})") from error
        factor = self.metadata["reductions"][image_idx] if "reductions" in self.metadata else 1
        if factor == 1:
            return image
        return (255 * reduce_image(torch.from_numpy(image).float() / 255, factor)).round().byte().numpy()


@dataclass
class SceneDataManagerConfig(VanillaDataManagerConfig):
    """Rays of posed images in either layout."""

    _target: type = field(default_factory=lambda: SceneDataManager)
    """Target class to instantiate."""
    dataparser: AnnotatedDataParserUnion = field(default_factory=SceneDataParserConfig)
    """The dataparser; the default reads Blender's and nerfstudio's layouts."""
    pixel_sampler: PixelSamplerConfig = field(default_factory=ForegroundPixelSamplerConfig)
    """How training pixels are drawn."""
    scales: tuple[int, ...] = (1,)
    """Factors by which the training images are reduced, each image by each of them; by their mean over whole pixels."""


class SceneDataManager(VanillaDataManager[SceneDataset]):
    """nerfstudio's datamanager, ended by one clear line and exit code 2 where the scene cannot be used."""

    def __init__(self, config: SceneDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        try:
            if config.scales != (1,):
                if not isinstance(config.dataparser, SceneDataParserConfig):
                    found = type(config.dataparser).__name__
                    raise SceneError(f"--pipeline.datamanager.scales: found {found}, expected the default dataparser")
                config = dataclasses.replace(
                    config, dataparser=dataclasses.replace(config.dataparser, scales=config.scales)
                )
            super().__init__(config, *args, **kwargs)
        except SceneError as error:
            stop(str(error))
