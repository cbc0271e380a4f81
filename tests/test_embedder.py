"""Sounds in columns: every kind, bad rows, `datasets.map` and Ray; and collections made by several processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tarfile
import textwrap

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from clap_hf import ClapEmbedder, SoundCollection, embed_files
from clap_hf.cli import app
from clap_hf.model.modeling_msclap import MSClapModel
from clap_hf.pretrained import load_checked
from clap_hf.search import add_in_shards, check_collection
from clap_hf.streaming import embed_stream
from conftest import EXAMPLES, sound, write_sounds

RATE = 16_000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Seven sounds, the first of three windows, and one that is none."""
    folder = tmp_path_factory.mktemp("library") / "sounds"
    write_sounds(folder, 7, RATE)
    (folder / "x.wav").write_bytes(b"no sound")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def embedder(checkpoint):
    return ClapEmbedder(str(checkpoint), hop_s=0.5)


def collection_of(folder, checkpoint, hop_s=None):
    model, processor = load_checked(MSClapModel, str(checkpoint))
    return SoundCollection(folder, model, processor, str(checkpoint), hop_s=hop_s)


def vectors_of(folder):
    """Vector of every row of a collection by its id."""
    rows = [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: np.array(row["embedding"], np.float32) for row in rows}


def test_every_kind_of_sound_has_the_vector_of_its_file(files, embedder):
    found = pickle.loads(pickle.dumps(embedder))({"path": [str(file) for file in files], "label": list("abcdefgh")})
    encoder = embedder.encoder()
    expected = embed_files(encoder.model, encoder.processor, files)
    np.testing.assert_allclose(found["embedding"][:7], expected.vectors.numpy(), atol=1e-6)
    assert found["label"] == list("abcdefgh") and found["error"][:7] == [""] * 7
    assert np.isnan(found["embedding"][7]).all() and "x.wav" in found["error"][7] and "\n" not in found["error"][7]
    windows = embed_stream(encoder.model, encoder.processor, files[0], hop_s=0.5)
    np.testing.assert_allclose(found["windows"][0], windows.vectors.numpy(), atol=1e-6)
    assert found["starts"][0].tolist() == [0.0, 0.5, 1.0, 1.5] and found["ends"][0][-1] == 2.5
    assert found["windows"][1].shape == (0, 24)

    encoded = [file.read_bytes() for file in files]
    samples = [soundfile.read(file, dtype="float32")[0] for file in files[:7]]
    others = (
        {"bytes": encoded},
        {"audio": [{"bytes": content, "path": None} for content in encoded]},
        {"audio": [{"array": array, "sampling_rate": RATE} for array in samples]},
        {"array": [array.tolist() for array in samples], "sampling_rate": [RATE] * 7},
    )
    for batch in others:
        other = embedder(batch)
        np.testing.assert_allclose(other["embedding"][:7], expected.vectors.numpy(), atol=1e-6)
        assert "audio" not in other and "bytes" not in other and "array" not in other
    assert embedder(others[0])["id"] == found["id"] == embedder(others[1])["id"]
    assert embedder(others[2])["id"] == embedder(others[3])["id"] != found["id"][:7]


def test_ids_change_with_sound_policy_and_model(files, embedder, checkpoint, tmp_path):
    path = {"path": [str(files[0])]}
    model, processor = load_checked(MSClapModel, str(checkpoint))
    with torch.no_grad():
        model.audio_projection.linear1.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    others = (
        ClapEmbedder(str(checkpoint)),
        ClapEmbedder(str(checkpoint), hop_s=0.25),
        ClapEmbedder(str(checkpoint), max_windows=1, hop_s=0.5),
        ClapEmbedder(str(tmp_path / "other"), hop_s=0.5),
    )
    ids = [made(path)["id"][0] for made in (embedder, *others)]
    ids += embedder({"path": [str(file) for file in files[1:]]})["id"]
    assert len(set(ids)) == len(ids) and embedder(path)["id"] == ids[:1]


