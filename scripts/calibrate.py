#!/usr/bin/env python
"""Calibrate a checkpoint: fit scores to sounds whose labels are known, and measure them on sources held out.

    python scripts/calibrate.py MODEL SOUNDS --output MODEL/calibration.safetensors
    python scripts/calibrate.py embedded CORPUS --split validation --split test --held-out openttd-opensfx \
        --output src/clap_hf/embedded/calibration.safetensors --record record.json --plot reliability.png

SOUNDS is a folder with a labels.csv (columns file and label; also `group`, of labels that may hold of one sound, and
`source`, where a sound comes from), or a folder that tools.sound_corpus wrote. A pair of a sound and a label is
present where the sound has the label, absent where the label's group is another, and left out otherwise.
"""

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import torch
import typer
from sklearn.metrics import roc_auc_score

from clap_hf import MSClapModel, embed_files
from clap_hf.atomic_io import write_json
from clap_hf.audio import load_stored_audio, read_ahead
from clap_hf.calibration import FALSE_ALARMS, SOURCES_HELD, Calibration, sigmoid
from clap_hf.embedding import embed_clips, embed_texts, front_end, model_identity
from clap_hf.evaluation.loading import AudioColumn
from clap_hf.pipelines.zero_shot import DEFAULT_TEMPLATE
from clap_hf.pretrained import checkpoint_path, load_checked

TEMPLATES = (DEFAULT_TEMPLATE, "{}")
# Of the corpus: sounds of invented things, and clips whose labels are doubtful or name no sound.
VAGUE_CATEGORIES, VAGUE_LABELS = {"other", "ui", "creature", "fantasy"}, {"other", "percussion"}
CLIPS = 20  # of a label of a source at most
BATCH = 32
RATES = (0.01, 0.05, 0.1, 0.2)
BINS = 15
LEFT_OUT, FACTOR = 0.25, 1.5  # share of the sources that a draw leaves out; of a stated rate, in which it holds
SETS = (2, 10, 45)  # labels that a sound is classified by
COLLECTIONS = (10, 50, 200)  # sounds that are searched


@dataclass(frozen=True)
class Sounds:
    """Vectors of sounds `[sounds, dim]`, and of each its label, the group of the label, and its source."""

    vectors: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    sources: np.ndarray

    def select(self, chosen: np.ndarray) -> "Sounds":
        """Those of a mask."""
        return Sounds(*(value[chosen] for value in vars(self).values()))


def from_folder(folder: Path, model: Any, processor: Any) -> Sounds:
    """Sounds of a folder with a labels.csv."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = {folder / row["file"]: row for row in csv.DictReader(file)}
    found = embed_files(model, processor, rows)
    for reason in found.skipped.values():
        typer.echo(reason, err=True)
    columns = [
        (r["label"], r.get("group") or r["label"], r.get("source") or "") for r in map(rows.get, found.files) if r
    ]
    return Sounds(found.vectors.numpy(), *np.array(columns).T)


def from_corpus(folder: Path, splits: list[str], model: Any, processor: Any) -> Sounds:
    """Sounds of splits of the corpus that are labelled without doubt."""
    rows: list[dict[str, Any]] = []
    vectors: list[torch.Tensor] = []
    for split in splits:
        data = datasets.load_dataset(str(folder / "data"), split=split)
        counts: Counter[tuple[str, str]] = Counter()
        chosen: list[int] = []
        for number, row in enumerate(data.remove_columns("audio").to_list()):
            vague = row["category"] in VAGUE_CATEGORIES or row["label"] in VAGUE_LABELS or row["quality"] == "weak"
            vague = vague or row["velocity"] is not None  # notes rendered from soundfonts: far more than sounds
            counts[row["source"], row["label"]] += not vague
            if not vague and counts[row["source"], row["label"]] <= CLIPS:
                chosen.append(number)
                rows.append(row)
        audio = AudioColumn(data, "audio")

        def read(number: int, audio: AudioColumn = audio) -> torch.Tensor:
            sound = load_stored_audio(audio[number])
            return processor.feature_extractor([sound.samples], sound.sampling_rate)["input_features"][0]

        clips = [clip for _, clip in read_ahead(chosen, read, {})]
        vectors += [embed_clips(model, clips[start : start + BATCH]) for start in range(0, len(clips), BATCH)]
    columns = [(row["label"], row["category"], row["source"]) for row in rows]
    return Sounds(torch.cat(vectors).numpy(), *np.array(columns).T)


def pairs(sounds: Sounds, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which sound has which label, and which surely has not, each `[sounds, labels]`."""
    group = dict(zip(sounds.labels, sounds.groups, strict=True))
    groups = np.array([group[label] for label in labels])
    return sounds.labels[:, None] == labels, sounds.groups[:, None] != groups


