#!/usr/bin/env python
"""Zero-shot tasks on a split of the sound corpus: `python scripts/evaluate_sound_tasks.py --dataset sound-corpus`."""

import argparse
import json
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

import clap_hf
from clap_hf.atomic_io import write_json
from clap_hf.evaluation.report import print_results
from clap_hf.evaluation.scoring import BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED
from clap_hf.evaluation.sound_tasks import CLASSIFICATION_TASKS, TEMPLATES
from clap_hf.evaluation.zero_shot import evaluate, load_clips, with_labels, zero_shot_score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="folder or Hub id; the embedded checkpoint by default")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the sound corpus")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument(
        "--relabelled", type=Path, help="JSON of clips whose labels were corrected: results by those before are added"
    )
    parser.add_argument("--output", type=Path, help="write results as JSON here")
    args = parser.parse_args()
    name = args.model or str(clap_hf.embedded_checkpoint())
    model = clap_hf.MSClapModel.from_pretrained(name, dtype=torch.float32).eval()
    processor = clap_hf.MSClapProcessor.from_pretrained(name)
    split = datasets.load_dataset(args.dataset, split=args.split)
    clips = load_clips(split, processor)
    results = evaluate(model, processor, clips)
    print_results(results, f"Zero-shot tasks, {args.split} split")
    print(f"zero-shot score (mean): {zero_shot_score(results):.3f}; clips skipped: {len(clips.skipped)}")
    measured: dict[str, Any] = {"results": results}
    if args.relabelled is not None:
        before = {clip["id"]: clip["was"] for clip in json.loads(args.relabelled.read_text(encoding="utf-8"))["clips"]}
        earlier = evaluate(model, processor, load_clips(with_labels(split, before), processor))
        print_results(earlier, f"With the labels that {len(before)} clips had before")
        measured["before_relabelling"] = {"clips": len(before), "results": earlier}
    if args.output is not None:
        extractor = processor.feature_extractor
        settings = {
            "model": "embedded" if args.model is None else Path(name).name,
            "split": args.split,
            "fingerprint": split._fingerprint,
            "templates": TEMPLATES,
            "phrases": {task.name: task.phrases for task in CLASSIFICATION_TASKS},
            "long_audio": extractor.long_audio,
            "short_audio": extractor.short_audio,
            "dtype": "float32",
            "bootstrap": {"samples": BOOTSTRAP_SAMPLES, "seed": BOOTSTRAP_SEED},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "skipped": clips.skipped,
        }
        write_json(args.output, {"settings": settings, **measured})


if __name__ == "__main__":
    main()
