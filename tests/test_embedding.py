"""Reading ahead, bulk embedding of files, modes and identity of models, labels that no tokenizer reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from clap_hf import MSClapModel, MSClapProcessor, embed_files, load_audio
from clap_hf.audio.stream import Slices
from clap_hf.embedding import (
    ClapEncoder,
    embed_classes,
    embed_texts,
    embed_windows,
    evaluation_mode,
    read_ahead,
    warn_of_unreadable_labels,
)
from clap_hf.hub import push
from conftest import TESTS, make_feature_extractor, make_model, sound

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


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_long_files_are_embedded_in_blocks_as_whole_ones(tmp_path, processor, monkeypatch, rate, on_gpu):
    monkeypatch.setattr("clap_hf.embedding.is_accelerator", lambda device: on_gpu)
    model, files = make_model(), [tmp_path / f"{i}.wav" for i in range(4)]
    for file, seconds in zip(files, (40.0, 1.3, 60.7, 0.5), strict=True):
        channels = np.stack([sound(seconds, rate, seed=seed) for seed in (1, 2)], axis=1)
        soundfile.write(file, channels, rate)
    for limit in (None, 1, 5):
        found = embed_files(model, processor, files, max_windows=limit)
        with monkeypatch.context() as patched:
            patched.setattr("clap_hf.embedding.LONG_WINDOWS", 1000)
            patched.setattr("clap_hf.embedding.mono_blocks", lambda *_: pytest.fail("read in blocks"))
            whole = embed_files(model, processor, files, max_windows=limit)
        assert found.files == whole.files == files
        torch.testing.assert_close(found.vectors, whole.vectors, atol=1e-6, rtol=0)
    tracemalloc.start()
    embed_files(model, processor, [files[2]])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60.7 * rate * 2 * 4 / 3, "bytes of numpy, in which files are decoded"


def whole_vector(model, processor, file):
    """The vector of a file that is decoded whole."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        features = processor(audio=load_audio(file).samples, sampling_rate=RATE)
        return model.get_audio_features(**features).pooler_output[0]


