"""Timing of candidates that take turns, and what the machine can do."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

Candidates = dict[str, Callable[[], Any]]
# "processor" counts the time that this process computes: on a machine that others use, and on one thread.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
clock = "wall"
# Before every turn: threads of numpy's BLAS go on spinning for a tenth of a second after a call.
REST_S = 0.2
TURN_S = 0.5
SIDE = 2048
SQUARE_GFLOP = 2 * SIDE**3 / 1e9


def timed(function: Callable[[], Any]) -> float:
    """How long a call takes, s."""
    started = CLOCKS[clock]()
    function()
    return CLOCKS[clock]() - started


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def busy_elsewhere() -> float:
    """Processor time that all other processes have taken, s; 0 where the system does not tell."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def turn(function: Callable[[], Any], once: float) -> tuple[float, bool]:
    """A candidate's turn: a rest, an untimed call that wakes processors and fills caches, and timed ones.

    Args:
        function: What to time.
        once: How long a call takes, about, s.

    Returns:
        How long a call took, s, and whether others took less than a tenth of a processor meanwhile.
    """
    calls = max(1, round(TURN_S / max(once, 1e-3)))
    time.sleep(REST_S)
    function()
    if clock == "processor":
        return timed(lambda: [function() for _ in range(calls)]) / calls, True
    elsewhere = busy_elsewhere()
    seconds = timed(lambda: [function() for _ in range(calls)])
    return seconds / calls, busy_elsewhere() - elsewhere < max(0.1 * seconds, 0.03)


def take_turns(candidates: Candidates, seconds: float, rounds: int = 3, most: int = 15) -> dict[str, Any]:
    """Time candidates in turns, so that whatever else the machine does hits all of them.

    Rounds in which other processes got in the way are left out, as far as `rounds` undisturbed ones come within four
    times the time.

    Args:
        candidates: Name -> what to time; the first is ours. Each runs once before, untimed.
        seconds: Stop after this, s, when at least `rounds` are done.
        rounds: Rounds at least.
        most: Rounds at most.

    Returns:
        For every candidate `seconds` with its spread and `disturbed`, whether others got in the way; and for all but
        the first `ratio`: its time over ours, by round.
    """
    once = {name: timed(function) for name, function in candidates.items()}
    alone: list[dict[str, float]] = []
    disturbed: list[dict[str, float]] = []
    started = time.perf_counter()
    while True:
        turns = {name: turn(function, once[name]) for name, function in candidates.items()}
        times = {name: found for name, (found, _) in turns.items()}
        (alone if all(quiet for _, quiet in turns.values()) else disturbed).append(times)
        spent = time.perf_counter() - started
        if len(alone) >= rounds and (spent > seconds or len(alone) >= most):
            break
        if spent > 4 * seconds and len(alone) + len(disturbed) >= rounds:
            break
    kept = alone if len(alone) >= rounds else alone + disturbed
    ours = next(iter(candidates))
    found: dict[str, Any] = {}
    for name in candidates:
        found[name] = {"seconds": spread([times[name] for times in kept]), "disturbed": len(alone) < rounds}
        if name != ours:
            found[name]["ratio"] = spread([times[name] / times[ours] for times in kept])
    return found


def large_squares(side: int = SIDE, device: str | torch.device = "cpu") -> Candidates:
    """Products of large squares, by default `SQUARE_GFLOP` each: what a device can do at best."""
    squares = {"large squares": torch.randn(side, side, device=device)}
    squares["large squares, bfloat16"] = squares["large squares"].bfloat16()
    return {name: partial(torch.mm, square, square) for name, square in squares.items()}


def memory_held(field: str) -> float:
    """Memory of this process, MB, on Linux: `"VmRSS"` what it holds now, `"VmHWM"` the most it held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) / 1e3


def peak_memory(function: Callable[[], Any]) -> float | None:
    """Memory that a call takes beyond what the process holds before it, MB; None where the system cannot tell."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    function()
    ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of this call would hide what the next one needs
    clear.write_text("5")  # the peak starts anew (proc(5))
    before = memory_held("VmRSS")
    function()
    return memory_held("VmHWM") - before


def in_new_process(setup: str, statement: str) -> float:
    """Time of a statement in a fresh interpreter after its setup, s."""
    tick = f"time.{CLOCKS[clock].__name__}()"
    code = f"import time\n{setup}\nstarted = {tick}\n{statement}\nprint({tick} - started)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {
        "processor": models[0] if models else platform.processor(),
        "instructions": known,
        "cores": len(models) or None,
        "threads": torch.get_num_threads(),
        "clock": clock,
        "system": platform.system(),
    }
