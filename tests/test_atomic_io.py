"""Files are written whole or not at all."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clap_hf.atomic_io import (
    PartError,
    PartStore,
    locked,
    part_facts,
    replace_folder,
    replacing,
    restore_folder,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "numbers.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    with pytest.raises(OSError, match="No space left"), replacing(path) as fresh:
        fresh.write_text("{")
        raise OSError("No space left on device")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["numbers.json"]


def test_what_killed_writers_left_is_removed_after_an_hour(tmp_path):
    for name, age_s in (("a.json.0123456789ab.new", 3700), ("b.json.0123456789ab.new", 60), ("mine.new", 9999)):
        (tmp_path / name).write_text("{")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    write_json(tmp_path / "c.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json.0123456789ab.new", "c.json", "mine.new"]


def test_a_locked_folder_is_waited_for(tmp_path):
    order: list[str] = []

    def second():
        order.append("waits")
        with locked(tmp_path / "new"):
            order.append("second")

    with locked(tmp_path / "new"):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.5)
        order.append("first")
    other.join(60)
    assert order == ["waits", "first", "second"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "vectors.safetensors"
    path.write_text("old")
    with replacing(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
        assert fresh.suffix == ".new"  # what is not whole never ends in .safetensors, nor is it uploaded
    assert path.read_text() == "new"


def write_folder(content):
    def write(folder):
        folder.mkdir()
        (folder / "weights").write_text(content)

    return write


def fail(folder):
    folder.mkdir()
    raise OSError("No space left on device")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "best"
    replace_folder(folder, write_folder("first"))
    replace_folder(folder, write_folder("second"))
    with pytest.raises(OSError, match="No space left"):
        replace_folder(folder, fail)
    assert (folder / "weights").read_text() == "second" and list(tmp_path.iterdir()) == [folder]


def test_the_only_copy_of_a_folder_survives_a_kill_between_the_renames(tmp_path):
    folder = tmp_path / "best"
    write_folder("first")(tmp_path / "best.old")  # where a kill leaves it
    write_folder("second")(tmp_path / "best.new")
    with pytest.raises(OSError, match="No space left"):
        replace_folder(folder, fail)
    assert (folder / "weights").read_text() == "first" and list(tmp_path.iterdir()) == [folder]
    folder.rename(tmp_path / "best.old")
    restore_folder(folder)
    restore_folder(folder)
    assert (folder / "weights").read_text() == "first"
    replace_folder(folder, write_folder("third"))
    assert (folder / "weights").read_text() == "third" and list(tmp_path.iterdir()) == [folder]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "best"
    replace_folder(folder, write_folder("first"))
    real = os.replace

    def refuse(source, target):
        if str(source).endswith(".new"):
            raise OSError("Read-only file system")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Read-only"):
        replace_folder(folder, write_folder("second"))
    assert (folder / "weights").read_text() == "first"


SCHEMA = pa.schema({"name": pa.string(), "vector": pa.list_(pa.float32())})


def rows(first, count=3):
    return [{"name": f"row {i}", "vector": [float(i)] * 4} for i in range(first, first + count)]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_parts_keep_rows_and_facts(tmp_path, suffix):
    store = PartStore(tmp_path / "parts", "abc", SCHEMA, suffix=suffix, about={"model": "m"})
    assert store.paths() == [] and not store.has("one")
    one = store.write(rows(0, 250), "one", lambda: {"count": 250})
    assert store.has("one") and not PartStore(store.folder, "other", SCHEMA, suffix=suffix).has("one")
    assert part_facts(one) == {"identity": "abc", "model": "m", "count": 250}
    assert store.read(one).to_pylist() == rows(0, 250)
    assert store.read(one, ["name"]).column_names == ["name"]
    with pytest.raises(PartError, match="one.*made from abc, expected other"):
        PartStore(store.folder, "other", SCHEMA, suffix=suffix).read(one)
    assert [path.suffix for path in store.folder.iterdir()] == [suffix]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_rows_are_written_as_they_come(tmp_path, suffix):
    store, written = PartStore(tmp_path, "abc", SCHEMA, suffix=suffix), []

    def long_rows():
        for i in range(301):
            [fresh] = tmp_path.glob("*.new")
            written.append(fresh.stat().st_size)
            yield {"name": f"row {i}", "vector": [float(i)] * 10_000}

    facts = part_facts(store.write(long_rows(), "one", lambda: {"rows": len(written)}))
    assert facts["rows"] == 301
    group = 100 * 10_000 * 4
    assert written[99] < group <= written[100] - written[99] and written[300] > 3 * group


def test_new_parts_never_replace_others(tmp_path):
    store = PartStore(tmp_path, "abc", SCHEMA)
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda i: store.write(rows(i)), range(32)))
    assert len(set(written)) == 32 and sorted(written) == store.paths()
    written[5].unlink()
    store.write(rows(99))
    assert len(store.paths()) == 32
    names = {row["name"] for path in store.paths() for row in store.read(path).to_pylist()}
    assert len(names) >= 32


def test_damaged_parts_are_named_with_the_remedy(tmp_path):
    store = PartStore(tmp_path, "abc", SCHEMA)
    path = store.write(rows(0, 50))
    whole = path.read_bytes()
    place = whole.index(np.full(4, 7, dtype=np.float32).tobytes())
    for damaged in (whole[: len(whole) // 2], b"", whole[:place] + b"\x01" + whole[place + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(PartError, match=f"{path.name}: a damaged part .*Remove the file"):
            store.read(path)
    path.write_bytes(whole)
    assert store.read(path).num_rows == 50
    pq.write_table(pa.table({"a": [1]}), tmp_path / "theirs.parquet")
    with pytest.raises(PartError, match="theirs.parquet: not a part that clap-hf wrote"):
        part_facts(tmp_path / "theirs.parquet")
