#!/usr/bin/env python
"""Upload a model or dataset folder to the Hub: `python scripts/push_to_hub.py FOLDER ORGANISATION/NAME --dry-run`."""

import typer

from clap_hf.cli import push

if __name__ == "__main__":
    typer.run(push)
