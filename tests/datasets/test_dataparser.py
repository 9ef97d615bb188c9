"""Scenes of either layout, and what is said about those that cannot be used."""

import json
import shutil
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

from eugen3d.datasets import SceneDataManagerConfig, SceneDataParserConfig, SceneError
from eugen3d.datasets.datamanager import SceneDataManager


def parse(scene: Path, split: str = "train", **options: Any):
    return SceneDataParserConfig(data=scene, **options).setup().get_dataparser_outputs(split=split)


def load(scene: Path, scales: tuple[int, ...] = (1,), **options: Any) -> SceneDataManager:
    config = SceneDataManagerConfig(
        dataparser=SceneDataParserConfig(data=scene),
        scales=scales,
        train_num_rays_per_batch=64,
        eval_num_rays_per_batch=16,
        **options,
    )
    return config.setup(device="cpu", test_mode="test", world_size=1, local_rank=0)


def test_training_views_at_scales(blender_scene: Path) -> None:
    """Box means, and rays through the middles of the larger pixels; other splits stay as they are."""
    manager = load(blender_scene, scales=(1, 2, 4))
    dataset, cameras = manager.train_dataset, manager.train_dataset.cameras
    assert [tuple(dataset[index]["image"].shape[:2]) for index in (0, 4, 8)] == [(16, 16), (8, 8), (4, 4)]
    full, half = dataset[1]["image"], dataset[5]["image"]
    alpha = full[..., 3].unflatten(0, (8, 2)).unflatten(2, (8, 2)).mean(dim=(1, 3))
    torch.testing.assert_close(half[..., 3], alpha, atol=1 / 255, rtol=0)
    rays, coarse = (cameras.generate_rays(index).directions.view(side, side, 3) for index, side in ((1, 16), (5, 8)))
    middle = torch.nn.functional.normalize(rays[0::2, 0::2] + rays[1::2, 1::2], dim=-1)
    torch.testing.assert_close(coarse, middle, atol=1e-3, rtol=0)
    assert float(cameras.generate_rays(5).pixel_area.mean() / cameras.generate_rays(1).pixel_area.mean()) > 3.5
    _, batch = manager.next_train(0)
    assert batch["image"].shape == (64, 4) and set(batch["indices"][:, 0].tolist()) >= {0, 4, 8}
    assert len(parse(blender_scene, "test", scales=(1, 2)).image_filenames) == 2


def multiscale(scene: Path) -> dict[str, Any]:
    """The Blender scene's training views again, every one in full and at half the size, as Mip-NeRF's are listed."""
    frames = json.loads((scene / "transforms_train.json").read_text())["frames"]
    meta: dict[str, list[Any]] = {key: [] for key in ("file_path", "cam2world", "width", "height", "focal")}
    for frame in frames:
        image = iio.imread(scene / (frame["file_path"] + ".png"))
        for scale in (1, 2):
            name, side = f"{Path(frame['file_path']).name}_d{scale}.png", 16 // scale
            iio.imwrite(scene / name, image[::scale, ::scale])
            row = name, frame["transform_matrix"], side, side, 8 / np.tan(0.35) / scale
            for values, value in zip(meta.values(), row, strict=True):
                values.append(value)
    for split in ("train", "val", "test"):
        (scene / f"transforms_{split}.json").unlink()
    return meta


def write_multiscale(scene: Path, meta: dict[str, Any]) -> None:
    (scene / "metadata.json").write_text(json.dumps(dict.fromkeys(("train", "val", "test"), meta)))


def test_multiscale_blender_scenes(blender_scene: Path) -> None:
    full = parse(blender_scene)
    write_multiscale(blender_scene, multiscale(blender_scene))
    outputs = parse(blender_scene)
    cameras = outputs.cameras
    assert len(outputs.image_filenames) == 8 and cameras.width[:, 0].tolist() == [16, 8] * 4
    torch.testing.assert_close(cameras.camera_to_worlds[::2], full.cameras.camera_to_worlds)
    rays, expected = cameras.generate_rays(2), full.cameras.generate_rays(1)
    torch.testing.assert_close(rays.directions.view(16, 16, 3), expected.directions)
    assert float(cameras.generate_rays(3).pixel_area.mean() / rays.pixel_area.mean()) > 3.5
    manager = load(blender_scene)
    _, batch = manager.next_train(0)
    assert manager.train_dataset[1]["image"].shape == (8, 8, 4) and batch["image"].shape == (64, 4)


def test_multiscale_scenes_that_cannot_be_read_are_refused(blender_scene: Path) -> None:
    meta = multiscale(blender_scene)
    for change, message in (
        ({"focal": None}, "has no 'focal'"),
        ({"width": [16]}, r"have \[1, 8\] entries"),
        ({"cam2world": [[1.0]] * 8}, "cannot be read as cameras"),
        ({"file_path": ["gone.png"] * 8}, "gone.png: not found, but metadata.json lists it"),
    ):
        write_multiscale(blender_scene, meta | change)
        with pytest.raises(SceneError, match=message):
            parse(blender_scene)


