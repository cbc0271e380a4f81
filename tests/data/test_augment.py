"""Augmentation: seeded, bounded, and off when its probabilities are zero."""

import dataclasses

import numpy as np
import pytest
import torch

from clap_hf.data.augment import FLOOR_DB, Augmentation, augment_log_mel, blend, fill_window

OFF = Augmentation(
    gain_db=0,
    pad_probability=0,
    blend_probability=0,
    mix_probability=0,
    filter_db=0,
    lowpass_probability=0,
    noise_floor_db=(-300.0, -300.0),
)


def log_mel(frames, seed=0):
    return np.random.default_rng(seed).normal(-40, 10, size=(frames, 8)).astype(np.float32)


def test_windows_come_from_the_seed_and_are_full():
    clip = log_mel(70)
    for frames in (1, 50, 70, 200):
        first, second = (fill_window(clip, frames, np.random.default_rng(5), Augmentation()) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert first.shape == (frames, 8) and first.dtype == np.float32
        assert not np.array_equal(first, fill_window(clip, frames, np.random.default_rng(6), Augmentation()))


def test_one_frame_is_enough():
    assert fill_window(log_mel(1), 64, np.random.default_rng(0), Augmentation()).shape == (64, 8)


def test_gain_is_the_only_change_of_a_clip_as_long_as_the_window():
    clip = log_mel(50)
    changes = [fill_window(clip, 50, np.random.default_rng(i), Augmentation(gain_db=10)) - clip for i in range(50)]
    assert max(float(np.ptp(change)) for change in changes) < 1e-4
    gains = [float(change.mean()) for change in changes]
    assert min(gains) < -7 and max(gains) > 7 and max(map(abs, gains)) <= 10.001


def test_a_short_clip_is_repeated_or_padded():
    clip = log_mel(10)
    repeated = fill_window(clip, 25, np.random.default_rng(1), OFF)
    np.testing.assert_array_equal(repeated[:15], repeated[10:])
    padded = fill_window(clip, 25, np.random.default_rng(1), Augmentation(gain_db=0, pad_probability=1.0))
    silent = (padded == FLOOR_DB).all(axis=1)
    np.testing.assert_array_equal(padded[~silent], clip)


def stretched(clip, frames, seed=0, **settings):
    one = {"time_stretch": (1.0, 1.0), "mel_stretch": (1.0, 1.0), "mel_shift": 0.0}
    chosen = dataclasses.replace(OFF, stretch_probability=1.0, **(one | settings))
    return fill_window(clip, frames, np.random.default_rng(seed), chosen)


def test_factors_of_one_stretch_nothing_and_no_stretch_draws_nothing():
    clip = log_mel(50)
    np.testing.assert_array_equal(stretched(clip, 50), clip)
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    fill_window(clip, 50, first, OFF)
    fill_window(clip, 50, second, dataclasses.replace(OFF, stretch_probability=1e-9))
    assert second.random() != first.random()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_time_is_stretched_by_the_factor_and_pitch_is_not(factor):
    clip = np.full((400, 8), FLOOR_DB, np.float32)
    clip.reshape(20, 20, 8)[:, :4, 3] = -10.0  # four loud frames of every 20, in one bin
    changed = stretched(clip, 100, time_stretch=(factor, factor))
    assert changed.shape == (100, 8) and changed.dtype == np.float32
    starts = np.flatnonzero(np.diff((changed[:, 3] > FLOOR_DB + 45).astype(int)) == 1)
    assert len(starts) >= 2
    np.testing.assert_allclose(np.diff(starts), 20 / factor, atol=1.5)
    np.testing.assert_allclose(np.delete(changed, 3, axis=1), FLOOR_DB, atol=1e-4)


def test_a_mel_ridge_is_moved_by_no_more_than_the_shift_and_in_both_directions():
    clip = np.full((10, 64), FLOOR_DB, np.float32)
    clip[:, 30] = -10.0
    ridges = [float(stretched(clip, 10, seed, mel_shift=5.0)[0].argmax()) for seed in range(40)]
    assert 25 <= min(ridges) < 28 and 32 < max(ridges) <= 35


def test_the_mel_axis_is_stretched_by_the_factor():
    clip = np.full((10, 64), FLOOR_DB, np.float32)
    clip[:, [20, 40]] = -10.0  # 20 bins apart
    seen = 0
    for seed in range(20):
        peaks = np.flatnonzero(stretched(clip, 10, seed, mel_stretch=(0.5, 0.5))[0] > -60)
        if np.ptp(peaks) > 5:  # else one of the two has left the picture
            assert 38 <= np.ptp(peaks) <= 42
            seen += 1
    assert seen > 0


def test_one_frame_can_be_stretched():
    assert stretched(log_mel(1), 64, time_stretch=(0.5, 2.0)).shape == (64, 8)


def test_silence_stays_at_the_floor():
    silence = np.full((20, 8), FLOOR_DB, np.float32)
    assert fill_window(silence, 20, np.random.default_rng(3), Augmentation()).min() == FLOOR_DB


def test_blended_powers_add_at_the_stated_ratio():
    loud, quiet = np.full((5, 8), -20, np.float32), np.full((5, 8), -70, np.float32)
    mixed = blend(loud, quiet, np.random.default_rng(0), Augmentation(blend_db=0))
    np.testing.assert_allclose(mixed, -20 + 10 * np.log10(2), atol=1e-3)
    for seed in range(20):
        mixed = blend(loud, quiet, np.random.default_rng(seed), Augmentation(blend_db=6))
        assert 10 * np.log10(1 + 10**-0.6) - 1e-3 <= mixed[0, 0] + 20 <= 10 * np.log10(1 + 10**0.6) + 1e-3


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
