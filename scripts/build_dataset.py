#!/usr/bin/env python
"""Turn your copy of one of the paper's training sets into parquet files to stream from.

    python scripts/build_dataset.py --list
    python scripts/build_dataset.py clotho --root ~/data/clotho --output data/clotho
    python scripts/build_dataset.py nsynth --root ~/data/nsynth --output data/nsynth --push-to-hub ORG/nsynth-pairs

A set that may not be passed on is built for your own machines only.
"""

import argparse
import json
from pathlib import Path

from clap_hf.data.prepare import build_dataset, push_dataset, refuse_to_share
from clap_hf.data.registry import TRAINING_SETS, training_set


def excluded_ids(path: Path) -> set[str]:
    """Ids in a file: one a line, or JSON (a list, or an object of lists, as WavCaps' blacklists are)."""
    text = path.read_text()
    if path.suffix != ".json":
        return set(text.split())
    content = json.loads(text)
    lists = content.values() if isinstance(content, dict) else [content]
    return {Path(str(name)).stem for names in lists for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", choices=sorted(TRAINING_SETS), metavar="SOURCE")
    parser.add_argument("--list", action="store_true", help="show all sources and their terms")
    parser.add_argument("--root", type=Path, help="folder with your copy")
    parser.add_argument("--output", type=Path, help="gets the parquet files")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="files of ids to leave out")
    parser.add_argument("--hold-out", type=int, default=0, metavar="CLIPS", help="clips for a validation split")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the result, where the license allows it")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    args = parser.parse_args()
    if args.list:
        for name, about in TRAINING_SETS.items():
            print(f"{name}: {about.title}, {about.pairs}\n  {about.original}\n  {about.license} ({about.access})")
            print(f"  layout: {about.layout}\n  leave out: {about.exclude}")
        return
    if not (args.source and args.root and args.output):
        parser.error("expected SOURCE, --root and --output, or --list")
    about = training_set(args.source)
    if args.push_to_hub:
        try:
            refuse_to_share(args.source, about)  # before hours of building
        except PermissionError as error:
            parser.error(str(error))
    exclude = frozenset().union(*(excluded_ids(path) for path in args.exclude))
    report = build_dataset(args.source, args.root, args.output, exclude, args.hold_out)
    print(f"{report['rows']:,} rows of {report['clips']:,} clips, {report['seconds'] / 3600:.1f} h")
    print(f"{report['excluded']} clips excluded, {len(report['skipped'])} skipped: see build_report.json")
    print(f"Leave out also: {about.exclude}")
    if args.push_to_hub:
        print(push_dataset(args.source, args.output, args.push_to_hub, args.private))


if __name__ == "__main__":
    main()
