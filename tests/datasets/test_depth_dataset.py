"""Depth frames as nerfstudio's viewer and renderer see them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import tyro
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig

from eugen3d.datasets import SceneError, open_depth_sequence
from eugen3d.datasets.depth_datamanager import DepthDataManager, DepthDataManagerConfig
from eugen3d.datasets.depth_dataset import DepthDataset


def dataset_of(folder: Path) -> DepthDataset:
    sequence = open_depth_sequence(folder)
    return DepthDataset(sequence.path, sequence.files, sequence.size)


def test_every_layout_has_cameras_and_pictures(sequence_folder: Path) -> None:
    dataset, sequence = dataset_of(sequence_folder), open_depth_sequence(sequence_folder)
    assert len(dataset) == len(sequence) == len(dataset.cameras)
    frame, item, camera = sequence[1], dataset[1], dataset.cameras[1]
    torch.testing.assert_close(camera.camera_to_worlds, frame.camera_to_world)
    found = [float(x) for x in (camera.fx, camera.fy, camera.cx, camera.cy)]
    assert found == pytest.approx(frame.intrinsics)
    assert (int(camera.height), int(camera.width)) == frame.depth.shape
    assert item["image_idx"] == 1 and torch.equal(item["depth_image"][..., 0], frame.depth)
    assert frame.rgb is not None and torch.equal(item["image"], frame.rgb / 255) and item["image"].std() > 0


def test_frames_without_a_pose_are_left_out_and_bad_pictures_are_black(wall_sequence: Callable[..., Path]) -> None:
    folder = wall_sequence(4)
    meta = json.loads((folder / "transforms.json").read_text())
    meta["frames"][1]["transform_matrix"][0][3] = float("nan")
    (folder / "transforms.json").write_text(json.dumps(meta))
    (folder / "depth002.png").unlink()
    iio.imwrite(folder / "depth003.png", np.tile(np.array([2000] * 31 + [4000], np.uint16), (24, 1)))
    *files, last = open_depth_sequence(folder).files
    dataset = DepthDataset(folder, [*files, dataclasses.replace(last, color=None)], (24, 32))
    assert len(dataset) == 3
    assert dataset.cameras.camera_to_worlds[:, 0, 3].tolist() == pytest.approx([0.0, 0.04, 0.06])
    assert dataset[0]["image"][0, 0].tolist() == pytest.approx([200 / 255, 100 / 255, 50 / 255], abs=0.02)
    assert dataset[1]["image"].shape == (24, 32, 3) and not dataset[1]["image"].any()
    assert dataset[2]["image"][5, -2:].tolist() == [[0.5] * 3, [1.0] * 3], "depth where there is no picture"


def test_a_dataset_without_a_pose_says_so(tmp_path: Path) -> None:
    dataset = DepthDataset(tmp_path, [], (2, 3))
    assert dataset and len(dataset) == 0
    with pytest.raises(SceneError, match="none of 0 frames has a pose"):
        _ = dataset.cameras


def test_the_renderer_finds_what_it_looks_for(wall_sequence: Callable[..., Path]) -> None:
    config = DepthDataManagerConfig(data=wall_sequence(12), eval_interval=4, max_eval_frames=2)
    manager = DepthDataManager(config, test_mode="test")
    assert isinstance(manager, VanillaDataManager) and isinstance(config, FullImageDatamanagerConfig)
    assert (len(manager.train_dataset), len(manager.eval_dataset)) == (9, 2)
    assert [frame.name[-7:] for frame in manager.eval_frames()] == ["003.png", "011.png"]
    places = manager.eval_dataset.cameras.camera_to_worlds[:, 0, 3]
    assert places.tolist() == pytest.approx([0.06, 0.22])
    camera, batch = manager.eval_dataloader.get_camera(1)
    assert float(camera.camera_to_worlds[0, 0, 3]) == pytest.approx(0.22) and batch["image"].shape == (24, 32, 3)
    assert [path.name for path in manager.train_dataparser_outputs.image_filenames[:2]] == [
        "color000.png",
        "color001.png",
    ]


def test_settings_of_pictures_are_no_options(capsys) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(DepthDataManagerConfig, args=["--help"])
    options = capsys.readouterr().out
    assert "--frame-rate" in options and "--cache-images" not in options and "--eval-image-indices" not in options
