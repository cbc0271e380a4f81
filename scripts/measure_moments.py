"""Measure how well a model places sounds in time, on recordings that `python -m tools.mixtures` made.

python scripts/measure_moments.py MIXTURES --output docs/records/moments.json

For window scores and frame scores, by signal-to-noise ratio: area under the ROC curve over steps, R1@0.5, R1@0.7 and
mAP of the ranked spans, and how far the first span's middle is from that of a sound shorter than a window.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from sklearn.metrics import roc_auc_score

from clap_hf.atomic_io import write_text
from clap_hf.embedding import front_end, model_identity
from clap_hf.evaluation.moments import average_precision, recall_at_1
from clap_hf.model.modeling_msclap import MSClapModel
from clap_hf.moments import ranked_spans, score_timeline
from clap_hf.pretrained import checkpoint_path, load_checked

RESAMPLES = 2000
METHODS = {"windows": False, "frames": True}
# Of a span's peak over the median; the best of 0.4 to 0.8 for R1@0.5 on mixtures of the validation split.
SHARES = {"windows": 0.7, "frames": 0.6}


def query_metrics(
    scores: np.ndarray, step_s: float, row: dict[str, Any], window_s: float, share: float
) -> dict[str, float]:
    """Metrics of one query; NaN where one has no meaning."""
    middles = step_s * (np.arange(len(scores)) + 0.5)
    inside = np.any([(middles >= start) & (middles < end) for start, end in row["relevant_windows"]], axis=0)
    spans = ranked_spans(scores, row["query"], step_s, share=share, duration_s=row["duration"])
    predicted = [(span.start_s, span.end_s, span.score) for span in spans]
    middle = sum(predicted[0][:2]) / 2
    errors = [abs((s + e) / 2 - middle) for s, e in row["relevant_windows"] if e - s < window_s]
    return {
        "auroc": roc_auc_score(inside, scores) if 0 < inside.sum() < len(inside) else np.nan,
        "R1@0.5": recall_at_1(predicted, row["relevant_windows"], 0.5),
        "R1@0.7": recall_at_1(predicted, row["relevant_windows"], 0.7),
        "mAP": average_precision(predicted, row["relevant_windows"]).mean(),
        "middle_error_s": min(errors, default=np.nan) if min(errors, default=np.inf) < window_s else np.nan,
    }


def summary(values: np.ndarray, recordings: np.ndarray, statistic: Any) -> dict[str, Any]:
    """A statistic over queries, and its 95 % interval by drawing recordings anew."""
    known = ~np.isnan(values)
    values, recordings = values[known], recordings[known]
    rows = [np.flatnonzero(recordings == recording) for recording in np.unique(recordings)]
    generator = np.random.default_rng(0)
    drawn = [
        statistic(values[np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])])
        for _ in range(RESAMPLES)
    ]
    interval = [round(float(bound), 4) for bound in np.quantile(drawn, [0.025, 0.975])]
    return {"value": round(float(statistic(values)), 4), "interval": interval, "queries": len(values)}


def main(
    mixtures: Annotated[Path, typer.Argument(help="Folder of `python -m tools.mixtures`.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    model: Annotated[str, typer.Option(help="'embedded', a folder, or a Hub id.")] = "embedded",
    step_s: Annotated[float, typer.Option("--step", help="Length of a step, s.")] = 0.25,
    hop_s: Annotated[float | None, typer.Option("--hop", help="From a window to the next, s.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Recordings at most.")] = None,
) -> None:
    """Write AUROC, R1 and mAP by signal-to-noise ratio, with intervals, and print the means."""
    by_recording: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (mixtures / "moments.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_recording[row["vid"]].append(row)
    chosen = list(by_recording.items())[:limit]
    loaded, processor = load_checked(MSClapModel, checkpoint_path(model), dtype=torch.float32)
    window_s = processor.feature_extractor.duration_s
    found: dict[str, dict[str, list[float]]] = {method: defaultdict(list) for method in METHODS}
    recordings: list[str] = []
    ratios: list[float] = []
    for vid, rows in track(chosen, "Scoring recordings"):
        texts = [row["query"] for row in rows]
        recordings += [vid] * len(rows)
        ratios += [row["snr_db"] for row in rows]
        for method, frames in METHODS.items():
            timeline = score_timeline(
                loaded, processor, mixtures / f"{vid}.flac", texts, step_s=step_s, hop_s=hop_s, frames=frames
            )
            for row, scores in zip(rows, timeline.scores.T, strict=True):
                for name, value in query_metrics(scores, step_s, row, window_s, SHARES[method]).items():
                    found[method][name].append(float(value))
    groups, at = np.array(recordings), np.array(ratios)

    def table(values: dict[str, np.ndarray]) -> dict[str, Any]:
        everything = {"all": np.ones(len(at), bool)} | {f"{ratio:g} dB": at == ratio for ratio in np.unique(at)}
        return {
            metric: {
                name: summary(own[chosen], groups[chosen], np.median if metric == "middle_error_s" else np.mean)
                for name, chosen in everything.items()
            }
            for metric, own in values.items()
        }

    arrays = {method: {name: np.array(own) for name, own in values.items()} for method, values in found.items()}
    difference = {
        name: arrays["frames"][name] - arrays["windows"][name] for name in ("auroc", "R1@0.5", "R1@0.7", "mAP")
    }
    record = {
        "model": model,
        "identity": model_identity(loaded, front_end(processor.feature_extractor), processor.tokenizer),
        "step_s": step_s,
        "hop_s": window_s / 3 if hop_s is None else hop_s,
        "shares": SHARES,
        "recordings": len(chosen),
        "hours": round(sum(rows[0]["duration"] for _, rows in chosen) / 3600, 2),
        "queries": len(at),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "results": {method: table(values) for method, values in arrays.items()}
        | {"frames - windows": table(difference)},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(record, indent=1) + "\n")
    for method, metrics in record["results"].items():
        shown = ", ".join(
            f"{metric} {values['all']['value']:.3f} {values['all']['interval']}" for metric, values in metrics.items()
        )
        typer.echo(f"{method}: {shown}")


if __name__ == "__main__":
    typer.run(main)
