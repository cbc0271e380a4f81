#!/usr/bin/env python
"""The paper from raw downloads to Table 2: every command in order, or the whole chain in miniature.

    python scripts/reproduce.py --dry-run --tflops 125 --gpus 8
    python scripts/reproduce.py --tiny chain

The first lists the commands with what they write and how long they take. The second runs the same commands on small
real sets in each source's own layout, small recipes that extend the shipped ones, and a Hub on this machine; it needs
the repository's tests/ and their requirements.
"""

import json
import os
import runpy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 40  # of contrastive training, Section 3; the other stages' are those of their recipes
# GFLOP a pair, by the counts of docs/scaling.md: a forward pass is 11.8 (HTSAT) and 3.4 (GPT-2, 20 tokens).
# Contrastive: 4 - 1/12 passes (gradient caching). Prompts: 3 passes of the tower, and GPT-2 over some 100 positions,
# forward and backward to its input. Captioning: the tower once, GPT-2 over some 60 positions.
CONTRASTIVE, PROMPTS, CAPTIONING, FORWARD = 59.5, 85.0, 42.0, 15.2
FORMULA = """\
Hours are computed, not measured: training = epochs x (pairs x GFLOP a pair + clips of the tasks x 15.2) / throughput,
building on 2 cores = clips x seconds / speed of a core / 2. Pairs, clips and seconds are those of
clap_hf/data/training_sets.yaml; sizes are {bytes_per_s:,} bytes of FLAC a second of sound, and a core builds
{build:,.0f} s of sound a second (docs/records/build_speed.json: from WAV at 44.1 kHz; other formats are slower).
`hours here`: {here:.2f} TFLOP/s in float32, measured with the audio tower on 2 cores (benchmarks/results.json).
`hours`: {gpus} x {tflops:g} TFLOP/s, which is an assumption: measure yours with scripts/measure_training_step.py.
The prompt stage keeps a second copy of its sets in the cache of `datasets`; findsounds.com publishes no size.
"""


@dataclass(frozen=True)
class Step:
    """A command of the chain.

    Args:
        command: As typed in the root of the repository.
        size: Bytes that it writes; None where that is small.
        gflop: Its work on a GPU, in units of 1e9 operations.
        core_s: Its work on a core, s.
        tiny: Whether the chain in miniature runs it.
    """

    command: str
    size: float | None = None
    gflop: float = 0.0
    core_s: float = 0.0
    tiny: bool = True


def steps(repo: str, hold_out: int, options: str = "") -> list[Step]:
    """All commands, in order.

    Args:
        repo: Where the model goes on the Hub; the captioner's name gets `-captioner`.
        hold_out: Clips of every set for validation.
        options: More options of the evaluation.
    """
    from clap_hf.data.registry import PRETRAINING_ONLY, training_sets
    from clap_hf.evaluation.benchmarks import SUITES
    from clap_hf.training.recipe import load_recipe

    sets, speed = training_sets(), build_speed()
    tasks = {suite: sum(task.size or 1000 for task in SUITES[suite]) for suite in ("table1", "paper")}

    def pairs(names: list[str]) -> int:
        return sum(sets[name].epoch_pairs for name in names)

    def streams(recipe: str) -> int:
        return sum(sets[Path(stream["dataset"]).name].clips for stream in load_recipe(recipe).to_dict()["streams"])

    def trained(recipe: str) -> list[str]:
        return [Path(source["dataset"]).name for source in load_recipe(recipe).to_dict()["sources"]]

    found = [
        Step(
            f"-m tools.training_sets {name} --root originals/{name} --output data/{name} --hold-out {hold_out}",
            entry.clips * entry.seconds * speed["bytes_per_second_of_sound"],
            core_s=entry.clips * entry.seconds * speed["cpu_seconds"] / speed["seconds_of_sound"],
        )
        for name, entry in sets.items()
    ]
    for name in ("htsat_22", "htsat_audioset", "cnn14_audioset"):
        recipe = str(ROOT / "configs" / f"{name}.yaml")
        epochs = load_recipe(recipe).to_dict()["epochs"]
        command = f"scripts/pretrain_prompts.py configs/{name}.yaml --output-dir runs/{name.replace('_', '-')}"
        found.append(Step(command, gflop=epochs * streams(recipe) * PROMPTS))
    first = ["fsd50k", "clotho", "audiocaps", "macs"]  # of configs/table1.yaml
    epoch = pairs(first) * CONTRASTIVE + tasks["table1"] * FORWARD
    compare = "clap-hf compare configs/table1.yaml --output-dir runs/table1 --data-dir tasks"
    found.append(Step(compare, 7 * 2.5e9, gflop=7 * EPOCHS * epoch, tiny=False))
    epoch = pairs([name for name in sets if name not in PRETRAINING_ONLY]) * CONTRASTIVE + tasks["paper"] * FORWARD
    train = "scripts/train.py configs/table2.yaml --output-dir runs/table2 --data-dir tasks"
    found.append(Step(train, 2.5e9, gflop=EPOCHS * epoch))
    captions, recipe = str(ROOT / "configs" / "captioning.yaml"), "configs/captioning.yaml"
    work = load_recipe(captions).to_dict()["epochs"] * pairs(trained(captions)) * CAPTIONING
    clap, captioner, card = "runs/table2/best", "runs/captioning/best", "scripts/write_card.py"
    train = f"scripts/train_captioning.py {recipe} --clap {clap} --output-dir runs/captioning"
    found.append(Step(train, gflop=work))
    evaluate = f"clap-hf evaluate {clap} --captioner {captioner} --data-dir tasks --output-dir runs/table2{options}"
    found.append(Step(evaluate, gflop=tasks["paper"] * FORWARD))
    esc50 = f"scripts/finetune_classification.py configs/esc50.yaml --model {clap} --output-dir runs/esc50"
    found.append(Step(esc50, 5 * 0.12e9, gflop=5 * 20 * 1600 * 3 * 11.8, tiny=False))
    for folder, name in ((clap, repo), (captioner, f"{repo}-captioner")):
        found.append(Step(f"{card} {folder} --repo-id {name} --license mit"))
        found.append(Step(f"clap-hf push {folder} {name}"))
    return found


