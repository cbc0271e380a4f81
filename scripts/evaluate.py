#!/usr/bin/env python
"""`clap-hf evaluate` on several processes: `accelerate launch scripts/evaluate.py MODEL --suite paper`."""

import sys

from clap_hf.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
