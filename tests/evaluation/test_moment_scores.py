"""Scores of moment retrieval against an implementation that enumerates, and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from clap_hf.evaluation.moments import IOU_THRESHOLDS, average_precision, moment_scores, overlap, recall_at_1


def naive_iou(first, second):
    """By counting hundredths of a second; the spans begin and end on them."""
    inside = [{tick for tick in range(round(100 * span[0]), round(100 * span[1]))} for span in (first, second)]
    return len(inside[0] & inside[1]) / len(inside[0] | inside[1])


def naive_average_precision(predicted, relevant, threshold):
    """The area below the envelope of precision over recall, from every prefix of the ranking."""
    ranked = sorted(predicted, key=lambda span: span[2], reverse=True)
    taken, hits = set(), []
    for span in ranked:
        candidates = [(naive_iou(span, own), -i) for i, own in enumerate(relevant) if i not in taken]
        best = max(candidates, default=(0.0, 0))
        hits.append(best[0] >= threshold)
        if hits[-1]:
            taken.add(-best[1])
    points = [(sum(hits[:k]) / len(relevant), sum(hits[:k]) / k) for k in range(1, len(hits) + 1)]
    area = 0.0
    for level in range(1, len(relevant) + 1):
        reached = [precision for recall, precision in points if recall >= level / len(relevant) - 1e-9]
        area += max(reached, default=0.0) / len(relevant)
    return area


def random_spans(generator, count):
    starts = generator.integers(0, 4000, count) / 100
    return [[start, start + generator.integers(1, 1500) / 100] for start in starts.tolist()]


@pytest.mark.parametrize("seed", range(20))
def test_scores_agree_with_an_enumeration(seed):
    generator = np.random.default_rng(seed)
    truth, predictions = [], []
    for qid in range(6):
        relevant = random_spans(generator, generator.integers(1, 4))
        near = [[s + generator.integers(0, 60) / 100, e + generator.integers(0, 60) / 100] for s, e in relevant]
        spans = [*near, *random_spans(generator, generator.integers(0, 5))][: generator.integers(0, 8)]
        scores = generator.permutation(len(spans)) / 10
        truth.append({"qid": qid, "relevant_windows": relevant})
        predictions.append(
            {"qid": qid, "pred_relevant_windows": [[*s, v] for s, v in zip(spans, scores, strict=True)]}
        )
    found = moment_scores(predictions, truth)
    pairs = [(p["pred_relevant_windows"], t["relevant_windows"]) for p, t in zip(predictions, truth, strict=True)]
    for threshold in (0.5, 0.7):
        best = [max(spans, key=lambda span: span[2]) if spans else None for spans, _ in pairs]
        hits = [
            bool(top) and max(naive_iou(top, own) for own in relevant) >= threshold
            for top, (_, relevant) in zip(best, pairs, strict=True)
        ]
        assert found[f"R1@{threshold}"] == pytest.approx(np.mean(hits))
    expected = np.array([[naive_average_precision(*pair, t) for t in IOU_THRESHOLDS] for pair in pairs])
    assert found["mAP"] == pytest.approx(expected.mean())
    assert found["mAP@0.5"] == pytest.approx(expected[:, 0].mean())
    assert found["mAP@0.75"] == pytest.approx(expected[:, 5].mean())


def test_cases_by_hand():
    assert overlap(np.array([[0.0, 4.0]]), np.array([[2.0, 6.0], [5.0, 6.0], [0.0, 4.0]])).tolist() == [[2 / 6, 0, 1]]
    relevant = [[10.0, 20.0], [40.0, 50.0]]
    predicted = [[0.0, 5.0, 0.9], [11.0, 20.0, 0.8], [10.0, 20.0, 0.7], [40.0, 50.0, 0.6]]
    assert not recall_at_1(predicted, relevant, 0.5) and recall_at_1(predicted[1:], relevant, 0.9)
    # Ranks 2 and 4 are right: the span at rank 3 was found before.
    assert average_precision(predicted, relevant, [0.5])[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    # At 0.95 the second prediction is wrong, and the third right.
    assert average_precision(predicted, relevant, [0.95])[0] == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert average_precision([], relevant, [0.5]).tolist() == [0.0] and not recall_at_1([], relevant, 0.5)


def test_a_query_without_predictions_counts_and_one_without_truth_is_refused():
    truth = [{"qid": 0, "relevant_windows": [[0, 1]]}, {"qid": 1, "relevant_windows": [[0, 1]]}]
    found = moment_scores([{"qid": 1, "pred_relevant_windows": [[0, 1, 0.5]]}], truth)
    assert set(found.values()) == {0.5}
    with pytest.raises(ValueError, match="a relevant window of each"):
        moment_scores([], [{"qid": 0, "relevant_windows": []}])
