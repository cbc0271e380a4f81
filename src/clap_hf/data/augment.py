"""Random changes of training clips: of samples or stored log-mels in the loader, then of log-mels in batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

FLOOR_DB = -100.0  # of the feature extractor


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training clips. Probabilities are per clip.

    Args:
        speeds: Factors of speed and pitch to draw from; 1.0 is none, 1.06 a semitone up.
        gain_db: Gain drawn evenly from plus or minus this many dB.
        pad_probability: How often a short clip is padded with silence instead of repeated.
        blend_probability: How often another clip of the same group is laid over a clip; not in streams.
        blend_db: Largest level of such a clip over or under the first, dB.
        mix_probability: How often another clip of the batch is mixed in as background.
        mix_snr_db: Range of the foreground's level over such a background, dB.
        filter_db: Depth of a random smooth equalisation, dB.
        lowpass_probability: How often everything above a random mel bin is attenuated.
        noise_floor_db: Range of the level of stationary noise added to every mel bin, dB.
        stretch_probability: How often a stored log-mel is stretched in time and along the mel axis; not in streams.
        time_stretch: Range of the factor of speed without pitch, drawn evenly on a logarithmic scale.
        mel_stretch: Range of the factor along the mel axis, about a random bin: below 1 the spectrum is spread.
        mel_shift: Largest shift along the mel axis, bins.
    """

    speeds: tuple[float, ...] = (1.0, 0.87, 1.15)
    gain_db: float = 10.0
    pad_probability: float = 0.3
    blend_probability: float = 0.2
    blend_db: float = 6.0
    mix_probability: float = 0.3
    mix_snr_db: tuple[float, float] = (5.0, 25.0)
    filter_db: float = 6.0
    lowpass_probability: float = 0.2
    noise_floor_db: tuple[float, float] = (-100.0, -50.0)
    stretch_probability: float = 0.0
    time_stretch: tuple[float, float] = (0.75, 1.33)
    mel_stretch: tuple[float, float] = (0.9, 1.1)
    mel_shift: float = 2.0


def augment_samples(samples: np.ndarray, length: int, rng: np.random.Generator, settings: Augmentation) -> np.ndarray:
    """Change a clip's speed, crop it to the window at random or fill the window with it, and change its gain.

    Args:
        samples: Mono `[samples]`, float32.
        length: Window, samples.
        rng: Source of every choice.
        settings: What is allowed.

    Returns:
        `[length]`, float32.
    """
    speed = settings.speeds[int(rng.integers(len(settings.speeds)))]
    if speed != 1.0:
        positions = np.arange(0, len(samples) - 1, speed) if len(samples) > 2 else np.zeros(1)
        samples = np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)
    filled = _fill(samples, length, 0.0, rng, settings)
    return (filled * 10 ** (settings.gain_db * rng.uniform(-1, 1) / 20)).astype(np.float32)


def _fill(
    clip: np.ndarray, length: int, silence: float, rng: np.random.Generator, settings: Augmentation
) -> np.ndarray:
    """Crop a clip to `length` along its first axis, or fill that length with it."""
    if len(clip) >= length:
        start = int(rng.integers(0, len(clip) - length + 1))
        return clip[start : start + length]
    if rng.random() < settings.pad_probability:
        before = int(rng.integers(0, length - len(clip) + 1))
        sides = [(before, length - len(clip) - before)] + [(0, 0)] * (clip.ndim - 1)
        return np.pad(clip, sides, constant_values=silence)
    # As repeated at inference, from a random point of the period half of the time.
    shift = int(rng.integers(0, len(clip))) if rng.random() < 0.5 else 0
    return clip[(np.arange(length) + shift) % len(clip)]


def _stretched(log_mel: np.ndarray, frames: int, rng: np.random.Generator, settings: Augmentation) -> np.ndarray:
    """A shorter or longer window, resampled to `frames`, its mel axis stretched and shifted (after BYOL-A's crops).

    A voice of another throat, a thing of another size: few packages hold most clips of many labels.
    """
    slow, fast = np.log(settings.time_stretch)
    length = max(1, round(frames * float(np.exp(rng.uniform(slow, fast)))))
    filled = interpolate_rows(_fill(log_mel, length, FLOOR_DB, rng, settings), np.linspace(0, length - 1, frames))
    bins = np.arange(log_mel.shape[1])
    centre, factor = rng.uniform(0, bins[-1]), rng.uniform(*settings.mel_stretch)
    shift = rng.uniform(-settings.mel_shift, settings.mel_shift)
    return interpolate_rows(filled.T, centre + (bins - centre) * factor + shift).T


