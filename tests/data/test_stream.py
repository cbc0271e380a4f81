"""Streaming real recordings out of parquet files, locally and from a Hub over HTTP."""

import io
from dataclasses import replace

import datasets
import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import HfApi

from clap_hf import load_audio
from clap_hf.data.augment import Augmentation
from clap_hf.data.simple_stream import SimpleStream
from clap_hf.data.stream import CROP_ONLY, PairStream, RowError, StreamSource, make_example, number_of
from pairs import encoded, write_pairs

BATCH = 8


def make_stream(processor, source, **settings):
    return PairStream([source], processor, BATCH, seed=5, lanes=4, **settings)


def collected(stream, epoch=0, first_step=0, processes=1):
    """Every global batch: texts, waveforms, skipped rows."""
    shares = [list(stream.batches(epoch, first_step, process, processes)) for process in range(processes)]
    batches = []
    for parts in zip(*shares, strict=True):
        waveforms = torch.cat([waveform for part in parts for waveform in part["waveforms"]])
        texts = torch.cat([part["texts"] for part in parts])
        batches.append((texts, waveforms, [row["id"] for part in parts for row in part["skipped"]]))
    return batches


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for (texts, waveforms, skipped), (others, other_waveforms, other_skipped) in zip(ours, theirs, strict=True):
        assert torch.equal(texts, others) and torch.equal(waveforms, other_waveforms)
        assert sorted(skipped) == sorted(other_skipped)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return StreamSource(str(write_pairs(tmp_path_factory.mktemp("pairs"), bad=(13, 40))), id="id", duration="duration")


@pytest.fixture(scope="module")
def unbroken(source, processor):
    return collected(make_stream(processor, source))


def test_batches_are_whole_and_pairs_come_once(unbroken):
    assert len(unbroken) == 120 // BATCH  # 60 clips with two captions each
    for texts, waveforms, _ in unbroken:
        assert texts.shape == (BATCH,) and waveforms.shape == (BATCH, 16_000) and waveforms.abs().max() > 0.01
    numbers = torch.cat([texts for texts, _, _ in unbroken])
    # All captions of every clip that can be read; those of the two bad rows are replaced by others.
    assert len(numbers) == 120 and len(numbers.unique()) == 116


def test_one_caption_a_visit_on_request(source, processor):
    drawn = collected(make_stream(processor, replace(source, every_text=False)))
    assert len(drawn) == 60 // BATCH
    numbers = torch.cat([texts for texts, _, _ in drawn])
    own = {number_of(f"{words} {i}"): i for i in range(60) for words in ("sound number", "take")}
    clips = [own[int(number)] for number in numbers]
    assert len(clips) == 56 and len(set(clips)) >= 54


def test_rows_without_captions_count_as_one_pair_and_are_replaced(processor, tmp_path):
    captions = [["a", "b", "c"], [], None, ["d"], ["e", "", "f"]]
    rows = [
        {"id": str(i), "audio": {"bytes": encoded(i), "path": None}, "text": own} for i, own in enumerate(captions)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    stream = PairStream([StreamSource(str(tmp_path), id="id")], processor, 9, seed=0, lanes=1)
    [batch] = stream.batches(0, 0, 0, 1)
    assert set(batch["texts"].tolist()) == {number_of(text) for text in "abcdef"}
    assert sorted(row["id"].rpartition(":")[2] for row in batch["skipped"]) == ["1", "2"]


@pytest.mark.parametrize("first_step", [0, 1, 4])
def test_resumes_at_any_batch(unbroken, source, processor, first_step):
    assert_same(collected(make_stream(processor, source), first_step=first_step), unbroken[first_step:])


@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (4, 0), (1, 2), (2, 2)])
def test_processes_and_workers_change_nothing(unbroken, source, processor, processes, workers):
    stream = make_stream(processor, source, num_workers=workers)
    assert_same(collected(stream, first_step=3, processes=processes), unbroken[3:])


def test_unreadable_rows_are_listed_once_and_replaced(unbroken, source):
    skipped = [name for _, _, names in unbroken for name in names]
    assert set(skipped) <= {f"{source.dataset}:clip-13", f"{source.dataset}:clip-40"}
    assert len(skipped) == len(set(skipped)) >= 1


def test_epochs_and_their_crops_differ(unbroken, source, processor):
    again = collected(make_stream(processor, source), epoch=1)
    assert not torch.equal(again[0][0], unbroken[0][0])
    first = {int(t): w for texts, waveforms, _ in unbroken for t, w in zip(texts, waveforms, strict=True)}
    both = [(w, first[int(t)]) for texts, ws, _ in again for t, w in zip(texts, ws, strict=True) if int(t) in first]
    assert len(both) > 10 and not any(torch.equal(a, b) for a, b in both)


