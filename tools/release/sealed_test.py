"""Measure weights on the sealed test, once, with a line in its ledger.

    python -m tools.release.sealed_test --weights runs/embedded-6/mean --dataset sound-corpus \\
        --why "decided before: the mean of the run's last epoch and the shipped weights" --output-dir sealed

The line is written before the test is read, so that a look counts whatever comes of it. Weights that are in the ledger
already are refused: their results are beside it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import datasets
import typer
from rich.console import Console

from clap_hf.atomic_io import write_text
from clap_hf.evaluation.command import evaluate_model
from clap_hf.evaluation.runner import EvaluationOptions

LEDGER = Path(__file__).parent.parent.parent / "model_cards" / "embedded.looks.jsonl"


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Looks at the sealed test, one a line; none where there is no file yet."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def weights_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights.

    Raises:
        FileNotFoundError: If the folder holds no `model.safetensors`.
    """
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the checkpoint to measure.")],
    dataset: Annotated[Path, typer.Option(help="Folder of the sound corpus, whose split sealed is the test.")],
    why: Annotated[str, typer.Option(help="How these weights were decided on, before the look.")],
    output_dir: Annotated[Path, typer.Option(help="Where the results go.")],
    ledger: Annotated[Path, typer.Option(help="File of all looks, one a line.")] = LEDGER,
) -> None:
    """Write the look down, then measure."""
    identity, looks = weights_hash(weights), read_ledger(ledger)
    if len(why.split()) < 3:
        raise typer.BadParameter(f"--why {why!r} says too little, expected a sentence.")
    if any(look["weights"] == identity for look in looks):
        raise typer.BadParameter(f"{weights} has been measured already, {ledger} says; it is not measured twice.")
    rows = datasets.load_dataset(str(dataset), split="sealed").remove_columns("audio")
    clips = hashlib.sha256("\n".join(rows["id"][:]).encode()).hexdigest()
    look = {
        "look": len(looks) + 1,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "weights": identity,
        "clips": rows.num_rows,
        "test": clips,
        "why": why,
    }
    write_text(ledger, "".join(json.dumps(line) + "\n" for line in [*looks, look]))
    options = EvaluationOptions(
        model=str(weights), suite="sounds", data_dir=str(dataset), split="sealed", output_dir=output_dir, plots=False
    )
    code = evaluate_model(options, Console())
    if code not in (0, 3):  # 3: a task that the sealed test has no clips for
        raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
