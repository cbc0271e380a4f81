#!/usr/bin/env python
"""`clap-hf train` for a captioner: `scripts/train_captioning.py configs/captioning.yaml --output-dir RUN`."""

import sys

from clap_hf.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
