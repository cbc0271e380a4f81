"""Collections in detail: places in files, weights, filters, parts as queries, copies, upgrades, and the cache."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from clap_hf import SoundCollection, load_audio
from clap_hf.cli import app
from clap_hf.embedding import embed_texts
from clap_hf.search import Filter, WeightedQuery, check_collection, find_duplicates, load_part, parse_words
from clap_hf.search import collection as collection_module
from clap_hf.search.approximate import RECALL, approximate_index
from clap_hf.search.duplicates import fingerprint, likeness, waveform
from clap_hf.search.index import DATABASE
from clap_hf.streaming import embed_stream
from conftest import EXAMPLES, make_model, sound

RATE = 16_000


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A folder with short sounds, a folder in it with others, and a long one."""
    folder = tmp_path_factory.mktemp("library") / "sounds"
    (folder / "inner").mkdir(parents=True)
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", sound(0.5, seed=i), RATE)
        soundfile.write(folder / "inner" / f"{i}.wav", sound(0.8, seed=10 + i), RATE)
    quiet = 0.01 * sound(12.0, seed=20)
    quiet[int(7.3 * RATE) : int(8.3 * RATE)] = sound(1.0, seed=2)
    soundfile.write(folder / "long.wav", quiet, RATE)
    return folder


@pytest.fixture
def collection(sounds, processor):
    made = SoundCollection(sounds.parent / "index", make_model(), processor, "tiny", hop_s=0.5)
    made.add(sounds)
    return made


def test_a_hit_in_a_long_file_has_its_seconds(collection, sounds, processor):
    windows = embed_stream(collection.model, processor, sounds / "long.wav", hop_s=0.5)
    part = load_audio(sounds / "long.wav", start_s=7.5, duration_s=1.0)
    [hit] = [hit for hit in collection.search(part, 20) if hit.file.name == "long.wav"]
    assert (hit.start_s, hit.end_s) == (7.5, 8.5) and hit.similarity == pytest.approx(1, abs=1e-3)
    assert hit.place.endswith("long.wav @ 00:08–00:08")
    text = embed_texts(collection.model, processor.tokenizer, ["a dog"])[0]
    best = float((windows.vectors @ text).max())
    [hit] = [hit for hit in collection.search("a dog", 20) if hit.file.name == "long.wav"]
    assert hit.similarity >= best - 1e-5
    short = [hit for hit in collection.search("a dog", 20) if hit.file.name != "long.wav"]
    assert len(short) == 8 and all(hit.start_s is None for hit in short)
    with pytest.raises(ValueError, match="its windows have the hop 0.5 s, expected None"):
        SoundCollection(collection.folder, collection.model, processor, "tiny")


def test_weights_add_up(collection):
    model, tokenizer = collection.model, collection.processor.tokenizer
    dog, rain = embed_texts(model, tokenizer, ["dog", "rain"])
    query = parse_words('"dog":1, "rain":-0.5')
    assert query == WeightedQuery((("dog", 1.0), ("rain", -0.5)))
    assert parse_words('the "dog":1 sign') == 'the "dog":1 sign' and parse_words("a dog") == "a dog"
    whole = {hit.file.name: hit for hit in collection.search(query, 20, where=Filter(max_s=0.6))}
    vectors = collection._index.vectors()
    for number, file in enumerate(vectors.files):
        if file.count("/") == 1 and not file.endswith("long.wav"):
            vector = torch.from_numpy(vectors.matrix[vectors.first[number]])
            assert whole[file.rsplit("/")[-1]].similarity == pytest.approx(
                float(vector @ (dog - 0.5 * rain)), abs=1e-5
            )
    files = [collection.folder.parent / "sounds" / name for name in ("1.wav", "3.wav")]
    two = WeightedQuery(tuple((file, 0.5) for file in files))
    one, other = (
        {hit.file: hit.similarity for hit in collection.search(file, 20, where=Filter(max_s=0.6))} for file in files
    )
    for hit in collection.search(two, 20, where=Filter(max_s=0.6)):
        assert hit.similarity == pytest.approx((one[hit.file] + other[hit.file]) / 2, abs=1e-5)


