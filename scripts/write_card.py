#!/usr/bin/env python
"""Write a model's card from the records in its folder, or beside it: run.jsonl, results.json, corpus.json.

    python scripts/write_card.py runs/captions/best --repo-id ORG/captioner --license mit --output card

`clap-hf push` writes the same card where a folder has none.
"""

from pathlib import Path
from typing import Annotated

import typer

from clap_hf import cards


def main(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of save_pretrained; weights are not needed.")
    ],
    repo_id: Annotated[str, typer.Option(help="What the snippets load.")],
    license: Annotated[str | None, typer.Option(help="License of the weights, as the Hub spells it.")] = None,
    output: Annotated[Path | None, typer.Option(help="Gets README.md and curves.png; the folder by default.")] = None,
) -> None:
    """Write README.md, and curves.png where the run has epochs."""
    for name, file in cards.write_card(folder, output or folder, repo_id=repo_id, license=license).items():
        print(f"{name}: {file}")


if __name__ == "__main__":
    typer.run(main)
