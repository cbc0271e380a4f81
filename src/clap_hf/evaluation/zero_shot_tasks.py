"""Scores of one task from embeddings: classification by label texts, and retrieval (paper Section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..embedding import Encoder, class_vectors
from . import scoring
from .benchmarks import Task

LARGEST_MATRIX = 100  # classes up to which the confusion matrix goes into the JSON


@dataclass(frozen=True)
class Details:
    """What plots are drawn from.

    Attributes:
        classes: Words of the classes.
        per_class: A score for every class `[classes]`, NaN where it has no clip.
        score_name: What these are.
        similarity: Mean cosine of the clips of a class (rows) and the label of a class (columns).
        confusion: Clips of a class (rows) that were called a class (columns); None for several labels.
    """

    classes: tuple[str, ...]
    per_class: np.ndarray
    score_name: str
    similarity: np.ndarray
    confusion: np.ndarray | None = None


def score_classification(
    task: Task,
    audio: np.ndarray,
    truth: Sequence[tuple[int, ...]],
    classes: tuple[str, ...],
    prompts: dict[str, list[list[str]]],
    encoder: Encoder,
    scores: str,
) -> tuple[dict[str, Any], Details]:
    """Score clips against label texts.

    Args:
        task: Says the metric.
        audio: Unit vectors `[clips, dim]`.
        truth: Class indices of every clip.
        classes: Words of the classes.
        prompts: Prompt -> texts of every class; together they are the ensemble, and each is measured by itself.
        encoder: Embeds the texts.
        scores: What cosines become: `"softmax"` over the classes, `"sigmoid"` or `"raw"`.

    Returns:
        The result, and what its plots need.
    """
    texts = list(dict.fromkeys(text for groups in prompts.values() for own in groups for text in own))
    rows = dict(zip(texts, encoder.embed_texts(texts), strict=True))

    def cosines(groups: list[list[str]]) -> np.ndarray:
        vectors = class_vectors(torch.stack([rows[text] for own in groups for text in own]), groups)
        return audio @ vectors.numpy().T

    together = [[text for group in per_class for text in group] for per_class in zip(*prompts.values(), strict=True)]
    ensemble = cosines(together)
    similarity = _class_means(ensemble, truth, len(classes))
    logits = _logits(ensemble, scores, encoder.logit_scale)
    result, per_class, confusion = _metrics(task, logits, truth, classes, scores, interval=True)
    if len(prompts) > 1:
        result["per_prompt"] = {
            name: _metrics(task, _logits(cosines(groups), scores, encoder.logit_scale), truth, classes, scores)[0][
                "value"
            ]
            for name, groups in prompts.items()
        }
    name = "average precision" if task.metric == "mAP" else ("F1" if task.metric == "F1" else "accuracy")
    counts = np.bincount([i for own in truth for i in own], minlength=len(classes))
    result["per_class"] = {
        label: {"clips": int(counts[i]), name: None if np.isnan(per_class[i]) else float(per_class[i])}
        for i, label in enumerate(classes)
    }
    if confusion is not None and len(classes) <= LARGEST_MATRIX:
        result["confusion"] = confusion.tolist()
    return result, Details(classes, per_class, name, similarity, confusion)


def _logits(cosines: np.ndarray, scores: str, scale: float) -> np.ndarray:
    """Scores that keep their order and do not saturate: softmax as its logarithm, sigmoid as its logit."""
    logits = cosines.astype(np.float64) * scale
    if scores != "softmax":
        return logits
    return torch.from_numpy(logits).log_softmax(dim=1).numpy()


def _class_means(cosines: np.ndarray, truth: Sequence[tuple[int, ...]], classes: int) -> np.ndarray:
    flags = scoring.multi_hot(truth, classes).astype(float)
    counts = flags.sum(axis=0)[:, None]
    empty = np.full((classes, classes), np.nan)
    return np.divide(flags.T @ cosines, counts, out=empty, where=counts > 0)


def _metrics(
    task: Task,
    logits: np.ndarray,
    truth: Sequence[tuple[int, ...]],
    classes: tuple[str, ...],
    scores: str,
    interval: bool = False,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
    """The task's metric, its values per class, and the confusion matrix of a single-label task."""
    base = {"metric": task.metric, "clips": len(truth), "classes": len(classes)}
    if not task.multi_label:
        labels = np.array([own[0] for own in truth])
        predicted = logits.argmax(axis=1)
        hits = (predicted == labels).astype(float)
        confusion = np.zeros((len(classes), len(classes)), dtype=int)
        np.add.at(confusion, (labels, predicted), 1)
        counts = confusion.sum(axis=1)
        empty = np.full(len(classes), np.nan)
        per_class = np.divide(confusion.diagonal(), counts, out=empty, where=counts > 0)
        low, high = scoring.bootstrap_interval(hits) if interval else (None, None)
        result = base | {"value": float(hits.mean()), "low": low, "high": high, "chance": 1 / len(classes)}
        return result | {"balanced": float(np.nanmean(per_class))}, per_class, confusion

    flags = scoring.multi_hot(truth, len(classes))
    precisions = scoring.average_precisions(logits, flags)
    there = ~np.isnan(precisions)
    mean = float(precisions[there].mean())
    base |= {"empty_classes": int((~there).sum()), "mAP": mean}
    if task.metric == "mAP":
        low, high = scoring.mean_average_precision_interval(logits, flags) if interval else (None, None)
        positives = flags.sum(axis=0)[there]
        chance = float(np.mean([scoring.chance_average_precision(int(n), len(flags)) for n in positives]))
        return base | {"value": mean, "low": low, "high": high, "chance": chance}, precisions, None

    best = scoring.micro_f1(logits, flags)
    low, high = scoring.bootstrap_interval(2 * best.hits, best.claims) if interval else (None, None)
    share = float(flags.mean())
    threshold = best.threshold
    if scores == "sigmoid":
        threshold = 1 / (1 + np.exp(-threshold))
    elif scores == "softmax":
        threshold = np.exp(threshold)
    base |= {
        "value": best.value,
        "low": low,
        "high": high,
        "chance": 2 * share / (1 + share),  # of claiming everything, which the best threshold can always do
        "threshold": float(threshold),
        "threshold_rule": "the best single one on these scores (optimistic)",
        "f1_top1": scoring.top1_micro_f1(logits, flags).value,
    }
    claimed = logits >= best.threshold
    found = 2 * (claimed & flags).sum(axis=0) / np.maximum(1, claimed.sum(axis=0) + flags.sum(axis=0))
    return base, np.where(flags.any(axis=0), found, np.nan), None


