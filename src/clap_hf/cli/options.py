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

# Sounds of home, street, nature and stage that a recording is likely to hold, when no labels are given.
EVERYDAY_LABELS = tuple(
    (
        "speech,laughter,crying baby,coughing,sneezing,footsteps,applause,crowd,singing,music,piano,guitar,drums,"
        "violin,trumpet,dog,cat,bird,rooster,cow,sheep,frog,insects,rain,thunder,wind,sea waves,running water,fire,"
        "door,glass breaking,keyboard typing,clock,telephone,bell,engine,car horn,siren,train,airplane,helicopter,"
        "chainsaw,gunshot,explosion,fireworks,silence"
    ).split(",")
)