def test_sounds_closer_to_what_is_excluded_are_left_out(collection, sounds):
    wanted, other = (
        {hit.file: hit.similarity for hit in collection.search(sounds / name, 20)} for name in ("1.wav", "2.wav")
    )
    found = {hit.file for hit in collection.search(sounds / "1.wav", 20, exclude=sounds / "2.wav")}
    assert found == {file for file in wanted if other[file] < wanted[file]}
    assert sounds / "1.wav" in found and sounds / "2.wav" not in found


def test_filters(collection, sounds, processor):
    names = lambda **filters: sorted(  # noqa: E731
        hit.file.relative_to(sounds).as_posix() for hit in collection.search("a dog", 20, where=Filter(**filters))
    )
    assert names(folder=sounds / "inner") == [f"inner/{i}.wav" for i in range(4)]
    assert len(names(folder=sounds)) == 9 and len(names(folder=sounds.parent)) == 9
    assert len(names(folder=sounds.parent.parent)) == 9 and names(folder=sounds.parent / "elsewhere") == []
    assert names(min_s=10) == ["long.wav"] and names(min_s=0.6, max_s=1) == [f"inner/{i}.wav" for i in range(4)]
    done = collection.add([sounds / "1.wav", sounds / "inner" / "2.wav"], tags=["field", "night"])
    assert (done.embedded, done.recognised) == (0, 2)
    assert collection.add(sounds / "1.wav", tags=["day"]).recognised == 1
    assert collection.add(sounds / "1.wav", tags=["day", "field"]).known == 1
    assert names(tags=("field",)) == ["1.wav", "inner/2.wav"] and names(tags=("day", "night")) == ["1.wav"]
    assert names(tags=("iel",)) == []
    with pytest.raises(ValueError, match="A tag is ''"):
        collection.add(sounds, tags=[""])


def test_a_part_of_a_sound_is_a_query(collection, sounds):
    part = load_part(f"{sounds / 'long.wav'}@7.5-8.5")
    np.testing.assert_array_equal(part.samples, load_audio(sounds / "long.wav", start_s=7.5, duration_s=1.0).samples)
    assert load_part(str(sounds / "long.wav")).duration_s == 12.0
    with pytest.raises(ValueError, match="ends at 3 s, expected an end after its start, 5 s"):
        load_part(f"{sounds / 'long.wav'}@5-3")


def test_the_database_is_a_cache(collection, sounds, processor):
    expected = collection.search("a dog", 20)
    path = collection.folder / DATABASE
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT COUNT(*) FROM sounds").fetchone() == (9,)
        database.execute("UPDATE sounds SET damage = 'edited'")
        database.execute("UPDATE parts SET size = 1")  # as of another part
    again = SoundCollection(collection.folder, collection.model, processor, "tiny", hop_s=0.5)
    assert again.search("a dog", 20) == expected
    for content in (b"no database", path.read_bytes()[:5000]):
        path.write_bytes(content)
        again = SoundCollection(collection.folder, collection.model, processor, "tiny", hop_s=0.5)
        assert again.search("a dog", 20) == expected and again.add(sounds).known == 9
    path.unlink()
    path.mkdir()  # cannot be opened: in memory then
    assert (
        SoundCollection(collection.folder, collection.model, processor, "tiny", hop_s=0.5).search("a dog", 20)
        == expected
    )
    path.rmdir()


class Killed(BaseException):
    """What no code catches."""