@pytest.mark.parametrize("model", ["sparse/0", "colmap/sparse/0"])
def test_colmap_scenes(nerfstudio_scene: Path, model: str) -> None:
    """Ten views as COLMAP writes them: world to camera, y down, z forward."""
    meta = json.loads((nerfstudio_scene / "transforms.json").read_text())
    images = sorted({Path(frame["file_path"]) for frame in meta["frames"]})
    (nerfstudio_scene / "transforms.json").unlink()
    shutil.move(nerfstudio_scene / images[0].parent, nerfstudio_scene / "pictures")
    (nerfstudio_scene / "images").mkdir()
    folder = nerfstudio_scene / model
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text("1 PINHOLE 16 16 20 21 8 8\n")
    (folder / "points3D.txt").write_text("")
    lines = []
    for number in range(10):
        angle = 2 * np.pi * number / 10
        quaternion = np.cos(angle / 2), 0.0, np.sin(angle / 2), 0.0  # a turn around y
        shutil.copy(nerfstudio_scene / "pictures" / images[0].name, nerfstudio_scene / "images" / f"{number:02}.png")
        lines += [f"{number + 1} {' '.join(map(str, quaternion))} 0 0 3 1 {number:02}.png", ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    outputs, held_out = parse(nerfstudio_scene), parse(nerfstudio_scene, "test")
    names = [path.name for path in held_out.image_filenames]
    assert names == ["00.png", "08.png"] and len(outputs.image_filenames) == 8, "every eighth is for testing"
    assert len(parse(nerfstudio_scene, eval_mode="all").image_filenames) == 10
    cameras = outputs.cameras
    assert (float(cameras.fx[0]), float(cameras.fy[0]), float(cameras.cx[0])) == (20, 21, 8)
    places, looks = cameras.camera_to_worlds[:, :, 3], -cameras.camera_to_worlds[:, :, 2]
    middle = parse(nerfstudio_scene, eval_mode="all").cameras.camera_to_worlds[:, :, 3].mean(dim=0)
    towards = torch.nn.functional.normalize(middle - places, dim=-1)
    torch.testing.assert_close(looks, towards, atol=1e-4, rtol=0)  # all look at the axis that they stand around
    (nerfstudio_scene / "images" / "03.png").unlink()
    with pytest.raises(SceneError, match=r"03\.png: not found, but images lists it"):
        parse(nerfstudio_scene)
    (folder / "images.txt").write_text("1 2 3\n")
    with pytest.raises(SceneError, match="cannot be read as a COLMAP model"):
        parse(nerfstudio_scene)


def test_scales_that_cannot_be_are_refused(blender_scene: Path) -> None:
    with pytest.raises(SceneError, match=r"images of 16 pixels a side, too small for \(1, 32\)"):
        parse(blender_scene, scales=(1, 32))
    for scales in ((), (0,), (2, 2)):
        with pytest.raises(SceneError, match="scales: is"):
            SceneDataParserConfig(scales=scales)


def test_scales_that_cannot_be_end_with_one_line(blender_scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = BlenderDataParserConfig(data=blender_scene)
    for config in (
        SceneDataManagerConfig(dataparser=SceneDataParserConfig(data=blender_scene), scales=(0,)),
        SceneDataManagerConfig(dataparser=other, scales=(1, 2)),
    ):
        with pytest.raises(SystemExit) as exit_:
            config.setup(device="cpu", test_mode="test", world_size=1, local_rank=0)
        message = capsys.readouterr().err
        assert exit_.value.code == 2 and message.count("\n") == 1 and "scales: " in message


@pytest.fixture
def nerfstudio_scene(blender_scene: Path) -> Path:
    """The same views in nerfstudio's layout, with a camera file and no split lists."""
    frames = json.loads((blender_scene / "transforms_train.json").read_text())["frames"]
    for frame in frames:
        frame["file_path"] = frame["file_path"][2:] + ".png"
    camera = {"camera_model": "OPENCV", "fl_x": 22.0, "fl_y": 22.0, "cx": 8.0, "cy": 8.0, "w": 16, "h": 16}
    (blender_scene / "transforms.json").write_text(json.dumps(camera | {"frames": frames}))
    for split in ("train", "val", "test"):
        (blender_scene / f"transforms_{split}.json").unlink()
    return blender_scene


@pytest.mark.parametrize(("split", "count"), [("train", 4), ("val", 2), ("test", 2)])
def test_blender_layout(blender_scene: Path, split: str, count: int) -> None:
    outputs = parse(blender_scene, split)
    assert [path.name for path in outputs.image_filenames] == [f"r_{index}.png" for index in range(count)]
    assert {path.parent for path in outputs.image_filenames} == {blender_scene / split}
    focal_length = 8 / np.tan(0.35)
    assert outputs.cameras.fx.flatten().tolist() == pytest.approx([focal_length] * count)
    centres = outputs.cameras.camera_to_worlds[:, :, 3]
    torch.testing.assert_close(centres.norm(dim=1), torch.full((count,), 4.0))


def test_alpha_is_kept(blender_scene: Path) -> None:
    manager = load(blender_scene)
    image = manager.train_dataset[1]["image"]
    on_disk = torch.from_numpy(iio.imread(blender_scene / "train" / "r_1.png")) / 255
    assert image.shape == (16, 16, 4)
    torch.testing.assert_close(image.float(), on_disk)
    _, batch = manager.next_train(0)
    assert batch["image"].shape == (64, 4)


def test_nerfstudio_layout(nerfstudio_scene: Path) -> None:
    train, test = (parse(nerfstudio_scene, split, train_split_fraction=0.75) for split in ("train", "test"))
    assert len(train.image_filenames) == 3 and len(test.image_filenames) == 1
    assert all(path.exists() for path in (*train.image_filenames, *test.image_filenames))
    assert train.cameras.fx.flatten().tolist() == [22.0] * 3
    everything = parse(nerfstudio_scene / "transforms.json", eval_mode="all")
    assert len(everything.image_filenames) == 4


def test_frames_without_their_image_are_left_out_and_counted(
    nerfstudio_scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nerfstudio_scene / "train" / "r_1.png").unlink()
    outputs = parse(nerfstudio_scene, eval_mode="all")
    assert [path.name for path in outputs.image_filenames] == ["r_0.png", "r_2.png", "r_3.png"]
    assert "left out 1 of 4 frames" in " ".join(capsys.readouterr().out.split())


def test_split_lists_are_followed_and_lose_what_is_missing(nerfstudio_scene: Path) -> None:
    path = nerfstudio_scene / "transforms.json"
    meta = json.loads(path.read_text())
    names = [frame["file_path"] for frame in meta["frames"]]
    splits = {"train_filenames": names[:3], "val_filenames": names[3:], "test_filenames": names[3:]}
    path.write_text(json.dumps(meta | splits))
    (nerfstudio_scene / names[1]).unlink()
    assert [path.name for path in parse(nerfstudio_scene).image_filenames] == ["r_0.png", "r_2.png"]
    assert [path.name for path in parse(nerfstudio_scene, "test").image_filenames] == ["r_3.png"]


def test_no_image_at_all_is_an_error(nerfstudio_scene: Path) -> None:
    shutil.rmtree(nerfstudio_scene / "train")
    with pytest.raises(SceneError, match=r"transforms\.json: none of its 4 images was found"):
        parse(nerfstudio_scene)


def break_json(scene: Path) -> str:
    (scene / "transforms_train.json").write_text("{")
    return "transforms_train.json: cannot be read as JSON"


def remove_transforms(scene: Path) -> str:
    (scene / "transforms_train.json").unlink()
    return "found neither transforms_train.json (Blender layout), transforms.json, metadata.json, sparse/0 nor colmap"


def remove_image(scene: Path) -> str:
    (scene / "train" / "r_2.png").unlink()
    return "r_2.png: not found, but transforms_train.json lists it"


def remove_key(scene: Path) -> str:
    path = scene / "transforms_train.json"
    path.write_text(json.dumps({"frames": json.loads(path.read_text())["frames"]}))
    return "transforms_train.json: has no 'camera_angle_x'"


def remove_pose(scene: Path) -> str:
    path = scene / "transforms_train.json"
    meta = json.loads(path.read_text())
    del meta["frames"][1]["transform_matrix"]
    path.write_text(json.dumps(meta))
    return "transforms_train.json: frame 1 has no 'transform_matrix'"


def remove_frames(scene: Path) -> str:
    (scene / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": []}))
    return "transforms_train.json: 'frames' is no list of frames, or an empty one"


def break_list(scene: Path) -> str:
    (scene / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": 3}))
    return "transforms_train.json: 'frames' is no list of frames, or an empty one"


def break_first_image(scene: Path) -> str:
    (scene / "train" / "r_0.png").write_bytes(b"no image")
    return "r_0.png: cannot be read as an image"


def truncate_image(scene: Path) -> str:
    path = scene / "train" / "r_1.png"
    path.write_bytes(path.read_bytes()[:60])
    return "r_1.png: cannot be read as an image"


def remove_scene(scene: Path) -> str:
    shutil.rmtree(scene)
    return "not found, expected a scene folder"


@pytest.mark.parametrize(
    "damage",
    [
        break_json,
        remove_transforms,
        remove_image,
        remove_key,
        remove_pose,
        remove_frames,
        break_list,
        break_first_image,
        truncate_image,
        remove_scene,
    ],
)
def test_a_damaged_scene_ends_in_one_line_that_names_the_file(
    blender_scene: Path, damage, capsys: pytest.CaptureFixture[str]
) -> None:
    message = damage(blender_scene)
    with pytest.raises(SystemExit) as stop:
        load(blender_scene)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    complaint = [line for line in lines if line.startswith("error: ")]
    assert len(complaint) == 1 and lines[-1] == complaint[0]
    assert message in complaint[0] and str(blender_scene) in complaint[0]
