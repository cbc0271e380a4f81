#!/usr/bin/env python
"""Kill trials of `clap-hf embed`: it, or Ray's workers or driver, die at random moments; what is lost or doubled.

    python benchmarks/kill_embedding.py FOLDER --output benchmarks/kill_embedding.json
    python benchmarks/kill_embedding.py FOLDER --command --trials 20 --output benchmarks/kill_command.json

The sounds of a folder are embedded by one process, by two processes, and by Ray on two actors of this machine; then by
Ray with one actor killed at a random moment, and with the driver killed and the command run again, each several times.
After `check_collection(mend=True)`, what `clap-hf embed --finish` does, the rows are compared with the clean run's.

With `--command`, `clap-hf embed` itself gets SIGKILL at moments drawn by seed between its first file and its end, and
is run again: every row, vectors and all, must equal that of an undisturbed run to the last bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine

from clap_hf.atomic_io import read_part, write_json
from clap_hf.search import check_collection

FILES_PER_PART = 16
DRIVER = """
import json, sys, time
from clap_hf import SoundCollection, audio_files, embedded_checkpoint
from clap_hf.model.modeling_msclap import MSClapModel
from clap_hf.pretrained import load_checked
from clap_hf.search import add_in_shards
folder, output, engine, count = sys.argv[1:]
if engine == "ray":
    import ray
    ray.init(num_cpus=4, log_to_driver=False, object_store_memory=200_000_000, include_dashboard=False)
collection = SoundCollection(output, *load_checked(MSClapModel, str(embedded_checkpoint())), "embedded")
print("started", flush=True)
started = time.perf_counter()
options = {"engine": engine, "num_processes": int(count), "files_per_part": %d}
added = add_in_shards(collection, audio_files([folder]), **options)
print(json.dumps({"seconds": time.perf_counter() - started, "embedded": added.embedded, "failed": len(added.skipped)}))
"""


def start(folder: Path, output: Path, engine: str, count: int) -> subprocess.Popen[str]:
    """A driver in a process group of its own, which has begun to embed."""
    command = [sys.executable, "-c", DRIVER % FILES_PER_PART, str(folder), str(output), engine, str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def descendants(root: int) -> dict[int, str]:
    """Processes below one, with their names."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text()
            names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found = {root}
    while more := {own for own, parent in parents.items() if parent in found} - found:
        found |= more
    return {own: names[own] for own in found - {root}}


def resident(process: int) -> float:
    """Memory that a process holds, MB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS")), 0.0)


def processor_times(root: int) -> dict[int, float]:
    """Processor time that a process and those below it have taken, s."""
    found = {}
    for own in (root, *descendants(root)):
        with suppress(OSError):
            fields = Path(f"/proc/{own}/stat").read_text().rpartition(")")[2].split()
            found[own] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def writers(root: int) -> list[int]:
    """Ray's actors that write shards."""
    return [own for own, name in descendants(root).items() if "MapWorker" in name or "ShardWriter" in name]


def steady_rate(output: Path) -> float:
    """Clips a second between the first part and the last: without the start of processes."""
    times = sorted(part.stat().st_mtime for part in output.glob("*.parquet"))
    return (len(times) - 1) * FILES_PER_PART / (times[-1] - times[0])


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a driver reports at its end."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"The driver ended with {process.returncode}.")
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))  # Ray prints notes, too


def rows_of(output: Path) -> dict[tuple[str, str], np.ndarray]:
    """Vector of every row by its id and file; and none twice."""
    rows = [row for part in sorted(output.glob("*.parquet")) for row in read_part(part).to_pylist()]
    found = {(row["id"], row["file"]): np.array(row["embedding"], np.float32) for row in rows}
    assert len(found) == len(rows), f"{len(rows) - len(found)} duplicates"
    return found


def compared(output: Path, clean: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    """A collection beside the clean one, after its repeated rows were dropped."""
    repeated = len(check_collection(output, mend=True).repeated)
    found = rows_of(output)
    assert check_collection(output).whole
    common = found.keys() & clean.keys()
    return {
        "dropped": repeated,
        "lost": len(clean.keys() - common),
        "foreign": len(found.keys() - common),
        "duplicates": 0,
        "largest_difference": max(float(np.abs(found[key] - clean[key]).max()) for key in common),
    }


def run_command(folder: str, output: str) -> None:
    """`clap-hf embed` in this process."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # the process ends with it
    from clap_hf.cli import app

    app(["embed", folder, "--output", output])


def command(folder: Path, output: Path) -> BaseProcess:
    """`clap-hf embed` in a new process, whose modules are imported already, when it has begun with its files."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clap_hf.cli", "clap_hf.adapters", "clap_hf.search", "accelerate"])
    process = context.Process(target=run_command, args=(str(folder), str(output)))
    process.start()
    while not output.exists() and process.is_alive():
        time.sleep(0.01)
    return process


