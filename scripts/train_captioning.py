#!/usr/bin/env python
"""Train a captioner: `scripts/train_captioning.py configs/small_captioning.yaml --output-dir runs/captioning`."""

import argparse
from pathlib import Path

from clap_hf.training.captioning_stage import CaptioningRecipe, train_captioning
from clap_hf.training.generative import load_stage_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="YAML recipe, see configs/")
    parser.add_argument("--output-dir", type=Path, required=True, help="gets run.jsonl, last/ and best/")
    parser.add_argument("--clap", help="folder or Hub id of the CLAP model, instead of the recipe's")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of the recipe's")
    parser.add_argument("--seed", type=int, help="seed, instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes")
    parser.add_argument("--dataset", help="folder or Hub id of the corpus, instead of the recipe's")
    parser.add_argument("--cache-dir", type=Path, help="keep the clips' log-mels here, for several runs to share")
    args = parser.parse_args()
    recipe = load_stage_recipe(
        CaptioningRecipe, args.recipe, clap=args.clap, dataset=args.dataset, steps=args.steps, seed=args.seed
    )
    train_captioning(
        recipe, args.output_dir, resume=args.resume, num_workers=args.num_workers, cache_dir=args.cache_dir
    )


if __name__ == "__main__":
    main()
