#!/usr/bin/env python
"""Compare pairs of encoders as in the paper's Table 1, on any data, and print the scores beside the paper's.

    python scripts/compare_encoders.py configs/small_table1.yaml --output-dir runs/small-table1 --dataset sound-corpus
    python scripts/compare_encoders.py configs/table1.yaml --output-dir runs/table1 --sources data/clotho data/macs

A comparison that was stopped goes on where it was. On several processes, train the combinations one by one
(`accelerate launch scripts/train.py RECIPE --combination NAME --output-dir OUTPUT/NAME-SEED`), then compare with
`--only-compare`.
"""

import argparse
from pathlib import Path

from rich.console import Console

from clap_hf.training.comparison import as_table, compare_encoders
from clap_hf.training.recipe import combinations_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML recipe with combinations, see configs/table1.yaml")
    parser.add_argument("--output-dir", type=Path, required=True, help="gets a run per combination, and the table")
    parser.add_argument("--combinations", nargs="+", help="some of the recipe's (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2023], help="a run of each")
    parser.add_argument("--dataset", help="corpus to train on, instead of the recipe's data")
    parser.add_argument("--sources", nargs="+", help="datasets of pairs to train on, instead of the recipe's data")
    parser.add_argument("--validation", help="dataset with a validation split, where --sources are given")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of the recipe's")
    parser.add_argument("--steps-per-epoch", type=int, help="steps between evaluations, instead of the recipe's")
    parser.add_argument("--batch-size", type=int, help="pairs per step, instead of the recipe's")
    parser.add_argument("--audio-tower", help="trained audio tower for all combinations, instead of the recipe's")
    parser.add_argument("--from-scratch", action="store_true", help="take no trained audio tower")
    parser.add_argument("--cache-dir", type=Path, help="keep the clips' log-mels here, for all runs to share")
    parser.add_argument("--data-dir", type=Path, help="CSVs and sounds of the paper's tasks, see evaluate.py")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes")
    parser.add_argument("--only-compare", action="store_true", help="train nothing")
    args = parser.parse_args()
    overrides = {
        "dataset": args.dataset,
        "steps": args.steps,
        "steps_per_epoch": args.steps_per_epoch,
        "batch_size": args.batch_size,
        "audio_tower": "" if args.from_scratch else args.audio_tower,
    }
    if args.dataset:
        overrides["sources"] = []
    if args.sources:
        overrides |= {"dataset": "", "sources": [{"dataset": source} for source in args.sources]}
        overrides["validation"] = {"dataset": args.validation or args.sources[0]}
    results = compare_encoders(
        args.recipe,
        args.output_dir,
        args.combinations or combinations_of(args.recipe),
        args.seeds,
        overrides=overrides,
        num_workers=args.num_workers,
        cache_dir=args.cache_dir or args.output_dir / "log-mels",
        data_dir=args.data_dir,
        train=not args.only_compare,
    )
    Console().print(as_table(results))


if __name__ == "__main__":
    main()