def ended(process: BaseProcess) -> int | None:
    """What a process ended with, once it has."""
    process.join()
    return process.exitcode


def contents(output: Path) -> dict[str, dict[str, Any]]:
    """Every row of a collection by its file; and none twice."""
    rows = [row for part in sorted(output.glob("*.parquet")) for row in read_part(part).to_pylist()]
    found = {row["file"]: row for row in rows}
    assert len(found) == len(rows), f"{len(rows) - len(found)} duplicates"
    return found


def measure_command(folder: Path, trials: int) -> dict[str, Any]:
    """An undisturbed run, then kills at random moments, each followed by the same command."""
    moments = random.Random(0)
    record: dict[str, Any] = {"machine": machine(), "load": os.getloadavg()[0], "trials": []}
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:  # beside the sounds: paths are stored alike
        root = Path(name)
        process, started = command(folder, root / "clean"), time.perf_counter()
        assert ended(process) == 0
        seconds = record["seconds"] = time.perf_counter() - started
        clean = contents(root / "clean")
        record["files"] = len(clean)
        for attempt in itertools.count():
            if len(record["trials"]) == trials:
                break
            output = root / str(attempt)
            process = command(folder, output)
            moment = moments.uniform(0, seconds)
            time.sleep(moment)
            if not process.is_alive():  # faster than the undisturbed run
                continue
            process.kill()
            assert ended(process) == -signal.SIGKILL
            parts = len(list(output.glob("*.parquet")))
            written = sum(len(read_part(part)) for part in output.glob("*.parquet"))
            assert ended(command(folder, output)) == 0
            trial = {"killed_after_s": moment, "parts": parts, "rows": written, "equal": contents(output) == clean}
            record["trials"].append(trial | {"whole": check_collection(output).whole})
            print(json.dumps(record["trials"][-1]), flush=True)
    record["equal"] = sum(trial["equal"] and trial["whole"] for trial in record["trials"])
    return record


def measure(folder: Path, trials: int) -> dict[str, Any]:
    """Clean runs, then both kinds of kills."""
    moments = random.Random(0)
    record: dict[str, Any] = {"machine": machine(), "load": os.getloadavg()[0], "files_per_part": FILES_PER_PART}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        clean: dict[tuple[str, str], np.ndarray] = {}
        for kind, (engine, count) in {
            "one_process": ("processes", 1),
            "two_processes": ("processes", 2),
            "ray": ("ray", 2),
        }.items():
            process = start(folder, root / kind, engine, count)
            memory: list[float] = []
            times: dict[int, float] = {}
            while process.poll() is None:
                memory.append(max([resident(own) for own in writers(process.pid)] or [resident(process.pid)]))
                times |= processor_times(process.pid)
                time.sleep(0.5)
            found = finish(process)
            found["processor_s"] = sum(times.values())
            found["steady_clips_s"] = steady_rate(root / kind)
            clean = clean or rows_of(root / kind)
            half = len(memory) // 2
            record[kind] = found | compared(root / kind, clean)
            record[kind] |= {"memory_mb_half": max(memory[: half + 1]), "memory_mb_end": max(memory[half:])}
            print(kind, json.dumps(record[kind]), flush=True)
        record["clips"] = len(clean)
        for measure_of in ("processor_s", "seconds"):
            record[f"ray_over_two_processes_{measure_of}"] = (
                record["ray"][measure_of] / record["two_processes"][measure_of]
            )
        for kind in ("worker_killed", "driver_killed"):
            record[kind] = []
            for trial in range(trials):
                output = root / f"{kind}{trial}"
                process = start(folder, output, "ray", 2)
                parts = moments.uniform(0.05, 0.8) * len(clean) / FILES_PER_PART
                while process.poll() is None and len(list(output.glob("*.parquet"))) < parts:
                    time.sleep(0.1)
                time.sleep(moments.uniform(0, 0.5))
                if kind == "worker_killed":
                    killed = moments.choice(writers(process.pid))
                    os.kill(killed, signal.SIGKILL)
                else:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                written = len(list(output.glob("*.parquet")))
                if kind == "driver_killed":
                    process = start(folder, output, "ray", 2)
                found = finish(process)
                record[kind].append({"parts_written": written, **found, **compared(output, clean)})
                print(kind, json.dumps(record[kind][-1]), flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="sounds, some hundreds")
    parser.add_argument("--trials", type=int, default=10, help="kills of each kind")
    parser.add_argument("--command", action="store_true", help="kill `clap-hf embed` itself, without Ray")
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    args = parser.parse_args()
    found = (measure_command if args.command else measure)(args.folder, args.trials)
    if args.output is not None:
        write_json(args.output, found)


if __name__ == "__main__":
    main()
