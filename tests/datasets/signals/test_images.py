"""Images of every kind, there and back: what is stored exactly comes back exactly, and every fault has its line."""

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image

from eugen3d.datasets import SceneError
from eugen3d.datasets.signals import SampledSignal, encode_signal, open_signal
from eugen3d.datasets.signals.images import read_picture
from eugen3d.datasets.signals.png import encode_png

RNG = np.random.default_rng(5)


def pixels(dtype: str, channels: int, size: tuple[int, int] = (7, 5)) -> np.ndarray:
    stored = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*size, channels), endpoint=True).astype(dtype)
    stored[0, 0], stored[0, 1], stored[-1, -1, -1] = 0, np.iinfo(dtype).max, 0
    return stored


def write(path: Path, stored: np.ndarray) -> Path:
    """As other programs do, and not through the code that is tested, wherever one of ours can."""
    if stored.dtype == np.uint16 and path.suffix == ".png" and stored.shape[2] > 1:
        path.write_bytes(encode_png(stored))
        return path
    options = {"extrasamples": ["unassalpha"], "photometric": "minisblack", "planarconfig": "contig"}
    options = options if path.suffix == ".tif" and stored.shape[2] == 2 else {}
    iio.imwrite(path, stored if stored.shape[2] > 1 else stored[..., 0], **options)
    return path


def write_exr(path: Path, planes: dict[str, np.ndarray]) -> Path:
    header = {"compression": OpenEXR.PIZ_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, dict(planes)) as file:  # it replaces the arrays by channels
        file.write(str(path))
    return path


def opened(path: Path) -> SampledSignal:
    signal = open_signal(path)
    assert isinstance(signal, SampledSignal)
    return signal


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_integers_come_back_exactly(tmp_path: Path, suffix: str, dtype: str, channels: int) -> None:
    stored = pixels(dtype, channels)
    path = write(tmp_path / f"picture{suffix}", stored)
    signal = opened(path)
    assert signal.format.kind == "image" and signal.format.size == (7, 5) and signal.format.channels == channels
    assert (signal.format.dtype, signal.format.suffix, signal.format.num_bytes) == (dtype, suffix, path.stat().st_size)
    assert signal.values.dtype == torch.float32 and signal.values.min() == -1.0 and signal.values.max() == 1.0
    expected = torch.from_numpy(stored.astype(np.float64) * 2 / np.iinfo(dtype).max - 1)
    torch.testing.assert_close(signal.values.double(), expected, atol=2e-7, rtol=0)
    path.write_bytes(encode_signal(signal.format, signal.values))
    assert np.array_equal(read_picture(path).pixels, stored)
    path.write_bytes(encode_signal(signal.format, -signal.values))
    assert np.array_equal(read_picture(path).pixels, np.iinfo(dtype).max - stored)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_what_others_read(channels: int) -> None:
    """Pillow has the upper 8 bits of colours, which is enough to tell the channels and rows apart."""
    stored = pixels("uint16", channels)
    shown = iio.imread(encode_png(stored), plugin="pillow", extension=".png")
    if channels == 1:
        assert np.array_equal(shown, stored[..., 0])
        return
    colors = stored if channels > 2 else stored[..., [0, 0, 0, 1]]
    assert np.array_equal(shown, colors >> 8)


