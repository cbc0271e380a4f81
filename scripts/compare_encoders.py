#!/usr/bin/env python
"""`clap-hf compare`: `scripts/compare_encoders.py configs/table1.yaml --output-dir runs/table1`."""

import sys

from clap_hf.cli import app

if __name__ == "__main__":
    app(["compare", *sys.argv[1:]])
