"""Runs killed at random moments end as if they had not been; the script beside this does more of them."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clap_hf.atomic_io import write_text
from clap_hf.training.resume import has_checkpoint, is_whole, load_checkpoint, newest_checkpoint, save_checkpoint
from pairs import write_pairs


def kill_and_resume(folder: Path, *arguments: str) -> dict:
    pairs = write_pairs(folder / "pairs", bad=(13, 40))
    write_pairs(pairs, rows=16, files=1, split="validation")
    script = Path(__file__).parent / "kill_and_resume.py"
    command = [sys.executable, script, "--dataset", pairs, "--text", "text", "--folder", folder / "runs", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "workers"), [("1", "2"), ("2", "0")])
def test_killed_runs_end_as_if_they_had_not_been(tmp_path, processes, workers):
    found = kill_and_resume(tmp_path, "--kills", "2", "--processes", processes, "--workers", workers)
    assert found["bit_equal"] == found["kills"] == 2, found


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    found = kill_and_resume(tmp_path, "--kills", "1", "--processes", "2", "--resume-processes", "1", "--workers", "0")
    # The same batches and random numbers, which the script itself checks; sums are taken in another order.
    assert found["largest_difference"] < 1e-4, found


def checkpoint(folder, step):
    return save_checkpoint(folder, f"step-{step:09d}", {"weights": torch.full((1000,), step)}, {"step": step})


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    old, new = checkpoint(tmp_path / "a", 5), checkpoint(tmp_path / "b", 6)
    for damage in ("cut", "flipped", "missing"):
        torn = tmp_path / damage / new.name
        (tmp_path / damage).mkdir()
        old_copy = tmp_path / damage / old.name
        for source, target in ((old, old_copy), (new, torn)):
            target.mkdir()
            for file in source.iterdir():
                (target / file.name).write_bytes(file.read_bytes())
        data = (torn / "state.pt").read_bytes()
        if damage == "cut":
            (torn / "state.pt").write_bytes(data[:-1])
        elif damage == "flipped":
            (torn / "state.pt").write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
        else:
            (torn / "progress.json").unlink()
        assert not is_whole(torn) and newest_checkpoint(tmp_path / damage) == old_copy


def test_the_newest_whole_checkpoint_is_found_even_before_its_last_rename(tmp_path):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path / "other", 7).rename(tmp_path / "step-000000007.new")
    assert newest_checkpoint(tmp_path).name == "step-000000007.new"
    (tmp_path / "step-000000009.new").mkdir()
    write_text(tmp_path / "step-000000009.new" / "manifest.json", "{")
    assert newest_checkpoint(tmp_path).name == "step-000000007.new"
    checkpoint(tmp_path, 11)
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-000000005", "step-000000011"}


def test_the_checkpoint_before_the_newest_is_kept_for_a_disk_that_tears(tmp_path):
    for step in (3, 5, 7):
        newest = checkpoint(tmp_path, step)
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-000000005", "step-000000007"}
    (newest / "state.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path).name == "step-000000005"
    checkpoint(tmp_path, 6)  # the run goes on from there; what was torn goes
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-000000005", "step-000000006"}


def test_a_foreign_checkpoint_is_refused_without_the_advice_to_run_its_code(tmp_path):
    path = checkpoint(tmp_path, 3)
    with (path / "state.pt").open("wb") as file:
        pickle.dump({"weights": Path}, file)
    with pytest.raises(ValueError, match="is no checkpoint of a run .* expected tensors and JSON") as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value)


def test_only_torn_checkpoints_are_named(tmp_path):
    (tmp_path / "step-000000003").mkdir()
    assert has_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="step-000000003, all of them torn.* in another folder"):
        newest_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no checkpoint. Run without --resume"):
        newest_checkpoint(tmp_path / "empty")
