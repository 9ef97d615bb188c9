"""Drawing the foreground's pixels more often."""

import math

import pytest
import torch

from eugen3d.datasets import ForegroundPixelSamplerConfig

FOREGROUND = 0.25


def images(channels: int = 4) -> torch.Tensor:
    """Two images, 8 x 8, opaque in a quarter of their pixels; each pixel's red is its place."""
    image = torch.zeros(2, 8, 8, channels)
    image[..., 0] = torch.arange(128.0).view(2, 8, 8)
    if channels == 4:
        image[:, :4, :4, 3] = 1
    return image


def sampler(weight: float, rays: int):
    return ForegroundPixelSamplerConfig(foreground_weight=weight).setup(num_rays_per_batch=rays)


@pytest.mark.parametrize("weight", [1.0, 3.0, 10.0])
def test_the_share_of_foreground_pixels_follows_the_weight(weight: float) -> None:
    rays = 20_000
    batch = sampler(weight, rays).sample({"image": images(), "image_idx": torch.tensor([0, 1])})
    share = (batch["image"][:, 3] > 0).double().mean().item()
    expected = FOREGROUND * weight / (FOREGROUND * weight + 1 - FOREGROUND)
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / rays)
    assert len(batch["image"]) == len(batch["indices"]) == rays


def test_the_indices_are_those_of_the_pixels() -> None:
    batch = sampler(3.0, 500).sample({"image": images(), "image_idx": torch.tensor([0, 1])})
    image, row, column = batch["indices"].T
    assert torch.equal(batch["image"][:, 0], (64 * image + 8 * row + column).float())
    assert len(batch["indices"].unique(dim=0)) > 50


def test_pixels_of_a_kind_are_drawn_evenly() -> None:
    batch = sampler(3.0, 64_000).sample({"image": images(), "image_idx": torch.tensor([0, 1])})
    opaque = batch["indices"][batch["image"][:, 3] > 0]
    counts = opaque.unique(dim=0, return_counts=True)[1].double()
    assert len(counts) == 32
    mean = counts.mean()
    assert ((counts - mean).abs() < 6 * mean.sqrt()).all()


def test_an_image_that_is_all_background_still_gives_pixels() -> None:
    transparent = torch.zeros(1, 8, 8, 4)
    batch = sampler(50.0, 64).sample({"image": transparent, "image_idx": torch.tensor([0])})
    assert len(batch["image"]) == 64


def test_images_without_alpha_are_drawn_uniformly() -> None:
    batch = sampler(10.0, 20_000).sample({"image": images(channels=3), "image_idx": torch.tensor([0, 1])})
    row, column = batch["indices"][:, 1], batch["indices"][:, 2]
    share = ((row < 4) & (column < 4)).double().mean().item()
    assert abs(share - FOREGROUND) < 5 * math.sqrt(FOREGROUND * (1 - FOREGROUND) / 20_000)


def test_images_of_different_sizes_are_drawn_from() -> None:
    batch = {"image": [images()[0], images()[1][:6]], "image_idx": torch.tensor([0, 1])}
    drawn = sampler(3.0, 100).sample(batch)
    assert drawn["image"].shape == (100, 4)


def test_a_weight_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"foreground_weight is 0\.5, expected at least 1"):
        ForegroundPixelSamplerConfig(foreground_weight=0.5)
