"""Scores of predictions as plain numpy functions: every number of an evaluation comes from here, with its interval.

R@k, everywhere in this package (docs/evaluate.md): the share of queries that have at least one relevant item among
their first k. Items that are as similar as a relevant one come before it, and equal texts are equal answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_SAMPLES = 2000
RANKING_BOOTSTRAP_SAMPLES = 200  # mean average precision is ranked anew in every sample
BOOTSTRAP_SEED = 0
RECALL_CUTOFFS = (1, 5, 10)
MAP_CUTOFF = 10
_DRAWS = 2**24  # clips drawn at a time: 128 MB of indices


def check_finite(scores: np.ndarray, first: int = 0) -> None:
    """Refuse NaN and infinity, which have no place in a ranking.

    Args:
        scores: `[rows, items]`.
        first: Number of the first row, where these are a block of more.

    Raises:
        ValueError: If a row holds one.
    """
    wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"similarities of row {first + int(wrong[0])} hold NaN or infinity, expected finite numbers: check the "
            "embedding of that clip or text."
        )


def bootstrap_interval(values: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """95 % interval of a mean over clips, by resampling clips with a fixed seed.

    Args:
        values: One value a clip `[clips]`.
        weights: `[clips]`; given them, the interval is that of sum(values) / sum(weights), for clips with several
            queries or labels.

    Returns:
        Lower and upper end.
    """
    means = []
    for draw in bootstrap_draws(len(values), BOOTSTRAP_SAMPLES):
        totals = values[draw].mean(axis=1) if weights is None else _ratio(values[draw], weights[draw])
        means.append(totals)
    return _percentiles(np.concatenate(means))


def bootstrap_draws(clips: int, samples: int) -> list[np.ndarray]:
    """Indices of resampled clips, in blocks `[samples of the block, clips]`; the same ones for the same numbers."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    block = max(1, _DRAWS // clips)
    return [rng.integers(0, clips, (min(block, samples - start), clips)) for start in range(0, samples, block)]


def _ratio(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return values.sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-12)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Truth of a multi-label task, bool `[clips, classes]`, from the class indices of every clip."""
    truth = np.zeros((len(labels), classes), dtype=bool)
    for row, indices in zip(truth, labels, strict=True):
        row[list(indices)] = True
    return truth


def confusion_matrix(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Clips of a class (rows) that were given a class (columns), `[classes, classes]`."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def class_accuracies(confusion: np.ndarray) -> np.ndarray:
    """Share of right clips of every class `[classes]`; NaN where a class has no clip."""
    counts = confusion.sum(axis=1)
    empty = np.full(len(confusion), np.nan)
    return np.divide(confusion.diagonal(), counts, out=empty, where=counts > 0)


def accuracies(confusion: np.ndarray) -> dict[str, float]:
    """`accuracy`, the share of right clips, and `balanced_accuracy`, its mean over the classes."""
    return {
        "accuracy": float(confusion.trace() / confusion.sum()),
        "balanced_accuracy": float(np.nanmean(class_accuracies(confusion))),
    }


class RankedScores:
    """Scores sorted once per class, so that resampled clips need no new sort.

    Args:
        scores: `[clips, classes]`.
        truth: bool `[clips, classes]`.
    """

    def __init__(self, scores: np.ndarray, truth: np.ndarray):
        clips = len(scores)
        self.order = np.argsort(-scores, axis=0, kind="stable")
        ranked = np.take_along_axis(scores, self.order, axis=0)
        self.truth = np.take_along_axis(truth, self.order, axis=0)
        # Clips that score the same enter the curve together: each one's precision is read at the end of its group.
        last_of_group = np.ones(scores.shape, dtype=bool)
        last_of_group[:-1] = ranked[:-1] != ranked[1:]
        ends = np.where(last_of_group, np.arange(clips)[:, None], clips)
        self.ends = np.minimum.accumulate(ends[::-1], axis=0)[::-1]

    def average_precisions(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Average precision of every class, `[classes]`; NaN where no clip is positive.

        Args:
            counts: How often each clip is drawn `[clips]`; once by default.
        """
        weights = np.ones(self.order.shape) if counts is None else counts[self.order].astype(float)
        hits = weights * self.truth
        seen = np.take_along_axis(np.cumsum(weights, axis=0), self.ends, axis=0)
        found = np.take_along_axis(np.cumsum(hits, axis=0), self.ends, axis=0)
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        positives = hits.sum(axis=0)
        empty = np.full(positives.shape, np.nan)
        return np.divide((hits * precision).sum(axis=0), positives, out=empty, where=positives > 0)


