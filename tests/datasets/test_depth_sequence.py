"""RGB-D folders of every layout: the same recording comes out, bad frames are skipped and counted, bad ones named."""

import json
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from eugen3d.datasets import BadFrameError, DepthFrame, SceneError, open_depth_sequence


def text_of(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def numbered(folder: Path, kind: str, number: int) -> Path:
    """The file of a kind ("depth" or "color") of one frame, in whatever layout."""
    spellings = {"depth": ("depth",), "color": ("color", "rgb", "frame")}[kind]
    found = {
        file
        for file in folder.rglob("*.png")
        for word in spellings
        if word in str(file.relative_to(folder)) and int("".join(filter(str.isdigit, file.name))) == number
        if kind in file.name or not file.name.startswith("frame-")
    }
    assert len(found) == 1, found
    return found.pop()


def test_every_layout_gives_the_recording(sequence_folder: Path, recording, capsys) -> None:
    sequence = open_depth_sequence(sequence_folder)
    frames = list(sequence)
    assert len(sequence) == len(frames) == 4 and sequence.size == (8, 12)
    for n, frame in enumerate(frames):
        torch.testing.assert_close(frame.depth, torch.from_numpy(recording.depth[n] / 1000).float())
        torch.testing.assert_close(frame.camera_to_world, torch.from_numpy(recording.poses[n, :3]).float())
        assert frame.intrinsics == pytest.approx((10.0, 11.0, 6.2, 4.1))
        assert frame.rgb is not None and torch.equal(frame.rgb, torch.from_numpy(recording.color[n]))
        assert frame.time == pytest.approx(n / 30, abs=1e-5)
    assert text_of(capsys) == "", "nothing was wrong"


def test_frames_by_index(sequence_folder: Path) -> None:
    sequence = open_depth_sequence(sequence_folder)
    listed = list(sequence)
    assert torch.equal(sequence[2].depth, listed[2].depth) and sequence[-1].name == listed[3].name
    assert [frame.name for frame in sequence.every(2, start=1)] == [listed[1].name, listed[3].name]
    with pytest.raises(IndexError):
        sequence[4]


def empty_depth(file: Path) -> str:
    iio.imwrite(file, np.full((8, 12), 65535, np.uint16))
    return "depth has no measurement"


def other_size(file: Path) -> str:
    iio.imwrite(file, np.full((6, 9), 1000, np.uint16))
    return "depth is 9x6 pixels, expected 12x8 as in the others"


def eight_bits(file: Path) -> str:
    iio.imwrite(file, np.full((8, 12), 100, np.uint8))
    return "found uint8 of shape (8, 12), expected 16-bit depth, one channel"


def truncated(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:-60])
    return "cannot be read as depth"


@pytest.mark.parametrize("damage", [empty_depth, other_size, eight_bits, truncated])
def test_a_bad_depth_is_skipped_and_named(sequence_folder: Path, damage, capsys) -> None:
    file = numbered(sequence_folder, "depth", 2)
    message = damage(file)
    sequence = open_depth_sequence(sequence_folder)
    assert len(sequence) == 4 and len(list(sequence)) == 3
    text = text_of(capsys)
    assert text.count(": skipped 1 of 4 frames") == 1 and message in text
    with pytest.raises(BadFrameError, match=r"2"):
        sequence[2]
    assert isinstance(sequence[3], DepthFrame)


@pytest.mark.parametrize("kind", ["depth", "color"])
def test_a_missing_file_is_skipped_and_named(sequence_folder: Path, kind: str, capsys) -> None:
    file = numbered(sequence_folder, kind, 1)
    file.unlink()
    assert len(list(open_depth_sequence(sequence_folder))) == 3
    text = text_of(capsys)
    assert "skipped 1 of 4 frames" in text and f"{file.name}: not found" in text


def set_pose(folder: Path, number: int, pose: np.ndarray) -> None:
    np.savetxt(folder / f"frame-{number:06d}.pose.txt", pose)


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        (np.full((4, 4), np.nan), "pose is not finite"),
        (np.full((4, 4), -np.inf), "pose is not finite"),
        (np.diag([2.0, 2.0, 2.0, 1.0]), "RᵀR is off by 3 and det R is 8, expected 0 and 1"),
        (np.diag([1.0, 1.0, -1.0, 1.0]), "det R is -1, expected 0 and 1"),
        (np.zeros((4, 4)), "pose ends in the row [0.0, 0.0, 0.0, 0.0]"),
        (np.eye(4)[:2], "pose is of shape (2, 4)"),
        (np.eye(3), "found numbers of shape (3, 3), expected rows of 4"),
    ],
)
def test_a_wrong_pose_is_skipped_and_named(seven_scenes_folder: Path, pose, message: str, capsys) -> None:
    set_pose(seven_scenes_folder, 1, pose)
    frames = list(open_depth_sequence(seven_scenes_folder))
    assert [frame.name for frame in frames] == ["frame-000000", "frame-000002", "frame-000003"]
    assert message in text_of(capsys)


