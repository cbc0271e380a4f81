"""The command `clap-hf finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .models import go_offline_if_unreachable
from .training import Workers, settings_of, split_commas

app = typer.Typer()


@app.command()
def finetune(
    sounds: Annotated[
        str,
        typer.Argument(
            help="Folder with metadata.csv or of class folders, a table, parquet, tars, save_to_disk, or a Hub id."
        ),
    ],
    output_dir: Annotated[Path, typer.Option(help="Gets best/ (the model), README.md (its card) and the records.")],
    model: Annotated[str, typer.Option(help="'embedded', 2023, 2022, a folder, or a Hub id.")] = "embedded",
    freeze: Annotated[str, typer.Option(help="Tower that stays as it is: text, audio, both or none.")] = "text",
    lora: Annotated[bool, typer.Option("--lora", help="Train adapters (needs peft); also saved merged.")] = False,
    held_out: Annotated[
        float | None, typer.Option(help="Share held out [default: the split validation, or 0.2].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, rounded up to epochs [default: 10 epochs].")] = None,
    audio_column: Annotated[str | None, typer.Option(help="Column of the sounds or their files.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the texts or labels.")] = None,
    template: Annotated[str | None, typer.Option(help="Text with {} for what the column holds.")] = None,
    label_names: Annotated[
        list[str] | None, typer.Option(help="Names of labels that are numbers, separated by commas.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of recordings or speakers, none of which is split.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SETTING=VALUE", help="Any setting of the recipe; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    num_workers: Workers = 1,
    trackers: Annotated[str, typer.Option(help="As Accelerate names them, separated by commas.")] = "",
    license: Annotated[str | None, typer.Option(help="License of the new weights, for the card.")] = None,
) -> None:
    """Fine-tune a model on sounds of your own: hold some out, measure, train, measure again, write the card.

    Then `clap-hf push OUTPUT_DIR/best ORGANISATION/NAME`. On several processes: torchrun --no-python clap-hf finetune.
    """
    from transformers.utils import logging

    from ..training.finetune import finetune as run

    logging.disable_progress_bar()  # of files of weights; ours shows the steps
    columns = {
        "audio": audio_column,
        "text": text_column,
        "template": template,
        "label_names": split_commas(label_names),
        "group": group,
    }
    if not (Path(sounds).exists() and (Path(model).is_dir() or model == "embedded")):
        go_offline_if_unreachable()
    report = run(
        sounds,
        output_dir,
        model=model,
        freeze=freeze,
        lora=lora,
        held_out=held_out,
        steps=steps,
        columns={name: value for name, value in columns.items() if value is not None},
        settings=settings_of(settings or []),
        resume=resume,
        num_workers=num_workers,
        trackers=split_commas([trackers]) or [],
        license=license,
    )
    if report:
        print_change(report, output_dir)


def print_change(report: dict[str, Any], output_dir: Path) -> None:
    """Print the metrics before and after side by side, and where the model lies."""
    table = Table(f"{report['held_out']} held-out pairs", "before", "after")
    for name, before in report["before"].items():
        form = ".3f" if name == "validation_loss" else ".1%"
        table.add_row(name.replace("_", " "), f"{before:{form}}", f"{report['after'][name]:{form}}")
    console = Console()
    console.print(table)
    console.print(
        f"Model: {escape(str(output_dir / 'best'))}; card: {escape(str(output_dir / 'README.md'))}",
        highlight=False,
        soft_wrap=True,
    )
