#!/usr/bin/env python
"""Write a model's card from the records in its folder, or beside it: run.jsonl, results.json, corpus.json.

    python scripts/write_card.py runs/captions/best --repo-id ORG/captioner --license mit --output card

`clap-hf push` writes the same card where a folder has none.
"""

import argparse
from pathlib import Path

from clap_hf.cards import write_card


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of save_pretrained; weights are not needed")
    parser.add_argument("--repo-id", required=True, help="what the snippets load")
    parser.add_argument("--license", help="of the weights, as the Hub spells it")
    parser.add_argument("--output", type=Path, help="gets README.md and curves.png (default: the folder)")
    args = parser.parse_args(arguments)
    for name, file in write_card(
        args.folder, args.output or args.folder, repo_id=args.repo_id, license=args.license
    ).items():
        print(f"{name}: {file}")


if __name__ == "__main__":
    main()
