#!/usr/bin/env python
"""Train CLAP by a recipe: `python scripts/train.py configs/small_htsat_minilm.yaml --output-dir runs/minilm`."""

import argparse
from pathlib import Path

from clap_hf.training.contrastive_run import train_contrastive
from clap_hf.training.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="YAML recipe, see configs/")
    parser.add_argument("--output-dir", type=Path, required=True, help="gets run.jsonl, last/ and best/")
    parser.add_argument("--dataset", help="folder or Hub id of the corpus, instead of the recipe's")
    parser.add_argument("--audio-tower", help="folder or Hub id of a model whose trained audio tower is taken")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of the recipe's")
    parser.add_argument("--seed", type=int, help="seed, instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--cache-dir", type=Path, help="keep the clips' log-mels here, for several runs to share")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes")
    args = parser.parse_args()
    recipe = load_recipe(
        args.recipe, dataset=args.dataset, audio_tower=args.audio_tower, steps=args.steps, seed=args.seed
    )
    train_contrastive(
        recipe, args.output_dir, resume=args.resume, num_workers=args.num_workers, cache_dir=args.cache_dir
    )


if __name__ == "__main__":
    main()