def test_a_rounded_rotation_is_projected_and_reported(seven_scenes_folder: Path, recording, capsys) -> None:
    pose = recording.poses[1] @ np.diag([1.0, -1.0, -1.0, 1.0])
    stretched = pose.copy()
    stretched[:3, :3] *= 1.001
    set_pose(seven_scenes_folder, 1, stretched)
    frame = list(open_depth_sequence(seven_scenes_folder))[1]
    torch.testing.assert_close(frame.camera_to_world, torch.from_numpy(recording.poses[1, :3]).float())
    assert "rotations of 1 of 4 poses were off by up to 0.002 and were projected" in text_of(capsys)


def test_a_missing_pose_is_skipped(seven_scenes_folder: Path, capsys) -> None:
    (seven_scenes_folder / "frame-000002.pose.txt").unlink()
    assert len(list(open_depth_sequence(seven_scenes_folder))) == 3
    assert "frame-000002.pose.txt: not found" in text_of(capsys)


def test_only_the_first_few_are_named(seven_scenes_folder: Path, recording, capsys) -> None:
    for number in range(4, 10):
        iio.imwrite(seven_scenes_folder / f"frame-{number:06d}.depth.png", recording.depth[0])
    sequence = open_depth_sequence(seven_scenes_folder)
    stopped = iter(sequence)
    next(stopped)
    assert len(list(sequence)) == 4
    text = text_of(capsys)
    assert "skipped 6 of 10 frames" in text and text.count("not found") == 3 and text.endswith(", …")


def test_stopping_early_reports_what_was_skipped_so_far(seven_scenes_folder: Path, capsys) -> None:
    (seven_scenes_folder / "frame-000000.pose.txt").unlink()
    for _ in open_depth_sequence(seven_scenes_folder):
        break
    assert "skipped 1 of 2 frames" in text_of(capsys)


def test_no_usable_frame_is_an_error(seven_scenes_folder: Path) -> None:
    for file in seven_scenes_folder.glob("*.pose.txt"):
        file.write_text("lost\n")
    with pytest.raises(
        SceneError, match=r"none of its 4 frames has a pose that can be used: .*frame-000000\.pose\.txt: found no rows"
    ):
        list(open_depth_sequence(seven_scenes_folder))


def test_no_readable_depth_is_an_error(seven_scenes_folder: Path) -> None:
    for file in seven_scenes_folder.glob("*.depth.png"):
        file.write_bytes(b"none")
    with pytest.raises(SceneError, match="none of its 4 frames has a depth that can be read"):
        open_depth_sequence(seven_scenes_folder)


def test_values_without_a_measurement(seven_scenes_folder: Path) -> None:
    values = np.full((8, 12), 1500, np.uint16)
    values[0, :2] = (0, 65535)
    iio.imwrite(seven_scenes_folder / "frame-000001.depth.png", values)
    depth = open_depth_sequence(seven_scenes_folder)[1].depth
    assert depth[0, :3].tolist() == [0.0, 0.0, 1.5] and int((depth == 0).sum()) == 2
    assert open_depth_sequence(seven_scenes_folder, depth_unit=1e-4)[1].depth[0, 2].item() == pytest.approx(0.15)


def test_nominal_cameras_follow_the_size(seven_scenes_folder: Path) -> None:
    (seven_scenes_folder / "camera-intrinsics.txt").unlink()
    with pytest.raises(SceneError, match="its depth is 12x8, but the camera is for 640x480, another shape"):
        open_depth_sequence(seven_scenes_folder)
    for n in range(4):
        for kind, values in (("depth", np.full((48, 64), 900, np.uint16)), ("color", np.zeros((96, 128, 3), np.uint8))):
            iio.imwrite(seven_scenes_folder / f"frame-{n:06d}.{kind}.png", values)
    frame = open_depth_sequence(seven_scenes_folder)[0]
    assert frame.intrinsics == pytest.approx((58.5, 58.5, 32.0, 24.0))
    assert frame.rgb is not None and frame.rgb.shape == (48, 64, 3)


