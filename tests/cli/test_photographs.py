"""Photographs as targets of a refinement: what they show at which size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

from eugen3d.cli.errors import UsageError
from eugen3d.cli.refinement import Photographs
from eugen3d.cli.runs import load_run
from eugen3d.datasets.reduced import at_scales, reduce_image


@pytest.fixture
def manager(make_run: Callable[..., Path]) -> VanillaDataManager:
    """Of four photographs of 16 x 16 pixels, with alpha."""
    manager = load_run(make_run(), "cpu").pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)
    return manager


def test_a_batch_has_as_many_rays_at_each_size(manager: VanillaDataManager) -> None:
    scales = (1, 2, 4)
    rays, batch = Photographs(manager, scales, seed=1).batch(3, 62)
    image, row, column = batch["indices"].T
    assert rays.shape == (62,) and (image // 4).bincount().tolist() == [20, 20, 22]
    assert rays.camera_indices is not None and torch.equal(rays.camera_indices[:, 0], image % 4)
    cameras = at_scales(manager.train_dataset.cameras, scales)
    expected = cameras.generate_rays(image[:, None], torch.stack([row, column], dim=1) + 0.5)
    for name in ("origins", "directions", "pixel_area"):
        assert torch.equal(getattr(rays, name), getattr(expected, name))
    shown = [
        reduce_image(manager.train_dataset[int(index) % 4]["image"], scales[int(index) // 4])[y, x]
        for index, y, x in zip(image, row, column, strict=True)
    ]
    torch.testing.assert_close(batch["image"], torch.stack(shown))
    assert len(batch["image"].unique(dim=0)) > 4


def test_at_full_size_it_is_the_manager_s(manager: VanillaDataManager) -> None:
    rays, batch = Photographs(manager, (1,), seed=1).batch(3, 40)
    same_rays, same = Photographs(manager, (1,), seed=1).batch(3, 40)
    _, other = Photographs(manager, (1,), seed=1).batch(4, 40)
    assert torch.equal(batch["indices"], same["indices"]) and torch.equal(rays.directions, same_rays.directions)
    assert not torch.equal(batch["indices"], other["indices"])
    expected = manager.train_ray_generator(batch["indices"])
    assert torch.equal(rays.directions, expected.directions) and torch.equal(rays.pixel_area, expected.pixel_area)


def test_photographs_of_different_sizes(manager: VanillaDataManager, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [manager.train_dataset[index]["image"] for index in range(4)]
    images: dict[str, Any] = {"image": [*whole[:3], whole[3][:8]], "image_idx": torch.arange(4)}
    monkeypatch.setattr(manager, "iter_train_image_dataloader", iter([images]))
    _, batch = Photographs(manager, (1, 4), seed=1).batch(0, 40)
    image, row, _ = batch["indices"].T
    assert image.bincount().tolist() == [4, 4, 6, 6] * 2
    assert int(row[image == 3].max()) < 8 and int(row[image == 7].max()) < 2


def test_masks_are_refused_where_sizes_are_to_be_reduced(
    manager: VanillaDataManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = next(manager.iter_train_image_dataloader)
    assert images is not None
    masked = images | {"mask": torch.ones_like(images["image"][..., :1], dtype=torch.bool)}
    monkeypatch.setattr(manager, "iter_train_image_dataloader", iter([masked, masked]))
    with pytest.raises(UsageError, match=r"--sampling.downscale-factor: the photographs have masks, expected 1"):
        Photographs(manager, (1, 2), seed=1).batch(0, 40)
    assert len(Photographs(manager, (1,), seed=1).batch(0, 40)[0]) == 40
