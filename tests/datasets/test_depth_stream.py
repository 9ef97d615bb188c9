"""Frames as they come: from an iterator, and from a folder while somebody writes it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eugen3d.datasets import SceneError, depth_stream, live_sequence, open_depth_sequence, watch_depth_folder

CAMERA = (10.0, 11.0, 6.2, 4.1)


def items(recording, count: int = 4) -> list:
    return [
        (recording.color[n], (recording.depth[n] / 1000).astype(np.float32), recording.poses[n], CAMERA)
        for n in range(count)
    ]


def text_of(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_live_frames_are_what_was_given(recording, capsys) -> None:
    frames = list(live_sequence(iter(items(recording))))
    assert len(frames) == 4
    for n, frame in enumerate(frames):
        torch.testing.assert_close(frame.depth, torch.from_numpy(recording.depth[n] / 1000).float())
        torch.testing.assert_close(frame.camera_to_world, torch.from_numpy(recording.poses[n, :3]).float())
        assert frame.rgb is not None and torch.equal(frame.rgb, torch.from_numpy(recording.color[n]))
        assert frame.intrinsics == CAMERA and frame.name == f"live {n}"
    assert text_of(capsys) == ""


def test_live_frames_may_be_tensors_without_colour_and_with_opencvs_axes(recording) -> None:
    flipped = torch.from_numpy(recording.poses[0] @ np.diag([1.0, -1.0, -1.0, 1.0]))
    depth = torch.from_numpy(recording.depth[0] / 1000)
    (frame,) = live_sequence([(None, depth, flipped[:3], CAMERA)], axes="opencv")
    torch.testing.assert_close(frame.camera_to_world, torch.from_numpy(recording.poses[0, :3]).float())
    assert frame.rgb is None and frame.depth.dtype == torch.float32


def test_live_frames_come_one_at_a_time(recording) -> None:
    asked = []

    def source():
        for n, item in enumerate(items(recording)):
            asked.append(n)
            yield item

    stream = live_sequence(source())
    next(stream)
    assert asked == [0]


def test_bad_live_frames_are_skipped_and_counted(recording, capsys) -> None:
    good = items(recording)
    rgb, depth, pose, camera = good[1]
    bad = [
        (rgb, np.zeros_like(depth), pose, camera),
        (rgb, np.full_like(depth, np.nan), pose, camera),
        (rgb, depth, np.full((4, 4), np.nan), camera),
        (rgb[:6], depth[:6], pose, camera),
        (rgb[:6], depth, pose, camera),
        (rgb, None, pose, camera),
        (rgb, depth, None, camera),
        (rgb, depth, pose, (0.0, 11.0, 6.2, 4.1)),
    ]
    frames = list(live_sequence([good[0], *bad, good[1]], name="camera"))
    assert [frame.name for frame in frames] == ["camera 0", "camera 9"]
    text = text_of(capsys)
    assert "camera: skipped 8 of 10 frames: camera 1: depth has no measurement; camera 2: depth has" in text
    assert "camera 3: pose is not finite, …" in text


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("frame", r"live 0: found str, expected \(rgb, depth, pose, intrinsics\)"),
        (
            (None, np.ones((8, 12), np.uint16), np.eye(4), CAMERA),
            "live 0: depth is uint16, expected floating-point metr",
        ),
    ],
)
def test_a_source_of_something_else_is_refused(item, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        list(live_sequence([item]))


class ScriptedTime:
    """A clock that moves only by sleeping; each sleep lets the next thing happen, as if somebody else did it."""

    def __init__(self, happenings: list[Callable[[], object]]) -> None:
        self.now, self.happenings = 0.0, happenings

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.happenings:
            self.happenings.pop(0)()


@pytest.fixture
def happen(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Callable[[], object]]], ScriptedTime]:
    def start(happenings: list[Callable[[], object]]) -> ScriptedTime:
        clock = ScriptedTime(happenings)
        monkeypatch.setattr(depth_stream, "time", clock)
        return clock

    return start


def copies(source: Path, target: Path, *numbers: int) -> Callable[[], object]:
    """Somebody writes the files of these frames, and the camera's."""

    def write() -> None:
        target.mkdir(exist_ok=True)
        shutil.copy(source / "camera-intrinsics.txt", target)
        for number in numbers:
            for file in source.glob(f"frame-{number:06d}.*"):
                shutil.copy(file, target)

    return write


def test_a_folder_is_followed_until_nothing_comes(seven_scenes_folder: Path, tmp_path: Path, happen, capsys) -> None:
    target = tmp_path / "growing"
    clock = happen([lambda: None, copies(seven_scenes_folder, target, 0, 1), lambda: None] + [lambda: None] * 5)
    clock.happenings += [copies(seven_scenes_folder, target, 2), copies(seven_scenes_folder, target, 3)]
    frames = list(watch_depth_folder(target, timeout=1.0, poll=0.1))
    assert [frame.name for frame in frames] == [f"frame-{n:06d}" for n in range(4)]
    recorded = open_depth_sequence(seven_scenes_folder)
    assert all(torch.equal(frame.depth, recorded[n].depth) for n, frame in enumerate(frames))
    assert clock.now == pytest.approx(1.0 + 1.1, abs=0.15), "a second after the last frame, the tenth thing to happen"
    assert text_of(capsys) == ""


def test_a_frame_half_written_is_waited_for(seven_scenes_folder: Path, tmp_path: Path, happen, capsys) -> None:
    target = tmp_path / "growing"

    def half() -> None:
        copies(seven_scenes_folder, target, 0, 1)()
        file = target / "frame-000001.depth.png"
        file.write_bytes(file.read_bytes()[:50])

    happen([half, lambda: None, copies(seven_scenes_folder, target, 1, 2)])
    frames = list(watch_depth_folder(target, timeout=1.0))
    assert [frame.name for frame in frames] == ["frame-000000", "frame-000001", "frame-000002"]
    assert text_of(capsys) == ""


def test_a_frame_that_stays_bad_is_passed_by_the_next(
    seven_scenes_folder: Path, tmp_path: Path, happen, capsys
) -> None:
    (seven_scenes_folder / "frame-000001.pose.txt").write_text("nan " * 4 + "\n")
    (seven_scenes_folder / "frame-000003.depth.png").unlink()
    target = tmp_path / "growing"
    happen([copies(seven_scenes_folder, target, n) for n in range(4)])
    frames = list(watch_depth_folder(target, timeout=1.0))
    assert [frame.name for frame in frames] == ["frame-000000", "frame-000002"]
    assert "skipped 2 of 4 frames" in text_of(capsys)


def test_a_folder_that_never_comes_is_an_error(tmp_path: Path, happen) -> None:
    clock = happen([])
    with pytest.raises(SceneError, match="gone: not found, expected the folder of an RGB-D sequence"):
        list(watch_depth_folder(tmp_path / "gone", timeout=2.0))
    assert 2.0 < clock.now < 2.2


def test_a_folder_of_bad_frames_alone_is_an_error(seven_scenes_folder: Path, happen) -> None:
    for file in seven_scenes_folder.glob("*.pose.txt"):
        file.unlink()
    happen([])
    with pytest.raises(SceneError, match=r"no frame could be used: .*frame-000000\.pose\.txt: not found"):
        list(watch_depth_folder(seven_scenes_folder, timeout=1.0))