def build_speed() -> dict[str, float]:
    """The measured speed and size of building, see its file."""
    return json.loads((ROOT / "docs" / "records" / "build_speed.json").read_text(encoding="utf-8"))


def measured_tflops() -> float:
    """What the audio tower reached on the CPU of `benchmarks/results.json`, TFLOP/s in float32."""
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    rows = [row for part in results["parts"].values() for row in part.get("rows", [])]
    row = next(row for row in rows if row["name"] == "audio embedding, batch 32")
    work = results["flops"]["audio_gflop_per_clip"] * row["per_call"]
    return work / row["timings"]["ours"]["seconds"]["median"] / 1e3


def listing(found: list[Step], tflops: float, gpus: int) -> str:
    """The commands as a Markdown table, and how its columns were computed."""
    here = measured_tflops()
    lines = ["| command | writes | hours | hours here |", "|---|---|---|---|"]
    totals = [0.0, 0.0, 0.0]
    for step in found:
        hours = [step.gflop / (rate * 3.6e6) + step.core_s / (2 * 3600) for rate in (tflops * gpus, here)]
        totals = [total + value for total, value in zip(totals, (step.size or 0.0, *hours), strict=True)]
        size = "" if step.size is None else f"{step.size / 1e9:,.1f} GB"
        lines.append(f"| `{step.command}` | {size} | {hours[0]:,.2f} | {hours[1]:,.0f} |")
    lines.append(f"| all | {totals[0] / 1e9:,.1f} GB | {totals[1]:,.1f} | {totals[2]:,.0f} |")
    speed = build_speed()
    facts = {
        "bytes_per_s": round(speed["bytes_per_second_of_sound"]),
        "build": speed["seconds_of_sound"] / speed["cpu_seconds"],
    }
    return "\n".join(lines) + "\n\n" + FORMULA.format(here=here, gpus=gpus, tflops=tflops, **facts)


def run(command: str) -> None:
    """Run a command of the chain in this process, in the current folder."""
    program, *arguments = command.split()
    before = sys.argv
    try:
        if program == "clap-hf":
            from clap_hf.cli import app

            code = app(arguments, standalone_mode=False)
            if code:
                raise RuntimeError(f"{command} ended with {code}.")
        else:
            module = program == "-m"
            sys.argv = arguments if module else [program, *arguments]
            if module:
                runpy.run_module(arguments[0], run_name="__main__")
            else:
                runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{command} ended with {end.code}.") from end
    finally:
        sys.argv = before


def run_tiny(folder: Path) -> None:
    """Write small sets, tasks and recipes into a new folder, and run the chain there, pushes included.

    Args:
        folder: Gets `originals/`, `tasks/`, `configs/`, and what the commands write.
    """
    sys.path[:0] = [path for path in (str(ROOT / "tests"), str(ROOT)) if path not in sys.path]
    from hub_server.session import HUB  # first: the libraries read the Hub's address when they are imported

    # isort: split
    import clap_hf  # noqa: F401  # keeps a torchaudio that does not fit torch from transformers
    from tiny_chain import tiny_chain

    os.environ["HF_TOKEN"] = HUB.tokens["write"]
    folder.mkdir(parents=True)
    before = Path.cwd()
    try:
        with tiny_chain(folder, HUB):
            os.chdir(folder)
            for step in steps("acme/clap-tiny", hold_out=2, options=" --no-plots"):
                if step.tiny:
                    started = time.perf_counter()
                    print(f"$ {step.command}", flush=True)
                    run(step.command)
                    print(f"# {time.perf_counter() - started:.1f} s", flush=True)
    finally:
        os.chdir(before)


def main(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the commands, their sizes and hours.")] = False,
    tiny: Annotated[Path | None, typer.Option(help="Run the chain in miniature in this new folder.")] = None,
    tflops: Annotated[float, typer.Option(min=0.001, help="Useful TFLOP/s of a GPU.")] = 125.0,
    gpus: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    repo: Annotated[str, typer.Option(help="Where the model goes on the Hub.")] = "ORGANISATION/clap",
) -> None:
    """List the paper's chain, or run it in miniature."""
    if dry_run == (tiny is not None):
        raise typer.BadParameter("expected one of --dry-run and --tiny FOLDER.")
    if tiny is not None:
        if tiny.exists():
            raise typer.BadParameter(f"{tiny} exists, expected a new folder.")
        run_tiny(tiny.resolve())
        return
    print(listing(steps(repo, hold_out=100), tflops, gpus))


if __name__ == "__main__":
    typer.run(main)
