#!/usr/bin/env python
"""`clap-hf push`: `scripts/push_to_hub.py FOLDER ORGANISATION/NAME --dry-run`."""

import sys

from clap_hf.cli import app

if __name__ == "__main__":
    app(["push", *sys.argv[1:]])
