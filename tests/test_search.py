"""Collections on disk: resumed, searched by words and sounds, kept true to their files, read by `datasets`."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import clap_hf.search.collection
from clap_hf import SoundCollection, embed_files, load_audio
from clap_hf.atomic_io import locked
from clap_hf.cli import app
from clap_hf.embedding import embed_sounds, embed_texts
from clap_hf.search import check_collection, collection_facts
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
    monkeypatch.setattr(clap_hf.search.collection, "FILES_PER_PART", 2)


def test_words_and_sounds_find_what_is_closest(files, tmp_path, processor, small_parts):
    model = make_model()
    collection = SoundCollection(tmp_path / "index", model, processor)
    added = collection.add(files)
    assert (added.embedded, added.known, added.skipped, len(collection)) == (7, 0, {}, 7)
    assert len(list((tmp_path / "index").glob("*.parquet"))) == 4
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

    def noted(model, processor, files, open_file, **options):
        calls.append(files)
        return embed_sounds(model, processor, files, open_file, **options)

    def stopped(model, processor, files, open_file, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return noted(model, processor, files, open_file, **options)

    monkeypatch.setattr(clap_hf.search.collection, "embed_sounds", stopped)
    with pytest.raises(KeyboardInterrupt):
        SoundCollection(tmp_path / "index", model, processor).add([broken, *files])
    collection = SoundCollection(tmp_path / "index", model, processor)
    assert len(collection) == 3  # two parts, less the file that is no sound
    before = {path: path.read_bytes() for path in (tmp_path / "index").glob("*.parquet")}
    calls.clear()
    monkeypatch.setattr(clap_hf.search.collection, "embed_sounds", noted)
    added = collection.add([broken, *files, files[0]])
    assert (added.embedded, added.known) == (4, 3)
    assert list(added.skipped) == [broken] and "broken.wav" in added.skipped[broken]
    assert sum(calls, []) == [str(broken), *map(str, files[3:])]
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(hit.file for hit in collection.search("rain", 100)) == files


@pytest.fixture
def library(tmp_path, processor, small_parts):
    """A collection beside its sounds, and the names of the files that are embedded as it grows."""
    sounds = tmp_path / "library" / "sounds"
    sounds.mkdir(parents=True)
    for i in range(5):
        soundfile.write(sounds / f"{i}.wav", sound(0.5, seed=i), RATE)
    collection = SoundCollection(tmp_path / "library" / "index", make_model(), processor)
    collection.add(sounds)
    return collection, sounds


@pytest.fixture
def embedded(monkeypatch):
    """Names of the files that are embedded from now on."""
    names: list[str] = []

    def noted(model, processor, files, open_file, **options):
        names.extend(file.rsplit("/", 1)[-1] for file in files)
        return embed_sounds(model, processor, files, open_file, **options)

    monkeypatch.setattr(clap_hf.search.collection, "embed_sounds", noted)
    return names


def test_changed_files_are_embedded_again_and_touched_ones_recognised(library, embedded):
    collection, sounds = library
    before = load_audio(sounds / "1.wav")
    soundfile.write(sounds / "1.wav", sound(0.5, seed=9), RATE)  # of the same length
    os.utime(sounds / "1.wav", ns=(1, 1))
    os.utime(sounds / "2.wav", ns=(1, 1))
    [old] = [hit for hit in collection.search(before, 5) if hit.file.name == "1.wav"]
    assert old.similarity == pytest.approx(1, abs=1e-5) and old.changed
    added = collection.add(sounds)
    assert (added.embedded, added.known, added.recognised) == (1, 3, 1) and embedded == ["1.wav"]
    hits = {hit.file.name: hit for hit in collection.search(load_audio(sounds / "1.wav"), 10)}
    assert len(hits) == len(collection) == 5 and not any(hit.changed for hit in hits.values())
    assert hits["1.wav"].similarity == pytest.approx(1, abs=1e-5)
    [fresh] = [hit for hit in collection.search(before, 5) if hit.file.name == "1.wav"]
    assert fresh.similarity < 0.9999
    assert collection.add(sounds).known == 5


def test_a_changed_file_that_is_no_sound_any_more_is_no_hit(library):
    collection, sounds = library
    (sounds / "0.wav").write_text("not a sound")
    added = collection.add(sounds)
    assert list(added.skipped) == [sounds / "0.wav"] and len(collection) == 4
    assert sounds / "0.wav" not in [hit.file for hit in collection.search("a dog")]


def test_deleted_files_are_no_hits_and_pruned(library):
    collection, sounds = library
    best = collection.search("a dog", 2)
    best[0].file.unlink()
    assert [hit.file for hit in collection.search("a dog", 1)] == [best[1].file]
    assert len(collection.search("a dog", 5)) == 4 and len(collection) == 5
    assert collection.prune() == 1 and len(collection) == 4 and collection.prune() == 0
    for file in sounds.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="none of its sounds is there, such as .*Mount or restore"):
        collection.search("a dog")
    with pytest.raises(ValueError, match="none of its sounds is there"):
        collection.prune()
    assert len(collection) == 4


def test_moved_files_are_recognised(library, embedded, tmp_path):
    collection, sounds = library
    expected = {hit.file.name: hit.similarity for hit in collection.search("a dog")}
    (sounds / "inner").mkdir()
    (sounds / "3.wav").rename(sounds / "inner" / "moved.wav")
    (tmp_path / "outside").mkdir()
    (sounds / "4.wav").rename(tmp_path / "outside" / "4.wav")
    shutil.copyfile(sounds / "0.wav", sounds / "copy.wav")
    added = collection.add([sounds, tmp_path / "outside"])
    assert (added.embedded, added.known, added.recognised) == (0, 3, 3) and embedded == []
    found = {hit.file: hit.similarity for hit in collection.search("a dog")}
    assert set(found) == {*sounds.glob("*.wav"), sounds / "inner" / "moved.wav", tmp_path / "outside" / "4.wav"}
    # One row more may change the last bit of a product.
    assert found[sounds / "inner" / "moved.wav"] == pytest.approx(expected["3.wav"], abs=1e-6)
    assert found[sounds / "copy.wav"] == pytest.approx(expected["0.wav"], abs=1e-6) and len(collection) == 6


def test_a_collection_moves_with_its_sounds(library, embedded, tmp_path, processor):
    collection, sounds = library
    expected = [hit.file.name for hit in collection.search("a dog")]
    (tmp_path / "library").rename(tmp_path / "elsewhere")
    moved = SoundCollection(tmp_path / "elsewhere" / "index", make_model(), processor)
    assert [hit.file for hit in moved.search("a dog")] == [
        tmp_path / "elsewhere" / "sounds" / name for name in expected
    ]
    assert moved.add(tmp_path / "elsewhere" / "sounds").known == 5 and embedded == []


def test_every_part_is_checked(library, processor):
    collection, sounds = library
    first, *_, last = sorted(collection.folder.glob("*.parquet"))
    vector = np.array(pq.read_table(last)["embedding"][0].as_py(), dtype=np.float32)
    last.write_bytes(last.read_bytes().replace(vector.tobytes(), (-vector).tobytes()))
    with pytest.raises(ValueError, match=f"{last.name}: a damaged part"):
        collection.search("a dog")
    SoundCollection(first.parent.with_name("other"), make_model(seed=1), processor).add(
        collection.folder.parent / "sounds"
    )
    [stray, *_] = sorted(first.parent.with_name("other").glob("*.parquet"))
    last.write_bytes(stray.read_bytes())
    with pytest.raises(ValueError, match=f"{last.name}: made from .*expected"):
        collection.search("a dog")
    with pytest.raises(ValueError, match=f"{last.name}: holds embeddings of the model"):
        SoundCollection(first.parent, make_model(), processor)


def test_two_writers_lose_nothing_and_repeat_nothing(files, tmp_path, processor, small_parts):
    collections = [SoundCollection(tmp_path / "index", make_model(), processor) for _ in range(2)]
    start = threading.Barrier(2)

    def add(collection, chosen):
        start.wait(60)
        return collection.add(chosen)

    with ThreadPoolExecutor(2) as pool:  # each holds the folder by a descriptor of its own, as processes do
        one, other = pool.map(add, collections, (files[:5], files[2:]))
    assert one.embedded + other.embedded == 7 and one.known + other.known == 3
    rows = [row for part in (tmp_path / "index").glob("*.parquet") for row in pq.read_table(part)["file"].to_pylist()]
    assert sorted(rows) == list(map(str, files))


@pytest.mark.slow
@pytest.mark.parametrize("same", [False, True])
def test_two_processes_embed_at_once(tmp_path, checkpoint, same):
    for i in range(120):
        soundfile.write(tmp_path / f"{i:03}.wav", sound(0.3, seed=i), RATE)
    sounds = sorted(tmp_path.glob("*.wav"))
    command = [sys.executable, "-c", "from clap_hf.cli import app; app()", "embed"]
    command += ["--output", tmp_path / "index", "--model", checkpoint]
    chosen = [sounds, sounds] if same else [sounds[:60], sounds[60:]]
    writers = [subprocess.Popen([*command, "--device", "cpu", *own], stdout=subprocess.DEVNULL) for own in chosen]
    assert [writer.wait(300) for writer in writers] == [0, 0]
    rows = [row for part in (tmp_path / "index").glob("*.parquet") for row in pq.read_table(part)["file"].to_pylist()]
    assert sorted(rows) == [file.name for file in sounds]


def test_without_locks_the_newest_row_of_a_file_counts(library, monkeypatch):
    collection, sounds = library
    monkeypatch.setattr(clap_hf.search.collection, "locked", lambda folder: nullcontext())
    before = load_audio(sounds / "0.wav")
    old = sorted(collection.folder.glob("*.parquet"))[0]
    stale = old.read_bytes()
    soundfile.write(sounds / "0.wav", sound(0.7, seed=9), RATE)
    collection.add(sounds)
    old.write_bytes(stale)  # what a process wrote that did not know of the change
    assert len(collection) == 5
    hits = collection.search(before, 10)
    assert sorted(hit.file for hit in hits) == sorted(sounds.iterdir()) and not any(hit.changed for hit in hits)
    assert hits[0].similarity < 0.9999, "the stale row, which is the sound itself, is no hit"
    assert collection.add(sounds).known == 5
    (sounds / "0.wav").unlink()
    assert collection.prune() == 1 and len(collection) == 4, "both rows are gone"


def test_a_part_that_is_removed_costs_its_own_sounds_alone(library, embedded):
    collection, sounds = library
    sorted(collection.folder.glob("*.parquet"))[0].unlink()
    assert len(collection) == 3
    others = {path: path.read_bytes() for path in collection.folder.glob("*.parquet")}
    assert collection.add(sounds).embedded == 2 and embedded == ["0.wav", "1.wav"] and len(collection) == 5
    assert {path: path.read_bytes() for path in others} == others


def test_check_lists_and_mends(library, processor, embedded):
    collection, sounds = library
    index = collection.folder
    with locked(index):  # as by a process that adds
        found = check_collection(index)
    assert (found.sounds, found.parts, found.whole, found.missing) == (5, 3, True, [])
    first, second, last = sorted(index.glob("*.parquet"))
    shutil.copyfile(last, index / "part-000007-again.parquet")
    vector = np.array(pq.read_table(first)["embedding"][0].as_py(), dtype=np.float32)
    first.write_bytes(first.read_bytes().replace(vector.tobytes(), (-vector).tobytes()))
    other = SoundCollection(index.with_name("other"), make_model(seed=1), processor)
    other.add(sounds / "0.wav")
    [stray] = other.folder.glob("*.parquet")
    stray.rename(index / "part-000008-stray.parquet")
    datasets.Dataset.from_dict({"file": ["a"]}).to_parquet(index / "theirs.parquet")
    (sounds / "2.wav").unlink()

    found = check_collection(index)
    assert list(found.damaged) == [first] and "a damaged part" in found.damaged[first]
    assert sorted(part.name for part in found.foreign) == ["part-000008-stray.parquet", "theirs.parquet"]
    assert found.repeated == [sounds / "4.wav"] and found.missing == [sounds / "2.wav"]
    assert (found.sounds, found.parts, found.whole, found.mended) == (3, 3, False, False)
    arguments = ["check", str(index), "--json", str(index.with_name("check.json"))]
    result = CliRunner().invoke(app, arguments)
    report = json.loads(index.with_name("check.json").read_text())
    assert (
        result.exit_code == 1
        and "1 parts damaged, 2 of another model; 1 sounds repeated, 1 missing." in (result.stdout.splitlines()[0])
    )
    assert {(row["problem"], row["file"]) for row in report["problems"]} == {
        ("damaged", str(first)),
        ("foreign", str(index / "part-000008-stray.parquet")),
        ("foreign", str(index / "theirs.parquet")),
        ("repeated", str(sounds / "4.wav")),
        ("missing", str(sounds / "2.wav")),
    }
    result = CliRunner().invoke(app, [*arguments, "--mend"])
    assert result.exit_code == 0 and "Mended." in result.stdout
    assert sorted(path.name for path in index.iterdir() if path.suffix == ".damaged") == [
        f"{first.name}.damaged",
        "part-000008-stray.parquet.damaged",
        "theirs.parquet.damaged",
    ]
    found = check_collection(index)
    assert found.whole and not found.repeated and (found.sounds, found.parts) == (3, 2)
    mended = SoundCollection(index, make_model(), processor)
    assert mended.add(sounds).embedded == 2 and embedded[-2:] == ["0.wav", "1.wav"]
    [hit, *_] = mended.search(load_audio(sounds / "4.wav"), 1)
    assert hit.file == sounds / "4.wav" and hit.similarity == pytest.approx(1, abs=1e-5)
    assert "no collection of sounds here" in CliRunner().invoke(app, ["check", str(sounds)]).stderr


def test_folders_and_queries_are_what_a_person_expects(library, processor, tmp_path, monkeypatch):
    collection, sounds = library
    one = SoundCollection(tmp_path / "one", make_model(), processor)
    assert one.add(str(sounds / "0.wav")).embedded == 1
    assert one.add(str(sounds)).embedded == 4
    monkeypatch.chdir(sounds)
    for query in (" ", ""):
        with pytest.raises(ValueError, match="expected words, or a sound"):
            collection.search(query)
    with pytest.raises(ValueError, match="'3.wav' is the name of a file.*pass a Path, or --like"):
        collection.search("3.wav")
    clip = load_audio("3.wav")
    data = (sounds / "3.wav").read_bytes()
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(clip.samples), sample_rate=RATE)
    )
    kinds = [sounds / "3.wav", clip, (sounds / "3.wav").open("rb"), io.BytesIO(data), decoder]
    kinds += [data, bytearray(data), memoryview(data), {"path": "3.wav"}, {"bytes": data, "path": None}]
    kinds += [{"array": clip.samples, "sampling_rate": RATE}, {"audio": {"bytes": data, "path": None}, "label": 1}]
    for kind in kinds:
        assert collection.search(kind, 1)[0].file == sounds / "3.wav"
    for samples in (clip.samples, torch.from_numpy(clip.samples), clip.samples[0].tolist()):
        assert collection.search(samples, 1, sampling_rate=RATE)[0].file == sounds / "3.wav"


def test_max_windows_belongs_to_the_collection(tmp_path, processor):
    soundfile.write(tmp_path / "long.wav", sound(4.3), RATE)
    collection = SoundCollection(tmp_path / "index", make_model(), processor, max_windows=2)
    collection.add(tmp_path / "long.wav")
    [hit] = collection.search(tmp_path / "long.wav")
    assert hit.similarity == pytest.approx(1, abs=1e-5)
    assert collection_facts(tmp_path / "index")["max_windows"] == 2
    with pytest.raises(ValueError, match="that model and its settings"):
        SoundCollection(tmp_path / "index", make_model(), processor)


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


def test_odd_files_are_skipped_and_the_rest_is_embedded(tmp_path, processor):
    """A FIFO, which would be waited for where it is opened, and a name that no parquet file holds."""
    os.mkfifo(tmp_path / "fifo.wav")
    soundfile.write(tmp_path / "sound.wav", sound(0.7), 16_000)
    shutil.copy(tmp_path / "sound.wav", os.fsencode(tmp_path) + b"/\xff.wav")
    found = SoundCollection(tmp_path / "index", make_model(), processor).add(tmp_path)
    assert found.embedded == 1
    reasons = {os.fsencode(file.name): reason for file, reason in found.skipped.items()}
    assert reasons.keys() == {b"fifo.wav", b"\xff.wav"}
    assert "expected a regular file" in reasons[b"fifo.wav"] and "its name is not UTF-8" in reasons[b"\xff.wav"]
