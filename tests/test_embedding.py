"""Work ahead of the model: order, bounds, errors, and bulk embedding of files."""

from __future__ import annotations

import threading

import pytest
import soundfile
import torch

from clap_hf import embed_files, load_audio
from clap_hf.embedding import results, work_ahead
from conftest import make_model, sound

RATE = 16_000


def test_items_come_in_order_with_what_became_of_them():
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item * item

    found = list(work_ahead(range(50), work))
    assert [item for item, _ in found] == list(range(50))
    assert [future.result() for item, future in found if item != 3] == [i * i for i in range(50) if i != 3]
    with pytest.raises(ValueError, match="three"):
        found[3][1].result()
    with pytest.raises(ValueError, match="three"):
        list(results(range(5), work))


def test_the_next_items_are_under_way_and_no_more_than_allowed():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    later = threading.Event()
    work = lambda item: later.wait(60) if item == 0 else later.set()  # noqa: E731
    stream = work_ahead(items(), work, threads=2, ahead=5)
    _, first = next(stream)
    assert first.result()  # which waited for the second item's work, not asked for yet
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
