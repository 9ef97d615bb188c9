"""Depth frames as they are due: every one in turn, at a frame rate, or all at once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eugen3d.datasets import depth_datamanager, depth_stream, open_depth_sequence
from eugen3d.datasets.depth_checks import BadFrameError
from eugen3d.datasets.depth_datamanager import DepthDataManager, DepthDataManagerConfig
from eugen3d.datasets.depth_frame import DepthFrame

BAD = {3, 4}


class Frames:
    """A recorded sequence of numbered frames, some of them bad."""

    path, size = Path("frames"), (4, 4)

    def __init__(self, names: range) -> None:
        self.names = self.files = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DepthFrame:
        name = self.names[index]
        if name in BAD:
            raise BadFrameError(f"{name}: is bad")
        return DepthFrame(str(name), torch.ones(4, 4), torch.eye(3, 4), (2.0, 2.0, 2.0, 2.0))

    def every(self, step: int) -> "Frames":
        return Frames(self.names[::step])


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    monotonic = __call__

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def ten_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_datamanager, "open_depth_sequence", lambda path: Frames(range(10)))


def manager(clock: Clock | None = None, **settings: Any) -> DepthDataManager:
    settings = {"data": Path("frames"), "eval_interval": 0} | settings
    return DepthDataManager(DepthDataManagerConfig(**settings), clock=clock or Clock())


def name(frame: DepthFrame | None) -> str | None:
    return None if frame is None else frame.name


def test_as_fast_as_asked_every_good_frame_comes(capsys: pytest.CaptureFixture) -> None:
    source, names = manager(), []
    while not source.is_over:
        names.append(name(source.next_frame()))
    assert names == ["0", "1", "2", None, None, "5", "6", "7", "8", "9"]
    assert "skipped 2 of 10 frames: 3: is bad; 4: is bad" in capsys.readouterr().out
    assert source.next_frame() is None and source.num_skipped == 2


def test_at_a_frame_rate_frames_come_when_they_are_due_and_late_ones_are_left_out() -> None:
    clock = Clock()
    source = manager(clock, frame_rate=2.0)
    assert name(source.next_frame()) == "0"
    assert source.next_frame() is None, "the next one is due in half a second"
    clock.now += 0.5
    assert name(source.next_frame()) == "1"
    clock.now += 2.0
    assert name(source.next_frame()) == "5"
    assert source.position == 6 and not source.is_over
    clock.now += 100.0
    assert source.next_frame() is None and source.is_over


def test_a_stream_goes_on_from_a_position() -> None:
    clock = Clock()
    source = manager(clock, frame_rate=1.0)
    source.position = 6
    assert name(source.next_frame()) == "6"
    clock.now += 1.0
    assert name(source.next_frame()) == "7"


def test_a_step_leaves_frames_out() -> None:
    source = manager(frame_step=3)
    assert [name(source.next_frame()) for _ in range(4)] == ["0", None, "6", "9"]
    assert source.is_over


def test_all_at_once_are_spread_over_the_sequence() -> None:
    assert [frame.name for frame in manager(stream=False).all_frames()] == list("01256789")
    assert [frame.name for frame in manager(stream=False, max_batch_frames=4).all_frames()] == ["0", "6", "9"]


def test_without_a_folder_the_process_ends_with_one_line(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        DepthDataManager(DepthDataManagerConfig())
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: --data: found none, expected a folder with depth frames\n"


def test_inference_needs_no_frames() -> None:
    source = DepthDataManager(DepthDataManagerConfig(data=Path("gone")), test_mode="inference")
    with pytest.raises(ValueError, match="for inference has no frames"):
        source.next_frame()


def test_frames_for_evaluation_are_not_trained_on() -> None:
    source, names = manager(eval_interval=3), []
    while not source.is_over:
        names.append(name(source.next_frame()))
    assert names == ["0", "1", None, None, "6", "7", "9"], "3 and 4 are bad; 2, 5 and 8 are kept"
    assert [frame.name for frame in source.eval_frames()] == ["2", "5", "8"]
    assert [frame.name for frame in manager(eval_interval=3, stream=False).all_frames()] == list("01679")
    assert [frame.name for frame in manager(eval_interval=3, max_eval_frames=2).eval_frames()] == ["2", "8"]
    assert [frame.name for frame in manager(eval_interval=2).eval_frames()] == ["1", "5", "7", "9"], "3 is bad"
    assert list(manager().eval_frames()) == []


def test_when_a_frame_for_evaluation_is_due_none_is() -> None:
    clock = Clock()
    source, names = manager(clock, frame_rate=1.0, eval_interval=2), []
    for _ in range(3):
        names.append(name(source.next_frame()))
        clock.now += 1.0
    assert names == ["0", None, "2"]


def test_a_folder_that_is_written_to_is_followed(wall_sequence, tmp_path: Path, monkeypatch, capsys) -> None:
    clock, whole, growing = Clock(), wall_sequence(9), tmp_path / "growing"
    for module in (depth_datamanager, depth_stream):
        monkeypatch.setattr(module, "time", clock)
    meta = json.loads((whole / "transforms.json").read_text())

    def write(count: int) -> None:
        shutil.copytree(whole, growing, dirs_exist_ok=True)
        (growing / "transforms.json").write_text(json.dumps(meta | {"frames": meta["frames"][:count]}))
        (growing / "depth004.png").unlink()

    def taken(source: DepthDataManager, until: int) -> list[str]:
        frames = []
        while source.position < until and not source.is_over:
            if frame := source.next_frame():
                frames.append(frame.name.removeprefix("growing/depth"))
            clock.now += 0.1
        return frames

    settings: dict[str, Any] = {"data": growing, "watch_timeout": 2.0, "eval_interval": 3}
    source = manager(clock, **settings)
    assert source.next_frame() is None and not source.is_over, "the folder is not there yet"
    write(2)
    assert taken(source, 2) == ["000.png", "001.png"] and source.position == 2
    assert source.next_frame() is None and not source.is_over
    write(7)
    assert taken(source, 7) == ["003.png", "006.png"], "2 and 5 are for evaluation, 4 is missing"
    assert source.num_skipped == 1

    resumed = manager(clock, **settings)
    resumed.position = source.position
    write(9)
    assert taken(resumed, 100) == ["007.png"], "goes on, and ends when its time is up"
    assert resumed.is_over and taken(source, 100) == ["007.png"]
    assert "skipped 1 of 6 frames: " in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(depth_datamanager, "open_depth_sequence", open_depth_sequence)
    evaluated = DepthDataManager(DepthDataManagerConfig(**settings), test_mode="test")
    assert len(list(evaluated.eval_frames())) == 3


def test_a_folder_that_never_comes_ends_the_process_with_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    clock = Clock()
    for module in (depth_datamanager, depth_stream):
        monkeypatch.setattr(module, "time", clock)
    source = manager(clock, data=tmp_path / "gone", watch_timeout=1.0)
    with pytest.raises(SystemExit, match="2"):
        for _ in range(1000):
            source.next_frame()
            clock.now += 0.1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path / 'gone'}: not found, expected the folder of an RGB-D sequence"


@pytest.mark.parametrize(
    "settings",
    [
        {"frame_rate": 0.0},
        {"frame_step": 0},
        {"max_batch_frames": 0},
        {"max_eval_frames": 0},
        {"eval_interval": 1},
        {"eval_interval": -1},
        {"watch_timeout": 0.0},
        {"watch_timeout": 1.0, "frame_rate": 10.0},
        {"watch_timeout": 1.0, "stream": False},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DepthDataManagerConfig(**settings)
