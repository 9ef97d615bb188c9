"""Image files: 8 and 16-bit pictures, floating-point TIFF, and OpenEXR."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imageio.v3 as iio
import numpy as np

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.signals.exr import encode_exr, read_exr
from eugen3d.datasets.signals.png import encode_png
from eugen3d.datasets.signals.reading import check_found, decoding
from eugen3d.datasets.signals.signal import SampledSignal, SignalFormat, normalized

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".exr")
JPEG_QUALITY = 95
"""Of the pictures written; what the one read was written with is not in it."""
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "I;16")
"""Pillow's names for pixels that are read as they are stored."""


@dataclass(frozen=True)
class Picture:
    """An image as its file has it."""

    pixels: np.ndarray
    """(height, width, channels), of one of `DTYPES`."""
    encoding: str | None = None
    channel_names: tuple[str, ...] = ()


def read_image(path: Path) -> SampledSignal:
    """Read an image; -1 and 1 are the ends of an integer's range, or the least and greatest of floating-point values.

    Raises:
        SceneError: the file is missing or broken, of fewer than 2 x 2 pixels, or holds no finite or only one value.
    """
    picture = read_picture(path)
    low, high = value_range(path, picture.pixels)
    height, width, channels = picture.pixels.shape
    image_format = SignalFormat(
        "image",
        (height, width),
        channels,
        path.suffix.lower(),
        picture.pixels.dtype.name,
        low,
        high,
        encoding=picture.encoding,
        channel_names=picture.channel_names,
        num_bytes=path.stat().st_size,
    )
    return SampledSignal(image_format, normalized(picture.pixels, low, high))


def read_picture(path: Path) -> Picture:
    """Read an image's stored pixels: the first page, turned upright as its EXIF says, palettes resolved.

    Raises:
        SceneError: the file is missing or broken, of fewer than 2 x 2 pixels, or of another type of pixels.
    """
    check_found(path, "an image")
    suffix = path.suffix.lower()
    with decoding(path, "an image"):
        if suffix == ".exr":
            picture = Picture(*read_exr(path))
        elif suffix in (".tif", ".tiff"):
            picture = Picture(_read_tiff(path))
        else:
            picture = Picture(_read_common(path), _webp_encoding(path) if suffix == ".webp" else None)
    pixels = picture.pixels
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype.name not in DTYPES:
        expected = f"(height, width, channels) of {', '.join(DTYPES)}"
        raise SceneError(f"{path}: found {pixels.dtype} of shape {pixels.shape}, expected {expected}")
    if min(pixels.shape[:2]) < 2:
        height, width = pixels.shape[:2]
        raise SceneError(f"{path}: found an image of {width} x {height} pixels, expected 2 x 2 or more")
    return Picture(pixels, picture.encoding, picture.channel_names)


def value_range(path: Path, pixels: np.ndarray) -> tuple[float, float]:
    """What is to become -1 and 1: an integer's whole range, or the least and greatest value there are.

    Raises:
        SceneError: a value is not finite, or all floating-point values are the same.
    """
    if pixels.dtype.kind == "u":
        return 0.0, float(np.iinfo(pixels.dtype).max)
    unusable = int((~np.isfinite(pixels)).sum())
    if unusable:
        raise SceneError(f"{path}: found {unusable} values that are NaN or infinite, expected finite ones")
    low, high = float(pixels.min()), float(pixels.max())
    if low == high:
        raise SceneError(f"{path}: found the value {low:g} everywhere, expected an image of more than one value")
    return low, high


def encode_picture(image_format: SignalFormat, stored: np.ndarray) -> bytes:
    """The content of an image file, of pixels (height, width, channels) as `stored_values` makes them."""
    pixels = np.ascontiguousarray(stored.astype(image_format.dtype))
    suffix, channels = image_format.suffix, image_format.channels
    if suffix == ".exr":
        return encode_exr(pixels, image_format.channel_names, image_format.encoding)
    if suffix == ".png" and pixels.dtype == np.uint16:
        return encode_png(pixels)
    options: dict[str, Any] = {"plugin": "pillow"}
    if suffix in (".tif", ".tiff"):
        options = {"plugin": "tifffile", "photometric": "rgb" if channels in (3, 4) else "minisblack"}
        options |= {"planarconfig": "contig"} if channels > 1 else {}
        options |= {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    elif suffix in (".jpg", ".jpeg"):
        options["quality"] = JPEG_QUALITY
    elif suffix == ".webp":
        options["lossless"] = options["exact"] = image_format.encoding == "lossless"  # exact: also where alpha is 0
    return iio.imwrite("<bytes>", pixels[..., 0] if channels == 1 else pixels, extension=suffix, **options)


def _read_common(path: Path) -> np.ndarray:
    meta = iio.immeta(path, plugin="pillow", index=0, exclude_applied=False)
    mode = _target_mode(meta["mode"], "transparency" in meta, path.suffix.lower() != ".bmp")
    pixels = iio.imread(path, plugin="pillow", index=0, mode=mode, rotate=True)
    with path.open("rb") as file:
        header = file.read(26)
    bits, color_type = header[24:26]
    if path.suffix.lower() != ".png" or bits != 16 or color_type == 0:
        return pixels
    deep = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)  # Pillow has 8 bits of a colour's 16
    if color_type == 4:
        return deep[..., [0, 3]]
    return deep[..., [2, 1, 0, 3][: deep.shape[2]]]


def _target_mode(mode: str, has_transparent_color: bool, keeps_alpha: bool) -> str | None:
    """The mode to convert to; None: none. BMP files that Pillow writes have no alpha."""
    if mode in PLAIN_MODES and not has_transparent_color:
        return "RGB" if mode == "RGBA" and not keeps_alpha else None
    if mode in ("1", "L"):
        return "LA" if has_transparent_color else "L"
    return "RGBA" if (has_transparent_color or mode in ("PA", "RGBa")) and keeps_alpha else "RGB"


def _read_tiff(path: Path) -> np.ndarray:
    meta = iio.immeta(path, plugin="tifffile", index=0, page=0)
    if int(meta["PhotometricInterpretation"]) > 2 or int(meta["PhotometricInterpretation"]) == 0:
        return _read_common(path)
    try:
        pixels = iio.imread(path, plugin="tifffile", index=0, page=0)
    except ValueError as error:
        if "imagecodecs" not in str(error) or np.max(meta["BitsPerSample"]) > 8:
            raise
        return _read_common(path)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    is_planar = pixels.ndim == 3 and int(meta.get("PlanarConfiguration", 1)) == 2
    return np.moveaxis(pixels, 0, -1) if is_planar else pixels


def _webp_encoding(path: Path) -> str:
    with path.open("rb") as file:
        return "lossless" if b"VP8L" in file.read(4096) else "lossy"
