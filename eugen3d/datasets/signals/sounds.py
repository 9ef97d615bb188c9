"""Sound files: WAV of integers and floating-point numbers, and FLAC, of any number of channels."""

import io
import re
from pathlib import Path

import numpy as np
import soundfile

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.signals.reading import check_found, decoding
from eugen3d.datasets.signals.signal import SampledSignal, SignalFormat, normalized

SOUND_SUFFIXES = (".wav", ".flac")
DTYPES = {
    "PCM_U8": "uint8",
    "PCM_S8": "int8",
    "PCM_16": "int16",
    "PCM_24": "int24",
    "PCM_32": "int32",
    "DOUBLE": "float64",
}
"""What soundfile's types of samples store; float32 stands for every other, which libsndfile encodes itself."""
UNKNOWN_LENGTH = 0xFFFFFF00
"""A WAV of at least this many bytes was written without knowing its length, such as into a pipe."""


def read_sound(path: Path) -> SampledSignal:
    """Read a sound; -1 and 1 are the peak of all channels together.

    Raises:
        SceneError: the file is missing, broken or cut short, holds no sample, only silence, or NaN or infinity.
    """
    check_found(path, "a sound")
    with decoding(path, "a sound"):
        info = soundfile.info(str(path), verbose=True)
        _check_length(path, info.extra_info)
        dtype = DTYPES.get(info.subtype, "float32")
        is_integer = not dtype.startswith("float")
        samples, rate = soundfile.read(str(path), dtype="int32" if is_integer else "float64", always_2d=True)
    if not len(samples):
        raise SceneError(f"{path}: found 0 samples, expected a sound of at least one")
    samples = samples / 2.0**31 if is_integer else samples
    unusable = int((~np.isfinite(samples)).sum())
    if unusable:
        raise SceneError(f"{path}: found {unusable} samples that are NaN or infinite, expected finite ones")
    peak = float(np.abs(samples).max())
    if peak == 0.0:
        raise SceneError(f"{path}: found silence (all {len(samples)} samples are 0), expected a sound")
    count, channels = samples.shape
    sound_format = SignalFormat(
        "sound",
        (count,),
        channels,
        path.suffix.lower(),
        dtype,
        -peak,
        peak,
        rate=float(rate),
        encoding=info.subtype,
        container=info.format,
        num_bytes=path.stat().st_size,
    )
    return SampledSignal(sound_format, normalized(samples, -peak, peak))


def encode_sound(sound_format: SignalFormat, stored: np.ndarray, rate: float) -> bytes:
    """The content of a sound file of samples (samples, channels) float64, full scale being 1."""
    samples, encoding = stored, sound_format.encoding
    if not sound_format.dtype.startswith("float"):
        bits = int(sound_format.dtype.removeprefix("u").removeprefix("int"))
        steps = np.clip(np.rint(samples * 2.0 ** (bits - 1)), -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1.0)
        samples = steps.astype(np.int32) << (32 - bits)
    content = io.BytesIO()
    soundfile.write(content, samples, round(rate), format=sound_format.container, subtype=encoding)
    return content.getvalue()


def _check_length(path: Path, log: str) -> None:
    """libsndfile takes a WAV that is cut short for a shorter one, and only its log says so."""
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if found and int(found[2]) < int(found[1]) < UNKNOWN_LENGTH:
        raise SceneError(f"{path}: found {found[2]} bytes of samples, expected {found[1]}: the file is cut short")
