#!/usr/bin/env python
"""Train CLAP by a recipe, on one process or several.

python scripts/train.py configs/small_htsat_minilm.yaml --output-dir runs/minilm
accelerate launch --num_processes 8 scripts/train.py configs/table2.yaml --output-dir runs/table2 --num-workers 16
"""

import argparse
from pathlib import Path

from clap_hf.hub import BackgroundPush
from clap_hf.training.contrastive_run import train_contrastive
from clap_hf.training.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML recipe, see configs/")
    parser.add_argument("--output-dir", type=Path, required=True, help="gets run.jsonl, last/ and best/")
    parser.add_argument("--combination", help="which pair of encoders, where the recipe lists several")
    parser.add_argument("--dataset", help="folder or Hub id of the corpus, instead of the recipe's")
    parser.add_argument("--audio-tower", help="folder or Hub id of a model whose trained audio tower is taken")
    parser.add_argument("--weights", help="folder or Hub id of a trained model to go on from")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="highest learning rate, instead of the recipe's")
    parser.add_argument("--seed", type=int, help="seed, instead of the recipe's")
    parser.add_argument("--checkpoint-steps", type=int, help="steps between checkpoints within an epoch")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder, at its step")
    parser.add_argument("--cache-dir", type=Path, help="keep the clips' log-mels here, for several runs to share")
    parser.add_argument("--data-dir", type=Path, help="CSVs and sounds of the paper's tasks, see evaluate.py")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes")
    parser.add_argument(
        "--trackers", nargs="*", default=["tensorboard"], help="as Accelerate names them (default: tensorboard)"
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload best and newest epoch while training goes on")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    args = parser.parse_args()
    recipe = load_recipe(
        args.recipe,
        args.combination,
        dataset=args.dataset,
        audio_tower=args.audio_tower,
        weights=args.weights,
        steps=args.steps,
        learning_rate=args.learning_rate,
        seed=args.seed,
        checkpoint_steps=args.checkpoint_steps,
    )
    train_contrastive(
        recipe,
        args.output_dir,
        resume=args.resume,
        num_workers=args.num_workers,
        trackers=args.trackers,
        cache_dir=args.cache_dir,
        data_dir=args.data_dir,
        push=BackgroundPush(args.push_to_hub, private=args.private or None) if args.push_to_hub else None,
    )


if __name__ == "__main__":
    main()