@pytest.mark.slow
def test_streams_from_a_hub(hub, unbroken, source, processor):
    api = HfApi()
    api.create_repo("acme/streamed-pairs", repo_type="dataset")
    api.upload_folder(repo_id="acme/streamed-pairs", repo_type="dataset", folder_path=source.dataset)
    remote = StreamSource("acme/streamed-pairs", id="id", duration="duration")
    stream = make_stream(processor, remote)
    assert stream.fingerprint() == make_stream(processor, source).fingerprint()
    for ours, theirs in zip(collected(make_stream(processor, remote, num_workers=2), 0, 2), unbroken[2:], strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])  # as from the local files
    assert any(method == "GET" and "/resolve/" in path for method, path, _ in hub.requests)
    simple = SimpleStream(remote, processor, BATCH, seed=5)
    batches = simple.batches(0, 0, 0, 1)
    first = [next(iter(batches)) for _ in range(3)]
    share = next(iter(SimpleStream(remote, processor, BATCH, seed=5).batches(0, 2, 1, 2)))
    assert torch.equal(share["texts"], first[2]["texts"][BATCH // 2 :])
    assert torch.equal(share["waveforms"][0], first[2]["waveforms"][0][BATCH // 2 :])


def test_only_the_crop_is_decoded(processor, monkeypatch):
    asked = []
    real = load_audio
    monkeypatch.setattr(
        "clap_hf.data.stream.load_audio",
        lambda source, **window: asked.append(window) or real(source, **window),
    )
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(16_000 * 20) / 9), 16_000, format="FLAC")
    row = {"audio": {"bytes": buffer.getvalue(), "path": None}, "text": "a tone"}
    rng = np.random.default_rng(0)
    speed = Augmentation(speeds=(1.1,))
    example = make_example(row, "tone", StreamSource("x"), processor.feature_extractor, speed, rng)
    assert asked[0]["duration_s"] == pytest.approx(1.1) and 0 <= asked[0]["start_s"] <= 18.9
    assert example.waveform.shape == (16_000,) and example.waveform.dtype == np.float32


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"audio": {"bytes": b"", "path": "a.wav"}, "text": "x"}, "no audio bytes"),
        ({"audio": {"bytes": b"RIFF....", "path": None}, "text": "x"}, "<bytes>"),
        ({"audio": {"bytes": b"x", "path": None}, "text": []}, "no text"),
        ({"audio": None, "text": None}, "no text"),
    ],
)
def test_reasons_of_unreadable_rows(processor, row, reason):
    with pytest.raises(RowError, match=reason):
        make_example(row, "r", StreamSource("x"), processor.feature_extractor, CROP_ONLY, np.random.default_rng(0))


def test_shortened_rows_are_listed_and_trained_on(processor, tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(16_000) / 9), 16_000, format="FLAC")
    whole = buffer.getvalue()
    rows = [{"audio": {"bytes": whole, "path": None}, "text": f"tone {i}", "id": f"{i}"} for i in range(8)]
    rows[3]["audio"]["bytes"] = whole[: len(whole) // 2]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    source = StreamSource(str(tmp_path), id="id")
    stream = PairStream([source], processor, 8, seed=0, lanes=1, augmentation=CROP_ONLY)
    for batches in (stream, SimpleStream(source, processor, 8, seed=0)):
        batch = next(iter(batches.batches(2, 0, 0, 1)))
        assert sorted(batch["ids"]) == [f"{tmp_path}:{i}" for i in range(8)] and batch["skipped"] == []
        [row] = batch["shortened"]
        assert (row["id"], row["epoch"]) == (f"{tmp_path}:3", "2") and row["reason"]


def test_mistakes_are_named(source, processor, tmp_path):
    with pytest.raises(ValueError, match="'valid' among them"):
        make_stream(processor, StreamSource(source.dataset, split="valid"))
    with pytest.raises(ValueError, match=r"expected \['caption'\] among them"):
        make_stream(processor, StreamSource(source.dataset, text="caption"))
    with pytest.raises(ValueError, match="cannot share 4 lanes"):
        make_stream(processor, source, num_workers=3).batches(0, 0, 0, 1)
    (tmp_path / "data.csv").write_text("audio,text\nx,y\n")
    with pytest.raises(ValueError, match="expected parquet files"):
        make_stream(processor, StreamSource(str(tmp_path)))
