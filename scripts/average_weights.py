#!/usr/bin/env python
"""Average the weights of two models of one shape, one of which went on from the other.

    python scripts/average_weights.py --before RUN/before --after RUN/best --why "kept for ..." --output averaged

Fine-tuning on new sounds costs some of what the weights before knew; their mean with those after keeps most of both
(Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). `average.json` beside the weights is for the card.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import clap_hf
from clap_hf.atomic_io import replace_folder, write_json
from clap_hf.cards import AVERAGE


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="folder or Hub id of the model that training went on from")
    parser.add_argument(
        "--after", required=True, help="folder or Hub id of the model it ended with; gives the settings"
    )
    parser.add_argument("--why", required=True, help="why the mean was taken, for the card")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    before, model = (
        clap_hf.MSClapModel.from_pretrained(name, dtype=torch.float32) for name in (args.before, args.after)
    )
    model.load_state_dict(mean_of_weights(before.state_dict(), model.state_dict()))

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        clap_hf.MSClapProcessor.from_pretrained(args.after).save_pretrained(folder)
        of = ["the weights that the last run went on from", "those it ended with"]
        write_json(folder / AVERAGE, {"of": of, "why": args.why})

    replace_folder(args.output, write)


def mean_of_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean of every weight of two models of one shape; counters are the second's.

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


if __name__ == "__main__":
    main()
