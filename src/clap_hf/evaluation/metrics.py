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
from collections.abc import Callable, Mapping
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


def _scores() -> Any:
    return datasets.List(datasets.Value("float64"))


def _flags() -> Any:
    return datasets.List(datasets.Value("int8"))


class _Metric(evaluate.Metric):
    """A metric whose class states what it takes.

    Attributes:
        inputs: What predictions and references are, for people.
        predictions: Feature of a prediction.
        references: Feature of a reference.
        more: Further columns.
    """

    inputs: str
    predictions: Any
    references: Any
    more: Mapping[str, Any] = {}

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": self.predictions, "references": self.references, **self.more}
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation=CITATION,
            inputs_description=self.inputs,
            features=datasets.Features(columns),
        )


class Accuracy(_Metric):
    """Share of clips whose best class is the true one, and its mean over the classes (balanced)."""

    inputs = "predictions, references: class ids, one a clip."
    predictions = references = datasets.Value("int64")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        predicted, truth = np.array(predictions), np.array(references)
        return scoring.accuracies(
            scoring.confusion_matrix(predicted, truth, int(max(predicted.max(), truth.max())) + 1)
        )


class MacroMeanAveragePrecision(_Metric):
    """Mean over the classes of their average precision; classes without positives are left out and counted."""

    inputs = "predictions: a score for every class, per clip. references: 0 or 1 for every class, per clip."
    predictions, references = _scores(), _flags()

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float | int]:
        return scoring.mean_average_precision(
            scoring.average_precisions(np.array(predictions), np.array(references, dtype=bool))
        )


class MicroF1(MacroMeanAveragePrecision):
    """F1 over all clip-class decisions, by two rules.

    `f1_best_threshold` claims a class where its score reaches one threshold, chosen on these very scores (optimistic;
    pass `threshold=` to compute for one chosen elsewhere). `f1_top1` claims the best class of every clip.
    """

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


class AudioTextRetrieval(_Metric):
    """R@k (any relevant item among the first k) and mAP@10 (divided by all relevant items) of either direction.

    Ties count against the model. A clip with five captions is one query with five relevant items in the audio-to-text
    direction, and the one relevant item of five queries in the other.
    """

    inputs = "predictions: similarity to every item, per query. references: indices of the relevant items, per query."
    predictions, references = _scores(), datasets.List(datasets.Value("int64"))

    def _compute(self, predictions: list[list[float]], references: list[list[int]]) -> dict[str, float]:
        relevant = list(references)
        ranks = scoring.rank_all(lambda start, end: np.array(predictions[start:end]), relevant)
        return scoring.retrieval(ranks).means()


class AudioCaptioning(_Metric):
    """BLEU, ROUGE-L, METEOR, CIDEr-D, SPICE, SPIDEr, FENSE; what cannot be computed is None, with the reason."""

    inputs = "predictions: a caption a clip. references: several captions a clip."
    predictions, references = datasets.Value("string"), datasets.List(datasets.Value("string"))

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        scores = captions.caption_scores(predictions, references)
        return scores.values | {"unavailable": scores.unavailable}


class _OfOneModel(_Metric):
    """A metric of embeddings, which states their model and refuses those of two: `identity(encoder)` of either."""

    measure: Callable[..., dict[str, Any]]  # the value, of predictions and references and options of its own
    more: Mapping[str, Any] = {"model": datasets.Value("string"), "reference_model": datasets.Value("string")}

    def _compute(
        self, predictions: Any, references: Any, model: list[str], reference_model: list[str], **options: Any
    ) -> dict[str, Any]:
        """The value, and the settings of the one model."""
        settings = {text: json.loads(text) for text in {*model, *reference_model}}
        prints = {found.get("fingerprint"): found for found in settings.values()}
        if len(prints) != 1 or None in prints:
            names = sorted(f"{found.get('model')!r} with fingerprint {key}" for key, found in prints.items())
            raise ValueError(
                f"Embeddings are of {' and '.join(names)}, expected one model, front end and window policy, as "
                "identity(encoder) states it for both sides. Embed both by one encoder."
            )
        return self.measure(predictions, references, **options) | {"embeddings": next(iter(prints.values()))}


def identity(encoder: Encoder) -> str:
    """What `model` and `reference_model` of a metric take: the encoder's weights, front end and window policy."""
    return json.dumps(encoder.settings(), sort_keys=True)


class ClapScore(_OfOneModel):
    """Mean cosine of sounds and the texts they were made from, and its standard deviation."""

    inputs = "predictions: embeddings of sounds. references: embeddings of their texts, in the same order."
    predictions = references = _scores()

    def measure(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, Any]:
        """`clap_score`, its `std`, and how many `clips`."""
        scores = distances.clap_scores(np.array(predictions), np.array(references))
        return {"clap_score": float(scores.mean()), "std": float(scores.std()), "clips": len(scores)}


class FrechetAudioDistance(_OfOneModel):
    """Squared Fréchet distance between the normal distributions of two sets of embeddings.

    A row is a pair of sets, which may have different numbers of sounds: `compute(predictions=[generated],
    references=[reference], model=[identity(encoder)], reference_model=[identity(encoder)])`.
    """

    inputs = "predictions: sets of embeddings of generated sounds. references: of sounds to compare with, a set each."
    predictions = references = datasets.List(_scores())

    def measure(self, predictions: list[list[list[float]]], references: list[list[list[float]]]) -> dict[str, Any]:
        """`fad`."""
        return {"fad": distances.frechet_distance(_joined(predictions), _joined(references))}


class KernelAudioDistance(FrechetAudioDistance):
    """Kernel audio distance of two sets of embeddings, given as for `FrechetAudioDistance`."""

    def measure(
        self,
        predictions: list[list[list[float]]],
        references: list[list[list[float]]],
        bandwidth: float | None = None,
    ) -> dict[str, Any]:
        """`kad`."""
        return {"kad": distances.kernel_distance(_joined(predictions), _joined(references), bandwidth)}


def _joined(sets: list[list[list[float]]]) -> np.ndarray:
    """Embeddings `[clips, dim]` of all sets."""
    return np.concatenate([np.array(vectors) for vectors in sets])
