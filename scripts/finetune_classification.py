#!/usr/bin/env python
"""`clap-hf train` for a classifier: `scripts/finetune_classification.py configs/esc50.yaml --output-dir FOLDS`."""

import sys

from clap_hf.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
