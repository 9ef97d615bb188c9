"""Sounds, there and back: integers exactly, floating-point numbers to their rounding, and every fault with its line."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from eugen3d.datasets import SceneError
from eugen3d.datasets.signals import SampledSignal, encode_signal, open_signal

RNG = np.random.default_rng(4)
BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}


def opened(path: Path) -> SampledSignal:
    signal = open_signal(path)
    assert isinstance(signal, SampledSignal)
    return signal


def stored_samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int32", always_2d=True)[0]


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [(".wav", "PCM_U8"), (".wav", "PCM_16"), (".wav", "PCM_24"), (".flac", "PCM_S8"), (".flac", "PCM_24")],
)
@pytest.mark.parametrize("peak", [1.0, 0.3])
def test_integers_come_back_exactly(tmp_path: Path, suffix: str, subtype: str, channels: int, peak: float) -> None:
    shift = 32 - BITS[subtype]
    largest = int(peak * 2**31)
    samples = (RNG.integers(-largest, largest, (5000, channels)) >> shift << shift).astype(np.int32)
    path = tmp_path / f"sound{suffix}"
    soundfile.write(path, samples, 8000, subtype=subtype)
    signal = opened(path)
    assert (signal.format.kind, signal.format.size, signal.format.channels) == ("sound", (5000,), channels)
    assert (signal.format.rate, signal.format.encoding, signal.format.suffix) == (8000.0, subtype, suffix)
    assert signal.values.abs().max() == 1.0
    assert signal.format.high == -signal.format.low == np.abs(samples.astype(float)).max() / 2**31
    path.write_bytes(encode_signal(signal.format, signal.values))
    assert np.array_equal(stored_samples(path), samples) and soundfile.info(path).subtype == subtype
    path.write_bytes(encode_signal(signal.format, 0.5 * signal.values))
    assert np.abs(stored_samples(path) - 0.5 * samples).max() <= 2.0 ** (shift - 1)


@pytest.mark.parametrize(("subtype", "dtype"), [("FLOAT", "float32"), ("DOUBLE", "float64")])
def test_floating_point_is_kept_to_its_rounding_and_not_clamped(tmp_path: Path, subtype: str, dtype: str) -> None:
    samples = 1.7 * RNG.normal(size=(4000, 2)).astype(np.float32)
    path = tmp_path / "sound.wav"
    soundfile.write(path, samples, 44100, subtype=subtype)
    signal = opened(path)
    assert signal.format.dtype == dtype and signal.format.high == np.abs(samples).max() > 1.7
    torch.testing.assert_close(signal.values, torch.from_numpy(samples / np.abs(samples).max()))
    path.write_bytes(encode_signal(signal.format, signal.values))
    found, rate = soundfile.read(path)
    assert np.allclose(found, samples, rtol=2.0**-22, atol=0) and rate == 44100
    path.write_bytes(encode_signal(signal.format, 1.5 * signal.values))
    assert np.abs(soundfile.read(path)[0]).max() == pytest.approx(1.5 * signal.format.high)


def test_a_peak_of_one_is_exact_in_single_precision(tmp_path: Path) -> None:
    samples = RNG.uniform(-1, 1, (4000, 1)).astype(np.float32)
    samples[7] = -1.0
    soundfile.write(tmp_path / "sound.wav", samples, 44100, subtype="FLOAT")
    signal = opened(tmp_path / "sound.wav")
    assert np.array_equal(signal.values.numpy(), samples)
    (tmp_path / "sound.wav").write_bytes(encode_signal(signal.format, signal.values))
    assert np.array_equal(soundfile.read(tmp_path / "sound.wav", dtype="float32", always_2d=True)[0], samples)


def test_too_loud_integers_are_clamped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sound.wav", np.array([-32768, 1], np.int16), 8000)
    signal = opened(tmp_path / "sound.wav")
    (tmp_path / "sound.wav").write_bytes(encode_signal(signal.format, torch.tensor([[-1.5], [1.0], [1.5]])))
    assert (stored_samples(tmp_path / "sound.wav") >> 16).ravel().tolist() == [-32768, 32767, 32767]


def test_any_length_and_rate_are_written(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sound.wav", RNG.normal(size=100), 8000)
    sound_format = opened(tmp_path / "sound.wav").format
    (tmp_path / "twice.WAV").write_bytes(encode_signal(sound_format, torch.zeros(200, 1), rate=16000.0))
    info = soundfile.info(tmp_path / "twice.WAV")
    assert (info.frames, info.samplerate) == (200, 16000)


def test_extensible_wav_stays_so(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sound.wav", RNG.normal(size=(10, 6)) / 9, 8000, format="WAVEX", subtype="PCM_24")
    signal = opened(tmp_path / "sound.wav")
    (tmp_path / "sound.wav").write_bytes(encode_signal(signal.format, signal.values))
    assert soundfile.info(tmp_path / "sound.wav").format == "WAVEX"


def sound(samples, **options):
    return lambda path: soundfile.write(path, samples, 8000, **options)


def cut(path: Path) -> None:
    soundfile.write(path, RNG.integers(-999, 999, 5000).astype(np.int16), 8000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.wav", lambda path: None, "not found, expected a sound"),
        ("a.wav", lambda path: path.write_bytes(b""), "cannot be read as a sound"),
        ("a.flac", lambda path: path.write_bytes(b"no sound at all"), "cannot be read as a sound"),
        ("a.wav", cut, "bytes of samples, expected 10000: the file is cut short"),
        ("a.flac", cut, "cannot be read as a sound"),
        ("a.wav", sound(np.zeros(0, np.int16)), "found 0 samples, expected a sound of at least one"),
        ("a.wav", sound(np.zeros((8, 2), np.int16)), "found silence (all 8 samples are 0), expected a sound"),
        ("a.wav", sound(np.array([0.1, np.nan, np.inf]), subtype="FLOAT"), "found 2 samples that are NaN or infinite"),
    ],
)
def test_sounds_that_cannot_be_used(tmp_path: Path, name: str, make, message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(SceneError) as error:
        open_signal(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "count"), [("gt_bach", 308_207), ("gt_counting", 537_936)])
def test_the_real_sounds(shared_data: Path, tmp_path: Path, name: str, count: int) -> None:
    path = shared_data / "audio" / f"{name}.wav"
    signal = opened(path)
    assert signal.values.shape == (count, 1) and signal.format.rate == 44100.0
    assert (signal.format.encoding, signal.format.high) == ("FLOAT", 1.0)
    (tmp_path / "again.wav").write_bytes(encode_signal(signal.format, signal.values))
    before, after = (soundfile.read(p, dtype="float32")[0] for p in (path, tmp_path / "again.wav"))
    assert np.array_equal(before, after) and before.std() > 0.01
