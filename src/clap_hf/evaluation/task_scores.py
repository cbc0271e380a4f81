"""Scores of one task from embeddings: zero-shot classification and retrieval (paper Section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..embedding import class_vectors
from . import scoring
from .benchmarks import Task
from .loading import TaskData

LARGEST_MATRIX = 100  # classes up to which the confusion matrix goes into the JSON
DETAILED_CLIPS = 30  # clips of a retrieval task that are plotted

EmbedTexts = Callable[[list[str]], torch.Tensor]  # unit vectors of texts `[texts, dim]`, float32 on the CPU
Prompts = dict[str, list[list[str]]]  # prompt -> texts of every class


@dataclass(frozen=True)
class Details:
    """What plots are drawn from.

    Attributes:
        classes: Words of the classes.
        per_class: A score for every class `[classes]`, NaN where it has no clip.
        score_name: Name of that score.
        similarity: Mean cosine of the clips of a class (rows) and the label of a class (columns).
        confusion: Clips of a class (rows) that were given a class (columns); None for several labels.
    """

    classes: tuple[str, ...]
    per_class: np.ndarray
    score_name: str
    similarity: np.ndarray
    confusion: np.ndarray | None = None


def class_texts(
    task: Task,
    classes: Sequence[str],
    templates: Sequence[str] | None = None,
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> Prompts:
    """Texts of every class by prompt: one group a template, and one of descriptions where there are any.

    Args:
        task: The task.
        classes: Words of the classes.
        templates: Templates that replace the task's, and its phrases.
        descriptions: Texts of a class, by its words.

    Returns:
        Prompt -> texts of every class; the prompts together are the ensemble that is reported.
    """
    if templates is None and task.phrases:
        return {"phrases": [list(task.phrases.get(name) or _filled(task.templates, name)) for name in classes]}
    templates, descriptions = templates or task.templates, descriptions or {}
    prompts = {template: [_filled((template,), name) for name in classes] for template in templates}
    if any(name in descriptions for name in classes):
        prompts["descriptions"] = [list(descriptions.get(name) or _filled(templates, name)) for name in classes]
    return prompts


def _filled(templates: Sequence[str], name: str) -> list[str]:
    return [template.replace("{}", name) for template in templates]


def score_classification(
    task: Task,
    data: TaskData,
    audio: np.ndarray,
    prompts: Prompts,
    embed_texts: EmbedTexts,
    *,
    logit_scale: float = 1.0,
    scores: str = "softmax",
) -> tuple[dict[str, Any], Details]:
    """Score clips against label texts.

    Args:
        task: Its metric is measured.
        data: Classes, and labels of the clips.
        audio: Unit vectors of the clips `[clips, dim]`.
        prompts: See `class_texts`; each is also measured by itself.
        embed_texts: Embeds the texts.
        logit_scale: What cosines are multiplied with.
        scores: What cosines become: `"softmax"` over the classes, `"sigmoid"` or `"raw"`.

    Returns:
        The result, and what its plots need.
    """
    classes, truth = data.classes, data.labels
    together = [[text for group in per_class for text in group] for per_class in zip(*prompts.values(), strict=True)]
    texts = list(dict.fromkeys(text for own in together for text in own))
    rows = dict(zip(texts, embed_texts(texts), strict=True))

    def cosines(groups: list[list[str]]) -> np.ndarray:
        vectors = class_vectors(torch.stack([rows[text] for own in groups for text in own]), groups)
        found = audio @ vectors.numpy().T
        scoring.check_finite(found)
        return found

    def measured(found: np.ndarray, interval: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
        logits = _logits(found, scores, logit_scale)
        if task.multi_label:
            flags = scoring.multi_hot(truth, len(classes))
            by_metric = _mean_average_precision if task.metric == "mAP" else _f1
            return *by_metric(logits, flags, scores, interval), None
        return _accuracy(logits, np.array([own[0] for own in truth]), interval)

    ensemble = cosines(together)
    result, per_class, confusion = measured(ensemble, True)
    result = {"metric": task.metric, "clips": len(truth), "classes": len(classes)} | result
    if len(prompts) > 1:
        result["per_prompt"] = {name: measured(cosines(own), False)[0]["value"] for name, own in prompts.items()}
    name = {"mAP": "average precision", "F1": "F1"}.get(task.metric, "accuracy")
    counts = np.bincount([i for own in truth for i in own], minlength=len(classes))
    result["per_class"] = {
        label: {"clips": int(counts[i]), name: None if np.isnan(per_class[i]) else float(per_class[i])}
        for i, label in enumerate(classes)
    }
    if confusion is not None and len(classes) <= LARGEST_MATRIX:
        result["confusion"] = confusion.tolist()
    return result, Details(classes, per_class, name, _class_means(ensemble, truth, len(classes)), confusion)


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


def _accuracy(logits: np.ndarray, labels: np.ndarray, interval: bool) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    predicted = logits.argmax(axis=1)
    confusion = scoring.confusion_matrix(predicted, labels, logits.shape[1])
    found = scoring.accuracies(confusion)
    low, high = scoring.bootstrap_interval((predicted == labels).astype(float)) if interval else (None, None)
    result = {
        "value": found["accuracy"],
        "low": low,
        "high": high,
        "chance": 1 / logits.shape[1],
        "balanced": found["balanced_accuracy"],
    }
    return result, scoring.class_accuracies(confusion), confusion


def _mean_average_precision(
    logits: np.ndarray, flags: np.ndarray, scores: str, interval: bool
) -> tuple[dict[str, Any], np.ndarray]:
    precisions = scoring.average_precisions(logits, flags)
    found = scoring.mean_average_precision(precisions)
    low, high = scoring.mean_average_precision_interval(logits, flags) if interval else (None, None)
    positives = flags.sum(axis=0)[flags.any(axis=0)]
    chance = float(np.mean([scoring.chance_average_precision(int(n), len(flags)) for n in positives]))
    result = {"value": found["map"], "low": low, "high": high, "chance": chance}
    return result | {"empty_classes": found["empty_classes"], "mAP": found["map"]}, precisions


def _f1(logits: np.ndarray, flags: np.ndarray, scores: str, interval: bool) -> tuple[dict[str, Any], np.ndarray]:
    best = scoring.micro_f1(logits, flags)
    mean = scoring.mean_average_precision(scoring.average_precisions(logits, flags))
    low, high = scoring.bootstrap_interval(2 * best.hits, best.claims) if interval else (None, None)
    share, threshold = float(flags.mean()), best.threshold
    if scores == "sigmoid":
        threshold = 1 / (1 + np.exp(-threshold))
    elif scores == "softmax":
        threshold = np.exp(threshold)
    result = {
        "value": best.value,
        "low": low,
        "high": high,
        "chance": 2 * share / (1 + share),  # of claiming everything, which the best threshold can always do
        "threshold": float(threshold),
        "threshold_rule": "the best single one on these scores (optimistic)",
        "f1_top1": scoring.top1_micro_f1(logits, flags).value,
        "empty_classes": mean["empty_classes"],
        "mAP": mean["map"],
    }
    claimed = logits >= best.threshold
    per_class = 2 * (claimed & flags).sum(axis=0) / np.maximum(1, claimed.sum(axis=0) + flags.sum(axis=0))
    return result, np.where(flags.any(axis=0), per_class, np.nan)


def score_retrieval(
    task: Task, data: TaskData, audio: np.ndarray, embed_texts: EmbedTexts
) -> tuple[dict[str, Any], Details]:
    """Score retrieval in the task's direction; intervals resample clips, with all their captions.

    Args:
        task: Its kind is the direction.
        data: Captions of the clips; equal captions of several clips are equal answers.
        audio: Unit vectors of the clips `[clips, dim]`.
        embed_texts: Embeds the captions.

    Raises:
        ValueError: If a similarity is NaN or infinite.
    """
    captions = data.captions
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    texts = embed_texts([text for own in captions for text in own]).numpy()
    truth = scoring.answers(captions)
    if task.kind == "text-to-audio":
        queries, items, relevant, clip_of_query = texts, audio, truth.of_captions, owner
    else:
        queries, items, relevant, clip_of_query = audio, texts, truth.of_clips, np.arange(len(captions))
    found = scoring.retrieval(scoring.rank_all(lambda start, end: queries[start:end] @ items.T, relevant))
    means = found.means()
    per_clip = np.bincount(clip_of_query, minlength=len(captions)).astype(float)

    def measured(name: str, values: np.ndarray) -> dict[str, Any]:
        low, high = scoring.bootstrap_interval(np.bincount(clip_of_query, values, len(captions)), per_clip)
        return {"value": means[name], "low": low, "high": high}

    recalls = {
        f"R@{k}": measured(f"R@{k}", hits) | {"chance": scoring.chance_recall(k, relevant, len(items))}
        for k, hits in found.recall.items()
    }
    published = {"paper": task.paper_map, "benchmark": task.benchmark_map}
    result = {
        "metric": "R@1",
        **recalls["R@1"],
        "clips": len(captions),
        "captions": len(owner),
        "captions_of_several_clips": truth.shared,
        **recalls,
        "mAP@10": measured("mAP@10", found.average_precision) | published,
    }
    shown = min(len(captions), DETAILED_CLIPS)
    firsts = texts[np.searchsorted(owner, np.arange(shown))]
    hits = np.bincount(clip_of_query, found.recall[1], len(captions))[:shown] / np.maximum(1, per_clip[:shown])
    return result, Details(tuple(own[0] for own in captions[:shown]), hits, "R@1", audio[:shown] @ firsts.T)
