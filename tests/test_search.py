"""A collection on disk: resumed, asked in words and by a sound, read by `datasets`, used from the command line."""

from __future__ import annotations

import json
import re

import datasets
import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import clap_hf.search
from clap_hf import SoundCollection, embed_files, load_audio
from clap_hf.cli import app
from clap_hf.embedding import embed_texts
from conftest import make_model, sound

RATE = 16_000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(7):
        soundfile.write(folder / f"{i}.wav", sound(0.4 + 0.3 * i, seed=i), RATE)
    return sorted(folder.glob("*.wav"))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(clap_hf.search, "FILES_PER_PART", 2)


def test_words_and_sounds_find_what_is_closest(files, tmp_path, processor, small_parts):
    model = make_model()
    collection = SoundCollection(tmp_path / "index", model, processor)
    added = collection.add(files)
    assert (added.embedded, added.known, added.skipped, len(collection)) == (7, 0, {}, 7)
    assert len(list((tmp_path / "index").iterdir())) == 4
    vectors = embed_files(model, processor, files).vectors
    expected = vectors @ embed_texts(model, processor.tokenizer, ["a dog"])[0]
    hits = collection.search("a dog", top_k=5)
    assert [hit.file for hit in hits] == [files[i] for i in expected.argsort(descending=True)[:5]]
    assert [hit.similarity for hit in hits] == pytest.approx(
        expected.sort(descending=True).values[:5].tolist(), abs=1e-5
    )
    best, *_ = collection.search(load_audio(files[4]))
    assert best.file == files[4] and best.similarity == pytest.approx(1, abs=1e-5)
    assert len(collection.search("a dog", top_k=100)) == 7


def test_a_stopped_run_goes_on_where_it_was(files, tmp_path, processor, small_parts, monkeypatch):
    model = make_model()
    broken = tmp_path / "broken.wav"
    broken.write_text("not a sound")
    calls = []

    def noted(model, processor, files, **options):
        calls.append(files)
        return embed_files(model, processor, files, **options)

    def stopped(model, processor, files, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return noted(model, processor, files, **options)

    monkeypatch.setattr(clap_hf.search, "embed_files", stopped)
    with pytest.raises(KeyboardInterrupt):
        SoundCollection(tmp_path / "index", model, processor).add([broken, *files])
    collection = SoundCollection(tmp_path / "index", model, processor)
    assert len(collection) == 3  # two parts, less the file that is no sound
    before = {path: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    calls.clear()
    monkeypatch.setattr(clap_hf.search, "embed_files", noted)
    added = collection.add([broken, *files, files[0]])
    assert (added.embedded, added.known) == (4, 3)
    assert list(added.skipped) == [broken] and "broken.wav" in added.skipped[broken]
    assert sum(calls, []) == [str(broken), *map(str, files[3:])]
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(hit.file for hit in collection.search("rain", 100)) == files


def test_datasets_opens_it(files, tmp_path, processor):
    model = make_model()
    SoundCollection(tmp_path / "index", model, processor).add(files)
    rows = datasets.load_dataset(str(tmp_path / "index"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["file"][:] == list(map(str, files))
    np.testing.assert_array_equal(np.array(rows["embedding"][:]), embed_files(model, processor, files).vectors)


def test_what_does_not_fit_is_told(files, tmp_path, processor):
    SoundCollection(tmp_path / "index", make_model(), processor, "acme/one").add(files[:1])
    with pytest.raises(ValueError, match="'acme/one' with fingerprint .* expected those of 'acme/two'"):
        SoundCollection(tmp_path / "index", make_model(seed=1), processor, "acme/two")
    with pytest.raises(ValueError, match="no sounds in this collection"):
        SoundCollection(tmp_path / "empty", make_model(), processor).search("a dog")
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_dict({"file": ["a"]}).to_parquet(tmp_path / "other" / "part-0.parquet")
    with pytest.raises(ValueError, match="not a part that clap-hf wrote"):
        SoundCollection(tmp_path / "other", make_model(), processor)


def test_embed_and_search_from_the_command_line(files, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    index = tmp_path / "index"

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
        assert result.exit_code == code, result.output
        return re.sub(r"\s+", " ", result.output)

    broken = tmp_path / "broken.wav"
    broken.write_text("not a sound")
    printed = run("embed", files[0].parent, broken, "--output", index, "--model", checkpoint)
    assert "7 sounds embedded, 0 known, 7 in" in printed and "1 of 8 files were skipped:" in printed
    assert "0 sounds embedded, 7 known" in run("embed", files[0].parent, "--output", index, "--model", checkpoint)
    monkeypatch.chdir(tmp_path)  # the model is found from anywhere
    printed = run("search", index, "a dog", "--top-k", 3, "--json", tmp_path / "hits.json")
    found = json.loads((tmp_path / "hits.json").read_text())
    assert [hit["file"] in printed for hit in found["hits"]] == [True] * 3 and found["words"] == "a dog"
    printed = run("search", index, "--like", files[2], "--top-k", 1)
    assert "1.00" in printed and "2.wav" in printed
    assert "expected one of them" in run("search", index, code=2)
    assert "no collection of sounds here" in run("search", tmp_path / "nowhere", "a dog", code=2)
    assert not torch.is_inference_mode_enabled()
