#!/usr/bin/env python
"""Make the embedded checkpoint of a training run: float16 weights, processor, and a card from the run's records.

`python scripts/export_embedded.py --run runs/small-cnn14-minilm --dataset sound-corpus --results results.json`
"""

import argparse
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Template

import clap_hf
from clap_hf.evaluation.report import markdown_table

ROOT = Path(__file__).parent.parent
CARD_TEMPLATE = ROOT / "model_cards" / "embedded.md"
WEIGHTS = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="output folder of scripts/train.py")
    parser.add_argument("--dataset", required=True, help="the corpus it was trained on")
    parser.add_argument("--results", type=Path, help="JSON of scripts/evaluate_sound_tasks.py on the exported model")
    parser.add_argument("--output", type=Path, default=ROOT / "src" / "clap_hf" / "embedded")
    args = parser.parse_args()
    fresh = args.output.with_name(args.output.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    export_weights(args.run / "best", fresh)
    if args.results is not None:
        (fresh / "README.md").write_text(render_card(args.run, args.results, args.dataset))
    shutil.rmtree(args.output, ignore_errors=True)
    os.replace(fresh, args.output)
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


def changes_of_settings(starts: list[dict[str, Any]]) -> list[str]:
    """What changed where the run was stopped and resumed with another recipe."""
    changes = []
    for before, after in zip(starts, starts[1:], strict=False):
        for name, value in after["recipe"].items():
            if value != before["recipe"][name]:
                changes.append(f"{name} was {before['recipe'][name]} until step {after['from_step']}, then {value}")
    return changes


def render_card(run: Path, results_file: Path, dataset: str) -> str:
    """The model card, from the run's record, the evaluation and the corpus itself."""
    records = [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]
    starts = [record for record in records if "recipe" in record]
    epochs = [record for record in records if "epoch" in record]
    recipe, versions = starts[-1]["recipe"], dict(starts[-1]["versions"])
    machine = versions.pop("machine")
    best = max(epochs, key=lambda epoch: epoch["zero_shot_score"])
    evaluation = json.loads(results_file.read_text())
    train = datasets.load_dataset(dataset, split="train").remove_columns("audio")
    model = clap_hf.MSClapModel.from_pretrained(run / "best")
    licences: dict[str, Counter] = {}
    for licence, source in zip(train["licence"], train["source"], strict=True):
        licences.setdefault(licence, Counter())[source] += 1
    licence_lines = [
        f"- {licence} ({sum(sources.values()):,} clips): " + ", ".join(sorted(sources))
        for licence, sources in sorted(licences.items(), key=lambda item: -sum(item[1].values()))
    ]
    data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["clap", "audio", "zero-shot-audio-classification", "audio-text-retrieval"],
        base_model="sentence-transformers/all-MiniLM-L6-v2",
        model_name=recipe["name"],
        eval_results=[
            EvalResult(
                task_type="zero-shot-audio-classification" if r["metric"] == "accuracy" else "audio-text-retrieval",
                dataset_type="sound-corpus",
                dataset_name=f"sound corpus, {name}",
                dataset_config=name,  # else the tasks would be merged into one
                dataset_split=evaluation["settings"]["split"],
                metric_type=r["metric"],
                metric_value=round(r["value"], 4),
            )
            for name, r in evaluation["results"].items()
        ],
    )
    features = recipe["features"]
    return Template(CARD_TEMPLATE.read_text(), keep_trailing_newline=True).render(
        metadata=data.to_yaml(),
        name=recipe["name"],
        recipe=recipe["name"].replace("-", "_"),
        audio_tower={"cnn14": "CNN14", "htsat": "HTSAT"}[model.config.audio_config.architecture] + " at small size",
        audio_parameters=f"{sum(p.numel() for p in model.audio_model.parameters()) / 1e6:.1f} M",
        projection_dim=model.config.projection_dim,
        train_rows=f"{len(train):,}",
        train_hours=f"{sum(train['duration_s']) / 3600:.1f}",
        duration_s=features["duration_s"],
        mel=model.config.audio_config.num_mel_bins,
        fmin=50,
        fmax=f"{features['fmax']:,.0f}",
        hop=features["hop_length"],
        batch_size=recipe["batch_size"],
        steps=f"{epochs[-1]['step']:,}",
        clips_seen=f"{epochs[-1]['step'] * recipe['batch_size']:,}",
        learning_rate=recipe["learning_rate"],
        minutes=round(sum(epoch["seconds"] for epoch in epochs) / 60),
        machine=machine,
        best_epoch=best["epoch"],
        epochs=epochs[-1]["epoch"],
        seed=recipe["seed"],
        changes=changes_of_settings(starts),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        licences="\n".join(licence_lines),
        bootstrap=evaluation["settings"]["bootstrap"]["samples"],
        results=markdown_table(evaluation["results"]),
    )


if __name__ == "__main__":
    main()