@pytest.mark.parametrize(("suffix", "channels"), [(".bmp", 1), (".bmp", 3), (".webp", 3), (".webp", 4)])
def test_other_exact_files(tmp_path: Path, suffix: str, channels: int) -> None:
    stored = pixels("uint8", channels)
    path = tmp_path / f"picture{suffix}"
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    iio.imwrite(path, stored if channels > 1 else stored[..., 0], **options)
    signal = opened(path)
    assert np.array_equal(read_picture(path).pixels, stored)
    path.write_bytes(encode_signal(signal.format, signal.values))
    assert np.array_equal(read_picture(path).pixels, stored)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_files_come_back_close(tmp_path: Path, suffix: str, channels: int) -> None:
    ramp = np.add.outer(np.arange(32) * 3, np.arange(48) * 2)
    stored = np.stack([ramp, 255 - ramp, ramp // 2], axis=-1)[..., :channels].astype(np.uint8)
    path = tmp_path / f"picture{suffix}"
    iio.imwrite(path, stored if channels > 1 else stored[..., 0], extension=suffix.lower())
    first = opened(path)
    assert first.format.suffix == suffix.lower() and first.format.size == (32, 48)
    path.write_bytes(encode_signal(first.format, first.values))
    second = opened(path)
    assert (second.values - first.values).abs().mean() < 0.02 < (second.values - first.values.flip(0)).abs().mean()


def test_any_size_is_written_clamped(tmp_path: Path) -> None:
    image_format = opened(write(tmp_path / "a.png", pixels("uint8", 1))).format
    (tmp_path / "b.png").write_bytes(encode_signal(image_format, torch.tensor([[[-3.0], [0.001], [9.0]]] * 2)))
    assert iio.imread(tmp_path / "b.png").tolist() == [[0, 128, 255]] * 2


def test_palettes_bits_and_other_colours_are_resolved(tmp_path: Path) -> None:
    colors = Image.fromarray(np.kron([[0, 200], [90, 90]], np.ones((2, 2))).astype(np.uint8)).convert("RGB")
    colors.quantize(3).save(tmp_path / "palette.png")
    colors.quantize(3).save(tmp_path / "palette.tif")
    colors.quantize(3).save(tmp_path / "alpha.png", transparency=0)
    colors.save(tmp_path / "packed.tif", compression="tiff_lzw")
    for name in ("palette.png", "palette.tif", "packed.tif"):
        assert np.array_equal(read_picture(tmp_path / name).pixels, np.asarray(colors)), name
    assert set(read_picture(tmp_path / "alpha.png").pixels[..., 3].ravel()) == {0, 255}
    colors.convert("1").save(tmp_path / "bits.png")
    assert set(read_picture(tmp_path / "bits.png").pixels.ravel()) == {0, 255}
    colors.convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    assert np.abs(read_picture(tmp_path / "print.jpg").pixels - np.asarray(colors, float)).max() < 8


def test_a_turned_photograph_is_read_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.arange(0, 240, 5, np.uint8)[:, None], 16, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    image.save(tmp_path / "turned.jpg", exif=exif)
    stored = read_picture(tmp_path / "turned.jpg").pixels
    assert stored.shape == (16, 48, 1) and stored[:, 0].mean() > stored[:, -1].mean() + 200


def test_planar_tiff_is_turned_round(tmp_path: Path) -> None:
    stored = pixels("uint16", 3)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    iio.imwrite(tmp_path / "planar.tiff", np.moveaxis(stored, -1, 0), plugin="tifffile", **options)
    assert np.array_equal(read_picture(tmp_path / "planar.tiff").pixels, stored)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("names", ["Y", "RGB", "RGBA", "ARZ"])
def test_exr_comes_back_with_its_channels(tmp_path: Path, dtype: str, names: str) -> None:
    """Multiples of 1/1024 from -1 to 3 are exact in half precision, and so is their way to [-1, 1] and back."""
    planes = {name: (RNG.integers(-1024, 1024, (6, 9)) / 1024 * 2 + 1).astype(dtype) for name in names}
    planes[names[0]][0, :2] = -1.0, 3.0
    path = write_exr(tmp_path / "picture.exr", planes)
    signal = opened(path)
    ordered = {"Y": "Y", "RGB": "RGB", "RGBA": "RGBA", "ARZ": "RAZ"}[names]
    assert (signal.format.channel_names, signal.format.dtype) == (tuple(ordered), dtype)
    assert (signal.format.low, signal.format.high, signal.format.encoding) == (-1.0, 3.0, "PIZ_COMPRESSION")
    assert torch.equal(signal.values[..., 0], torch.from_numpy(planes[ordered[0]].astype(np.float32) / 2 - 0.5))
    path.write_bytes(encode_signal(signal.format, signal.values))
    with OpenEXR.File(str(path), separate_channels=True) as file:
        found = {name: channel.pixels for name, channel in file.channels().items()}
    assert found.keys() == planes.keys()
    for name, plane in planes.items():
        assert found[name].dtype == dtype and np.array_equal(found[name], plane)
    path.write_bytes(encode_signal(signal.format, 2.0 * signal.values[:3, :2]))
    stored = read_picture(path).pixels
    assert stored.shape == (3, 2, len(names)) and stored.min() < -1.0, "floating-point values are not clamped"


def test_single_precision_is_kept_to_its_rounding(tmp_path: Path) -> None:
    stored = RNG.normal(size=(20, 30, 3)).astype(np.float32)
    iio.imwrite(tmp_path / "a.tif", stored, plugin="tifffile", photometric="rgb")
    signal = opened(tmp_path / "a.tif")
    assert signal.format.dtype == "float32"
    (tmp_path / "a.tif").write_bytes(encode_signal(signal.format, signal.values))
    error = np.abs(read_picture(tmp_path / "a.tif").pixels - stored).max()
    assert error <= 2.0**-24 * (signal.format.high - signal.format.low), "values in [-1, 1] are rounded to float32"


def exr(**planes: np.ndarray):
    return lambda path: write_exr(path, planes)


def shortened(stored: np.ndarray):
    def make(path: Path) -> None:
        content = write(path, stored).read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return make


GREY = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.png", lambda path: None, "not found, expected an image"),
        ("a.png", lambda path: path.write_bytes(b""), "cannot be read as an image"),
        ("a.png", lambda path: path.write_bytes(b"no picture at all"), "cannot be read as an image"),
        ("a.exr", lambda path: path.write_bytes(b"no picture at all"), "cannot be read as an image"),
        ("a.tif", lambda path: path.write_bytes(b"no picture at all"), "cannot be read as an image"),
        ("a.png", shortened(pixels("uint8", 3, (99, 99))), "cannot be read as an image"),
        ("a.png", shortened(pixels("uint16", 4, (99, 99))), "cannot be read as an image"),
        ("a.jpg", shortened(pixels("uint8", 3, (99, 99))), "cannot be read as an image"),
        ("a.tif", shortened(pixels("uint8", 3, (99, 99))), "cannot be read as an image"),
        ("a.webp", shortened(pixels("uint8", 3, (99, 99))), "cannot be read as an image"),
        ("a.png", lambda path: write(path, pixels("uint8", 3, (1, 2))[:, :1]), "found an image of 1 x 1 pixels"),
        ("a.png", lambda path: write(path, pixels("uint8", 1, (1, 9))), "found an image of 9 x 1 pixels, expected 2"),
        ("a.exr", exr(Y=np.full((3, 4), 0.5, np.float32)), "found the value 0.5 everywhere, expected an image of more"),
        ("a.exr", exr(Y=np.where(GREY > 0.5, np.nan, GREY)), "found 3 values that are NaN or infinite"),
        ("a.exr", exr(Y=np.where(GREY > 0.9, np.inf, GREY).astype(np.float16)), "found 1 values that are NaN"),
        ("a.exr", exr(Y=np.ones((3, 4), np.uint32)), "channel Y holds uint32, expected floating-point"),
    ],
)
def test_images_that_cannot_be_used(tmp_path: Path, name: str, make, message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(SceneError) as error:
        open_signal(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cut_exr_is_refused(tmp_path: Path) -> None:
    path = write_exr(tmp_path / "a.exr", {"Y": RNG.normal(size=(200, 200)).astype(np.float32)})
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(SceneError, match=r"a\.exr: cannot be read as an image"):
        open_signal(path)


def test_a_picture_of_one_colour_is_an_image(tmp_path: Path) -> None:
    signal = opened(write(tmp_path / "a.png", np.full((4, 4, 3), 255, np.uint8)))
    assert torch.equal(signal.values, torch.ones(4, 4, 3))


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    signal = opened(write(tmp_path / "a.png", pixels("uint8", 3)))
    with pytest.raises(ValueError, match="a value is not finite"):
        encode_signal(signal.format, signal.values / 0.0)


def test_the_real_images(shared_data: Path, tmp_path: Path) -> None:
    caps = opened(shared_data / "image" / "kodim03.png")
    assert (caps.format.size, caps.format.channels, caps.format.num_bytes) == ((512, 768), 3, 502888)
    (tmp_path / "caps.png").write_bytes(encode_signal(caps.format, caps.values))
    assert torch.equal(opened(tmp_path / "caps.png").values, caps.values)
    einstein = opened(shared_data / "image" / "albert.exr")
    assert einstein.values.shape == (1024, 1024, 4) and einstein.format.channel_names == ("R", "G", "B", "A")
    (tmp_path / "einstein.exr").write_bytes(encode_signal(einstein.format, einstein.values))
    before, after = (read_picture(p).pixels for p in (shared_data / "image" / "albert.exr", tmp_path / "einstein.exr"))
    assert after.dtype == before.dtype == np.float32 and np.abs(after - before).max() <= 2.0**-24
    assert torch.equal(opened(tmp_path / "einstein.exr").values, einstein.values)