def test_bad_rows_have_an_error_each(files, embedder):
    good = {"array": sound(0.5), "sampling_rate": RATE}
    bad = [
        None,
        {},
        {"path": "none.wav"},
        {"path": str(files[0].parent)},
        {"bytes": b""},
        {"bytes": b"RIFF"},
        {"array": [], "sampling_rate": RATE},
        {"array": [0.0, float("nan")], "sampling_rate": RATE},
        {"array": ["a", "b"], "sampling_rate": RATE},
        {"array": [0.1, 0.2]},
        {"array": sound(0.5), "sampling_rate": -1},
        7,
        object(),
    ]
    found = embedder({"audio": [*bad, good]})
    assert np.isnan(found["embedding"][:-1]).all() and len(found["error"]) == len(bad) + 1
    assert all(error and "\n" not in error for error in found["error"][:-1]), found["error"]
    assert found["error"][-1] == "" and np.linalg.norm(found["embedding"][-1]) == pytest.approx(1, abs=1e-5)
    assert embedder({"audio": []})["id"] == embedder({})["id"] == []


def test_datasets_map_takes_it_unchanged(files, embedder):
    rows = datasets.Dataset.from_dict({"path": [str(file) for file in files]})
    rows = rows.select([*range(7), 7, 7, 7])  # the last batch has no sound at all
    found = rows.map(embedder, batched=True, batch_size=2, num_proc=2)
    expected = embedder({"path": rows["path"][:]})
    assert found.features["embedding"].feature.dtype == found.features["windows"].feature.feature.dtype == "float32"
    assert found["id"][:] == expected["id"] and found["error"][7] == expected["error"][7]
    np.testing.assert_allclose(found["embedding"][:7], expected["embedding"][:7], atol=1e-6)
    encoded = rows.select(range(7)).rename_column("path", "audio").cast_column("audio", datasets.Audio(decode=False))
    assert encoded.map(embedder, batched=True, remove_columns="audio")["id"][:] == expected["id"][:7]


def test_shards_are_those_of_a_collection(files, checkpoint, tmp_path):
    alone = collection_of(tmp_path / "alone", checkpoint, hop_s=0.5)
    alone.add(files)
    made = collection_of(tmp_path / "made", checkpoint, hop_s=0.5)
    added = add_in_shards(made, files, num_processes=2, files_per_part=2, tags=["new"])
    assert added.embedded == 7 and list(added.skipped) == [files[7]]
    assert len(list(made.folder.glob("*.parquet"))) == 4
    expected, found = vectors_of(alone.folder), vectors_of(made.folder)
    assert found.keys() == expected.keys()
    for key, vector in expected.items():
        np.testing.assert_allclose(found[key], vector, atol=1e-6)
    columns = [
        [
            (row["file"], row["windows"] is None, row["starts"], row["duration_s"])
            for row in pq.read_table(part).to_pylist()
        ]
        for part in (*sorted(alone.folder.glob("*.parquet")), *sorted(made.folder.glob("*.parquet")))
    ]
    assert columns[0] == sum(columns[1:], [])
    assert made.search(files[3], 1)[0].file == files[3] and len(made.search("a dog", 20)) == 7

    again = add_in_shards(made, files, files_per_part=2)
    assert (again.embedded, again.known) == (0, 7)
    before = {part.name: part.read_bytes() for part in made.folder.glob("*.parquet")}
    repeated = sorted(made.folder.glob("*.parquet"))[0]
    repeated.with_name("part-000009-twice.parquet").write_bytes(repeated.read_bytes())
    lost = sorted(made.folder.glob("*.parquet"))[1]
    lost.unlink()
    assert add_in_shards(made, files, files_per_part=2, tags=["new"]).embedded == 2
    mended = check_collection(made.folder, mend=True)
    assert len(mended.repeated) == 2 and vectors_of(made.folder).keys() == expected.keys()
    after = {part.name[12:]: part.read_bytes() for part in made.folder.glob("*.parquet")}
    assert after[lost.name[12:]] == before[lost.name]  # bit by bit


def test_too_many_errors_stop_a_run(files, checkpoint, tmp_path):
    made = collection_of(tmp_path / "made", checkpoint)
    with pytest.raises(ValueError, match=r"1 of 8 files failed, expected at most 10.00%; the first: .*x.wav"):
        add_in_shards(made, files, max_errors=0.1)
    with pytest.raises(ValueError, match="engine is 'dask', expected one of"):
        add_in_shards(made, files, engine="dask")
    with pytest.raises(ValueError, match="expected .* as in the collection"):
        made.name = "embedded"
        add_in_shards(made, files)


