#!/usr/bin/env python
"""Measure cold starts: new processes that import torch, transformers and this package, and classify one file.

    python benchmarks/start.py

Processor time, user and system, is what an idle machine takes with one thread; the least of several runs, in turns,
since other work on the machine only adds to it. Run it in an environment with the package's own dependencies
alone: what else is installed (torchao, for one) may be imported by transformers, too.
"""

import json
import os
import platform
import re
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs" / "records" / "start.json"
PAGE = ROOT / "docs" / "speed.md"
SECTION = re.compile(r"(?<=<!-- start: python benchmarks/start.py -->\n).*?(?=<!-- /start -->)", re.DOTALL)
RUNS = 5
CLI = "import sys; from clap_hf.cli import app; app(sys.argv[1:])"
COMMANDS = {
    "clap-hf --help": [CLI, "--help"],
    "import clap_hf": ["import clap_hf"],
    "import torch": ["import torch"],
    "import transformers": ["import torch, transformers"],
}
# One process, so that its two shares are of the same moment.
CLASSIFY = """
import atexit, sys, time
import transformers.modeling_utils
imported = time.process_time()
atexit.register(lambda: print(imported, time.process_time(), file=sys.stderr))
from clap_hf.cli import app
app(["classify", "examples/thunder.ogg"])
"""
WHOLE, FLOOR = "clap-hf classify FILE", "import transformers.modeling_utils"


def measure(arguments: list[str]) -> float:
    """Processor time of a process, s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", *arguments], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def classify() -> tuple[float, float]:
    """Processor time of classifying one file, and the share of it before transformers' models can be defined, s."""
    done = subprocess.run([sys.executable, "-c", CLASSIFY], cwd=ROOT, capture_output=True, text=True, check=True)
    imported, whole = map(float, done.stderr.splitlines()[-1].split())
    return whole, imported


def section(record: dict) -> str:
    """Text of the section on cold starts."""
    seconds = record["seconds"]
    whole, floor = seconds[WHOLE], seconds[FLOOR]
    rows = "\n".join(f"| `{name}` | {own:.2f} s |" for name, own in seconds.items())
    about = record["versions"]
    return (
        f"\nProcessor time of a new process, one thread, the least of {record['runs']} runs beside other work (load "
        f"{record['load']:.0f}); Python {about['python']}, torch {about['torch']}, transformers "
        f"{about['transformers']}, and nothing else installed that transformers would import.\n\n"
        f"| | processor time |\n|---|---|\n{rows}\n\n"
        f"Of classifying one file {floor / whole:.0%} is the import of `transformers.modeling_utils`, on which every "
        "model of transformers stands: it imports torch, `torch.distributed.tensor`, `torch._dynamo` and scipy. The "
        f"other {whole - floor:.2f} s are this package's imports, loading, decoding, and the model on a sound and its "
        "labels. Below the import alone no use of a transformers model can start.\n\n"
    )


def main() -> None:
    """Measure every command in turns, write the record and the section of the page."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    classify()  # from here on the disk is warm
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    whole: list[tuple[float, float]] = []
    for _ in range(RUNS):
        whole.append(classify())
        for name, arguments in COMMANDS.items():
            found[name].append(measure(arguments))
    seconds = {name: min(own) for name, own in found.items()} | dict(zip((WHOLE, FLOOR), min(whole), strict=True))
    record = {
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
        "runs": RUNS,
        "load": os.getloadavg()[0],
        "seconds": {name: round(own, 3) for name, own in seconds.items()},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(SECTION.sub(lambda _: section(record), PAGE.read_text()))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
