"""Windows of long recordings: times, values equal to those of the whole, pipes, memory."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc

import pytest
import soundfile
import torch

from clap_hf.audio import open_audio
from clap_hf.embedding import embed_files, embed_windows
from clap_hf.model.feature_extraction_msclap import resample
from clap_hf.streaming import embed_stream, stream_windows
from conftest import make_feature_extractor, make_model, sound

RATE = 16_000


def written(tmp_path, seconds, rate=RATE, name="it.wav"):
    path = tmp_path / name
    soundfile.write(path, sound(seconds, rate), rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize("rate", [RATE, 22_050])
@pytest.mark.parametrize("hop_s", [None, 0.25, 1.7])
def test_windows_are_log_mels_of_the_whole(tmp_path, rate, hop_s):
    extractor, path = make_feature_extractor(), written(tmp_path, 5.3, rate)
    whole = resample(torch.from_numpy(soundfile.read(path, dtype="float32")[0]), rate, RATE)
    found = list(stream_windows(path, extractor, hop_s=hop_s))
    for window in found:
        expected = extractor.log_mel(whole[round(window.start_s * RATE) : round(window.end_s * RATE)])
        torch.testing.assert_close(window.log_mel, expected[None], atol=1e-2, rtol=0)
    hop_s = hop_s or 1.0
    assert [window.start_s for window in found[:-1]] == pytest.approx([i * hop_s for i in range(len(found) - 1)])
    assert all(window.end_s - window.start_s == pytest.approx(1.0) for window in found)
    assert found[-1].end_s == pytest.approx(len(whole) / RATE) and found[-2].end_s < found[-1].end_s


@pytest.mark.parametrize("policy", ["repeat", "pad"])
def test_a_short_recording_is_filled_as_the_extractor_does(tmp_path, policy):
    extractor, path = make_feature_extractor(short_audio=policy), written(tmp_path, 0.3)
    [window] = stream_windows(path, extractor)
    assert (window.start_s, window.end_s) == (0.0, 0.3)
    expected = extractor(soundfile.read(path, dtype="float32")[0], RATE)["input_features"][0, 0]
    torch.testing.assert_close(window.log_mel, expected)


@pytest.mark.parametrize("on_gpu", [False, True])  # the order of work beside a GPU, here on the CPU
def test_vectors_are_those_of_the_windows(tmp_path, processor, monkeypatch, on_gpu):
    monkeypatch.setattr("clap_hf.embedding.is_accelerator", lambda device: on_gpu)
    model, path = make_model(), written(tmp_path, 7.4)
    windows = list(stream_windows(path, processor.feature_extractor, hop_s=0.5))
    starts_s, ends_s, vectors, damage = embed_stream(model, processor, path, hop_s=0.5, windows_per_batch=4)
    assert starts_s.tolist() == [window.start_s for window in windows]
    assert ends_s.tolist() == [window.end_s for window in windows]
    expected = embed_windows(model, torch.stack([window.log_mel for window in windows]))
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert damage == []


def test_a_whole_number_of_windows_gives_the_vector_of_the_file(tmp_path, processor):
    model, path = make_model(), written(tmp_path, 6.0)
    mean = embed_stream(model, processor, path).vectors.mean(dim=0)
    torch.testing.assert_close(mean / mean.norm(), embed_files(model, processor, [path]).vectors[0])


def test_damage_is_reported(tmp_path, processor):
    path = written(tmp_path, 6.0)
    path.write_bytes(path.read_bytes()[:-100_000])
    found = embed_stream(make_model(), processor, path)
    assert found.damage and found.ends_s[-1] == pytest.approx(6.0 - 25_000 / RATE, abs=0.01)


def test_file_objects_pipes_and_readers_are_the_file(tmp_path, processor):
    model, path = make_model(), written(tmp_path, 3.2)
    expected = embed_stream(model, processor, path).vectors
    assert torch.equal(embed_stream(model, processor, io.BytesIO(path.read_bytes())).vectors, expected)
    read_end, write_end = os.pipe()

    def send():
        with open(write_end, "wb") as pipe:
            pipe.write(path.read_bytes())

    sender = threading.Thread(target=send)
    sender.start()
    with open(read_end, "rb") as pipe:
        assert torch.equal(embed_stream(model, processor, pipe).vectors, expected)
    sender.join()
    with open_audio(path, start_s=1.0, duration_s=1.0) as reader:
        torch.testing.assert_close(embed_stream(model, processor, reader).vectors, expected[1:2])


def test_a_window_too_early_ends_the_stream_and_a_bad_hop_is_refused(tmp_path, processor):
    path = written(tmp_path, 60.0)
    stream = stream_windows(path, processor.feature_extractor)
    assert next(stream).end_s == 1.0
    stream.close()  # closes the file
    with pytest.raises(ValueError, match="hop_s is 0"):
        embed_stream(make_model(), processor, path, hop_s=0)
    with pytest.raises(ValueError, match="hop_s is nan"):
        next(stream_windows(path, processor.feature_extractor, hop_s=float("nan")))


def test_memory_does_not_grow_with_length(tmp_path):
    peaks = []
    for seconds in (30.0, 240.0):
        path = written(tmp_path, seconds)
        tracemalloc.start()
        for _ in stream_windows(path, make_feature_extractor()):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
