#!/usr/bin/env python
"""`clap-hf train` for an audio tower: `scripts/pretrain_prompts.py configs/small_prompts.yaml --output-dir RUN`."""

import sys

from clap_hf.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
