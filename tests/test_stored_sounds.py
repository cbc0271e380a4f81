"""Sounds inside of parquet files, saved datasets, tars and datasets of the Hub, embedded like files."""

from __future__ import annotations

import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from clap_hf import SoundCollection
from clap_hf.audio.stored import read_inside
from clap_hf.cli import app
from clap_hf.data.own import sound_names
from clap_hf.model.modeling_msclap import MSClapModel
from clap_hf.pretrained import load_checked
from clap_hf.search import add_in_shards, check_collection, load_part
from conftest import write_sounds

RATE = 16_000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five sounds, the first longer than a window."""
    folder = tmp_path_factory.mktemp("library") / "sounds"
    write_sounds(folder, 5, RATE)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def forms(files, tmp_path_factory):
    """The same sounds in every form, a file or folder each."""
    root = tmp_path_factory.mktemp("forms")
    stored = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    rows = datasets.Dataset.from_dict({"audio": stored, "text": list("abcde")})
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    (root / "parquet" / "data").mkdir(parents=True)
    with pq.ParquetWriter(root / "parquet" / "data" / "train.parquet", rows.data.table.schema) as writer:
        writer.write_table(rows.data.table, row_group_size=2)  # the last group has one row
    rows.save_to_disk(root / "saved", num_shards=2)
    pq.write_table(pa.table({"path": [str(file) for file in files]}), root / "paths.parquet")
    with tarfile.open(root / "set.tar", "w") as archive:
        for file in files:
            archive.add(file, f"train/{file.name}")
            (root / "text.txt").write_text("a sound")
            archive.add(root / "text.txt", f"train/{file.stem}.txt")
    return {name: root / name for name in ("parquet", "saved", "paths.parquet", "set.tar")}


def rows_of(folder):
    """Vector of every row by its id, and the names."""
    rows = [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    return {row["id"]: np.array(row["embedding"], np.float32) for row in rows}, [row["file"] for row in rows]


def collection_of(folder, checkpoint):
    return SoundCollection(folder, *load_checked(MSClapModel, str(checkpoint)), str(checkpoint))


@pytest.fixture(scope="module")
def expected(files, checkpoint, tmp_path_factory):
    made = collection_of(tmp_path_factory.mktemp("expected") / "c", checkpoint)
    made.add(files)
    return rows_of(made.folder)[0]


@pytest.mark.parametrize("form", ["parquet", "saved", "paths.parquet", "set.tar"])
@pytest.mark.parametrize("options", [[], ["--num-processes", "1", "--max-errors", "0", "--finish"]])
def test_a_form_has_the_vectors_of_its_files(forms, form, options, expected, checkpoint, tmp_path):
    command = ["embed", str(forms[form]), "--output", str(tmp_path / "c"), "--model", str(checkpoint), *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "5 sounds embedded, 0 known" in done.output, done.output
    found, names = rows_of(tmp_path / "c")
    assert found.keys() == expected.keys() and len(names) == 5
    for key, vector in expected.items():
        np.testing.assert_allclose(found[key], vector, atol=1e-6)
    assert "0 sounds embedded, 5 known" in CliRunner().invoke(app, command).output
    checked = check_collection(tmp_path / "c")
    assert checked.whole and not checked.missing


def test_a_dataset_of_the_hub_is_embedded(hub, forms, expected, checkpoint, tmp_path):
    HfApi().create_repo("acme/sounds", repo_type="dataset")
    HfApi().upload_folder(repo_id="acme/sounds", repo_type="dataset", folder_path=forms["parquet"])
    command = ["embed", "acme/sounds", "--output", str(tmp_path / "c"), "--model", str(checkpoint)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "5 sounds embedded" in done.output, done.output
    assert rows_of(tmp_path / "c")[0].keys() == expected.keys()
    done = CliRunner().invoke(app, ["embed", "acme/none", *command[2:]])
    assert done.exit_code == 2 and "no such dataset on the Hub" in done.stderr


def test_searches_name_the_row_until_the_file_is_gone(forms, files, checkpoint, tmp_path):
    archive = tmp_path / "set.tar"
    archive.write_bytes(forms["set.tar"].read_bytes())
    made = collection_of(tmp_path / "c", checkpoint)
    made.add([*sound_names([archive]), files[3]])
    (hit,) = made.search(load_part(f"{archive}#train/2.wav"), 1)
    assert hit.file.name == "2.wav" and str(hit.file) == f"{archive}#train/2.wav" and not hit.changed
    assert len(made) == 6 and made.prune() == 0
    upgraded, done = made.upgrade(made.model, made.processor, made.name)
    assert len(upgraded) == 6 and not done.skipped
    archive.unlink()
    assert upgraded.prune() == 5 and len(upgraded) == 1


def test_collections_and_text_are_no_sounds(forms, files, checkpoint, tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.wav").write_bytes(files[1].read_bytes())
    collection_of(folder / "index", checkpoint).add([folder / "a.wav"])
    pq.write_table(pa.table({"text": ["a", "b"]}), folder / "texts.parquet")
    assert sound_names([folder]) == [str(folder / "a.wav")]
    assert sound_names([forms["paths.parquet"], *files]) == [str(file) for file in files]


def test_what_cannot_be_read_is_named(forms, files, checkpoint, tmp_path):
    for ending in (".parquet", ".tar", ".arrow"):
        (tmp_path / f"bad{ending}").write_bytes(b"no such thing" * 100)
        with pytest.raises(ValueError, match=rf"bad\{ending}: .*expected an? .*{ending[1:]}"):
            sound_names([tmp_path / f"bad{ending}"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no sound is here"):
        sound_names([tmp_path / "empty"])
    (row,) = (str(file) for file in (forms["parquet"] / "data").iterdir())
    for name, entry in ((row, "5"), (row, "x"), (str(forms["set.tar"]), "train/9.wav")):
        with pytest.raises(ValueError, match="no such sound"):
            read_inside(name, entry)
    added = add_in_shards(collection_of(tmp_path / "c", checkpoint), [files[0], f"{row}#7", f"{row}#1"])
    assert added.embedded == 2 and "no such sound" in json.dumps([*added.skipped.values()])
