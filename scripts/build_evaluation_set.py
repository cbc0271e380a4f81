#!/usr/bin/env python
"""Turn a CSV of your sounds (path,label or path,caption) into an evaluation set with a card, for the Hub.

    python scripts/build_evaluation_set.py sounds.csv --title "Door sounds" --license cc0-1.0 --output door-sounds
    clap-hf push door-sounds ORG/door-sounds --type dataset

The same CSV in a folder is what `clap-hf evaluate --suite own --data-dir FOLDER` reads.
"""

import argparse
from pathlib import Path

from clap_hf.evaluation.csv_dataset import build_evaluation_set
from clap_hf.evaluation.loading import DataSourceError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, metavar="CSV")
    parser.add_argument("--title", required=True, help="name of the set")
    parser.add_argument("--license", required=True, help="of the sounds, as the Hub spells it")
    parser.add_argument("--output", type=Path, required=True, help="gets the parquet file and the card")
    args = parser.parse_args(arguments)
    try:
        report = build_evaluation_set(args.table, args.output, title=args.title, license=args.license)
    except (DataSourceError, FileNotFoundError) as error:
        parser.error(str(error))
    print(f"{report['clips']:,} sounds, {report['seconds'] / 3600:.2f} h; {len(report['skipped'])} skipped")
    for name, reason in report["skipped"].items():
        print(f"  {name}: {reason}")


if __name__ == "__main__":
    main()
