#!/usr/bin/env python
"""`clap-hf convert`: `scripts/convert_msclap_checkpoint.py 2023 --output clap-2023`."""

import sys

from clap_hf.cli import app

if __name__ == "__main__":
    app(["convert", *sys.argv[1:]])
