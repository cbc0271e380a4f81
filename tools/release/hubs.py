"""Count hubs: labels that come first for far more clips than are theirs.

    python -m tools.release.hubs --weights src/clap_hf/embedded --dataset sound-corpus --splits test,sealed

Every clip of the splits' sound events is compared with the 80 labels of `everyday_labels.json`. A label's share are
the clips of that label, or one 80th of all where those are fewer. Beside weights with a calibration, labels that are
stated are counted as well, as `clap-hf classify` does: of the other clips it says "none of these". The sealed test is
counted only for weights that its ledger names: see `tools.release.sealed_test`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import datasets
import torch
import typer
from rich.progress import track

from clap_hf.atomic_io import write_json
from clap_hf.audio import load_stored_audio
from clap_hf.calibration import FALSE_ALARMS, FILE, Calibration
from clap_hf.embedding import TEMPLATES, ClapEncoder, embed_classes
from clap_hf.evaluation.command import load_encoder
from clap_hf.evaluation.runner import EvaluationOptions
from clap_hf.evaluation.sound_tasks import SOUND_TASKS
from tools.release.sealed_test import LEDGER, read_ledger, weights_hash

HUBS = LEDGER.with_name("embedded.hubs.json")
BATCH = 16  # clips
LISTED = 5  # labels
EVENTS = next(task for task in SOUND_TASKS if task.name == "sound events")


def everyday_labels() -> list[str]:
    """The 80 labels."""
    labels: list[str] = json.loads(resources.files("tools.release").joinpath("everyday_labels.json").read_text())
    return labels


def count_hubs(first: Sequence[str | None], own: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """How often labels come first, beside their shares.

    Args:
        first: The label that comes first for each clip, or None of these.
        own: Each clip's own label, among the labels or not.
        labels: All labels.

    Returns:
        `clips`, and `labels`, those with the highest ratio of clips that they come first for to their share: `label`,
        `first`, `own` and `ratio`.
    """
    came_first, theirs = Counter(first), Counter(own)
    mean = len(first) / len(labels)
    rows: list[dict[str, Any]] = [
        {"label": label, "first": count, "own": theirs[label], "ratio": round(count / max(theirs[label], mean), 2)}
        for label, count in came_first.items()
        if label is not None
    ]
    return {"clips": len(first), "labels": sorted(rows, key=lambda row: -row["ratio"])[:LISTED]}


def embed_rows(encoder: ClapEncoder, rows: datasets.Dataset) -> Iterator[torch.Tensor]:
    """Embed clips, batch by batch.

    Args:
        encoder: The model.
        rows: Rows whose `audio` holds encoded bytes (`Audio(decode=False)`).

    Returns:
        Unit vectors of each batch `[at most BATCH, dim]`, in order.
    """
    for start in range(0, len(rows), BATCH):
        stored = rows[start : start + BATCH]["audio"]
        yield encoder.embed_audio([encoder.prepare(load_stored_audio(audio)) for audio in stored])


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    dataset: Annotated[Path, typer.Option(help="Folder of the sound corpus.")],
    splits: Annotated[str, typer.Option(help="Splits, by commas.")] = "test",
    record: Annotated[Path, typer.Option(help="JSON file to write.")] = HUBS,
) -> None:
    """Embed the clips of the events, and count."""
    identity, labels = weights_hash(weights), everyday_labels()
    if "sealed" in splits.split(",") and all(look["weights"] != identity for look in read_ledger(LEDGER)):
        raise typer.BadParameter("these weights are not in the sealed test's ledger: measure them on it first.")
    encoder = load_encoder(EvaluationOptions(model=str(weights), suite="sounds", data_dir=str(dataset)))
    found = Calibration.load(weights / FILE) if (weights / FILE).is_file() else None
    texts = [[template.format(label) for template in TEMPLATES] for label in labels]
    vectors = embed_classes(encoder.model, encoder.processor.tokenizer, texts).cpu()
    counted: dict[str, Any] = {}
    for split in splits.split(","):
        rows = datasets.load_dataset(str(dataset), split=split).cast_column("audio", datasets.Audio(decode=False))
        events = [i for i, row in enumerate(rows.remove_columns("audio")) if EVENTS.class_of(row)]
        rows = rows.select(events)
        clips = torch.cat(list(track(embed_rows(encoder, rows), split, total=-(-len(rows) // BATCH))))
        best = (clips @ vectors.t()).argmax(dim=1).numpy()
        first = [labels[number] for number in best]
        counted[split] = count_hubs(first, rows["label"][:], labels)
        if found is not None:
            stated = found.probabilities(clips.numpy(), vectors.numpy())[range(len(best)), best]
            certain = stated >= found.threshold(FALSE_ALARMS, count=len(labels))
            answers = [label if sure else None for label, sure in zip(first, certain, strict=True)]
            counted[split]["stated"] = count_hubs(answers, rows["label"][:], labels) | {"clips": int(certain.sum())}
        typer.echo(f"{split}: {counted[split]}")
    write_json(record, {"weights": identity, "everyday_labels": len(labels), "splits": counted})


if __name__ == "__main__":
    typer.run(main)
