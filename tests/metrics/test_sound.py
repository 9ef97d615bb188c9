"""Sounds whose distance is known: a sine with known noise, and noise that is ten times louder."""

import math

import numpy as np
import pytest
import torch

from eugen3d.metrics.sound import sound_metrics

RATE = 44_100


def sine(count: int = 44_100) -> torch.Tensor:
    """A hundred whole periods of amplitude 0.5 for every 44,100 samples, whose mean square is 1/8."""
    return 0.5 * torch.sin(2 * math.pi * torch.arange(count, dtype=torch.float64) * 100 / 44_100)


def test_snr_of_a_sine_with_known_noise() -> None:
    """An error of ±0.005 has a mean square of 1/40,000, which is 1/5000 of the sine's: 36.99 dB."""
    noise = 0.005 * (2.0 * torch.randint(0, 2, (44_100,)).double() - 1.0)
    assert sound_metrics(sine() + noise, sine(), RATE)["snr"] == pytest.approx(10 * math.log10(5000))
    assert sound_metrics(sine() + 10 * noise, sine(), RATE)["snr"] == pytest.approx(10 * math.log10(50))
    assert sound_metrics(0 * sine(), sine(), RATE)["snr"] == pytest.approx(0.0)


def test_equal_sounds() -> None:
    assert sound_metrics(sine(), sine(), RATE) == {"snr": math.inf, "log_spectral_distance": 0.0}


@pytest.mark.parametrize("channels", [1, 2])
def test_ten_times_louder_is_20_db(channels: int) -> None:
    noise = torch.randn(20_000, channels)
    assert sound_metrics(10 * noise, noise, RATE)["log_spectral_distance"] == pytest.approx(20.0, abs=1e-3)
    half = torch.cat([noise, noise], dim=1)
    louder = torch.cat([noise, 10 * noise], dim=1)
    assert sound_metrics(louder, half, RATE)["log_spectral_distance"] == pytest.approx(10.0, abs=1e-3)


def test_the_distance_is_the_formula() -> None:
    """In numpy, frame by frame, with the samples mirrored at the ends."""
    target, estimate = torch.randn(8192).double(), torch.randn(8192).double()
    mirrored = [np.pad(sound.numpy(), 1024, mode="reflect") for sound in (target, estimate)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    starts = range(0, 8192 + 1, 512)
    p, q = (
        np.array([np.abs(np.fft.rfft(window * sound[start : start + 2048])) ** 2 for start in starts])
        for sound in mirrored
    )
    decibels = 10 * np.log10(np.maximum(p, 1e-8 * p.max())) - 10 * np.log10(np.maximum(q, 1e-8 * p.max()))
    distances = np.sqrt(np.mean(decibels**2, axis=1))
    found = sound_metrics(estimate, target, RATE)["log_spectral_distance"]
    assert found == pytest.approx(np.mean(distances))
    assert found > 5.0


def test_silence_counts_down_to_80_db_only() -> None:
    """A spectrum that is 0 is as far from one at the floor as 0 dB, and 80 dB from the greatest power."""
    click = torch.zeros(4096)
    click[2048] = 1.0
    assert sound_metrics(click + 1e-9, click, RATE)["log_spectral_distance"] < 1e-3
    assert 0.0 < sound_metrics(0 * click, click, RATE)["log_spectral_distance"] <= 80.0


@pytest.mark.parametrize("count", [1, 2, 3, 100, 2047])
def test_short_sounds_have_shorter_windows(count: int) -> None:
    noise = torch.randn(count)
    metrics = sound_metrics(2 * noise, noise, RATE)
    assert metrics["snr"] == pytest.approx(0.0) and 0.0 < metrics["log_spectral_distance"] <= 20 * math.log10(2) + 1e-3


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"sounds are of shapes \(3,\) and \(4,\)"):
        sound_metrics(torch.ones(3), torch.ones(4), RATE)
    with pytest.raises(ValueError, match="expected twice the same"):
        sound_metrics(torch.ones(0, 1), torch.ones(0, 1), RATE)
    with pytest.raises(ValueError, match="the true sound is silent"):
        sound_metrics(torch.ones(3), torch.zeros(3), RATE)