def change(folder: Path, changes: dict) -> None:
    file = folder / "transforms.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_smaller_depth_than_the_camera(nerfstudio_folder: Path, recording) -> None:
    """The camera is of the colour, twice as large."""
    change(nerfstudio_folder, {"fl_x": 20.0, "fl_y": 22.0, "cx": 12.4, "cy": 8.2, "w": 24, "h": 16})
    for n in range(4):
        iio.imwrite(nerfstudio_folder / f"color{n}.png", recording.color[n].repeat(2, axis=0).repeat(2, axis=1))
    frame = open_depth_sequence(nerfstudio_folder)[1]
    assert frame.intrinsics == pytest.approx((10.0, 11.0, 6.2, 4.1))
    assert frame.rgb is not None and torch.equal(frame.rgb, torch.from_numpy(recording.color[1]))


def test_arrays_are_depth_too(nerfstudio_folder: Path) -> None:
    values = np.full((8, 12), 1500.0, np.float32)
    values[0, :3] = (np.nan, -1.0, np.inf)
    np.save(nerfstudio_folder / "depth.npy", values)
    frames = json.loads((nerfstudio_folder / "transforms.json").read_text())["frames"]
    change(nerfstudio_folder, {"frames": [frames[0], frames[1] | {"depth_file_path": "depth.npy"}]})
    depth = open_depth_sequence(nerfstudio_folder)[1].depth
    assert depth[0, :4].tolist() == [0.0, 0.0, 0.0, 1.5]


def test_lens_distortion_by_hand(nerfstudio_folder: Path) -> None:
    """A pixel at (0.55, 0.05) focal lengths from the middle: r² = 0.305, so k1 = -0.4 brings it in by 0.878."""
    values = (1000 + 10 * np.arange(12) + 200 * np.arange(8)[:, None]).astype(np.uint16)
    iio.imwrite(nerfstudio_folder / "depth0.png", values)
    change(nerfstudio_folder, {"fl_y": 10.0, "cx": 6.0, "cy": 4.0, "k1": -0.4})
    frame = open_depth_sequence(nerfstudio_folder)[0]
    assert frame.intrinsics == (10.0, 10.0, 6.0, 4.0)
    assert frame.depth[4, 11].item() == pytest.approx(values[4, 10] / 1000)
    assert frame.depth[4, 6].item() == pytest.approx(values[4, 6] / 1000), "the middle stays"
    change(nerfstudio_folder, {"k1": 0.4})
    assert open_depth_sequence(nerfstudio_folder)[0].depth[4, 11].item() == 0.0, "outside the picture"


def test_lens_distortion_is_opencvs(nerfstudio_folder: Path, recording) -> None:
    """Without the fourth radial term, which OpenCV's simple model has not."""
    lens = {"k1": -0.45, "k2": 0.3, "k3": 0.1, "p1": 0.05, "p2": -0.04}
    change(nerfstudio_folder, lens)
    k1, k2, k3, p1, p2 = lens.values()
    camera = np.array([[10.0, 0.0, 5.7], [0.0, 11.0, 3.6], [0.0, 0.0, 1.0]])
    maps = cv2.initUndistortRectifyMap(camera, np.array([k1, k2, p1, p2, k3]), np.eye(3), camera, (12, 8), cv2.CV_32FC1)
    expected = cv2.remap(recording.depth[1], *maps, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT) / 1000
    found = open_depth_sequence(nerfstudio_folder)[1].depth
    torch.testing.assert_close(found, torch.from_numpy(expected).float())
    assert not torch.equal(found, torch.from_numpy(recording.depth[1] / 1000).float())


def test_scannets_colour_camera_is_another(scannet_folder: Path, recording) -> None:
    larger = np.diag([20.0, 22.0, 1.0, 1.0])
    larger[:2, 2] = (2 * 6.2 - 0.5, 2 * 4.1 - 0.5)
    np.savetxt(scannet_folder / "intrinsic" / "intrinsic_color.txt", larger)
    for n in range(4):
        iio.imwrite(scannet_folder / f"color/{n}.png", recording.color[n].repeat(2, axis=0).repeat(2, axis=1))
    frame = open_depth_sequence(scannet_folder)[3]
    assert frame.rgb is not None and torch.equal(frame.rgb, torch.from_numpy(recording.color[3]))