def test_the_command_takes_processes(files, checkpoint, tmp_path):
    command = ["embed", str(files[0].parent), "--output", str(tmp_path / "c"), "--model", str(checkpoint)]
    done = CliRunner().invoke(app, [*command, "--num-processes", "1", "--finish"])
    assert done.exit_code == 0 and "7 sounds embedded, 0 known" in done.output and "x.wav" in done.output
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "0 sounds embedded, 7 known" in done.output


@pytest.mark.slow
def test_launched_processes_write_the_same_files(files, checkpoint, tmp_path):
    threads = max(1, (os.cpu_count() or 1) // 2)
    script = f"""
        from pathlib import Path
        from clap_hf.cli import app
        from clap_hf.search import shards
        shards.add_in_shards.__kwdefaults__["files_per_part"] = 2
        sounds = {str(files[0].parent)!r}
        app(["embed", sounds, "--output", {str(tmp_path / "launched")!r}, "--model", {str(checkpoint)!r}, "--finish"])
    """
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no_python", sys.executable, "-c"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", *launcher, textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("7 sounds embedded, 0 known") == 1, done.stdout
    parts = {part.name: part.read_bytes() for part in (tmp_path / "launched").glob("*.parquet")}
    assert len(parts) == 4
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (1, 2):
            made = collection_of(tmp_path / f"of{count}", checkpoint)
            add_in_shards(made, files, files_per_part=2, num_processes=count)
            assert {part.name: part.read_bytes() for part in made.folder.glob("*.parquet")} == parts
    finally:
        torch.set_num_threads(before)


def test_a_launcher_divides_the_files_alone(files, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(app, ["embed", str(files[0]), "--output", str(tmp_path), "--num-processes", "2"])
    assert done.exit_code == 2 and "--num-processes 2 and --engine processes" in done.stderr


@pytest.mark.slow
def test_ray_takes_it_unchanged_and_a_killed_worker_loses_nothing(files, checkpoint, tmp_path):
    pytest.importorskip("ray")
    script = f"""
        import os, signal, sys, threading, time
        import numpy as np, ray, ray.data
        from clap_hf import ClapEmbedder

        class Killed(ClapEmbedder):
            def __call__(self, batch):
                flag = {str(tmp_path / "killed")!r}
                if not os.path.exists(flag):
                    open(flag, "w").close()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(batch)

        ray.init(num_cpus=4, log_to_driver=False, object_store_memory=100_000_000)
        files = sorted(os.path.join({str(EXAMPLES)!r}, name) for name in os.listdir({str(EXAMPLES)!r}) if "." in name)
        expected = ClapEmbedder()({{"path": files}})
        rows = ray.data.from_items([{{"path": file}} for file in files], override_num_blocks=4)
        for made in (ClapEmbedder, Killed):
            pool = ray.data.ActorPoolStrategy(size=2)
            found = {{row["path"]: row for row in rows.map_batches(made, compute=pool, batch_size=4).iter_rows()}}
            assert sorted(found) == files
            for file, id, vector, error in zip(files, expected["id"], expected["embedding"], expected["error"]):
                assert found[file]["id"] == id and found[file]["error"] == error
                np.testing.assert_allclose(found[file]["embedding"], vector, atol=1e-6)
        assert os.path.exists({str(tmp_path / "killed")!r})
        print(len(files), "equal")
    """
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "16 equal" in done.stdout


@pytest.mark.slow
def test_ray_writes_the_same_files(files, checkpoint, tmp_path):
    ray = pytest.importorskip("ray")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(files[1], "1.wav")
    sounds = [*files, f"{tmp_path / 'set.tar'}#1.wav"]
    expected = collection_of(tmp_path / "processes", checkpoint, hop_s=0.5)
    add_in_shards(expected, sounds, num_processes=2, files_per_part=2)
    made = collection_of(tmp_path / "ray", checkpoint, hop_s=0.5)
    ray.init(num_cpus=4, log_to_driver=False, object_store_memory=100_000_000)
    try:
        added = add_in_shards(made, sounds, engine="ray", num_processes=2, files_per_part=2)
    finally:
        ray.shutdown()
    assert added.embedded == 8 and list(added.skipped) == [files[7]]
    parts, others = ({part.name: part.read_bytes() for part in c.folder.glob("*.parquet")} for c in (expected, made))
    assert parts == others