def interpolate_rows(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows at fractional positions; beyond the ends, the first and the last row.

    Args:
        rows: `[rows, columns]`, float32.
        positions: In rows `[positions]`.

    Returns:
        `[positions, columns]`.
    """
    positions = np.clip(positions, 0, len(rows) - 1)
    below = positions.astype(int)
    above = np.minimum(below + 1, len(rows) - 1)
    weight = (positions - below).astype(np.float32)[:, None]
    return rows[below] * (1 - weight) + rows[above] * weight


def fill_window(log_mel: np.ndarray, frames: int, rng: np.random.Generator, settings: Augmentation) -> np.ndarray:
    """Crop a clip to the window at random, or fill the window with it, stretch it, and change its gain.

    Args:
        log_mel: Log-mel of the whole clip `[any number of frames, mel]`, dB.
        frames: Frames of the window.
        rng: Source of every choice.
        settings: What is allowed.

    Returns:
        `[frames, mel]`, float32 dB.
    """
    # No draw where nothing is ever stretched: runs of earlier recipes can be repeated.
    if settings.stretch_probability > 0 and rng.random() < settings.stretch_probability:
        filled = _stretched(log_mel, frames, rng, settings)
    else:
        filled = _fill(log_mel, frames, FLOOR_DB, rng, settings)
    return np.maximum(filled + np.float32(settings.gain_db * rng.uniform(-1, 1)), FLOOR_DB, dtype=np.float32)


def blend(first: np.ndarray, second: np.ndarray, rng: np.random.Generator, settings: Augmentation) -> np.ndarray:
    """Lay one log-mel over another at a similar level; powers add.

    Args:
        first: `[frames, mel]`, dB.
        second: `[frames, mel]`, dB.
        rng: Source of the relative level.
        settings: What is allowed.

    Returns:
        `[frames, mel]`, float32 dB.
    """
    one, two = 10 ** (first / 10), 10 ** (second / 10)
    level = one.mean() / max(float(two.mean()), 1e-12) * 10 ** (settings.blend_db * rng.uniform(-1, 1) / 10)
    return (10 * np.log10(np.maximum(one + two * level, 1e-10))).astype(np.float32)


def augment_log_mel(features: torch.Tensor, generator: torch.Generator, settings: Augmentation) -> torch.Tensor:
    """Mix in other clips of the batch as background, equalise, low-pass and add noise, in the mel power domain.

    Args:
        features: `[batch, 1, frames, mel]`, dB.
        generator: Source of every choice, on the device of the features.
        settings: What is allowed.

    Returns:
        Features of the same shape, dB.
    """
    batch, _, _, mel = features.shape
    device = features.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, device=device)

    power = 10 ** (features / 10)
    level = power.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-10)
    other = torch.randperm(batch, generator=generator, device=device)
    snr = uniform(*settings.mix_snr_db, batch, 1, 1, 1)
    mixed = (uniform(0, 1, batch, 1, 1, 1) < settings.mix_probability).float()
    power = power + mixed * power[other] / level[other] * level * 10 ** (-snr / 10)

    bins = torch.linspace(0, 1, mel, device=device)
    phase, cycles = uniform(0, 2 * math.pi, batch, 1, 1, 1), uniform(0.25, 1.5, batch, 1, 1, 1)
    curve = uniform(-settings.filter_db, settings.filter_db, batch, 1, 1, 1) * torch.cos(
        2 * math.pi * cycles * bins + phase
    )
    cutoff = uniform(0.4, 1.0, batch, 1, 1, 1)
    lowpassed = (uniform(0, 1, batch, 1, 1, 1) < settings.lowpass_probability).float()
    curve = curve - lowpassed * 120 * (bins - cutoff).clamp(min=0)
    power = power * 10 ** (curve / 10)

    noise = uniform(*settings.noise_floor_db, batch, 1, 1, 1)
    power = power + 10 ** (noise / 10) * torch.empty_like(power).exponential_(generator=generator)
    return 10 * torch.log10(power.clamp(min=1e-10))
