"""Rows for distillation from a nerfstudio run: which pixels are looked through, and what its fields see there."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.model_components.ray_generators import RayGenerator
from rich.progress import track
from torch import Tensor

from eugen3d.cli.errors import UsageError
from eugen3d.cli.teachers import NerfTeacher
from eugen3d.distill import RaySamples, Rows, draw_rows, shuffle_rows

RAYS_PER_BATCH = 1024


@dataclass(frozen=True)
class SamplingConfig:
    """Where the rows come from. The paper's setting is 1/16 of the images, downscale 8, a tenth of all pairs."""

    num_rays: int = 24576
    """Rays at random pixels, at most as many as there are."""
    image_fraction: float = 1.0
    """Share of the training images that rays go through."""
    downscale_factor: int = 1
    """Rays go through the pixels of images reduced by this factor."""
    pair_fraction: float = 0.125
    """Share of a ray's samples that become rows; raised where the solve would have too few."""
    weighted_fraction: float = 0.67
    """Share of the rows that is drawn by rendering weight, the rest evenly."""

    def __post_init__(self) -> None:
        for name in ("image_fraction", "pair_fraction"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise UsageError(f"--sampling.{name.replace('_', '-')}: is {value}, expected more than 0, at most 1")
        if not 0 <= self.weighted_fraction <= 1:
            raise UsageError(f"--sampling.weighted-fraction: is {self.weighted_fraction}, expected 0 to 1")
        for name in ("num_rays", "downscale_factor"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"--sampling.{name.replace('_', '-')}: is {value}, expected at least 1")


def sample_rows(
    manager: VanillaDataManager, teacher: NerfTeacher, config: SamplingConfig, needed: int, seed: int
) -> dict[str, Rows]:
    """Rows of every field of a teacher, the same ones for the same seed.

    Args:
        needed: rows that the solve cannot do without.

    Raises:
        UsageError: the rays do not have that many samples.
    """
    generator = torch.Generator().manual_seed(seed)
    cameras = copy.deepcopy(manager.train_dataset.cameras)
    if config.downscale_factor > 1:
        cameras.rescale_output_resolution(1.0 / config.downscale_factor)
    pixels = _draw_pixels(cameras.height.flatten(), cameras.width.flatten(), config, generator)
    fewest = teacher.fewest_samples * len(pixels)
    if fewest < needed:
        raise UsageError(
            f"--sampling.num-rays: {len(pixels)} rays give {fewest} rows, expected at least {needed} for "
            "--num-features; take more rays, images or pixels, or fewer features"
        )
    kept: dict[str, list[Rows]] = {name: [] for name in teacher.paths}
    share = max(config.pair_fraction, min(1.0, 1.02 * needed / fewest))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for seen in _seen_along(teacher, RayGenerator(cameras.to(teacher.model.device)), pixels):
            for name, batch in seen.items():
                kept[name].append(draw_rows(batch, share, config.weighted_fraction, generator))
    return {name: shuffle_rows(parts, generator) for name, parts in kept.items()}


def _draw_pixels(heights: Tensor, widths: Tensor, config: SamplingConfig, generator: torch.Generator) -> Tensor:
    """Distinct pixels (n, 3) of image, row and column, even over the pixels of the images taken."""
    count = max(1, math.ceil(config.image_fraction * len(heights)))
    images = torch.randperm(len(heights), generator=generator)[:count]
    sizes = (heights[images] * widths[images]).long().cpu()
    ends = sizes.cumsum(0)
    total = int(ends[-1])
    chosen = torch.randperm(total, generator=generator)[: config.num_rays]
    which = torch.searchsorted(ends, chosen, right=True)
    within = chosen - (ends - sizes)[which]
    image_widths = widths.cpu().long()[images][which]
    return torch.stack([images[which], within // image_widths, within % image_widths], dim=1)


def _seen_along(teacher: NerfTeacher, generate: RayGenerator, pixels: Tensor) -> Iterator[dict[str, RaySamples]]:
    batches = pixels.split(RAYS_PER_BATCH)
    for batch in track(batches, description="sampling the teacher", transient=True):
        yield teacher.samples(generate(batch.to(teacher.model.device)))