def score_retrieval(
    task: Task, audio: np.ndarray, captions: Sequence[Sequence[str]], encoder: Encoder
) -> tuple[dict[str, Any], Details]:
    """Score retrieval in the task's direction; intervals resample clips, with all their captions.

    Args:
        task: Its kind is the direction.
        audio: Unit vectors `[clips, dim]`.
        captions: Captions of every clip.
        encoder: Embeds the captions.
    """
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    texts = encoder.embed_texts([text for own in captions for text in own]).numpy()
    if task.kind == "text-to-audio":
        relevant = [[int(clip)] for clip in owner]
        found = scoring.retrieval(scoring.rank_all(lambda a, b: texts[a:b] @ audio.T, relevant))
        clip_of_query, chance = owner, 1 / len(captions)
    else:
        relevant = [np.flatnonzero(owner == clip).tolist() for clip in range(len(captions))]
        found = scoring.retrieval(scoring.rank_all(lambda a, b: audio[a:b] @ texts.T, relevant))
        clip_of_query = np.arange(len(captions))
        chance = float(np.mean([len(own) for own in relevant])) / len(owner)
    queries = np.bincount(clip_of_query, minlength=len(captions)).astype(float)

    def measured(values: np.ndarray) -> dict[str, float]:
        low, high = scoring.bootstrap_interval(np.bincount(clip_of_query, values, len(captions)), queries)
        return {"value": float(values.mean()), "low": low, "high": high}

    result: dict[str, Any] = {
        "metric": "R@1",
        **measured(found.recall[1]),
        "chance": chance,
        "clips": len(captions),
        "captions": len(owner),
        **{f"R@{k}": measured(hits) for k, hits in found.recall.items()},
        "mAP@10": {**measured(found.average_precision), "paper": task.paper_map, "benchmark": task.benchmark_map},
    }
    shown = min(len(captions), 30)
    firsts = texts[[int(np.flatnonzero(owner == clip)[0]) for clip in range(shown)]]
    names = tuple(captions[clip][0] for clip in range(shown))
    per_clip = np.bincount(clip_of_query, found.recall[1], len(captions))[:shown] / np.maximum(1, queries[:shown])
    return result, Details(names, per_clip, "R@1", audio[:shown] @ firsts.T)
