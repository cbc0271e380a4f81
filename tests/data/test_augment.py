"""Augmentation: seeded, bounded, and off when its probabilities are zero."""

import numpy as np
import torch

from clap_hf.data.augment import Augmentation, augment_log_mel, augment_samples

OFF = Augmentation(
    gain_db=0,
    speed_probability=0,
    pad_probability=0,
    mix_probability=0,
    filter_db=0,
    lowpass_probability=0,
    noise_floor_db=(-300.0, -300.0),
)


def test_samples_come_from_the_seed_and_fill_the_window():
    samples = np.random.default_rng(0).normal(size=700).astype(np.float32)
    for length in (500, 700, 2000):
        first, second = (augment_samples(samples, length, np.random.default_rng(5), Augmentation()) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.shape == (length,) and first.dtype == np.float32
        other = augment_samples(samples, length, np.random.default_rng(6), Augmentation())
        assert not np.array_equal(first, other)


def test_one_sample_is_enough():
    assert augment_samples(np.ones(1, np.float32), 64, np.random.default_rng(0), Augmentation()).shape == (64,)


def test_gain_is_the_only_change_of_a_clip_as_long_as_the_window():
    samples = np.random.default_rng(0).normal(size=500).astype(np.float32)
    settings = Augmentation(speed_probability=0, gain_db=10)
    changed = [augment_samples(samples, 500, np.random.default_rng(i), settings) for i in range(50)]
    gains = [20 * np.log10(np.std(c) / np.std(samples)) for c in changed]
    assert min(gains) < -7 and max(gains) > 7 and max(map(abs, gains)) <= 10.001


def test_log_mel_is_unchanged_when_everything_is_off():
    features = torch.randn(4, 1, 20, 8, generator=torch.Generator().manual_seed(0)) * 10 - 40
    out = augment_log_mel(features, torch.Generator().manual_seed(1), OFF)
    torch.testing.assert_close(out, features, atol=1e-3, rtol=0)


def test_background_raises_the_level_by_the_stated_ratio():
    features = torch.full((2, 1, 50, 8), -20.0)
    features[1] = -60.0
    settings = Augmentation(**{**OFF.__dict__, "mix_probability": 1.0, "mix_snr_db": (10.0, 10.0)})
    generator = torch.Generator().manual_seed(0)
    out = augment_log_mel(features, generator, settings)
    # Foreground plus a background 10 dB below it, whatever the background's own level was.
    expected = 10 * torch.log10(torch.tensor(1.1))
    torch.testing.assert_close(out - features, expected.expand_as(out), atol=1e-3, rtol=0)
