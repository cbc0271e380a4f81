#!/usr/bin/env python
"""The page on speed, a table for the terminal, and a chart, from results.json.

python benchmarks/report.py     writes the section anew
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
SCALING = RESULTS.with_name("scaling.json")
ROOT = Path(__file__).parent.parent
PAGE, README = ROOT / "docs" / "speed.md", ROOT / "README.md"
SECTION = re.compile(r"(?<=<!-- speed: python benchmarks/report.py -->\n).*?(?=<!-- /speed -->)", re.DOTALL)

NAMES = {"msclap": "`msclap`", "laion": "LAION `ClapModel`"}
PEERS = ("msclap", "laion")


def figure(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def per_unit(timings: dict[str, Any], per_call: float) -> str:
    """Milliseconds per unit, with the spread over turns."""
    low, median, high = (
        1e3 * timings["seconds"][key] / timings.get("per_call", per_call) for key in ("low", "median", "high")
    )
    return f"{figure(median)} ({figure(low)}–{figure(high)})"


def ratio(timings: dict[str, Any]) -> str:
    """How many times as fast, with the spread over turns."""
    return "{median:.1f}× ({low:.1f}–{high:.1f})".format(**timings["ratio"])


def comparisons(results: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of all parts."""
    return [row for part in results["parts"].values() for row in part.get("rows", ())]


def table(results: dict[str, Any]) -> str:
    """Every comparison, as Markdown: milliseconds by candidate; peers also as ratios to our float32."""
    lines = ["| what | candidate | ms per unit | times ours |", "|---|---|---|---|"]
    for row in comparisons(results):
        for name, timings in row["timings"].items():
            if "squares" in name:  # see `shares`
                continue
            times = "" if "ratio" not in timings else ratio(timings)
            lines.append(
                f"| {row['name']} (per {row['unit']}) | {name} | {per_unit(timings, row['per_call'])} | {times} |"
            )
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """What stands between the markers of docs/speed.md."""
    machine, versions = results["machine"], results["versions"]
    instructions = ", ".join(machine["instructions"])
    lines = [
        f"Measured on {machine['cores']} cores of an {machine['processor']} ({instructions}), threads: "
        f"{machine['threads']}, time: {machine['clock']}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}, msclap {versions['msclap']}; one process, in turns; medians, with the lowest "
        "and the highest. Weights are random, the same in ours and msclap's.",
        "",
        "| | ours, ms | peer | peer, ms | ours is faster |",
        "|---|---|---|---|---|",
    ]
    for row in comparisons(results):
        ours = per_unit(row["timings"]["ours"], row["per_call"])
        for peer in PEERS:
            if peer in row["timings"]:
                timings = row["timings"][peer]
                theirs = per_unit(timings, row["per_call"])
                lines.append(
                    f"| {row['name']}, per {row['unit']} | {ours} | {NAMES[peer]} | {theirs} | {ratio(timings)} |"
                )
    captions = results.get("captioning")
    if captions:
        what = (
            f"caption, {captions['beams']} beams, {captions['max_new_tokens']} tokens, {captions['threads']} thread(s)"
        )
        for dtype, suffix in (("", ""), (", bfloat16", "_bfloat16")):
            lines.append(
                f"| {what}{dtype} | {1e3 * captions[f'own{suffix}_s']:.0f} | {NAMES['msclap']} | "
                f"{1e3 * captions['msclap_s']:.0f} | {captions[f'ratio{suffix}']:.1f}× |"
            )
    lines += ["", *variants(results), *rest(results)]
    return "\n".join(lines)


def variants(results: dict[str, Any]) -> list[str]:
    """Our own other ways of running, over float32 eager."""
    lines = []
    for row in comparisons(results):
        for name, timings in row["timings"].items():
            if name.startswith("ours, "):
                speed = 1 / timings["ratio"]["median"]
                reference = row["timings"].get("msclap")
                beside = f"{reference['seconds']['median'] / timings['seconds']['median']:.1f}×" if reference else ""
                what = f"| {row['name']} | {name[6:]} | {per_unit(timings, row['per_call'])}"
                lines.append(f"{what} | {speed:.2f}× | {beside} |")
    if not lines:
        return []
    head = ["| other ways to run | | ms | of float32 eager's speed | of `msclap`'s |", "|---|---|---|---|---|"]
    return [*head, *lines, ""]