def labelled(
    sounds: Sounds, embed: Any, templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of the sounds' labels in templates, and which sound has which, and surely has not: see `pairs`."""
    labels = np.array(sorted(set(sounds.labels)))
    text = embed([template.replace("{}", label) for template in templates for label in labels])
    present, absent = (np.tile(pair, (1, len(templates))) for pair in pairs(sounds, labels))
    return text, present, absent


def exceeding(calibration: Calibration, probability: np.ndarray) -> dict[float, float]:
    """Share of pairs above the threshold of every rate."""
    return {rate: float((probability >= calibration.threshold(rate)).mean()) for rate in RATES}


def reliability(probability: np.ndarray, truth: np.ndarray) -> tuple[float, list[tuple[float, float, float]]]:
    """Expected calibration error at even odds; of every bin the mean probability, share of present pairs, weight."""
    weight = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())
    of_bin = np.minimum((probability * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        inside = of_bin == number
        if total := weight[inside].sum():
            mean, share = ((weight[inside] * value[inside]).sum() / total for value in (probability, truth))
            bins.append((float(mean), float(share), float(total)))
    return sum(total * abs(mean - share) for mean, share, total in bins), bins


def measure(calibration: Calibration, sounds: Sounds, embed: Any, scale: float) -> dict[str, Any]:
    """Scores of sounds with and without calibration, by the labels in the default template."""
    text, present, absent = labelled(sounds, embed)
    truth = np.repeat([True, False], [present.sum(), absent.sum()])
    cosines = sounds.vectors @ text.T
    probability = calibration.probabilities(sounds.vectors, text)
    found: dict[str, Any] = {
        "sounds": len(sounds.labels),
        "labels": present.shape[1],
        "sources": sorted(set(sounds.sources)),
    }
    for name, scores in (("without", sigmoid(scale * cosines)), ("with", probability)):
        both = np.concatenate([scores[present], scores[absent]])
        error, bins = reliability(both, truth)
        found[name] = {
            "auroc": roc_auc_score(truth, both),
            "ece": error,
            "false_alarms_at_half": float((scores[absent] >= 0.5).mean()),
            "reliability": bins,
        }
    found["false_alarms"] = exceeding(calibration, probability[absent])
    found["detections"] = exceeding(calibration, probability[present])
    random = np.random.default_rng(0)
    found["none_of_these"] = []
    for count in (count for count in SETS if count <= absent.sum(axis=1).min()):
        for rate in RATES[1:]:
            wrong, right = [], []
            for own, yes, no in zip(probability, present, absent, strict=True):
                others = random.choice(np.flatnonzero(no), count, replace=False)
                wrong.append(own[others].max() >= calibration.threshold(rate, count))
                right.append(max(own[others[1:]].max(), own[yes].max()) >= calibration.threshold(rate, count))
            counted = {"labels": count, "stated": rate, "false_alarms": np.mean(wrong), "named": np.mean(right)}
            found["none_of_these"].append(counted)
    found["nothing_matches"] = []
    for count in (count for count in COLLECTIONS if count <= absent.sum(axis=0).min()):
        wrong, right, threshold = [], [], calibration.threshold(FALSE_ALARMS, count)
        for own, yes, no in zip(probability.T, present.T, absent.T, strict=True):
            others = random.choice(np.flatnonzero(no), count, replace=False)
            wrong.append(own[others].max() >= threshold)
            right.append(max(own[others[1:]].max(), own[random.choice(np.flatnonzero(yes))]) >= threshold)
        counted = {
            "sounds": count,
            "stated": FALSE_ALARMS,
            "absent_and_matches": np.mean(wrong),
            "present_and_matches": np.mean(right),
        }
        found["nothing_matches"].append(counted)
    return found


def fit(sounds: Sounds, embed: Any, facts: dict[str, Any], sources_held: float) -> Calibration:
    """A calibration by sounds, and their labels in all templates."""
    text, present, absent = labelled(sounds, embed, TEMPLATES)
    return Calibration.fit(sounds.vectors, text, present, absent, list(sounds.sources), facts, sources_held)


def leave_out(sounds: Sounds, embed: Any, sources_held: float, draws: int) -> dict[str, Any]:
    """False alarms in sources that are left out of the fit, drawn again and again."""
    random = np.random.default_rng(0)
    names = sorted(set(sounds.sources))
    found = []
    for _ in range(draws):
        chosen = np.isin(sounds.sources, random.choice(names, round(LEFT_OUT * len(names)), replace=False))
        calibration = fit(sounds.select(~chosen), embed, {}, sources_held)
        others = sounds.select(chosen)
        text, _, absent = labelled(others, embed)
        probability = calibration.probabilities(others.vectors, text)[absent]
        found.append(list(exceeding(calibration, probability).values()))
    ratios = np.array(found) / RATES
    return {
        "draws": draws,
        "sources_held": sources_held,
        "false_alarms": dict(zip(RATES, np.median(found, axis=0).tolist(), strict=True)),
        "factor": FACTOR,
        "within_factor": dict(zip(RATES, (ratios <= FACTOR).mean(axis=0).tolist(), strict=True)),
        "all_within_factor": float((ratios <= FACTOR).all(axis=1).mean()),
    }


def draw(record: dict[str, Any], file: Path) -> None:
    """Reliability diagram: share of present pairs over the stated probability."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, label="calibrated perfectly")
    for name in ("without", "with"):
        mean, share, total = np.array(record[name]["reliability"]).T
        label = f"{name} calibration, error {record[name]['ece']:.3f}"
        axes.scatter(mean, share, s=12 + 600 * total, alpha=0.5)
        axes.plot(mean, share, label=label)
    axes.set(xlabel="stated probability", ylabel="share of pairs that belong together", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"{record['sounds']} sounds of {len(record['sources'])} held-out sources")
    axes.legend()
    figure.savefig(file, dpi=120)


def main(
    model: Annotated[str, typer.Argument(help="'embedded', a folder, or a Hub id.")],
    sounds: Annotated[Path, typer.Argument(help="Folder with labels.csv, or of the corpus.")],
    output: Annotated[Path, typer.Option(help="The calibration; beside the weights it is found.")],
    split: Annotated[list[str] | None, typer.Option(help="Split of the corpus; repeatable.")] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Source to measure on, not to fit to; repeatable.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="JSON of what was measured on the held-out sources.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the reliability on them.")] = None,
    sources_held: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the sources in which a stated rate of false alarms holds.")
    ] = SOURCES_HELD,
    draws: Annotated[
        int, typer.Option(min=0, help="How often a quarter of the sources is left out, to see what rates hold.")
    ] = 0,
) -> None:
    """Fit, measure, write."""
    identity: dict[str, str] = {}
    for dtype in ("float16", "bfloat16", "float32"):
        loaded, processor = load_checked(MSClapModel, checkpoint_path(model), dtype=getattr(torch, dtype))
        identity[dtype] = model_identity(loaded, front_end(processor.feature_extractor), processor.tokenizer)

    known: dict[str, np.ndarray] = {}

    def embed(texts: list[str]) -> np.ndarray:
        fresh = [text for text in texts if text not in known]
        if fresh:
            known.update(zip(fresh, embed_texts(loaded, processor.tokenizer, fresh).cpu().numpy(), strict=True))
        return np.stack([known[text] for text in texts])

    found = from_corpus(sounds, split, loaded, processor) if split else from_folder(sounds, loaded, processor)
    kept_out = np.isin(found.sources, held_out or [])
    fitted = found.select(~kept_out)
    facts = {
        "model": model,
        "identity": identity,
        "sounds": len(fitted.labels),
        "labels": len(set(fitted.labels)),
        "sources": sorted(set(fitted.sources)),
    }
    if draws and len(set(fitted.sources)) < 4:
        raise typer.BadParameter(f"--draws leaves out one source in four, and there are {len(set(fitted.sources))}.")
    calibration = fit(fitted, embed, facts, sources_held)
    calibration.save(output)
    left_out = leave_out(fitted, embed, sources_held, draws) if draws else None
    if left_out:
        typer.echo(json.dumps(left_out, indent=1))
    if kept_out.any():
        measured = measure(calibration, found.select(kept_out), embed, float(loaded.logit_scale.detach().exp()))
        if record:
            write_json(record, {"fitted": facts, "held_out": measured, "left_out": left_out})
        if plot:
            draw(measured, plot)
        typer.echo(json.dumps({name: measured[name] for name in ("false_alarms", "detections")}, indent=1))


if __name__ == "__main__":
    typer.run(main)
