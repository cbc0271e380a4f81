"""Zero-shot evaluation on the sound corpus (paper Section 2.3): embed once, compare, score with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track

from ..audio import AudioDecodeError, load_stored_audio
from ..embedding import embed_texts, embed_windows
from ..model.modeling_msclap import MSClapModel, mean_over_windows
from ..model.processing_msclap import MSClapProcessor
from .scoring import bootstrap_interval, relevant_ranks, retrieval
from .sound_tasks import CLASSIFICATION_TASKS, RETRIEVAL_SOURCE, select_clips


@dataclass(frozen=True)
class EvaluationClips:
    """Log-mel windows and metadata of the clips that the tasks of a split need.

    Args:
        rows: Corpus rows without audio, in the order of the clips.
        input_features: `[windows, 1, frames, mel]`, dB.
        num_windows: Windows of each clip `[clips]`.
        classes: Per classification task, the class of every clip that belongs to it, by index into `rows`.
        skipped: Ids of clips that could not be decoded, with the reason.
    """

    rows: list[dict[str, Any]]
    classes: dict[str, dict[int, str]]
    input_features: torch.Tensor
    num_windows: torch.Tensor
    skipped: dict[str, str]


def with_labels(split: datasets.Dataset, labels: Mapping[str, Mapping[str, str]]) -> datasets.Dataset:
    """A split in which clips have other labels.

    Args:
        split: A split of the sound corpus.
        labels: The clips' ids; each with its `category`, `label` and `quality`.

    Raises:
        ValueError: If the split lacks one of the clips.
    """
    ids = split["id"][:]
    missing = sorted(labels.keys() - set(ids))
    if missing:
        raise ValueError(
            f"The split lacks {len(missing)} of {len(labels)} relabelled clips, the first {missing[0]!r}."
        )
    for column in ("category", "label", "quality"):
        values = [labels.get(name, row)[column] for name, row in zip(ids, split.select_columns(column), strict=True)]
        split = split.remove_columns(column).add_column(column, values)
    return split


def load_clips(split: datasets.Dataset, processor: MSClapProcessor) -> EvaluationClips:
    """Decode the clips that any task needs and make their log-mels, once per run.

    Args:
        split: A split of the sound corpus.
        processor: Its feature extractor's inference policies apply.
    """
    rows = split.remove_columns("audio").to_list()
    chosen = {task.name: select_clips(task, rows) for task in CLASSIFICATION_TASKS}
    needed = {i for i, row in enumerate(rows) if row["source"] == RETRIEVAL_SOURCE}.union(*chosen.values())
    encoded = split.cast_column("audio", datasets.Audio(decode=False))
    position: dict[int, int] = {}  # row of the split -> clip
    features, counts, skipped = [], [], {}
    for i in track(sorted(needed), description="Decoding clips"):
        try:
            audio = load_stored_audio(encoded[i]["audio"])
            inputs = processor.feature_extractor([audio.samples], audio.sampling_rate)
        except (AudioDecodeError, ValueError) as error:
            skipped[rows[i]["id"]] = str(error)
            continue
        position[i] = len(position)
        features.append(inputs["input_features"])
        counts.append(inputs["num_windows"])
    classes = {
        task: {position[i]: name for i, name in members.items() if i in position} for task, members in chosen.items()
    }
    return EvaluationClips([rows[i] for i in position], classes, torch.cat(features), torch.cat(counts), skipped)


def embed_clips(model: MSClapModel, clips: EvaluationClips) -> torch.Tensor:
    """Unit vectors of all clips, `[clips, projection_dim]`, float32 on the CPU."""
    windows = embed_windows(model, clips.input_features)
    return F.normalize(mean_over_windows(windows, clips.num_windows), dim=-1)


def class_vectors(vectors: torch.Tensor, texts: Sequence[Sequence[str]]) -> torch.Tensor:
    """Unit vector of every class, `[classes, dim]`: the mean over its texts, normalised again.

    Args:
        vectors: Unit vectors of all texts, class after class `[texts, dim]`.
        texts: The texts of every class.
    """
    parts = vectors.split([len(own) for own in texts])
    return F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)


def _metric(hits: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap_interval(hits)
    return {"value": float(hits.mean()), "low": low, "high": high}


def classify(
    model: MSClapModel, processor: MSClapProcessor, clips: EvaluationClips, audio: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """Score every classification task that the clips cover.

    Returns:
        By task name: `metric` ("accuracy"), `value` with its 95 % interval `low` and `high`, `balanced` accuracy,
        `clips`, `classes`, `chance`, and the clips and accuracy of every class.
    """
    results: dict[str, dict[str, Any]] = {}
    for task in CLASSIFICATION_TASKS:
        chosen = clips.classes[task.name]
        if not chosen:
            continue
        names = sorted(set(chosen.values()))
        texts = [task.texts(name) for name in names]
        vectors = embed_texts(model, processor.tokenizer, [text for group in texts for text in group]).cpu()
        predicted = (audio[list(chosen)] @ class_vectors(vectors, texts).t()).argmax(dim=1)
        truth = np.array([names.index(name) for name in chosen.values()])
        hits = (predicted.numpy() == truth).astype(float)
        per_class = {
            name: {"clips": int((truth == k).sum()), "accuracy": float(hits[truth == k].mean())}
            for k, name in enumerate(names)
        }
        results[task.name] = {
            "metric": "accuracy",
            **_metric(hits),
            "balanced": float(np.mean([c["accuracy"] for c in per_class.values()])),
            "clips": len(hits),
            "classes": len(names),
            "chance": 1 / len(names),
            "per_class": per_class,
        }
    return results


def retrieve(
    model: MSClapModel, processor: MSClapProcessor, clips: EvaluationClips, audio: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """R@1 and R@10 in both directions on the clips with captions written by people; ties count against the model."""
    chosen = [i for i, row in enumerate(clips.rows) if row["source"] == RETRIEVAL_SOURCE]
    if not chosen:
        return {}
    captions = embed_texts(model, processor.tokenizer, [clips.rows[i]["captions"][0] for i in chosen]).cpu()
    similarity = captions @ audio[chosen].t()
    results = {}
    for direction, matrix in (("text to audio", similarity), ("audio to text", similarity.t())):
        rows = matrix.numpy()
        found = retrieval([relevant_ranks(row, [i]) for i, row in enumerate(rows)])
        for k in (1, 10):
            results[f"{direction} R@{k}"] = {
                "metric": f"R@{k}",
                **_metric(found.recall[k]),
                "clips": len(chosen),
                "chance": min(1.0, k / len(chosen)),
            }
    return results


def evaluate(model: MSClapModel, processor: MSClapProcessor, clips: EvaluationClips) -> dict[str, dict[str, Any]]:
    """All tasks that the clips cover; see `classify` and `retrieve`."""
    was_training = model.training
    model.eval()
    audio = embed_clips(model, clips)
    results = classify(model, processor, clips, audio) | retrieve(model, processor, clips, audio)
    model.train(was_training)
    return results


def zero_shot_score(results: dict[str, dict[str, Any]]) -> float:
    """Mean of the tasks' values (the paper's Zero-Shot score, over the tasks at hand)."""
    return float(np.mean([result["value"] for result in results.values()]))