def rest(results: dict[str, Any]) -> list[str]:
    """Sentences: agreement, FLOPs and rates, memory, import and loading."""
    parts = results["parts"].values()
    equal = {name: value for part in parts for name, value in part.get("equal", {}).items()}
    cosine = {name: value for part in parts for name, value in part.get("lowest_cosine", {}).items()}
    warm = {name[6:]: value for part in parts for name, value in part.get("warm_up_s", {}).items()}
    lines = []
    if equal:
        listed = ", ".join(f"{name} {value:.1g}" for name, value in equal.items())
        lines.append(f"- Largest difference between unit vectors, float32, ours and msclap's unless said: {listed}.")
    if cosine:
        listed = ", ".join(f"{name} {value:.5f}" for name, value in cosine.items())
        lines.append(f"- Lowest cosine to float32 on real recordings and prompts: {listed}.")
    if warm:
        listed = ", ".join(f"{name} {value:.0f} s" for name, value in warm.items())
        lines.append(
            f"- `torch.compile` (`model.audio_model.compile(dynamic=False)`, weights frozen) first takes: {listed}."
        )
    gflop = results["flops"]["audio_gflop_per_clip"]
    lines.append(f"- A clip of 7 s is {gflop:.1f} GFLOP of matrix products{shares(results)}.")
    for dtype, found in results["parts"].get("operations", {}).get("shares", {}).items():
        listed = ", ".join(f"{kind} {share:.0%}" for kind, share in found.items())
        lines.append(f"- Where the audio tower's time goes, {dtype}: {listed}.")
    found = results["parts"].get("footprint", {}).get("footprint")
    if found:
        memory = found["peak_mb_batch_32"]
        seconds = {name: value["median"] for name, value in found.items() if name.endswith("_s")}
        lines.append(
            f"- `import clap_hf` after torch and transformers: {seconds['import_s']:.2f} s. Loading the embedded "
            f"checkpoint: {seconds['load_embedded_s']:.2f} s, or {seconds['first_load_with_modelling_imports_s']:.1f} "
            "s where transformers' modelling modules have yet to be imported; HTSAT + GPT-2: "
            f"{seconds['load_2023_s']:.2f} s."
        )
        if memory["ours"] is not None:
            lines.append(
                f"- Memory beyond the weights for 32 clips: {memory['ours']:.0f} MB; msclap {memory['msclap']:.0f} MB."
            )
    return lines


def shares(results: dict[str, Any]) -> str:
    """Which share of the matrix rate the audio embedding reaches: of products that took turns with it."""
    gflop, square = results["flops"]["audio_gflop_per_clip"], results["flops"]["large_square_gflop"]
    said = []
    for row in comparisons(results):
        timings = row["timings"]
        if "large squares" not in timings:
            continue
        rates = {name: square / timings[name]["seconds"]["median"] for name in timings if "squares" in name}
        found = []
        for name in timings:
            if name.startswith("ours"):
                best = rates["large squares, bfloat16" if "bfloat16" in name else "large squares"]
                rate = gflop * row["per_call"] / timings[name]["seconds"]["median"]
                found.append(f"{name[6:] or 'float32 eager'} {rate / best:.0%}")
        said.append(
            f"{row['name']}, front end included: {', '.join(found)} of what large squares run at in turns with it, "
            f"{rates['large squares']:.0f} GFLOP/s in float32 and {rates['large squares, bfloat16']:.0f} in bfloat16"
        )
    return "".join(f"; {part}" for part in said)


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars: how many times as fast as each peer."""
    from matplotlib.figure import Figure

    bars = [
        (f"{row['name']}\nagainst {NAMES[peer].replace('`', '')}", row["timings"][peer]["ratio"])
        for row in comparisons(results)
        for peer in PEERS
        if peer in row["timings"]
    ]
    chart = Figure(figsize=(8, 0.5 * len(bars) + 1), layout="constrained")
    axes = chart.add_subplot()
    medians = [found["median"] for _, found in bars]
    errors = [
        [found["median"] - found["low"] for _, found in bars],
        [found["high"] - found["median"] for _, found in bars],
    ]
    axes.barh(range(len(bars)), medians, xerr=errors, color="#4477aa", ecolor="#999999")
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast (median, lowest and highest turn)")
    chart.savefig(path, dpi=120)


def scaling(found: dict[str, Any]) -> str:
    """What many files cost, from scaling.json, in a sentence."""
    few = next(row for row in found["rows"] if row["clips"] == 100)
    many, times = found["rows"][-1], found["two_processes"]["times_one"]
    return (
        f"- `embed_files` with the embedded checkpoint, clips of 1 s, one thread: {few['ms_per_clip']:.1f} ms a clip "
        f"for {few['clips']:,} files, {many['ms_per_clip']:.1f} ms for {many['clips']:,}, with "
        f"{many['memory_mb']:.0f} MB more than at the start, vectors included; two processes do {times:.2f} times "
        "what one does (`python benchmarks/scaling.py`)."
    )


def section() -> str:
    """What stands between the markers of docs/speed.md."""
    results = markdown(json.loads(RESULTS.read_text()))
    return f"\n{results}\n{scaling(json.loads(SCALING.read_text()))}\n\n"


def sentence() -> str:
    """What stands between the markers of the README: the speed in a sentence."""
    results = json.loads(RESULTS.read_text())
    rows = {(row["name"], peer): row["timings"][peer] for row in comparisons(results) for peer in row["timings"]}
    audio, text = (
        rows[name, "msclap"]["ratio"]["median"] for name in ("audio embedding, batch 32", "text embedding, 50 labels")
    )
    machine = results["machine"]
    return (
        f"On {machine['cores']} cores of an {machine['processor']}, with the same weights, {audio:.1f} times as fast "
        f"as `msclap` for sounds and {text:.0f} times for 50 labels ([all figures](docs/speed.md)).\n"
    )


if __name__ == "__main__":
    README.write_text(SECTION.sub(lambda _: sentence(), README.read_text()))
    PAGE.write_text(SECTION.sub(lambda _: section(), PAGE.read_text()))
