"""Work ahead of the model: order, bounds, errors, and bulk embedding of files."""

from __future__ import annotations

import threading

import pytest
import soundfile
import torch

from clap_hf import embed_files, load_audio
from clap_hf.embedding import read_ahead
from conftest import make_model, sound

RATE = 16_000


def test_items_come_in_order_and_errors_are_kept_or_raised():
    def square(item: int) -> int:
        if item in (3, 4):
            raise {3: ValueError, 4: FileNotFoundError}[item](f"item {item}")
        return item * item

    skipped: dict[int, str] = {}
    assert list(read_ahead(range(50), square, skipped)) == [(i, i * i) for i in range(50) if i not in (3, 4)]
    assert skipped == {3: "item 3", 4: "item 4"}
    with pytest.raises(ValueError, match="item 3"):
        list(read_ahead(range(5), square))
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 0], lambda item: 1 / item, {}))


def test_the_next_items_are_read_and_no_more_than_allowed():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    later = threading.Event()
    read = lambda item: later.wait(60) if item == 0 else later.set()  # noqa: E731
    stream = read_ahead(items(), read, threads=2, ahead=5)
    assert next(stream) == (0, True)  # which waited until the second item was read, not asked for yet
    assert taken == [0, 1, 2, 3, 4]
    for _ in range(10):
        next(stream)
    assert len(taken) == 15
    stream.close()
    assert len(taken) == 15


@pytest.mark.parametrize("on_gpu", [False, True])  # the order of work beside a GPU, here on the CPU
def test_files_are_embedded_as_one_by_one(tmp_path, processor, monkeypatch, on_gpu):
    monkeypatch.setattr("clap_hf.embedding.is_accelerator", lambda device: on_gpu)
    model = make_model()
    files = []
    for i, seconds in enumerate((0.4, 1.0, 2.6, 0.9, 1.2)):
        files.append(tmp_path / f"{i}.wav")
        soundfile.write(files[-1], sound(seconds, seed=i), RATE)
    broken, missing = tmp_path / "broken.wav", tmp_path / "missing.wav"
    broken.write_bytes(b"RIFF and nothing more")
    done = embed_files(model, processor, [*files[:2], broken, *map(str, files[2:]), missing], windows_per_batch=3)
    assert done.files == files
    assert set(done.skipped) == {broken, missing} and "broken.wav" in done.skipped[broken]
    with torch.no_grad():
        for file, vector in zip(files, done.vectors, strict=True):
            alone = model.get_audio_features(**processor(audio=load_audio(file).samples, sampling_rate=RATE))
            torch.testing.assert_close(vector, alone.pooler_output[0], atol=1e-6, rtol=0)


def test_nothing_to_embed(tmp_path, processor):
    done = embed_files(make_model(), processor, [tmp_path / "none.wav"])
    assert done.files == [] and done.vectors.shape == (0, 24) and len(done.skipped) == 1
