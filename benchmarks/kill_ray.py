#!/usr/bin/env python
"""`clap-hf embed --engine ray` beside two processes, on the same clips: time, memory, and ten kills of each kind.

    python benchmarks/kill_ray.py SOUNDS WORK --part clean --clips 5000 --output benchmarks/kill_ray.json
    python benchmarks/kill_ray.py SOUNDS WORK --part workers --clips 5000 --output benchmarks/kill_ray.json
    python benchmarks/kill_ray.py SOUNDS WORK --part driver --clips 5000 --output benchmarks/kill_ray.json

`clean`: two processes, and Ray with two actors, in turns. `workers`: one run, in which one of the actors is killed ten
times. `driver`: a run whose driver is killed ten times, started again each time. Both are finished as `clap-hf embed
--finish` does and compared with the first clean run. Parts are kept in WORK, so that they can run one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import machine
from kill_embedding import compared, finish, processor_times, resident, rows_of, writers

from clap_hf.atomic_io import write_json
from clap_hf.data.own import sound_names

FILES_PER_PART = 64
KILLS = 10
DRIVER = """
import json, sys, time
from clap_hf import SoundCollection, embedded_checkpoint
from clap_hf.data.own import sound_names
from clap_hf.model.modeling_msclap import MSClapModel
from clap_hf.pretrained import load_checked
from clap_hf.search import add_in_shards
sounds, clips, output, engine, files_per_part = sys.argv[1:]
files = sound_names([sounds])[: int(clips)]
collection = SoundCollection(output, *load_checked(MSClapModel, str(embedded_checkpoint())), "embedded")
started = time.time()
print(started, flush=True)
if engine == "ray":
    import ray
    ray.init(num_cpus=4, log_to_driver=False, object_store_memory=200_000_000, include_dashboard=False)
options = {"engine": engine, "num_processes": 2, "files_per_part": int(files_per_part)}
added = add_in_shards(collection, files, **options)
print(json.dumps({"seconds": time.time() - started, "embedded": added.embedded, "failed": len(added.skipped)}))
"""


def start(args: argparse.Namespace, output: Path, engine: str) -> tuple[subprocess.Popen[str], float]:
    """A driver that has loaded its model, and when it began."""
    options = (args.sounds, args.clips, output, engine, FILES_PER_PART)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", DRIVER, *map(str, options)], env=environment, **pipes)
    assert process.stdout is not None
    return process, float(process.stdout.readline())


def parts_of(output: Path) -> list[Path]:
    """Parts that are written."""
    return list(output.glob("*.parquet"))


def watched(args: argparse.Namespace, output: Path, engine: str) -> dict[str, Any]:
    """A run to its end: wall and processor time, start-up apart, and memory over time."""
    process, began = start(args, output, engine)
    times: dict[int, float] = {}
    memory: list[list[float]] = []
    at_start: dict[str, float] = {}
    while process.poll() is None:
        times |= processor_times(process.pid)
        own = writers(process.pid) or list(processor_times(process.pid))
        memory.append([round(time.time() - began, 1), *(round(resident(p)) for p in sorted(own)[-2:])])
        if not at_start and parts_of(output):
            at_start = {"start_s": time.time() - began, "start_processor_s": sum(times.values())}
        time.sleep(1.0)
    found = finish(process) | at_start
    found["processor_s"] = sum(times.values())
    written = sorted(part.stat().st_mtime for part in parts_of(output))
    found["steady_s"] = written[-1] - written[0]
    found["steady_clips_s"] = (len(written) - 1) * FILES_PER_PART / found["steady_s"]
    found["steady_processor_s"] = found["processor_s"] - found["start_processor_s"]
    found["memory_mb"] = memory[:: max(1, len(memory) // 40)]  # s, and MB of both workers
    return found


def clean(args: argparse.Namespace) -> dict[str, Any]:
    """Both engines in turns, ABBA."""
    found: dict[str, Any] = {"two_processes": [], "ray": []}
    reference = args.work / "clean"
    for turn, engine in enumerate(("processes", "ray", "ray", "processes")[: args.turns]):
        output = args.work / (f"turn{turn}" if turn else "clean")
        shutil.rmtree(output, ignore_errors=True)
        run = watched(args, output, engine)
        run |= compared(output, rows_of(reference))
        found["two_processes" if engine == "processes" else "ray"].append(run)
        print(engine, json.dumps({name: value for name, value in run.items() if name != "memory_mb"}), flush=True)
    for measure in ("seconds", "processor_s", "steady_s", "steady_processor_s"):
        own, other = (sum(run[measure] for run in found[kind]) / len(found[kind]) for kind in ("ray", "two_processes"))
        found[f"ray_over_two_processes_{measure}"] = own / other
    return found


def kills(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Ten kills at random moments of a run of Ray; what is lost and what is there twice after it is finished."""
    moments = random.Random(0)
    output = args.work / kind
    shutil.rmtree(output, ignore_errors=True)
    total = args.clips / FILES_PER_PART
    when = sorted(moments.uniform(0.02, 0.9) * total for _ in range(KILLS))
    began = time.time()
    process, _ = start(args, output, "ray")
    killed = []
    for moment in when:
        while process.poll() is None and len(parts_of(output)) < moment:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1.0))
        assert process.poll() is None, "the run ended before the kill"
        if kind == "workers":
            while len(own := writers(process.pid)) < 2:  # the last one killed is not there again yet
                time.sleep(0.2)
            os.kill(moments.choice(own), signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        killed.append({"s": round(time.time() - began, 1), "parts_written": len(parts_of(output))})
        print(kind, killed[-1], flush=True)
        if kind == "driver":
            process, _ = start(args, output, "ray")
    found = finish(process) | {"wall_s": time.time() - began, "kills": killed}
    return found | compared(output, rows_of(args.work / "clean"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path, help="sounds, as `clap-hf embed` takes them")
    parser.add_argument("work", type=Path, help="folder for collections")
    parser.add_argument("--part", choices=("clean", "workers", "driver"), required=True)
    parser.add_argument("--clips", type=int, default=5000, help="clips, the first of the sounds")
    parser.add_argument("--turns", type=int, default=4, help="clean runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the measurements")
    args = parser.parse_args()
    found = len(sound_names([args.sounds]))
    if found < args.clips:
        raise ValueError(f"{args.sounds} has {found} sounds, expected {args.clips}.")
    load = os.getloadavg()[0]
    measured = clean(args) if args.part == "clean" else kills(args, args.part)
    record = json.loads(args.output.read_text()) if args.output.exists() else {}
    record |= {"machine": machine(), "clips": args.clips, "files_per_part": FILES_PER_PART}
    write_json(args.output, record | {args.part: measured | {"load": load}})


if __name__ == "__main__":
    main()
