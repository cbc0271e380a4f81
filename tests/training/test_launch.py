"""Several processes on CPUs: torchrun starts them; accelerate launch starts one, which is refused."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from kill_and_resume import short_recipe

from clap_hf.training.distributed import WORLD_SIZES, launched_world_size
from conftest import TESTS
from pairs import write_pairs

SCRIPT = TESTS.parent / "scripts" / "train.py"


@pytest.fixture
def command(tmp_path):
    folder = write_pairs(tmp_path / "pairs")
    write_pairs(folder, rows=16, files=1, split="validation")
    settings = json.loads(json.dumps(short_recipe(str(folder), "text", streamed=True).to_dict()))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"stage": "contrastive", **settings}))
    options = ["--output-dir", tmp_path / "run", "--steps", "6", "--num-workers", "0", "--trackers", ""]
    return [SCRIPT, tmp_path / "recipe.yaml", *options]


def launch(*command):
    environment = {name: value for name, value in os.environ.items() if name not in WORLD_SIZES} | {"COLUMNS": "400"}
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_torchrun_trains_on_two_processes(command, tmp_path):
    done = launch("torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command)
    assert done.returncode == 0, done.stderr
    start, epoch = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()]
    assert start["processes"] == 2 and epoch["step"] == 6


@pytest.mark.slow
def test_two_processes_that_accelerate_does_not_start_are_an_error(command, tmp_path):
    done = launch("accelerate.commands.launch", "--cpu", "--num_processes", "2", *command)
    assert done.returncode != 0 and "torchrun --nproc_per_node" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_world_size_is_the_launchers(monkeypatch):
    for name in (*WORLD_SIZES, "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert launched_world_size() == 1
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert launched_world_size() == 1  # accelerate launch --num_processes 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RuntimeError, match="asked for several processes and started one"):
        launched_world_size()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched_world_size() == 4
