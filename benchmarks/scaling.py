#!/usr/bin/env python
"""Whether many sounds cost what few do: time and memory a clip from 1 to 100,000 files, and what two processes give.

    python benchmarks/scaling.py --output benchmarks/scaling.json

Each number of files is embedded in a process of its own, on one thread, by `embed_files` with the embedded checkpoint;
the files are seconds cut from `examples/`, as WAV, FLAC and MP3, taken again and again. Memory is the process' peak
beyond what it held when the model was loaded and had embedded one file, and includes the vectors, 2 kB a clip.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from harness import machine, memory_held

import clap_hf
from clap_hf.atomic_io import write_json

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = 48
COUNTS = (1, 10, 100, 1_000, 10_000, 100_000)
TOGETHER = 4_000  # files that one process embeds, or two do in halves


def write_seconds(folder: Path) -> None:
    """Cut seconds out of the recordings, in three formats in turn."""
    seconds = []
    for recording in clap_hf.audio_files([EXAMPLES]):
        samples, rate = soundfile.read(recording, dtype="float32", always_2d=True)
        seconds += [(samples[i : i + rate, 0], rate) for i in range(0, max(1, len(samples) - rate), rate)]
    for i, (samples, rate) in enumerate(itertools.islice(itertools.cycle(seconds), FILES)):
        soundfile.write(folder / f"{i:02d}{('.wav', '.flac', '.mp3')[i % 3]}", samples, rate)


def embed(folder: Path, count: int) -> dict[str, float]:
    """Embed files in this process; returns its time, s, its processor time, s, and its memory, MB."""
    torch.set_num_threads(1)
    name = clap_hf.embedded_checkpoint()
    model = clap_hf.MSClapModel.from_pretrained(name).eval()
    processor = clap_hf.MSClapProcessor.from_pretrained(name)
    files = sorted(folder.iterdir())
    clap_hf.embed_files(model, processor, files[:1])
    held = memory_held("VmRSS")
    started, computed = time.perf_counter(), time.process_time()
    found = clap_hf.embed_files(model, processor, itertools.islice(itertools.cycle(files), count))
    assert len(found.vectors) == count and not found.skipped
    seconds, computed = time.perf_counter() - started, time.process_time() - computed
    return {"seconds": seconds, "processor_s": computed, "memory_mb": memory_held("VmHWM") - held}


def start(folder: Path, count: int) -> subprocess.Popen[str]:
    """The same in a new process."""
    command = [sys.executable, __file__, "--embed", str(count), "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def result(process: subprocess.Popen[str]) -> dict[str, float]:
    """What it printed."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"Embedding failed with exit code {process.returncode}.")
    return json.loads(output.splitlines()[-1])


def measure(most: int) -> dict[str, Any]:
    """All numbers of files up to `most`, then one and two processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_seconds(folder)
        rows = []
        for count in (count for count in COUNTS if count <= most):
            found = result(start(folder, count))
            rows.append({"clips": count, "ms_per_clip": 1e3 * found["seconds"] / count, **found})
            print(json.dumps(rows[-1]), flush=True)
        together = min(TOGETHER, most)
        one = result(start(folder, together))
        halves = [start(folder, together // 2) for _ in range(2)]
        slowest = max(result(process)["seconds"] for process in halves)
    times = one["seconds"] / slowest
    print(f"Two processes: {times:.2f} times the clips a second of one.")
    return {"machine": machine(), "rows": rows, "two_processes": {"clips": together, "times_one": times}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="most files")
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    parser.add_argument("--embed", type=int, help=argparse.SUPPRESS)  # a child's number of files
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.embed is not None:
        print(json.dumps(embed(args.folder, args.embed)))
        return
    found = measure(args.most)
    if args.output is not None:
        write_json(args.output, found)


if __name__ == "__main__":
    main()
