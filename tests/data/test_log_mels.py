"""The store of log-mels: equal to the feature extractor's own, kept between runs, never mixed up between settings."""

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset

from clap_hf import load_audio
from clap_hf.data import log_mels
from clap_hf.data.log_mels import LogMelStore, clip_log_mels
from conftest import EXAMPLES, make_feature_extractor

FILES = ["dog.ogg", "sheep.wav", "snare_drum.flac"]


@pytest.fixture(scope="module")
def rows():
    audio = [{"bytes": (EXAMPLES / name).read_bytes(), "path": None} for name in FILES]
    return Dataset.from_dict({"id": FILES, "audio": audio}).cast_column("audio", Audio(decode=False))


def test_values_are_the_extractors(rows, tmp_path):
    extractor = make_feature_extractor(sampling_rate=44_100)
    store = LogMelStore(rows, extractor, (1.0,), tmp_path, processes=1)
    for row, name in enumerate(FILES):
        samples = torch.from_numpy(load_audio(EXAMPLES / name).samples.mean(axis=0))
        if len(samples) < 0.5 * 44_100:
            continue
        expected = extractor.log_mel(samples)
        assert load_audio(EXAMPLES / name).sampling_rate == 44_100
        torch.testing.assert_close(torch.from_numpy(store(row, 0)), expected, atol=0.04, rtol=0)  # float16


def test_speeds_change_length_and_pitch():
    extractor = make_feature_extractor(feature_size=64, n_fft=1024, hop_length=160)
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    plain, slow, fast = clip_log_mels(tone, extractor, (1.0, 0.5, 2.0))
    assert len(plain) == 101 and len(slow) == 201 and len(fast) == 51
    peaks = [int(part[len(part) // 2].argmax()) for part in (slow, plain, fast)]
    assert peaks == sorted(peaks) and len(set(peaks)) == 3


def test_the_shortest_clip_has_frames():
    parts = clip_log_mels(np.ones(1, np.float32), make_feature_extractor(), (1.0, 1.15))
    assert [len(part) for part in parts] == [101, 101]


def test_parts_are_kept_and_settings_kept_apart(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(log_mels, "CLIPS_PER_PART", 2)
    first = LogMelStore(rows, make_feature_extractor(), (1.0, 1.1), tmp_path, processes=1)
    made = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert len(made) == 2
    lost = first.folder / "part-00000002.arrow"
    lost.unlink()
    again = LogMelStore(rows, make_feature_extractor(), (1.0, 1.1), tmp_path, processes=2)
    assert again.folder == first.folder and lost.is_file()
    lost.write_bytes(lost.read_bytes()[:500])  # a damaged part is made again, too
    again = LogMelStore(rows, make_feature_extractor(), (1.0, 1.1), tmp_path, processes=1)
    kept = first.folder / "part-00000000.arrow"
    assert kept.stat().st_mtime_ns == made[kept]
    for row in range(3):
        for speed in range(2):
            np.testing.assert_array_equal(first(row, speed), again(row, speed))
    other = LogMelStore(rows, make_feature_extractor(fmax=7000.0), (1.0, 1.1), tmp_path, processes=1)
    assert other.folder != first.folder
    assert not np.array_equal(other(0, 0), first(0, 0))
