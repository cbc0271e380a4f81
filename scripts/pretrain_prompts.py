#!/usr/bin/env python
"""Pretrain an audio tower: `scripts/pretrain_prompts.py configs/small_prompts.yaml --output-dir runs/tasks`.

The result goes into the contrastive stage: `scripts/train.py RECIPE --audio-tower runs/tasks/best`.
"""

import argparse
from pathlib import Path

from clap_hf.training.generative import load_stage_recipe
from clap_hf.training.prompt_stage import PromptRecipe, pretrain_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML recipe, see configs/")
    parser.add_argument("--output-dir", type=Path, required=True, help="gets run.jsonl, last/ and best/")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of the recipe's")
    parser.add_argument("--seed", type=int, help="seed, instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes")
    args = parser.parse_args()
    recipe = load_stage_recipe(PromptRecipe, args.recipe, steps=args.steps, seed=args.seed)
    pretrain_prompts(recipe, args.output_dir, resume=args.resume, num_workers=args.num_workers)


if __name__ == "__main__":
    main()
