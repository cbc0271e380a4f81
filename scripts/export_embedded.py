#!/usr/bin/env python
"""Make the embedded checkpoint of a training run: float16 weights, processor, and a card from the run's records.

    clap-hf evaluate RUN/best --suite sounds --data-dir sound-corpus --output-dir results \\
        --relabelled model_cards/embedded.relabelled.json
    python scripts/export_embedded.py --run RUN --results results/results.json --dataset sound-corpus

The records are copied to `model_cards/`, so that the card can be written again without the run and the corpus:

    python scripts/export_embedded.py
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch

import clap_hf
from clap_hf.atomic_io import replace_folder, write_json, write_text
from clap_hf.cards import AVERAGE, CORPUS, EARLIER, RESULTS, RUN, corpus_facts, read_records, write_card

ROOT = Path(__file__).parent.parent
EMBEDDED = ROOT / "src" / "clap_hf" / "embedded"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="output folder of scripts/train.py, with run.jsonl and best/")
    parser.add_argument(
        "--weights", type=Path, help="folder of scripts/average_weights.py; the run's best/ by default"
    )
    parser.add_argument("--results", type=Path, help="results.json of clap-hf evaluate")
    parser.add_argument("--dataset", help="the corpus it was trained on, for the list of its licenses")
    parser.add_argument("--output", type=Path, default=EMBEDDED)
    parser.add_argument("--records", type=Path, default=ROOT / "model_cards", help="where the records are kept")
    args = parser.parse_args(arguments)
    if args.weights is not None and args.run is None:
        parser.error("--weights needs --run, for the records of the run that they come from")
    stored = {name: args.records / f"embedded.{name}" for name in (RUN, EARLIER, AVERAGE, RESULTS, CORPUS)}
    weights = args.run and (args.weights or args.run / "best")
    if weights is not None:
        for name in (RUN, EARLIER):
            stored[name].unlink(missing_ok=True)
            if (args.run / name).is_file():
                write_text(stored[name], (args.run / name).read_text(encoding="utf-8"))
        stored[AVERAGE].unlink(missing_ok=True)
        if (weights / AVERAGE).is_file():
            write_text(stored[AVERAGE], (weights / AVERAGE).read_text(encoding="utf-8"))
    if args.results is not None:
        write_json(stored[RESULTS], json.loads(args.results.read_text(encoding="utf-8")))
    if args.dataset is not None:
        lines = [json.loads(line) for line in stored[RUN].read_text(encoding="utf-8").splitlines()]
        split = [line["recipe"] for line in lines if "recipe" in line][-1].get("split", "train")
        rows = datasets.load_dataset(args.dataset, split=split).remove_columns("audio")
        write_json(stored[CORPUS], corpus_facts(rows, split))
    records = read_records(
        stored[RUN], stored[RESULTS], stored[CORPUS], earlier=stored[EARLIER], average=stored[AVERAGE]
    )

    def write(folder: Path) -> None:
        if weights is not None:
            export_weights(weights, folder)
        else:
            shutil.copytree(args.output, folder)
        write_card(folder, folder, records, license="mit")

    replace_folder(args.output, write)
    size = sum(file.stat().st_size for file in args.output.iterdir()) / 2**20
    print(f"{args.output}: {size:.1f} MiB")


def export_weights(source: Path, folder: Path) -> None:
    """Save model and processor without the remote code, which the package itself is; weights as float16."""
    model = clap_hf.MSClapModel.from_pretrained(source, dtype=torch.float32)
    processor = clap_hf.MSClapProcessor.from_pretrained(source)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    for code in folder.glob("*.py"):
        code.unlink()
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        for part in (content, content.get("feature_extractor", {})):
            if isinstance(part, dict):
                part.pop("auto_map", None)
        if path.name == "config.json":
            content["text_config"].pop("_name_or_path", None)
            content["dtype"] = "float32"  # what from_pretrained's default loads it as
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
