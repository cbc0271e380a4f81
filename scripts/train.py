#!/usr/bin/env python
"""`clap-hf train` on several processes: `accelerate launch scripts/train.py RECIPE --output-dir RUN`."""

import sys

from clap_hf.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
