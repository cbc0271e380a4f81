"""Metrics of the paper and of generated sounds as `evaluate.Metric` classes: `add_batch`, `combine`, no Hub.

Their numbers come from the functions in `scoring`, `captions` and `distances`. Nothing else imports
this module: to scripts beside `scripts/evaluate.py`, `import evaluate` would be that file.

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

import json
from typing import Any

import datasets
import evaluate
import numpy as np

from ..embedding import Encoder
from . import captions, distances, scoring

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


class _OfOneModel(evaluate.Metric):
    """A metric of embeddings, which states their model and refuses those of two."""

    def _info_of(self, description: str, inputs: str, vectors: Any) -> evaluate.MetricInfo:
        info = _info(description, inputs + " model, reference_model: `identity(encoder)` of either.", vectors, vectors)
        info.features["model"] = info.features["reference_model"] = datasets.Value("string")
        return info

    def _state(self, model: list[str], reference_model: list[str]) -> dict[str, Any]:
        """The settings of the one model, for the result."""
        settings = {text: json.loads(text) for text in {*model, *reference_model}}
        prints = {found.get("fingerprint"): found for found in settings.values()}
        if len(prints) != 1 or None in prints:
            names = sorted(f"{found.get('model')!r} with fingerprint {key}" for key, found in prints.items())
            raise ValueError(
                f"Embeddings are of {' and '.join(names)}, expected one model, front end and window policy, as "
                "identity(encoder) states it for both sides. Embed both by one encoder."
            )
        return {"embeddings": next(iter(prints.values()))}


def identity(encoder: Encoder) -> str:
    """What `model` and `reference_model` of a metric take: the encoder's weights, front end and window policy."""
    return json.dumps(encoder.settings(), sort_keys=True)


class ClapScore(_OfOneModel):
    """Mean cosine of sounds and the texts they were made from, and its standard deviation."""

    def _info(self) -> evaluate.MetricInfo:
        return self._info_of(
            "CLAP score of generated sounds.",
            "predictions: embeddings of sounds. references: embeddings of their texts, in the same order.",
            _scores(),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        model: list[str],
        reference_model: list[str],
    ) -> dict[str, Any]:
        scores = distances.clap_scores(np.array(predictions), np.array(references))
        state = self._state(model, reference_model)
        return {"clap_score": float(scores.mean()), "std": float(scores.std()), "clips": len(scores)} | state


class FrechetAudioDistance(_OfOneModel):
    """Squared Fréchet distance between the normal distributions of two sets of embeddings.

    A row is a pair of sets, which may have different numbers of sounds: `compute(predictions=[generated],
    references=[reference], model=[identity(encoder)], reference_model=[identity(encoder)])`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return self._info_of(
            "Fréchet audio distance.",
            "predictions: sets of embeddings of generated sounds. references: of sounds to compare with, a set each.",
            datasets.List(_scores()),
        )

    def _compute(
        self,
        predictions: list[list[list[float]]],
        references: list[list[list[float]]],
        model: list[str],
        reference_model: list[str],
    ) -> dict[str, Any]:
        state = self._state(model, reference_model)
        return {"fad": distances.frechet_distance(_joined(predictions), _joined(references))} | state


class KernelAudioDistance(FrechetAudioDistance):
    """Kernel audio distance of two sets of embeddings, given as for `FrechetAudioDistance`."""

    def _compute(
        self,
        predictions: list[list[list[float]]],
        references: list[list[list[float]]],
        model: list[str],
        reference_model: list[str],
        bandwidth: float | None = None,
    ) -> dict[str, Any]:
        state = self._state(model, reference_model)
        found = distances.kernel_distance(_joined(predictions), _joined(references), bandwidth)
        return {"kad": found} | state


def _joined(sets: list[list[list[float]]]) -> np.ndarray:
    """Embeddings `[clips, dim]` of all sets."""
    return np.concatenate([np.array(vectors) for vectors in sets])
