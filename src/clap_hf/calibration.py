"""Calibration of a checkpoint: cosines as standardised scores and probabilities, thresholds by false-alarm rate."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .atomic_io import replacing
from .embedding import front_end, model_identity
from .model.feature_extraction_msclap import MSClapFeatureExtractor
from .model.modeling_msclap import MSClapModel
from .pretrained import HUB_ID

FILE = "calibration.safetensors"  # beside the weights
BACKGROUND = 256  # sounds and texts that are kept
RATES = np.geomspace(0.5, 1e-3, 64)  # false-alarm rates whose thresholds are kept; the tail is extrapolated
SOURCES_HELD, SOUNDS_OF_SOURCE = 0.9, 20  # a stated rate holds for this share of the sources with so many sounds
FALSE_ALARMS = 0.2  # of sounds that get a label though none fits, of searches that state a match though there is none
LOW, MIDDLE = 0.16, 0.5  # quantiles: what is above them may hold sounds that the text does name
TENSORS = ("sounds", "texts", "weights", "thresholds")


@dataclass(frozen=True)
class Calibration:
    """Background sounds and texts under one checkpoint, and a logistic function of scores standardised by them.

    A cosine is standardised twice: by the background sounds' cosines with the same text, and by the background texts'
    cosines with the same sound. Thus a text that is close to every sound, or a sound that is close to every text,
    gains nothing by it.

    Attributes:
        sounds: Unit vectors of background sounds `[sounds, dim]`.
        texts: Unit vectors of background texts `[texts, dim]`.
        weights: Of the constant and the two standardised scores in the logit of the probability, at even odds `[3]`.
        thresholds: Logits that at most the shares `RATES` of absent sounds exceed, in most sources, ascending `[64]`.
        facts: What it was made of; `identity` has the model's for every dtype that it may be loaded in, see
            `model_identity`.
    """

    sounds: np.ndarray
    texts: np.ndarray
    weights: np.ndarray
    thresholds: np.ndarray
    facts: dict[str, Any]

    def standardised(self, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Cosines, standardised by background sounds and by background texts.

        Args:
            audio: Unit vectors of sounds `[sounds, dim]`.
            text: Unit vectors of texts `[texts, dim]`.

        Returns:
            `[sounds, texts, 2]`, in standard deviations.
        """
        cosines = audio @ text.T
        low, middle = np.quantile(self.sounds @ text.T, (LOW, MIDDLE), axis=0)
        of_sound = audio @ self.texts.T
        by_text = (cosines - of_sound.mean(axis=1, keepdims=True)) / of_sound.std(axis=1, keepdims=True)
        return np.stack([(cosines - middle) / (middle - low), by_text], axis=-1)

    def logits(self, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Log-odds that the sounds are what the texts state, at even odds beforehand `[sounds, texts]`."""
        return self.weights[0] + self.standardised(audio, text) @ self.weights[1:]

    def probabilities(self, audio: np.ndarray, text: np.ndarray, prior: float = 0.5) -> np.ndarray:
        """Probabilities that the sounds are what the texts state.

        Args:
            audio: Unit vectors of sounds `[sounds, dim]`.
            text: Unit vectors of texts `[texts, dim]`.
            prior: Share of pairs of a sound and a text that belong together, before the sound is known.

        Returns:
            `[sounds, texts]`.
        """
        return sigmoid(self.logits(audio, text) + np.log(prior / (1 - prior)))

    def threshold(self, rate: float, count: int = 1) -> float:
        """The probability that is reached in a stated share of cases though no sound is there.

        Args:
            rate: Share of cases, 0 to 1.
            count: Pairs of a sound and a text in a case, such as labels of a sound: the rate is of any of them.

        Raises:
            ValueError: The rate is no share, or the count is below 1.
        """
        if not 0 < rate < 1 or count < 1:
            raise ValueError(f"The rate is {rate} for {count} pairs, expected more than 0, less than 1, and a pair.")
        one = -np.expm1(np.log1p(-rate) / count)
        # Beyond the rarest rate that was measured, logits fall off as over the last decade before it.
        tail = int(np.argmin(np.abs(RATES - 10 * RATES[-1])))
        slope = (self.thresholds[-1] - self.thresholds[tail]) / np.log(RATES[tail] / RATES[-1])
        beyond = max(0.0, np.log(RATES[-1] / one))
        return float(sigmoid(np.interp(-np.log(one), -np.log(RATES), self.thresholds) + slope * beyond))

    def save(self, file: Path) -> None:
        """Write the calibration, vectors as float16."""
        vectors = {name: getattr(self, name).astype(np.float16) for name in ("sounds", "texts")}
        numbers = {name: getattr(self, name).astype(np.float64) for name in ("weights", "thresholds")}
        with replacing(file) as fresh:
            save_file(vectors | numbers, fresh, metadata={"calibration": json.dumps(self.facts)})

    @classmethod
    def load(cls, file: Path) -> Calibration:
        """Read a calibration.

        Raises:
            ValueError: The file is damaged or no calibration.
        """
        try:
            if not file.is_file():  # opening a FIFO would wait
                raise OSError("no regular file")
            with safe_open(file, "numpy") as content:
                tensors = {name: content.get_tensor(name).astype(np.float32) for name in TENSORS}
                facts = json.loads((content.metadata() or {})["calibration"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{file}: no calibration ({error}), expected one that scripts/calibrate.py wrote. Make it again."
            ) from error
        return cls(**tensors, facts=facts)

    @classmethod
    def beside(
        cls, checkpoint: str, model: MSClapModel, *, extractor: MSClapFeatureExtractor, tokenizer: Any
    ) -> Calibration | None:
        """The calibration in a checkpoint's folder, or fetched from its repository on the Hub.

        Args:
            checkpoint: Folder or Hub id that the model was loaded from.
            model: The model.
            extractor: Its feature extractor.
            tokenizer: Its tokenizer.

        Returns:
            The calibration; None where there is none.

        Raises:
            ValueError: The file is damaged, or was made for another model.
        """
        file: str | None = str(Path(checkpoint) / FILE)
        if not Path(checkpoint).is_dir() and HUB_ID.fullmatch(checkpoint):
            from transformers.utils import cached_file

            commit = model.config.__dict__.get("_commit_hash")
            optional = ("missing_entries", "connection_errors", "gated_repo")
            file = cached_file(
                checkpoint, FILE, revision=commit, **{f"_raise_exceptions_for_{name}": False for name in optional}
            )
        if file is None or not os.path.lexists(file):
            return None
        found = cls.load(Path(file))
        made_for = found.facts.get("identity", {}).get(str(model.dtype).removeprefix("torch."))
        if made_for != (identity := model_identity(model, front_end(extractor), tokenizer)):
            raise ValueError(
                f"{checkpoint}: its {FILE} was made for a model with the fingerprint {made_for}, expected {identity}. "
                "Make it again by scripts/calibrate.py, or go without it: --raw, timeline --threshold 0.35, or "
                "calibration=False."
            )
        return found

    @classmethod
    def fit(
        cls,
        audio: np.ndarray,
        text: np.ndarray,
        present: np.ndarray,
        absent: np.ndarray,
        sources: Sequence[str],
        facts: dict[str, Any],
        sources_held: float = SOURCES_HELD,
    ) -> Calibration:
        """Fit a calibration to sounds and texts of which it is known which belong together.

        Args:
            audio: Unit vectors of sounds `[sounds, dim]`.
            text: Unit vectors of texts `[texts, dim]`.
            present: Which sound is what which text states `[sounds, texts]`.
            absent: Which sound is surely not what which text states `[sounds, texts]`.
            sources: Where every sound comes from: the scores of its pairs are standardised by other sources' sounds,
                as those of users will be. One source throughout is standardised by itself.
            facts: What it was made of.
            sources_held: Share of the sources in which a stated rate of false alarms holds, 0 to 1.

        Raises:
            ImportError: If scikit-learn is not installed.
            ValueError: There is no pair of one of the two kinds.
        """
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise ImportError("Fitting a calibration needs scikit-learn: pip install 'clap-hf[train]'.") from error
        if not present.any() or not absent.any():
            raise ValueError(
                f"{int(present.sum())} pairs of a sound and a text belong together and {int(absent.sum())} do not, "
                "expected some of both. Give sounds of several labels."
            )
        random = np.random.default_rng(0)

        def background(vectors: np.ndarray) -> np.ndarray:
            return vectors[random.permutation(len(vectors))[:BACKGROUND]]

        sounds, texts, nothing = background(audio), background(text), np.zeros(3)
        scores = np.empty((*present.shape, 2))
        for source in dict.fromkeys(sources):
            own = np.array([source == other for other in sources])
            others = sounds if own.all() else background(audio[~own])
            scores[own] = cls(others, texts, nothing, RATES, facts).standardised(audio[own], text)
        pairs = np.concatenate([scores[present], scores[absent]])
        truth = np.repeat([True, False], [present.sum(), absent.sum()])
        found = LogisticRegression(C=100.0, class_weight="balanced").fit(pairs, truth)
        weights = np.concatenate([found.intercept_, found.coef_[0]])
        logits = weights[0] + scores @ weights[1:]
        large = [source for source, count in Counter(sources).items() if count >= SOUNDS_OF_SOURCE]
        rows = [np.array([source == other for other in sources]) for source in large]
        of_source = [np.quantile(logits[own][absent[own]], 1 - RATES) for own in rows if absent[own].any()]
        if len(of_source) < 4:
            thresholds = np.quantile(logits[absent], 1 - RATES)
        else:
            thresholds = np.quantile(of_source, sources_held, axis=0)
        return cls(sounds, texts, weights, thresholds, facts)


def sigmoid(logits: Any) -> Any:
    """Probabilities of log-odds."""
    return 1 / (1 + np.exp(-logits))
