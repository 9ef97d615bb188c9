"""How close a sound is to the true one."""

import math

import torch
from torch import Tensor

WINDOW_SECONDS = 2048 / 44_100
"""Length of the window, of which the nearest power of two in samples is taken."""
OVERLAP = 4
"""Windows over every sample."""
POWER_FLOOR = 1e-8
"""Powers below this share (-80 dB) of the true sound's greatest count as this share of it."""


def sound_metrics(estimate: Tensor, target: Tensor, rate: float) -> dict[str, float]:
    """Compare two sounds of one shape, (samples, channels) or (samples,), in the same units.

    snr is the signal-to-noise ratio in dB, 10 log10(Σ target² / Σ (target - estimate)²), over all samples and channels;
    inf where the two are equal.

    log_spectral_distance is in dB (Gray and Markel 1976, "Distance measures for speech processing", the rms log
    spectral measure): with P and Q the powers |STFT|² of the two in a channel, a frame and a frequency,
    sqrt(mean over frequencies of (10 log10 P - 10 log10 Q)²), averaged over frames and channels. Both powers are raised
    to `POWER_FLOOR` times the greatest of the target's, so that rounding in silence counts for nothing. The STFT has
    periodic Hann windows of 46 ms (2048 samples at 44.1 and 48 kHz, but no more than the sound has), a quarter of a
    window apart, around samples mirrored at the ends.

    Args:
        estimate: what is judged.
        target: the true sound.
        rate: samples per second.

    Raises:
        ValueError: the shapes differ, there is no sample, or the target is silent.
    """
    if estimate.shape != target.shape or target.ndim not in (1, 2) or not target.numel():
        shapes = f"{tuple(estimate.shape)} and {tuple(target.shape)}"
        raise ValueError(f"sounds are of shapes {shapes}, expected twice the same (samples, channels)")
    estimate, target = estimate.detach().double(), target.detach().double()
    signal, noise = float(target.square().sum()), float((target - estimate).square().sum())
    if signal == 0.0:
        raise ValueError("the true sound is silent, so there is nothing to compare with")
    snr = 10.0 * math.log10(signal / noise) if noise else math.inf
    return {"snr": snr, "log_spectral_distance": _log_spectral_distance(estimate, target, rate)}


def _log_spectral_distance(estimate: Tensor, target: Tensor, rate: float) -> float:
    found, true = _powers(estimate, rate), _powers(target, rate)
    floor = POWER_FLOOR * true.max()
    difference = 10.0 * (found.clamp_min(floor).log10() - true.clamp_min(floor).log10())
    return float(difference.square().mean(dim=-2).sqrt().mean())


def _powers(sound: Tensor, rate: float) -> Tensor:
    """(channels, frequencies, frames)."""
    channels = sound.reshape(len(sound), -1).T
    count = channels.shape[1]
    length = 2 ** min(round(math.log2(max(WINDOW_SECONDS * rate, 1.0))), int(math.log2(count)))
    window = torch.hann_window(length, dtype=sound.dtype, device=sound.device)
    if length == 1:
        window = torch.ones_like(window)
    return (
        torch.stft(
            channels, length, hop_length=max(length // OVERLAP, 1), window=window, center=True, return_complex=True
        )
        .abs()
        .square()
    )