def average_precisions(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Average precision of every class: area under precision over recall in steps, as scikit-learn defines it.

    Args:
        scores: `[clips, classes]`; only the order of clips within a class matters.
        truth: bool `[clips, classes]`.

    Returns:
        `[classes]`; NaN where no clip is positive (scikit-learn gives 0 there, which lowers the mean).

    Raises:
        ValueError: If a score is NaN or infinite.
    """
    check_finite(scores)
    blocks = range(0, scores.shape[1], 64)  # sorted copies of all classes at once would take gigabytes
    parts = [RankedScores(scores[:, i : i + 64], truth[:, i : i + 64]).average_precisions() for i in blocks]
    return np.concatenate(parts)


def mean_average_precision(precisions: np.ndarray) -> dict[str, float | int]:
    """`map`, the mean over the `classes` that have positives, and `empty_classes`, the number of the others.

    Args:
        precisions: See `average_precisions`.
    """
    empty = np.isnan(precisions)
    return {
        "map": float("nan") if empty.all() else float(precisions[~empty].mean()),
        "classes": int((~empty).sum()),
        "empty_classes": int(empty.sum()),
    }


def mean_average_precision_interval(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """95 % interval of the macro mean over the classes that have positives, by resampling clips.

    A clip drawn twice helps its own class, so that resampled means lie above the measured one where classes are small:
    the percentiles are moved by that difference.
    """
    draws = [row for block in bootstrap_draws(len(scores), RANKING_BOOTSTRAP_SAMPLES) for row in block]
    counts = [np.bincount(draw, minlength=len(scores)) for draw in draws]
    sums, classes = np.zeros(len(draws)), np.zeros(len(draws))
    for start in range(0, scores.shape[1], 64):
        ranked = RankedScores(scores[:, start : start + 64], truth[:, start : start + 64])
        for i, count in enumerate(counts):
            values = ranked.average_precisions(count)
            sums[i] += np.nansum(values)
            classes[i] += np.count_nonzero(~np.isnan(values))
    means = sums / np.maximum(classes, 1)
    low, high = _percentiles(means)
    bias = float(means.mean()) - float(np.nanmean(average_precisions(scores, truth)))
    return max(0.0, low - bias), min(1.0, high - bias)


def chance_average_precision(positives: int, clips: int) -> float:
    """Expected average precision of a random order: near the share of positives, above it where these are few."""
    harmonic = float((1 / np.arange(1, clips + 1)).sum())
    share = (positives - 1) / (clips - 1) if clips > 1 else 0.0
    return (harmonic + share * (clips - harmonic)) / clips


@dataclass(frozen=True)
class MicroF1:
    """Micro F1 at the one threshold that suits the test scores best, and the counts it comes from.

    Attributes:
        value: F1 over all clip-class decisions.
        threshold: A class is claimed where its score reaches this.
        hits: Right claims of each clip `[clips]`.
        claims: Claims of each clip plus its true labels `[clips]`; F1 = 2 x sum(hits) / sum(claims).
    """

    value: float
    threshold: float
    hits: np.ndarray
    claims: np.ndarray


def micro_f1(scores: np.ndarray, truth: np.ndarray, threshold: float | None = None) -> MicroF1:
    """Micro-averaged F1 with one threshold for all classes.

    The threshold is chosen on the scores that it is then measured on, which is optimistic; the paper does not publish
    its rule. `top1_micro_f1` needs no threshold.

    Args:
        scores: `[clips, classes]`.
        truth: bool `[clips, classes]`.
        threshold: The threshold, where it was chosen elsewhere.

    Raises:
        ValueError: If a score is NaN or infinite.
    """
    check_finite(scores)
    if threshold is None:
        order = np.argsort(-scores, axis=None, kind="stable")
        ranked = scores.ravel()[order]
        found = np.cumsum(truth.ravel()[order])
        f1 = 2 * found / (np.arange(1, len(ranked) + 1) + max(1, truth.sum()))
        f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores are claimed together
        threshold = float(ranked[np.argmax(f1)])
    claimed = scores >= threshold
    return _micro_f1(claimed, truth, threshold)


def top1_micro_f1(scores: np.ndarray, truth: np.ndarray) -> MicroF1:
    """Micro F1 where every clip claims the one class that scores best."""
    claimed = np.zeros(scores.shape, dtype=bool)
    claimed[np.arange(len(scores)), scores.argmax(axis=1)] = True
    return _micro_f1(claimed, truth, float("nan"))


def _micro_f1(claimed: np.ndarray, truth: np.ndarray, threshold: float) -> MicroF1:
    hits = (claimed & truth).sum(axis=1).astype(float)
    claims = (claimed.sum(axis=1) + truth.sum(axis=1)).astype(float)
    return MicroF1(float(2 * hits.sum() / max(1.0, claims.sum())), threshold, hits, claims)


def relevant_ranks(similarity: np.ndarray, relevant: Sequence[int]) -> np.ndarray:
    """Places of one query's relevant items in its ranking; whatever ties with a relevant item comes before it.

    Args:
        similarity: Similarity of the query to every item `[items]`.
        relevant: Indices of the items that answer it, each once.

    Returns:
        0-based ranks, best first, `[relevant]`.
    """
    own = np.zeros(len(similarity), dtype=bool)
    own[list(relevant)] = True
    best_first = np.sort(similarity[own])[::-1]
    others = np.sort(similarity[~own])
    before = len(others) - np.searchsorted(others, best_first, side="left")
    return before + np.arange(len(best_first))


@dataclass(frozen=True)
class Answers:
    """Relevant items of captions and clips that are queries for each other; equal captions are equal answers.

    Attributes:
        of_captions: For every caption, the clips that have an equal one.
        of_clips: For every clip, the captions that equal one of its own.
        shared: Captions that another clip has too.
    """

    of_captions: list[list[int]]
    of_clips: list[list[int]]
    shared: int


def answers(captions: Sequence[Sequence[str]]) -> Answers:
    """Relevant items of both directions.

    Args:
        captions: Captions of every clip; they are numbered one clip after the other.
    """
    texts = [text for own in captions for text in own]
    equal: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        equal.setdefault(text, []).append(number)
    clips: dict[str, list[int]] = {}
    for clip, own in enumerate(captions):
        for text in dict.fromkeys(own):
            clips.setdefault(text, []).append(clip)
    return Answers(
        of_captions=[clips[text] for text in texts],
        of_clips=[[number for text in dict.fromkeys(own) for number in equal[text]] for own in captions],
        shared=sum(len(clips[text]) > 1 for text in texts),
    )


def chance_recall(k: int, relevant: Sequence[Sequence[int]], items: int) -> float:
    """Expected R@k of a random order of the items."""

    def of_query(own: int) -> float:
        if k == 1 or own == 1:
            return min(1.0, k * own / items)
        missed = [max(0, items - own - i) / (items - i) for i in range(min(k, items))]
        return 1 - float(np.prod(missed))

    sizes, queries = np.unique([len(own) for own in relevant], return_counts=True)
    chances = [of_query(int(size)) for size in sizes]
    return chances[0] if len(chances) == 1 else float(np.average(chances, weights=queries))


@dataclass(frozen=True)
class Retrieval:
    """Per-query retrieval scores.

    Attributes:
        recall: By cutoff k, whether any relevant item is among the first k `[queries]`; their mean is R@k.
        average_precision: AP@10: precision at each relevant item of the first ten, summed, over the number of relevant
            items `[queries]`. One relevant item: 1 / rank.
    """

    recall: dict[int, np.ndarray]
    average_precision: np.ndarray

    def means(self) -> dict[str, float]:
        """R@k of every cutoff, and mAP@10."""
        recalls = {f"R@{k}": float(hits.mean()) for k, hits in self.recall.items()}
        return recalls | {f"mAP@{MAP_CUTOFF}": float(self.average_precision.mean())}


def retrieval(ranks: Sequence[np.ndarray]) -> Retrieval:
    """Score queries by the ranks of their relevant items, see `relevant_ranks`.

    Source: the definitions of DCASE, WavCaps and trec_eval (`map_cut_10`); LAION's code differs for several captions
    a clip, and torchmetrics divides by the hits.
    """
    best = np.array([rank[0] for rank in ranks])
    precision = [
        float((np.arange(1, len(rank) + 1) / (rank + 1))[rank < MAP_CUTOFF].sum() / len(rank)) for rank in ranks
    ]
    return Retrieval({k: (best < k).astype(float) for k in RECALL_CUTOFFS}, np.array(precision))


def rank_all(
    similarity: Callable[[int, int], np.ndarray], relevant: Sequence[Sequence[int]], block: int = 256
) -> list[np.ndarray]:
    """Ranks of every query's relevant items, a block of queries at a time.

    Args:
        similarity: Of (start, end): similarities of these queries to all items `[end - start, items]`.
        relevant: Indices of the relevant items of every query.
        block: Queries in memory.

    Raises:
        ValueError: If a similarity is NaN or infinite; the message names the query.
    """
    ranks = []
    for start in range(0, len(relevant), block):
        rows = similarity(start, min(start + block, len(relevant)))
        check_finite(rows, start)
        ranks += [relevant_ranks(row, own) for row, own in zip(rows, relevant[start : start + block], strict=True)]
    return ranks
