#!/usr/bin/env python
"""Turn a CSV of your sounds (path,label or path,caption) into an evaluation set with a card, for the Hub.

    python scripts/build_evaluation_set.py sounds.csv --title "Door sounds" --license cc0-1.0 --output door-sounds
    clap-hf push door-sounds ORG/door-sounds --type dataset

The same CSV in a folder is what `clap-hf evaluate --suite own --data-dir FOLDER` reads.
"""

from pathlib import Path
from typing import Annotated

import typer

from clap_hf.evaluation.csv_dataset import build_evaluation_set
from clap_hf.evaluation.loading import DataSourceError


def main(
    table: Annotated[Path, typer.Argument(metavar="CSV")],
    title: Annotated[str, typer.Option(help="Name of the set.")],
    license: Annotated[str, typer.Option(help="License of the sounds, as the Hub spells it.")],
    output: Annotated[Path, typer.Option(help="Gets the parquet file and the card.")],
) -> None:
    """Build the dataset folder."""
    try:
        report = build_evaluation_set(table, output, title=title, license=license)
    except (DataSourceError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    print(f"{report['clips']:,} sounds, {report['seconds'] / 3600:.2f} h; {len(report['skipped'])} skipped")
    for name, reason in report["skipped"].items():
        print(f"  {name}: {reason}")


if __name__ == "__main__":
    typer.run(main)