def test_a_stated_length_that_is_wrong_or_missing_changes_nothing(tmp_path, processor, monkeypatch):
    model, cut, short = make_model(), tmp_path / "cut.wav", tmp_path / "short.wav"
    soundfile.write(cut, sound(60.0), RATE)
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) * 2 // 3])
    short.write_bytes(content[: 44 + 2 * RATE * 3 // 2])
    expected = torch.stack([whole_vector(model, processor, file) for file in (cut, short)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = embed_files(model, processor, [cut, short])
    assert set(found.damaged) == {cut, short} and found.files == [cut, short]
    assert all(re.search(r"\d+", reason) for reason in found.damaged.values())
    torch.testing.assert_close(found.vectors, expected, atol=1e-6, rtol=0)
    for wrong in (None, 50 * RATE):
        monkeypatch.setattr("clap_hf.embedding.resampled_length", lambda *_, wrong=wrong: wrong)
        found = embed_files(model, processor, [cut, short])
        torch.testing.assert_close(found.vectors, expected, atol=1e-6, rtol=0)


def test_a_long_file_that_breaks_off_or_changes_is_skipped_and_named(tmp_path, processor, monkeypatch):
    model, file, loud = make_model(), tmp_path / "long.wav", tmp_path / "loud.wav"
    soundfile.write(file, sound(40.0), RATE)
    samples = sound(40.0)
    samples[-100:] = 32_768
    soundfile.write(loud, samples, RATE, subtype="FLOAT")
    found = embed_files(model, processor, [loud, file])
    assert found.files == [file] and "loud.wav: samples up to 32768" in found.skipped[loud]
    lengths = iter([35 * RATE, 36 * RATE])

    class Changing(Slices):
        def __iter__(self):
            yield from super().__iter__()
            self.total = next(lengths)

    monkeypatch.setattr("clap_hf.embedding.Slices", Changing)
    found = embed_files(model, processor, [file])
    assert found.files == [] and "576000 samples, 560000 when it was read before" in found.skipped[file]


MEMORY = """
import resource, sys
from clap_hf import MSClapModel, MSClapProcessor, embed_files
model, processor = MSClapModel.from_pretrained(sys.argv[1]), MSClapProcessor.from_pretrained(sys.argv[1])
assert len(embed_files(model, processor, [sys.argv[2]]).files) == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_an_hour_takes_the_memory_of_ten_minutes(tmp_path, checkpoint):
    peaks = []
    for minutes in (10, 60):
        file = tmp_path / f"{minutes}.wav"
        soundfile.write(file, np.zeros((1, 2)), 44_100)
        size = minutes * 60 * 44_100 * 4
        head = bytearray(file.read_bytes()[:44])
        head[4:8], head[40:44] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
        file.write_bytes(head)
        os.truncate(file, 44 + size)  # zeros, which take no room on the disk
        command = [sys.executable, "-c", MEMORY, checkpoint, file]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < 1.1 * peaks[0]


def test_nothing_to_embed(tmp_path, processor):
    done = embed_files(make_model(), processor, [tmp_path / "none.wav"])
    assert done.files == [] and done.vectors.shape == (0, 24) and len(done.skipped) == 1


def test_max_windows_spreads_over_the_file(tmp_path, processor):
    model, long = make_model(), sound(6.5)
    soundfile.write(tmp_path / "long.wav", long, RATE)
    audio = load_audio(tmp_path / "long.wav")
    for limit, starts in ((1, [2.75]), (2, [0.0, 5.5]), (3, [0.0, 2.75, 5.5]), (9, [i * 5.5 / 6 for i in range(7)])):
        [vector] = embed_files(model, processor, [tmp_path / "long.wav"], max_windows=limit).vectors
        pieces = [audio.samples[0, round(start * RATE) :][:RATE] for start in starts]
        features = processor(audio=pieces, sampling_rate=RATE)["input_features"].transpose(0, 1)  # of one clip
        with torch.no_grad():
            expected = model.get_audio_features(features).pooler_output[0]
        torch.testing.assert_close(vector, expected, atol=1e-6, rtol=0)
        encoder = ClapEncoder(model, processor, max_windows=limit)
        torch.testing.assert_close(encoder.embed_audio([encoder.prepare(audio)])[0], vector, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="max_windows is 0, expected 1 or more"):
        processor(audio=long, sampling_rate=RATE, audio_kwargs={"max_windows": 0})


# Modes


def embeddings(model, processor, file):
    """The vectors of every way to embed."""
    encoder = ClapEncoder(model, processor)
    features = processor(audio=load_audio(file).samples, sampling_rate=RATE)["input_features"]
    return [
        embed_files(model, processor, [file]).vectors,
        encoder.embed_audio([encoder.prepare(file)]),
        encoder.embed_texts(["a dog"]),
        embed_windows(model, features),
        embed_texts(model, processor.tokenizer, ["a dog"]),
        embed_classes(model, processor.tokenizer, [["a dog", "dog"]]),
    ]


@pytest.mark.parametrize("part", [None, "audio_model", "text_projection"])
def test_a_model_in_train_mode_embeds_as_in_evaluation_mode(tmp_path, processor, part):
    soundfile.write(tmp_path / "a.wav", sound(0.8), RATE)
    model = make_model()
    expected = embeddings(model, processor, tmp_path / "a.wav")
    (model if part is None else model.get_submodule(part)).train()
    before = {name: module.training for name, module in model.named_modules()}
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for found, wanted in zip(embeddings(model, processor, tmp_path / "a.wav"), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert {name: module.training for name, module in model.named_modules()} == before
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=0, atol=0)


def test_evaluation_mode_lasts_until_the_last_thread_is_done():
    model, inside, leave = make_model().train(), threading.Event(), threading.Event()

    def stay():
        with evaluation_mode(model):
            inside.set()
            leave.wait(60)
            return model.training

    with ThreadPoolExecutor(1) as pool:
        with evaluation_mode(model):
            other = pool.submit(stay)
            inside.wait(60)
        assert not model.training, "another thread is inside"
        leave.set()
        assert other.result() is False
    assert all(module.training for module in model.modules())
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert model.training


# Identity


def identities(model, processor):
    encoder = ClapEncoder(model, processor)
    return encoder.key, encoder.settings()["fingerprint"]


def test_the_same_model_saved_again_or_shared_has_the_same_identity(hub, processor, tmp_path):
    model = make_model()
    expected = identities(model, MSClapProcessor(make_feature_extractor(), processor.tokenizer))
    processor(text=["a", "b c"], padding=True)
    assert identities(model, processor) == expected, "padding of an earlier call is no property"
    model.save_pretrained(tmp_path / "one")
    processor.save_pretrained(tmp_path / "one")
    push(tmp_path / "one", "acme/identity", license="mit")
    for i, folder in enumerate([tmp_path / "one", tmp_path / "again", "acme/identity"]):
        own, auto = MSClapModel.from_pretrained(folder), AutoModel.from_pretrained(folder)
        loaded = MSClapProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        assert identities(own, loaded[0]) == identities(auto, loaded[1]) == expected, folder
        if i == 0:
            own.save_pretrained(tmp_path / "again")
            loaded[0].save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    "front_end, model",
    [({"fmin": 40.0}, {}), ({"max_windows": 2}, {}), ({"short_audio": "pad"}, {}), ({}, {"seed": 1})],
)
def test_what_shapes_a_vector_changes_the_identity(tokenizer, front_end, model):
    one = ClapEncoder(make_model(), MSClapProcessor(make_feature_extractor(), tokenizer))
    other = ClapEncoder(make_model(**model), MSClapProcessor(make_feature_extractor(**front_end), tokenizer))
    assert one.key != other.key and one.settings()["fingerprint"] != other.settings()["fingerprint"]


def test_heads_change_the_identity_and_dropout_does_not(processor):
    model = make_model()
    key = ClapEncoder(model, processor).key
    model.config.audio_config.hidden_dropout_prob = 0.3
    assert ClapEncoder(model, processor).key == key
    model.config.audio_config.num_attention_heads = [4, 8]
    assert ClapEncoder(model, processor).key != key


# Labels


def test_labels_that_the_tokenizer_cannot_read_are_named():
    bert = AutoTokenizer.from_pretrained(TESTS / "tokenizers" / "bert-base-uncased")
    with pytest.warns(UserWarning, match="knows no part of the labels \\['🐶🐶', '🦄'\\]"):
        warn_of_unreadable_labels(bert, ["dog", "🐶🐶", "🦄"])
    with pytest.warns(UserWarning, match="as equal.*\\[\\['Dog', 'dog'\\]\\]"):
        warn_of_unreadable_labels(bert, ["Dog", "dog", "cat"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unreadable_labels(bert, ["dog", "cat", "a 🦄 neighs"])
