#!/usr/bin/env python
"""Convert an official Microsoft CLAP checkpoint, as `clap-hf convert` does.

`python scripts/convert_msclap_checkpoint.py 2023 --output clap-2023`
"""

import typer

from clap_hf.cli import convert

if __name__ == "__main__":
    typer.run(convert)
