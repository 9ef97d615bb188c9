"""Rows for distillation from a nerfstudio run: which pixels are looked through, and what its fields see there.

Rays are dealt out in batches. Everything that a batch draws follows from its number: several processes that take every
so many-th of them have, together, the rows that one alone would have.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from rich.progress import track
from torch import Tensor

from eugen3d.cli.errors import UsageError
from eugen3d.cli.teachers import NerfTeacher
from eugen3d.datasets.reduced import ReducedRayGenerator
from eugen3d.distill import HELD_OUT, Rows, draw_rows, join_rows
from eugen3d.training.distributed import is_main, rank, world_size

RAYS_PER_BATCH = 256
SCALES = (1, 2, 4, 8)


@dataclass(frozen=True)
class SamplingConfig:
    """Where the rows come from. The paper's setting is 1/16 of the images, downscale 8, a tenth of all pairs."""

    num_rays: int = 24576
    """Rays at random pixels, at most as many as there are."""
    image_fraction: float = 1.0
    """Share of the training images that rays go through."""
    downscale_factor: tuple[int, ...] = ()
    """Rays go through the pixels of images reduced by each of these factors, as many through each. By default 1 2 4 8
    where the model sees how wide a pixel is, so that small pictures come out right, too, else 1."""
    pair_fraction: float = 0.125
    """Share of a ray's samples that become rows; raised where the solve would have too few."""
    max_rows: int = 600_000
    """Rows of a field that are kept at the most, in all processes together: with more rays fewer of each."""
    weighted_fraction: float = 0.67
    """Share of the rows that is drawn by rendering weight, the rest evenly; with a field of signed distance those along
    rays, the rest evenly in the box around what was seen."""

    def __post_init__(self) -> None:
        for name in ("image_fraction", "pair_fraction"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise UsageError(f"--sampling.{name.replace('_', '-')}: is {value}, expected more than 0, at most 1")
        if not 0 <= self.weighted_fraction <= 1:
            raise UsageError(f"--sampling.weighted-fraction: is {self.weighted_fraction}, expected 0 to 1")
        for name in ("num_rays", "max_rows"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"--sampling.{name.replace('_', '-')}: is {value}, expected at least 1")
        factors = self.downscale_factor
        if factors and (min(factors) < 1 or len(set(factors)) < len(factors)):
            found = " ".join(map(str, factors))
            raise UsageError(
                f"--sampling.downscale-factor: is {found}, expected whole numbers of 1 or more that differ"
            )

    def scales(self, teacher: NerfTeacher, cameras: Cameras) -> tuple[int, ...]:
        """By which factors a teacher's images are reduced.

        Raises:
            UsageError: an image has no pixel left.
        """
        side = int(min(cameras.height.min(), cameras.width.min()))
        if not self.downscale_factor:
            return tuple(scale for scale in SCALES if scale <= side) if teacher.sees_pixel_width else (1,)
        if (most := max(self.downscale_factor)) > side:
            raise UsageError(
                f"--sampling.downscale-factor: is {most}, expected at most {side}, the images' shortest side"
            )
        return self.downscale_factor


def sample_rows(
    manager: VanillaDataManager, teacher: NerfTeacher, config: SamplingConfig, needed: int, seed: int
) -> dict[str, Rows]:
    """This process's rows of every field of a teacher; those of all processes are the same ones for the same seed.

    The teacher is gone along batch by batch: memory grows with the rows kept alone, not with the rays.

    Args:
        needed: rows that the solve cannot do without.

    Raises:
        UsageError: the rays do not have that many samples, or `max_rows` or the processes do not go with them.
    """
    cameras = manager.train_dataset.cameras
    scales = config.scales(teacher, cameras)
    generate = ReducedRayGenerator(cameras.to(teacher.model.device), scales)
    heights, widths = (sides.flatten().cpu() for sides in (generate.cameras.height, generate.cameras.width))
    pixels = _Pixels(heights, widths, scales, config, seed)
    fewest = teacher.fewest_samples * pixels.num_rays
    if fewest < needed:
        raise UsageError(
            f"--sampling.num-rays: {pixels.num_rays} rays give {fewest} rows, expected at least {needed} for "
            "--num-features; take more rays, images or pixels, or fewer features"
        )
    count = pixels.num_batches
    if config.max_rows < (least := max(needed, HELD_OUT * count)):
        raise UsageError(
            f"--sampling.max-rows: is {config.max_rows}, expected at least {least} for these rays and features"
        )
    if count < world_size():
        raise UsageError(
            f"--sampling.num-rays: {pixels.num_rays} rays are {count} batches, expected one or more for each of "
            f"{world_size()} processes; take more rays or fewer processes"
        )
    share = max(config.pair_fraction, min(1.0, 1.02 * needed / fewest))
    kept: dict[str, list[Rows]] = {name: [] for name in teacher.paths}
    own = range(rank(), count, world_size())
    with torch.random.fork_rng(devices=[]):
        for number in track(own, description="sampling the teacher", transient=True, disable=not is_main()):
            torch.manual_seed(hash_seed(seed, "jitter of rays", number))
            most = config.max_rows * (number + 1) // count - config.max_rows * number // count
            for name, seen in teacher.samples(generate(pixels.batch(number).to(teacher.model.device))).items():
                fraction = min(share, most / seen.weights.numel())
                generator = torch.Generator().manual_seed(hash_seed(seed, "rows", name, number))
                kept[name].append(draw_rows(seen, fraction, config.weighted_fraction, generator))
    return {name: join_rows(parts) for name, parts in kept.items()}


class _Pixels:
    """Pixels, one at random in each of so many equal parts of the images taken, all of these being equally large.

    A batch takes parts that lie evenly over all images, and is drawn when it is asked for.

    Args:
        heights, widths: of all images at the first scale, then of all at the next one (images,).
    """

    def __init__(
        self, heights: Tensor, widths: Tensor, scales: Sequence[int], config: SamplingConfig, seed: int
    ) -> None:
        num_views = len(heights) // len(scales)
        count = max(1, math.ceil(config.image_fraction * num_views))
        views = torch.randperm(num_views, generator=torch.Generator().manual_seed(seed))[:count]
        self.seed = seed
        self.images = torch.cat([views + part * num_views for part in range(len(scales))])
        heights, widths = heights.long()[self.images], widths.long()[self.images]
        common = math.gcd(*scales)
        self.widths = widths
        self.areas = torch.tensor([(scale // common) ** 2 for scale in scales]).repeat_interleave(count)
        self.sizes = heights * widths * self.areas
        self.ends = self.sizes.cumsum(0)
        self.num_rays = min(config.num_rays, int((heights * widths).sum()))
        self.num_batches = math.ceil(self.num_rays / RAYS_PER_BATCH)

    def batch(self, number: int) -> Tensor:
        """Image, row and column of the pixels (n, 3) of a batch."""
        parts = torch.arange(number, self.num_rays, self.num_batches)
        total = int(self.ends[-1])
        first, last = ((parts + step) * total // self.num_rays for step in (0, 1))
        generator = torch.Generator().manual_seed(hash_seed(self.seed, "pixels", number))
        chosen = first + (torch.rand(len(parts), generator=generator, dtype=torch.float64) * (last - first)).long()
        which = torch.searchsorted(self.ends, chosen, right=True)
        within = (chosen - (self.ends[which] - self.sizes[which])) // self.areas[which]
        widths = self.widths[which]
        return torch.stack([self.images[which], within // widths, within % widths], dim=1)


def hash_seed(*parts: Any) -> int:
    """A seed for each thing that is drawn, the same in every process."""
    return zlib.crc32(repr(parts).encode())
