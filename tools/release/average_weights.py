"""Average the weights of two models of one shape, one of which goes back to the other.

    python -m tools.release.average_weights --before RUN/before --after RUN/best --why "kept for ..." --output averaged

Fine-tuning on new sounds costs some of what the weights before knew; their mean with those after keeps most of both
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). `average.json` beside the weights is for the card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

import clap_hf
from clap_hf.atomic_io import replace_folder, write_json
from clap_hf.cards import AVERAGE


def mean_of_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean of every weight of two models of one shape; counters are the second's.

    Args:
        first: State of a model.
        second: State of the other.

    Raises:
        ValueError: If the models differ in a weight's name or shape.
    """
    shapes, others = ({(name, weight.shape) for name, weight in weights.items()} for weights in (first, second))
    differing = {name for name, _ in shapes ^ others}
    if differing:
        raise ValueError(f"The models differ in {sorted(differing)[:5]}: average models of one configuration only.")
    return {
        name: (first[name] + weight) / 2 if weight.is_floating_point() else weight for name, weight in second.items()
    }


def main(
    before: Annotated[str, typer.Option(help="Folder or Hub id of the model that training went on from.")],
    after: Annotated[str, typer.Option(help="Folder or Hub id of the model it ended with; gives the settings.")],
    why: Annotated[str, typer.Option(help="Why the mean was taken, for the card.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    name: Annotated[str, typer.Option(help="What the card calls the weights before.")] = (
        "the weights that the last run went on from"
    ),
) -> None:
    """Write the mean of two models, with the second's processor."""
    first, model = (clap_hf.MSClapModel.from_pretrained(name, dtype=torch.float32) for name in (before, after))
    model.load_state_dict(mean_of_weights(first.state_dict(), model.state_dict()))

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        clap_hf.MSClapProcessor.from_pretrained(after).save_pretrained(folder)
        write_json(folder / AVERAGE, {"of": [name, "those that the last run ended with"], "why": why})

    replace_folder(output, write)


if __name__ == "__main__":
    typer.run(main)
