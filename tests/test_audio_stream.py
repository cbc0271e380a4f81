"""Mono sound in blocks and windows: equal to resampling the whole at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.test_audio import encoded

from clap_hf.audio import AudioDecodeError, open_audio
from clap_hf.audio.stream import mono_blocks, windows
from clap_hf.model.feature_extraction_msclap import resample, to_mono


def noise(frames: int, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(frames).uniform(-1, 1, (frames, channels)).astype("float32")


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_056, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("frames", [1, 3, 5_001, 700_003])
def test_blocks_equal_the_whole_resampled(rate, frames):
    samples = noise(frames)
    with open_audio(encoded("WAV", "FLOAT", samples, rate)) as reader:
        blocks = list(mono_blocks(reader, 44_100))
    whole = resample(torch.from_numpy(samples).mean(dim=1), rate, 44_100)
    joined = torch.cat(blocks)
    assert joined.shape == whole.shape == (math.ceil(frames * 44_100 / rate),)
    assert (joined - whole).abs().max() <= 1e-6
    assert frames < 700_000 or len(blocks) > 1


@pytest.mark.parametrize("hop_s", [0.25, 0.7, 1.0, 1 / 3, 2.5])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 5.2])
def test_windows_are_slices_of_the_whole(hop_s, seconds):
    samples = noise(round(seconds * 16_000))
    with open_audio(encoded("WAV", "FLOAT", samples, 16_000)) as reader:
        cut = list(windows(reader, 8000, 1.0, hop_s))
    whole = resample(torch.from_numpy(samples).mean(dim=1), 16_000, 8000)
    for start_s, end_s, window in cut:
        assert torch.allclose(window, whole[round(start_s * 8000) : round(end_s * 8000)], atol=1e-6)
    starts = [start_s for start_s, _, _ in cut]
    assert starts[:-1] == pytest.approx([i * hop_s for i in range(len(cut) - 1)], abs=1 / 8000)
    assert all(len(window) == min(8000, len(whole)) for _, _, window in cut)
    # One window fewer would leave out the end.
    assert cut[-1][1] == len(whole) / 8000 and (len(cut) == 1 or cut[-2][1] < len(whole) / 8000)


def test_a_window_of_a_sample_or_less_is_refused():
    with (
        open_audio(encoded("WAV", "FLOAT", noise(100), 16_000)) as reader,
        pytest.raises(ValueError, match="hop_s is 0"),
    ):
        next(windows(reader, 8000, 1.0, 0))


def test_samples_that_were_not_scaled_are_a_named_error():
    with open_audio(encoded("WAV", "FLOAT", 32_768 * noise(100), 16_000), name="loud.wav") as reader:
        with pytest.raises(AudioDecodeError, match=r"^loud.wav: samples up to 3\d+\.\d; expected \[-1, 1\]"):
            list(mono_blocks(reader, 8000))


def test_mono_is_what_the_feature_extractor_makes():
    samples = noise(5000, 6)
    with open_audio(encoded("WAV", "FLOAT", samples, 16_000)) as reader:
        assert torch.equal(torch.cat(list(mono_blocks(reader, 16_000))), to_mono(samples.T.copy(), "it"))