def content(folder):
    """Rows of every file, without what depends on the order of writing."""
    rows = [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    return {row["file"]: row for row in rows}, len(rows)


@pytest.mark.parametrize("before", [True, False])
def test_a_kill_at_any_write_ends_as_an_undisturbed_run(sounds, processor, tmp_path, monkeypatch, before):
    monkeypatch.setattr(collection_module, "FILES_PER_PART", 4)
    model = make_model()

    def run(folder):
        made = SoundCollection(folder, model, processor, "tiny", hop_s=0.5)
        made.add(sounds / "inner")
        made.add(sounds, tags=["all"])  # writes the rows of known files again

    run(sounds.parent / f"whole-{before}")
    expected = content(sounds.parent / f"whole-{before}")
    replace, kills = os.replace, 0
    for moment in itertools.count():
        folder = sounds.parent / f"killed-{before}-{moment}"
        left = [moment]

        def replaced(source, target, left=left):
            left[0] -= 1
            if before and left[0] == -1:
                raise Killed
            replace(source, target)
            if not before and left[0] == -1:
                raise Killed

        monkeypatch.setattr(os, "replace", replaced)
        try:
            run(folder)
        except Killed:
            kills += 1
        else:
            break
        finally:
            monkeypatch.setattr(os, "replace", replace)
        run(folder)
        assert content(folder) == expected
        assert check_collection(folder).whole
    assert kills >= 4


def test_upgrade_swaps_when_all_is_done(sounds, processor, tmp_path, monkeypatch):
    old = SoundCollection(sounds.parent / "grows", make_model(), processor, "old", hop_s=0.5)
    old.add(sounds / "inner", tags=["inner"])
    old.add([sounds / "0.wav", sounds / "long.wav"])
    before, better = old.search("a dog", 20), make_model(seed=1)
    replace = os.replace

    def stopped(source, target):
        if str(target) == str(old.folder):
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(Killed):
        old.upgrade(better, processor, "new")
    monkeypatch.setattr(os, "replace", replace)
    assert not old.folder.exists()
    reopened = SoundCollection(old.folder, old.model, processor, "old", hop_s=0.5)  # the old embeddings are back
    assert reopened.search("a dog", 20) == before
    new, done = reopened.upgrade(better, processor, "new")
    assert (done.known, done.embedded, done.skipped) == (6, 0, {}), "all was done before the kill"
    fresh = SoundCollection(sounds.parent / "fresh", better, processor, "new", hop_s=0.5)
    fresh.add([sounds / "inner", sounds / "0.wav", sounds / "long.wav"])
    assert new.search("a dog", 20) == fresh.search("a dog", 20) != before
    assert {hit.file.parent.name for hit in new.search("a dog", where=Filter(tags=("inner",)))} == {"inner"}
    assert not list(sounds.parent.glob("grows.*"))
    with pytest.raises(ValueError, match="holds embeddings of the model 'new'"):
        old.add(sounds)


CODECS = {
    "wav": {"subtype": "PCM_16"},
    "flac": {"subtype": "PCM_24"},
    "ogg": {"subtype": "VORBIS"},
    "mp3": {},
    "opus.ogg": {"subtype": "OPUS"},
    "au": {"subtype": "ULAW"},
}


def test_copies_in_other_codecs_levels_and_cuts_are_found(processor, tmp_path):
    originals = ["dog.ogg", "sheep.wav", "steam_train.flac", "speech.wav", "fire.ogg"]
    expected = []
    (tmp_path / "sounds").mkdir()
    for name in originals:
        audio = load_audio(EXAMPLES / name)
        samples = audio.samples.mean(axis=0)
        copies = []
        for number, (codec, options) in enumerate(CODECS.items()):
            cut = samples[int(0.08 * len(samples)) :] if number % 2 else samples
            rate = {"opus.ogg": 48_000, "au": 16_000}.get(codec, audio.sampling_rate)
            copy = soxr.resample(cut, audio.sampling_rate, rate) * 10 ** (-6 * (number % 3) / 20)
            copies.append(tmp_path / "sounds" / f"{name}.{codec}")
            soundfile.write(copies[-1], 0.7 * copy, rate, **options)
        expected.append(sorted(copies))
    # An untrained model puts all sounds close together: every pair is compared.
    SoundCollection(tmp_path / "index", make_model(), processor).add(tmp_path / "sounds")
    assert find_duplicates(tmp_path / "index").groups == sorted(expected)
    # By its vector a copy may be next to other sounds in the same codec; by its shape it is next to its original.
    assert find_duplicates(tmp_path / "index", neighbours=1).groups == sorted(expected)
    result = CliRunner().invoke(app, ["duplicates", str(tmp_path / "index"), "--format", "json"])
    assert json.loads(result.stdout)["groups"] == [list(map(str, group)) for group in sorted(expected)]


def test_sounds_of_one_kind_are_no_copies(processor, tmp_path):
    """Two explosions have log-mels alike, but not waveforms."""
    (tmp_path / "sounds").mkdir()
    fade = np.exp(-np.arange(2 * RATE) / (0.3 * RATE))
    for i in range(3):
        noise = np.cumsum(np.random.default_rng(i).normal(size=2 * RATE))
        burst = fade * (noise - np.convolve(noise, np.ones(400) / 400, "same"))
        soundfile.write(tmp_path / "sounds" / f"{i}.wav", 0.5 * burst / np.abs(burst).max(), RATE)
    one, other = (tmp_path / "sounds" / f"{i}.wav" for i in range(2))
    assert likeness(fingerprint(one), fingerprint(other)) > 0.9
    assert likeness(waveform(one), waveform(other)) < 0.2
    SoundCollection(tmp_path / "index", make_model(), processor).add(tmp_path / "sounds")
    assert find_duplicates(tmp_path / "index").groups == []


def test_approximate_search_states_its_recall():
    pytest.importorskip("faiss")
    random = torch.Generator().manual_seed(0)
    matrix = F.normalize(torch.randn(3000, 32, generator=random), dim=-1).numpy()
    index = approximate_index(matrix)
    assert index is not None and index.kind == "hnsw" and index.recall >= RECALL
    queries = F.normalize(torch.randn(100, 32, generator=random), dim=-1).numpy()
    exact = np.argsort(-(queries @ matrix.T), axis=1)[:, :10]
    found = [set(index.nearest(query, 10)[1].tolist()) & set(row) for query, row in zip(queries, exact, strict=True)]
    assert sum(map(len, found)) / 1000 >= 0.9


def test_approximate_and_exact_search_agree(collection, monkeypatch):
    pytest.importorskip("faiss")
    expected = collection.search("a dog", 20)
    monkeypatch.setattr("clap_hf.search.index.EXACT_VECTORS", 5)
    found = collection.search("a dog", 20)
    assert [hit.place for hit in found] == [hit.place for hit in expected]


def test_collections_from_the_command_line(sounds, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
        assert result.exit_code == 0, result.output
        return result.stdout

    index = sounds.parent / "by-command"
    run("embed", sounds / "inner", "--output", index, "--model", checkpoint, "--hop", 0.5, "--tag", "inner")
    run("embed", sounds / "long.wav", "--output", index, "--model", checkpoint)  # with the hop of before
    printed = run("search", index, "--like", f"{sounds / 'long.wav'}@7.5-8.5", "--top-k", 1)
    assert "long.wav @ 00:08–00:08" in printed
    found = json.loads(
        run("search", index, '"a dog":1,"rain":-0.5', "--tag", "inner", "--min-length", 0.1, "--json", "-")
    )
    assert len(found["hits"]) == 4 and found["matches"] is None
    torch.manual_seed(1)
    make_model(seed=1).save_pretrained(tmp_path / "other")
    collection_processor(checkpoint).save_pretrained(tmp_path / "other")
    assert "5 sounds in" in run("upgrade", index, "--model", tmp_path / "other")
    assert json.loads(run("search", index, "a dog", "--json", "-"))["model"] == str((tmp_path / "other").resolve())


def collection_processor(checkpoint):
    from clap_hf import MSClapProcessor

    return MSClapProcessor.from_pretrained(checkpoint)
