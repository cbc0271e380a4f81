"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .io import Format

Paths = Annotated[list[Path], typer.Argument(help="Sound files, folders of them, and - for a list on stdin.")]
ModelName = Annotated[str, typer.Option(help="'embedded', a folder, or a Hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first accelerator by default.")]
MaxWindows = Annotated[
    int | None, typer.Option(min=1, help="Windows of a sound at most, evenly spaced; all that cover it by default.")
]
StdoutFormat = Annotated[Format, typer.Option("--format", help="What stdout gets.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Also write the results here, as JSON; - is stdout.")]
