"""Disks that are full and folders that cannot be written to, for real: one line, nothing half, and the run goes on."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from clap_hf.atomic_io import read_part
from clap_hf.cli import app
from clap_hf.training.resume import load_checkpoint, newest_checkpoint
from clips import write_clips
from pairs import write_pairs
from training.kill_and_resume import short_recipe


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 KB to begin with."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)):
        pytest.skip("only root may mount a disk, and not everywhere")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def resize(disk: Path, options: str) -> None:
    assert mount("-o", f"remount,{options}", str(disk))


def fails(*arguments, reason: str) -> str:
    """The line of a command that cannot go on."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.output
    line = result.stderr.strip().splitlines()[-1]
    assert reason in line and "Traceback" not in result.stderr, result.stderr
    return line


def succeeds(*arguments) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def vectors(folder: Path) -> dict[str, np.ndarray]:
    rows = [row for part in sorted(folder.glob("*.parquet")) for row in read_part(part).to_pylist()]
    return {Path(row["file"]).name: np.array(row["embedding"]) for row in rows}


def no_halves(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.endswith((".new", ".tmp", ".incomplete"))]


def test_embedding_stops_at_a_full_disk_and_goes_on(disk, checkpoint, tmp_path):
    sounds = tmp_path / "sounds"
    write_clips(sounds, pieces=2, recordings=3, seconds=0.4)
    options = ["--model", checkpoint, "--device", "cpu"]
    fails("embed", sounds, "--output", disk / "index", *options, reason="No space left on device")
    assert no_halves(disk) and not list(disk.rglob("*.parquet"))
    resize(disk, "size=1m")
    succeeds("embed", sounds, "--output", disk / "index", *options)
    succeeds("embed", sounds, "--output", tmp_path / "index", *options)
    found, expected = vectors(disk / "index"), vectors(tmp_path / "index")
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)

    resize(disk, "ro")
    fails("embed", tmp_path / "sounds", "--output", disk / "other", *options, reason="Read-only file system")
    hits = json.loads(succeeds("search", disk / "index", "rain", "--format", "json", *options))["hits"]
    assert len(hits) == 6
    fails("classify", sounds, "--json", disk / "out.json", *options, reason="Read-only file system")


def test_evaluation_stops_at_a_full_disk_and_goes_on(disk, checkpoint, tmp_path):
    sounds = tmp_path / "set"
    write_clips(sounds, pieces=3, recordings=3, seconds=0.4)

    def command(root):
        own = ["--suite", "own", "--data-dir", sounds, "--no-plots", "--device", "cpu"]
        return ["evaluate", checkpoint, *own, "--output-dir", root / "results", "--cache-dir", root / "cache"]

    result = CliRunner().invoke(app, list(map(str, command(disk))), env={"COLUMNS": "200"})
    assert result.exit_code in (1, 2) and "No space left on device" in re.sub(r"\s+", " ", result.output)
    assert "Traceback" not in result.output and no_halves(disk)
    resize(disk, "size=4m")
    succeeds(*command(disk))
    succeeds(*command(tmp_path))
    found, expected = (
        json.loads((root / "results" / "results.json").read_text())["tasks"] for root in (disk, tmp_path)
    )
    assert [task["value"] for task in found] == [task["value"] for task in expected]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
def test_training_stops_at_a_full_disk_and_goes_on(disk, tmp_path, share):
    pairs = write_pairs(tmp_path / "pairs")
    write_pairs(pairs, rows=16, files=1, split="validation")
    recipe = tmp_path / "recipe.yaml"
    settings = short_recipe(str(pairs), "text", streamed=True).to_dict()
    recipe.write_text(yaml.safe_dump({"stage": "contrastive", **settings}))
    options = ["--num-workers", "0", "--trackers", ""]
    succeeds("train", recipe, "--output-dir", tmp_path / "run", *options)
    size = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file())
    resize(disk, f"size={int(share * size)}")
    fails("train", recipe, "--output-dir", disk / "run", *options, reason=str(disk / "run"))
    resize(disk, f"size={4 * size}")
    resume = ["--resume"] if list((disk / "run").glob("last/step-*")) else []
    succeeds("train", recipe, "--output-dir", disk / "run", *options, *resume)
    found, expected = (load_checkpoint(newest_checkpoint(root / "run" / "last"))[0] for root in (disk, tmp_path))
    assert all(np.array_equal(found["model"][name], value) for name, value in expected["model"].items())
