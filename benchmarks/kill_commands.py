#!/usr/bin/env python
"""Kill trials of `clap-hf evaluate` and `clap-hf push`: killed at random moments, run again, compared.

    python benchmarks/kill_commands.py --kills 20 --output benchmarks/kill_commands.json

Both run on a tiny model. `evaluate` scores a set of recordings; after a kill the same command goes on, and its results
must be those of a run that was left alone. `push` goes to a Hub on this machine (tests/hub_server); after a kill the
repository must hold one whole commit or none, and the same command must leave what the folder holds. Every attempt is
a fork of this process, which has imported everything. `train` has a script of its own,
tests/training/kill_and_resume.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from conftest import HUB, TINY_CNN14, make_feature_extractor, make_model  # isort: skip  # sets the Hub's address

import torch
from harness import machine
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from clap_hf import MSClapProcessor
from clap_hf.atomic_io import write_json
from clap_hf.cli import app
from clap_hf.tokenization import sentence_tokenizer
from clips import write_clips
from conftest import GPT2_TOKENIZER, make_config

MEASURED = ("seconds", "clips_per_second", "date", "time", "versions", "environment")  # of a result: when and how fast


def attempt(command: list[str], log: Path, kill_after: float | None = None) -> int | None:
    """Run a command in a fork; its exit code, or None if it was killed after so many seconds."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            torch.set_num_threads(1)
            app(command, standalone_mode=False)
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException as error:
            print(repr(error), flush=True)
            code = getattr(error, "exit_code", 1)
        finally:
            os._exit(code)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)


def killed(command: list[str], log: Path, moment: float, length: float, again: Callable[[], None]) -> float:
    """Kill a command after a share of its length, a smaller one where it ends before; the moment, s."""
    after = moment * length
    while attempt(command, log, after) is not None:
        again()
        after *= 0.7
    return after


def without_times(value: Any) -> Any:
    """A result without what differs from run to run."""
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in MEASURED}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def results_of(folder: Path) -> dict[str, Any]:
    """All that an evaluation found, by file."""
    files = sorted(folder.rglob("*.json"))
    return {str(file.relative_to(folder)): without_times(json.loads(file.read_text())) for file in files}


def kill_evaluations(root: Path, model: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill `evaluate` and run it again."""
    write_clips(root / "set", pieces=12, recordings=8, seconds=1.0)

    def command(name: str) -> list[str]:
        places = ["--output-dir", str(root / name), "--cache-dir", str(root / f"{name}-cache")]
        own = ["--suite", "own", "--data-dir", str(root / "set")]
        return ["evaluate", str(model), *own, *places, "--no-plots", "--device", "cpu"]

    log, moments = root / "evaluate.log", random.Random(seed)
    started = time.monotonic()
    assert attempt(command("whole"), log) == 0, log.read_text()
    length, expected = time.monotonic() - started, results_of(root / "whole")
    trials = []
    for number in range(kills):
        name = f"killed-{number}"

        def remove(name: str = name) -> None:
            for folder in (root / name, root / f"{name}-cache"):
                shutil.rmtree(folder, ignore_errors=True)

        after = killed(command(name), log, moments.uniform(0.05, 1.0), length, remove)
        parts = len(list((root / f"{name}-cache").rglob("*.parquet")))
        code = attempt(command(name), log)
        equal = code == 0 and results_of(root / name) == expected
        trials.append({"after_s": round(after, 2), "parts_written": parts, "equal": equal})
        left = [path for folder in (name, f"{name}-cache") for path in (root / folder).rglob("*.new")]
        trials[-1]["unfinished_files"] = len(left)
        remove()
    return {"length_s": round(length, 2), "files": sorted(expected), "trials": trials}


def digests(folder: Path) -> dict[str, str]:
    """Hashes of the files of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def kill_pushes(root: Path, model: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill `push` and run it again."""
    os.environ["HF_TOKEN"] = HUB.tokens["write"]
    api, log, moments = HfApi(token=HUB.tokens["write"]), root / "push.log", random.Random(seed)

    def folder_of(name: str) -> Path:
        folder = shutil.copytree(model, root / name)
        weights = load_file(folder / "model.safetensors")
        weights["text_model.wte.weight"] += torch.rand((), generator=torch.Generator().manual_seed(hash(name) % 2**32))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# A card\n")
        return folder

    def commits(repository: str) -> int:
        if not api.repo_exists(repository):
            return 0
        return sum(commit.title != "initial commit" for commit in api.list_repo_commits(repository))

    def held(repository: str) -> dict[str, str]:
        names = [name for name in api.list_repo_files(repository) if name != ".gitattributes"]
        files = {name: Path(api.hf_hub_download(repository, name)) for name in names}
        return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}

    started = time.monotonic()
    assert attempt(["push", str(folder_of("push-whole")), "acme/whole"], log) == 0, log.read_text()
    length = time.monotonic() - started
    trials = []
    for number in range(kills):
        folder, repository = folder_of(f"push-{number}"), f"acme/killed-{number}"

        def remove(repository: str = repository) -> None:
            api.delete_repo(repository)

        after = killed(["push", str(folder), repository], log, moments.uniform(0.05, 1.0), length, remove)
        between = commits(repository)
        code = attempt(["push", str(folder), repository], log)
        there, own = held(repository), digests(folder)
        equal = code == 0 and {name: there.get(name) for name in own} == own
        trials.append({"after_s": round(after, 2), "commits_after_kill": between, "equal": equal})
        trials[-1]["commits"] = commits(repository)
        shutil.rmtree(folder)
    return {"length_s": round(length, 2), "trials": trials}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--commands", nargs="+", default=["evaluate", "push"], help="which of these two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = root / "model"
        make_model(audio=TINY_CNN14).save_pretrained(model)
        tokenizer = sentence_tokenizer(GPT2_TOKENIZER, make_config().text_config, max_length=77)
        MSClapProcessor(make_feature_extractor(), tokenizer).save_pretrained(model)
        record: dict[str, Any] = {}
        if args.output is not None and args.output.exists():
            record = json.loads(args.output.read_text())
        record |= {"machine": machine(), "kills": args.kills, "seed": args.seed}
        kinds = {"evaluate": kill_evaluations, "push": kill_pushes}
        for kind, kill in kinds.items():
            if kind not in args.commands:
                continue
            record[kind] = {"load": os.getloadavg()[0], **kill(root, model, args.kills, args.seed)}
            equal = sum(trial["equal"] for trial in record[kind]["trials"])
            print(f"{kind}: {equal} of {args.kills} equal", flush=True)
    if args.output is not None:
        write_json(args.output, record)


if __name__ == "__main__":
    main()