def test_depth_alone_is_enough(seven_scenes_folder: Path) -> None:
    for file in seven_scenes_folder.glob("*.color.png"):
        file.unlink()
    frames = list(open_depth_sequence(seven_scenes_folder))
    assert len(frames) == 4 and all(frame.rgb is None for frame in frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "camera_model is 'OPENCV_FISHEYE', expected 'OPENCV' or 'PINHOLE'"),
        ({"fl_x": "wide"}, "frame 0 has a camera that is none"),
        ({"w": 16}, "its depth is 12x8, but the camera is for 16x8, another shape"),
        ({"frames": []}, "'frames' is no list of frames, or an empty one"),
        ({"frames": [{"file_path": "a.png", "transform_matrix": []}]}, "none of its 1 frames has 'depth_file_path'"),
    ],
)
def test_transforms_that_cannot_be_used(nerfstudio_folder: Path, changes: dict, message: str) -> None:
    change(nerfstudio_folder, changes)
    with pytest.raises(SceneError) as error:
        open_depth_sequence(nerfstudio_folder)
    assert message in str(error.value) and "nerfstudio" in str(error.value) and "\n" not in str(error.value)


def test_a_camera_without_a_size_is_refused(nerfstudio_folder: Path) -> None:
    file = nerfstudio_folder / "transforms.json"
    meta = json.loads(file.read_text())
    del meta["w"]
    file.write_text(json.dumps(meta))
    with pytest.raises(SceneError, match=r"transforms\.json: frame 0 has no 'w', neither of its own nor for all"):
        open_depth_sequence(nerfstudio_folder)


def test_a_frame_may_have_no_depth_or_no_pose_matrix(nerfstudio_folder: Path, capsys) -> None:
    frames = json.loads((nerfstudio_folder / "transforms.json").read_text())["frames"]
    del frames[1]["depth_file_path"]
    frames[2]["transform_matrix"] = [[1, 0], [0]]
    change(nerfstudio_folder, {"frames": frames})
    assert len(list(open_depth_sequence(nerfstudio_folder))) == 2
    text = text_of(capsys)
    assert "skipped 2 of 4 frames" in text and "no depth is named" in text and "pose is of shape (0,)" in text


def test_what_is_no_sequence_is_named(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="gone: not found, expected the folder of an RGB-D sequence"):
        open_depth_sequence(tmp_path / "gone")
    with pytest.raises(SceneError, match=r"is no RGB-D sequence, found none of transforms\.json \(nerfstudio\), depth"):
        open_depth_sequence(tmp_path)
    (tmp_path / "depth").mkdir()
    (tmp_path / "pose").mkdir()
    with pytest.raises(SceneError, match=r"intrinsic_depth\.txt: not found, expected the depth camera's matrix"):
        open_depth_sequence(tmp_path)
    (tmp_path / "traj.txt").write_text("")
    (tmp_path / "results").mkdir()
    with pytest.raises(SceneError, match=r"found no replicaCAD_info\.json there or beside it"):
        open_depth_sequence(tmp_path)


def test_poses_far_in_time_are_no_poses(tum_folder: Path, capsys) -> None:
    lines = (tum_folder / "groundtruth.txt").read_text().splitlines()
    (tum_folder / "groundtruth.txt").write_text("\n".join(lines[:5]) + "\n")  # poses of the first two frames
    assert len(list(open_depth_sequence(tum_folder))) == 2
    text = text_of(capsys)
    assert "skipped 2 of 4 frames" in text and "depth/2.png: there is no pose" in text


def test_the_noisy_depth_of_replica_cad_comes_first(replica_cad_folder: Path, recording) -> None:
    for n in range(4):
        iio.imwrite(replica_cad_folder / f"results/ndepth{n:06d}.png", recording.depth[n] + np.uint16(7))
    depth = open_depth_sequence(replica_cad_folder)[0].depth
    torch.testing.assert_close(depth, torch.from_numpy((recording.depth[0] + 7) / 1000).float())


def test_a_kitchen_that_was_recorded(shared_data: Path, capsys) -> None:
    sequence = open_depth_sequence(shared_data / "rgbd_kitchen")
    frames = list(sequence.every(10))
    assert len(sequence) == 100 and len(frames) == 10 and sequence.size == (480, 640)
    assert max(float(frame.depth.max()) for frame in frames) < 4.0, "65535 is no measurement"
    missing = float(torch.stack([frame.depth == 0 for frame in frames]).float().mean())
    assert missing == pytest.approx(0.11, abs=0.04)
    rotations = torch.stack([frame.camera_to_world[:, :3] for frame in frames])
    torch.testing.assert_close(rotations.mT @ rotations, torch.eye(3).expand(10, 3, 3), atol=1e-6, rtol=0)
    assert "rotations of 10 of 10 poses were off by up to 0.0004" in text_of(capsys)
