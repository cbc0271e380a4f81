"""Files that would take far more memory or disk than their size: refused unread, by a stated bound."""

import io
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clap_hf import atomic_io
from clap_hf.atomic_io import PartError, PartStore, check_unpacked, read_part
from clap_hf.cli import app
from clap_hf.data.own import read_pairs
from clap_hf.data.source import StreamSource
from clap_hf.evaluation.loading import DataLocation, _unpacked
from clap_hf.text_files import MAX_BYTES, read_json, read_text
from clap_hf.training.resume import is_whole, newest_checkpoint
from test_hostile_files import BROKEN
from training.test_kill_and_resume import checkpoint

SCHEMA = pa.schema({"file": pa.string(), "embedding": pa.list_(pa.float32(), 8)})


def write_part(path, rows, **options):
    table = pa.table(
        {"file": ["a.wav"] * rows, "embedding": pa.array([[0.0] * 8] * rows, SCHEMA.field("embedding").type)}
    )
    metadata = {"clap_hf": '{"identity": "x"}'}
    pq.write_table(table.replace_schema_metadata(metadata), path, **options)


@pytest.mark.parametrize(
    "options",
    [{"compression": "zstd", "use_dictionary": False}, {"compression": "gzip"}, {"compression": "none"}],
    ids=["zstd", "gzip", "dictionary"],
)
def test_a_part_that_would_unpack_is_refused_unread(tmp_path, options):
    part = tmp_path / "part-0.parquet"
    write_part(part, 200_000, **options)
    assert part.stat().st_size < 300_000  # of 6.4 MB
    with pytest.raises(PartError, match="part-0.parquet: not a part that clap-hf wrote: the column .* is packed"):
        read_part(part)
    result = CliRunner().invoke(app, ["check", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 1 and "1 of another model" in " ".join(result.stdout.split())


def test_a_part_of_nothing_but_empty_rows_is_refused(tmp_path):
    rows = pa.table({"file": pa.nulls(1_000_000, pa.string())}).replace_schema_metadata(
        {"clap_hf": '{"identity": "x"}'}
    )
    pq.write_table(rows, tmp_path / "part-0.parquet", compression="none", use_dictionary=False)
    with pytest.raises(PartError, match="states 1,000,000 values in"):
        read_part(tmp_path / "part-0.parquet")
    written = PartStore(tmp_path / "own", "x", SCHEMA).write(
        {"file": f"{i}", "embedding": [0.0] * 8} for i in range(9)
    )
    assert len(read_part(written)) == 9


@pytest.fixture
def lower(monkeypatch):
    """The bound for small files at 1 MB, so that a bomb is made in no time."""
    assert (atomic_io.UNPACKED_BYTES, atomic_io.UNPACKED_RATIO) == (1 << 28, 200)
    monkeypatch.setattr(atomic_io, "UNPACKED_BYTES", 1 << 20)


@pytest.mark.parametrize("width", ["bytes", "numbers"])
def test_parquet_from_elsewhere_may_unpack_to_200_times_its_size(tmp_path, lower, width):
    path = tmp_path / "train.parquet"
    column = pa.repeat(pa.scalar(0, pa.int64()), 1_000_000) if width == "numbers" else pa.array([bytes(8_000_000)])
    pq.write_table(pa.table({"audio": column}), path, compression="zstd")
    with pytest.raises(ValueError, match=r"train.parquet: unpacks from [\d,]+ bytes to 8,\d{3},\d{3}, expected"):
        check_unpacked(path)
    result = CliRunner().invoke(app, ["finetune", str(tmp_path), "--output-dir", str(tmp_path / "run")])
    assert result.exit_code == 2 and "train.parquet: unpacks from" in result.stderr
    pq.write_table(pa.table({"audio": np.arange(100_000)}), path, compression="zstd")
    check_unpacked(path)


def test_an_archive_may_unpack_to_200_times_its_size(tmp_path, lower):
    archive = tmp_path / "sounds.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("a.wav", bytes(8_000_000))
    location = DataLocation(None, None, "x", "identity")
    with pytest.raises(ValueError, match=r"sounds.zip: unpacks from [\d,]+ bytes to 8,000,000, expected at most"):
        _unpacked(archive, tmp_path / "cache", location)
    assert not [path for path in tmp_path.rglob("*") if path.name == "a.wav"]


def test_names_in_an_archive_do_not_leave_its_folder(tmp_path):
    archive = tmp_path / "sounds.zip"
    with zipfile.ZipFile(archive, "w") as content:
        for name in ("../../../out.wav", "/out.wav", "a/../../out.wav"):
            content.writestr(name, b"x")
    folder = _unpacked(archive, tmp_path / "cache", DataLocation(None, None, "x", "identity"))
    assert {path.resolve().is_relative_to(folder) for path in tmp_path.rglob("out.wav")} == {True}


def test_members_of_tars_are_read_in_place_and_texts_are_short(tmp_path):
    def write(name, size, kind=tarfile.REGTYPE, link=""):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            about = tarfile.TarInfo(name)
            about.size, about.type, about.linkname = size, kind, link
            tar.addfile(about, io.BytesIO(bytes(size)))

    write("a.txt", (1 << 20) + 1)
    with pytest.raises(ValueError, match=r"a.tar: a.txt has 1,048,577 bytes, expected .* at most 1,048,576"):
        read_pairs(StreamSource(str(tmp_path)))
    for name, kind, link in (("../../x.wav", tarfile.REGTYPE, ""), ("a.wav", tarfile.SYMTYPE, "/etc/passwd")):
        write(name, 10 if kind == tarfile.REGTYPE else 0, kind, link)
        with pytest.raises(ValueError, match=r"columns \['audio'\]|without a sound"):
            read_pairs(StreamSource(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_texts_have_a_size(tmp_path):
    path = tmp_path / "labels.txt"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match=r"labels.txt has 1,073,741,825 bytes, expected at most 1,073,741,824"):
        read_text(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("breakage", BROKEN)
@pytest.mark.parametrize("name", ["state.pt", "progress.json", "manifest.json"])
def test_a_run_goes_on_from_the_checkpoint_before_a_broken_one(tmp_path, breakage, name):
    old, new = checkpoint(tmp_path, 5), checkpoint(tmp_path, 6)
    (new / name).unlink()
    BROKEN[breakage](new / name)
    assert not is_whole(new) and newest_checkpoint(tmp_path) == old
    assert not (new / "ran").exists()
