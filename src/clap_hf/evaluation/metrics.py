"""The paper's metrics as `evaluate.Metric` classes: `add_batch`, `combine`, and no Hub at run time.

Their numbers come from the functions in `scoring` and `captions` that the evaluation runner calls, too. Nothing else
imports this module: to scripts beside `scripts/evaluate.py`, `import evaluate` would be that file.

Example:

```python
>>> from clap_hf.evaluation.metrics import MacroMeanAveragePrecision
>>> metric = MacroMeanAveragePrecision()
>>> metric.add_batch(predictions=[[0.9, 0.1], [0.2, 0.3]], references=[[1, 0], [1, 0]])
>>> metric.compute()
{'map': 1.0, 'classes': 1, 'empty_classes': 1}
```
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from . import captions, scoring

CITATION = """@inproceedings{elizalde2024natural,
  title={Natural Language Supervision for General-Purpose Audio Representations},
  author={Elizalde, Benjamin and Deshmukh, Soham and Wang, Huaming},
  booktitle={ICASSP}, year={2024}}"""


def _info(description: str, inputs: str, predictions: Any, references: Any) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation=CITATION,
        inputs_description=inputs,
        features=datasets.Features({"predictions": predictions, "references": references}),
    )


def _scores() -> Any:
    return datasets.List(datasets.Value("float64"))


def _flags() -> Any:
    return datasets.List(datasets.Value("int8"))


class Accuracy(evaluate.Metric):
    """Share of clips whose best class is the true one, and its mean over the classes (balanced)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Accuracy and balanced accuracy of class ids.",
            "predictions, references: class ids, one a clip.",
            datasets.Value("int64"),
            datasets.Value("int64"),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        predicted, truth = np.array(predictions), np.array(references)
        return scoring.accuracies(
            scoring.confusion_matrix(predicted, truth, int(max(predicted.max(), truth.max())) + 1)
        )


class MacroMeanAveragePrecision(evaluate.Metric):
    """Mean over the classes of their average precision; classes without positives are left out and counted."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Macro mAP of a multi-label task.",
            "predictions: a score for every class, per clip. references: 0 or 1 for every class, per clip.",
            _scores(),
            _flags(),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float | int]:
        return scoring.mean_average_precision(
            scoring.average_precisions(np.array(predictions), np.array(references, dtype=bool))
        )


class MicroF1(evaluate.Metric):
    """F1 over all clip-class decisions, by two rules.

    `f1_best_threshold` claims a class where its score reaches one threshold, chosen on these very scores (optimistic;
    pass `threshold=` to compute for one chosen elsewhere). `f1_top1` claims the best class of every clip.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Micro F1 of a multi-label task at the best single threshold, and with the best class of every clip.",
            "predictions: a score for every class, per clip. references: 0 or 1 for every class, per clip.",
            _scores(),
            _flags(),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[int]], threshold: float | None = None
    ) -> dict[str, float]:
        scores, truth = np.array(predictions), np.array(references, dtype=bool)
        best = scoring.micro_f1(scores, truth, threshold)
        return {
            "f1_best_threshold" if threshold is None else "f1": best.value,
            "threshold": best.threshold,
            "f1_top1": scoring.top1_micro_f1(scores, truth).value,
        }


class AudioTextRetrieval(evaluate.Metric):
    """R@1, R@5, R@10 and mAP@10 of either direction; ties count against the model.

    A clip with five captions is one query with five relevant items in the audio-to-text direction, and the one
    relevant item of five queries in the other.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "R@k (any relevant item among the first k) and mAP@10 (divided by all relevant items).",
            "predictions: similarity to every item, per query. references: indices of the relevant items, per query.",
            _scores(),
            datasets.List(datasets.Value("int64")),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        relevant = list(references)
        ranks = scoring.rank_all(lambda start, end: np.array(predictions[start:end]), relevant)
        return scoring.retrieval(ranks).means()


class AudioCaptioning(evaluate.Metric):
    """BLEU, ROUGE-L, METEOR, CIDEr-D, SPICE, SPIDEr, FENSE; what cannot be computed is None, with the reason."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Captioning metrics of the COCO evaluation and of the audio community.",
            "predictions: a caption a clip. references: several captions a clip.",
            datasets.Value("string"),
            datasets.List(datasets.Value("string")),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        scores = captions.caption_scores(predictions, references)
        return scores.values | {"unavailable": scores.unavailable}
