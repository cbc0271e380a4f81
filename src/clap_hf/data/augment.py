"""Random changes of training clips: on samples in the loader's workers, on log-mels in batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training clips. Probabilities are per clip.

    Args:
        gain_db: Gain drawn evenly from plus or minus this many dB.
        speed: Largest relative change of speed (and pitch) up or down; 0.06 is one semitone.
        speed_probability: How often the speed is changed.
        pad_probability: How often a short clip is padded with silence instead of repeated.
        mix_probability: How often another clip of the batch is mixed in as background.
        mix_snr_db: Range of the foreground's level over such a background, dB.
        filter_db: Depth of a random smooth equalisation, dB.
        lowpass_probability: How often everything above a random mel bin is attenuated.
        noise_floor_db: Range of the level of stationary noise added to every mel bin, dB.
    """

    gain_db: float = 10.0
    speed: float = 0.06
    speed_probability: float = 0.5
    pad_probability: float = 0.3
    mix_probability: float = 0.3
    mix_snr_db: tuple[float, float] = (5.0, 25.0)
    filter_db: float = 6.0
    lowpass_probability: float = 0.2
    noise_floor_db: tuple[float, float] = (-100.0, -50.0)


def augment_samples(samples: np.ndarray, length: int, rng: np.random.Generator, settings: Augmentation) -> np.ndarray:
    """Crop, change speed and gain, and fill one clip to the window.

    Args:
        samples: Mono `[samples]`, float32.
        length: Window, samples.
        rng: Source of every choice.
        settings: What is allowed.

    Returns:
        `[length]`, float32.
    """
    if settings.speed and rng.random() < settings.speed_probability:
        speed = 1.0 + settings.speed * rng.uniform(-1, 1)
        positions = np.arange(0, len(samples) - 1, speed) if len(samples) > 2 else np.zeros(1)
        samples = np.interp(positions, np.arange(len(samples)), samples).astype(np.float32)
    if len(samples) > length:
        start = int(rng.integers(0, len(samples) - length + 1))
        samples = samples[start : start + length]
    elif rng.random() < settings.pad_probability:
        offset = int(rng.integers(0, length - len(samples) + 1))
        samples = np.pad(samples, (offset, length - len(samples) - offset))
    else:
        # As repeated at inference, from a random point of the period half of the time.
        samples = np.tile(samples, math.ceil(length / len(samples)))[:length]
        if rng.random() < 0.5:
            samples = np.roll(samples, int(rng.integers(0, length)))
    return (samples * 10 ** (settings.gain_db * rng.uniform(-1, 1) / 20)).astype(np.float32)


def augment_log_mel(features: torch.Tensor, generator: torch.Generator, settings: Augmentation) -> torch.Tensor:
    """Mix in other clips of the batch as background, equalise, low-pass and add noise, in the mel power domain.

    Args:
        features: `[batch, 1, frames, mel]`, dB.
        generator: Source of every choice.
        settings: What is allowed.

    Returns:
        Features of the same shape, dB.
    """
    batch, _, _, mel = features.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    power = 10 ** (features / 10)
    level = power.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-10)
    other = torch.randperm(batch, generator=generator)
    snr = uniform(*settings.mix_snr_db, batch, 1, 1, 1)
    mixed = (uniform(0, 1, batch, 1, 1, 1) < settings.mix_probability).float()
    power = power + mixed * power[other] / level[other] * level * 10 ** (-snr / 10)

    bins = torch.linspace(0, 1, mel)
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
