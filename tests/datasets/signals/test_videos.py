"""Videos in files, which come back close, and in folders of frames, which come back exactly."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from eugen3d.datasets import SceneError
from eugen3d.datasets.signals import SampledSignal, encode_signal, open_signal, write_frames
from eugen3d.datasets.signals.png import encode_png


def opened(path: Path) -> SampledSignal:
    signal = open_signal(path)
    assert isinstance(signal, SampledSignal)
    return signal


def moving_ramp(count: int = 5, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that become brighter downwards, to the right and by 20 from one to the next."""
    frame, row, column = np.ogrid[:count, :height, :width]
    ramp = 20 * frame + 2 * row + column
    return np.stack([ramp, ramp, 255 - ramp], axis=-1).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, fps: float = 30000 / 1001) -> Path:
    iio.imwrite(path, frames, plugin="pyav", codec="libx264", fps=fps, out_pixel_format="yuv444p")
    return path


@pytest.mark.parametrize(
    ("suffix", "size"),
    [
        (".mp4", (32, 48)),
        (".mp4", (17, 33)),
        (".mov", (32, 48)),
        (".mkv", (32, 48)),
        (".avi", (32, 48)),
        (".webm", (32, 48)),
    ],
)
def test_files_come_back_close(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    frames = moving_ramp(5, *size)
    mp4 = opened(write_video(tmp_path / "first.mp4", frames))
    assert (mp4.format.kind, mp4.format.size, mp4.format.channels) == ("video", (5, *size), 3)
    assert (mp4.format.dtype, mp4.format.encoding) == ("uint8", "h264")
    assert mp4.format.rate == pytest.approx(30000 / 1001, abs=1e-6)
    other = type(mp4.format)(**{**vars(mp4.format), "suffix": suffix})
    path = tmp_path / f"second{suffix.upper()}"
    path.write_bytes(encode_signal(other, mp4.values))
    again = opened(path)
    assert again.format.rate == pytest.approx(30000 / 1001, rel=2e-3) and again.format.suffix == suffix
    assert again.values.shape == mp4.values.shape
    assert (again.values - mp4.values).abs().mean() < 0.05 < (again.values - mp4.values.flip(0)).abs().mean()


def test_any_size_and_rate_are_written(tmp_path: Path) -> None:
    video_format = opened(write_video(tmp_path / "a.mp4", moving_ramp())).format
    path = tmp_path / "b.mp4"
    path.write_bytes(encode_signal(video_format, torch.zeros(3, 8, 6, 3), rate=12.5))
    again = opened(path).format
    assert again.size == (3, 8, 6) and again.rate == pytest.approx(12.5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_folder_comes_back_exactly_and_in_natural_order(tmp_path: Path, dtype: str) -> None:
    frames = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (12, 4, 6, 3)).astype(dtype)
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(frames):
        content = iio.imwrite("<bytes>", frame, extension=".png") if dtype == "uint8" else encode_png(frame)
        (folder / f"shot2_{index + 1}.png").write_bytes(content)
    (folder / "notes.txt").write_text("no frame")
    (folder / "._shot2_1.png").write_text("no frame")
    signal = opened(folder)
    assert signal.format.is_folder and signal.format.rate is None and signal.format.size == (12, 4, 6)
    assert signal.format.num_bytes == sum(file.stat().st_size for file in folder.glob("shot*"))
    expected = torch.from_numpy(frames.astype(np.float64) * 2 / np.iinfo(dtype).max - 1).float()
    torch.testing.assert_close(signal.values, expected, atol=2e-7, rtol=0)
    again = tmp_path / "again"
    again.mkdir()
    write_frames(signal.format, signal.values, again)
    assert sorted(file.name for file in again.iterdir())[::11] == ["00000.png", "00011.png"]
    second = opened(again)
    assert torch.equal(second.values, signal.values) and second.format.dtype == dtype
    assert not torch.equal(second.values, signal.values.flip(0))


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    iio.imwrite(tmp_path / "0.png", np.zeros((4, 4, 3), np.uint8))
    signal = opened(tmp_path)
    with pytest.raises(ValueError, match="a folder of frames is no single file"):
        encode_signal(signal.format, signal.values)
    image = opened(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"a image in a \.png file has no folder"):
        write_frames(image.format, image.values, tmp_path)


def put(**frames: np.ndarray):
    def make(folder: Path) -> None:
        folder.mkdir()
        for name, frame in frames.items():
            stem, suffix = name.split("_")
            iio.imwrite(folder / f"{stem}.{suffix}", frame)

    return make


def cut(path: Path) -> None:
    content = iio.imwrite("<bytes>", moving_ramp(), extension=".mp4", plugin="pyav", codec="libx264", fps=5)
    path.write_bytes(content[: len(content) // 2])


def cut_samples(path: Path) -> None:
    """Its index comes first and is whole, so that FFmpeg itself finds nothing wrong."""
    content = iio.imwrite("<bytes>", moving_ramp(), extension=".mp4", plugin="pyav", codec="libx264", fps=5)
    start, end = content.index(b"mdat") - 4, content.index(b"moov") - 4
    path.write_bytes(content[:start] + content[end:] + content[start : (start + end) // 2])


SMALL = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.mp4", lambda path: None, "not found, expected a video"),
        ("a.mp4", lambda path: path.write_bytes(b""), "cannot be read as a video"),
        ("a.mkv", lambda path: path.write_bytes(b"no video at all"), "cannot be read as a video"),
        ("a.mp4", cut, "the file is cut short"),
        ("a.mp4", cut_samples, "the file is cut short"),
        ("a", lambda path: path.mkdir(), "found no frames, expected a video"),
        ("a", put(a_png=SMALL, b_png=SMALL[:3]), "frame 1 is of 3 x 4 x 3 values, expected 4 x 4 x 3 as the first"),
        ("a", put(a_png=SMALL, b_png=SMALL[..., 0]), "frame 1 is of 4 x 4 x 1 values, expected 4 x 4 x 3"),
        ("a", put(a_png=SMALL, b_bmp=SMALL), "found frames of .bmp and .png, expected one kind of file"),
        ("a", put(a_png=SMALL[..., 0], b_png=SMALL[..., 0].astype(np.uint16)), "found uint16, expected uint8 as in"),
    ],
)
def test_videos_that_cannot_be_used(tmp_path: Path, name: str, make, message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(SceneError) as error:
        open_signal(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_frame_is_named(tmp_path: Path) -> None:
    iio.imwrite(tmp_path / "0.png", SMALL)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(SceneError, match=r"1\.png: cannot be read as an image"):
        open_signal(tmp_path)


@pytest.mark.slow
def test_the_real_video(shared_data: Path, tmp_path: Path) -> None:
    signal = opened(shared_data / "video" / "bikes.mp4")
    assert signal.format.size == (250, 272, 640) and signal.format.rate == 25.0
    part = signal.values[:10]
    (tmp_path / "again.mp4").write_bytes(encode_signal(signal.format, part))
    again = opened(tmp_path / "again.mp4")
    assert again.format.size == (10, 272, 640)
    assert (again.values - part).abs().mean() < 0.03 < (again.values - part.flip(2)).abs().mean()
