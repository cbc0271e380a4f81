#!/usr/bin/env python
"""Cross-validated classifier on any Hub audio-classification set, as the paper's ESC-50 fine-tuning.

`python scripts/finetune_classification.py clap-2023 --dataset ashraq/esc50 --label category --fold fold ...`
"""

import argparse
from pathlib import Path

from clap_hf.pretrained import checkpoint_path
from clap_hf.training.classification import FineTuning, cross_validate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="'embedded', a folder, or a Hub id")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the data set")
    parser.add_argument("--split", default="train", help="split that is divided into folds")
    parser.add_argument("--label", default="label", help="column of the labels")
    parser.add_argument("--fold", help="column of the folds; stratified folds without it")
    parser.add_argument("--folds", type=int, default=5, help="number of folds without such a column")
    parser.add_argument("--frozen", action="store_true", help="linear probe on the tower as it is")
    parser.add_argument("--epochs", type=float, default=20, help="passes over the training clips")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=2, help="loader processes")
    parser.add_argument("--device", help="of the frozen tower; the first accelerator by default")
    parser.add_argument("--output-dir", type=Path, required=True, help="gets a folder a fold, and result.json")
    options = vars(parser.parse_args())
    output_dir, device = options.pop("output_dir"), options.pop("device")
    options["model"] = checkpoint_path(options["model"])
    found = cross_validate(FineTuning(**options), output_dir, device)
    print(f"accuracy {found['accuracy']:.2%} ± {found['std']:.2%} over {len(found['folds'])} folds;", end=" ")
    print(f"all clips {found['pooled']:.2%} (95 % interval {found['low']:.1%} – {found['high']:.1%})")
    print(f"skipped: {len(found['skipped'])}; results and models in {output_dir}")


if __name__ == "__main__":
    main()
