"""Zero-shot audio classification for every way a sound comes in.

transformers' own `zero-shot-audio-classification` pipeline works with CLAP checkpoints too, but takes mono arrays
only, believes that they are at the model's rate, fetches URLs by itself and encodes the labels again for every sound.

Files are decoded by `load_audio` at their own rate and resampled by the feature extractor alone, so that a file and
its samples score alike: that is why this class stands on `audio.py`, outside `model/`. Checkpoints need no copy of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import ZeroShotAudioClassificationPipeline

from ..audio import is_one_sound, pipeline_inputs, read_sound
from ..calibration import Calibration
from ..embedding import TEMPLATES, embed_classes, evaluation_mode, warn_of_unreadable_labels
from ..fast_cpu import optimize_if_possible
from ..pretrained import check_weights
from .long_files import embed_file, is_long, long_sounds

# The paper's prompt (CLAP 2022, Section 3.3) in lower case, as Microsoft's zero_shot_predictions.py asks for.
DEFAULT_TEMPLATE = TEMPLATES[0]
FUNCTIONS = ("softmax", "sigmoid", "none", "probability")
LONGEST_LABEL = 10_000  # characters: tokenizers take some 200 bytes of memory for each, before they cut
LABEL_SETS = 16  # whose embeddings are kept: a server's callers may take turns with labels of their own

LabelSet = tuple[tuple[str, ...], tuple[str, ...]]  # labels and templates


def check_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """Validate candidate labels; a single string is split at its commas."""
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    labels = list(labels)
    wrong = [label for label in labels if not isinstance(label, str) or not label.strip()]
    if wrong or not labels:
        found = f"holds {wrong[:3]!r}" if wrong else "is empty"
        raise ValueError(f"candidate_labels {found}, expected at least one label, each a text that is not empty.")
    longest = max(labels, key=len)
    if len(longest) > LONGEST_LABEL:
        raise ValueError(
            f"candidate_labels holds a label of {len(longest):,} characters, {longest[:40]!r}..., expected at most "
            f"{LONGEST_LABEL:,}. Shorten it, or separate the labels."
        )
    doubled = sorted(label for label, count in Counter(labels).items() if count > 1)
    if doubled:
        more = f" and {len(doubled) - 5} others" if len(doubled) > 5 else ""
        raise ValueError(f"candidate_labels holds {doubled[:5]}{more} more than once, expected every label once.")
    return tuple(labels)


def check_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Validate hypothesis templates; a single string is an ensemble of one."""
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    wrong = [template for template in templates if not isinstance(template, str) or "{}" not in template]
    if wrong or not templates:
        raise ValueError(
            f"hypothesis_template holds {wrong!r}, expected texts with {{}} where the label goes, such as "
            f"{DEFAULT_TEMPLATE!r}."
        )
    return templates


class MSClapZeroShotAudioClassificationPipeline(ZeroShotAudioClassificationPipeline):
    """Scores sounds against labels in any words.

    Example:

    ```python
    >>> import clap_hf
    >>> from transformers import pipeline
    >>> classify = pipeline(
    ...     "zero-shot-audio-classification",
    ...     model=str(clap_hf.embedded_checkpoint()),
    ...     pipeline_class=clap_hf.MSClapZeroShotAudioClassificationPipeline,
    ... )
    >>> classify("dog.ogg", candidate_labels=["dog", "cat", "rain"], top_k=1)
    ```

    Clips longer than the model's window are covered by several windows, whose embeddings are averaged; files of more
    than 32 windows are decoded in blocks, so that memory does not grow with them. The embeddings of the last label
    sets are kept: after changing the model's weights, make a new pipeline. Threads may
    share a pipeline.

    Args:
        calibration: Of the model, for probabilities; True for the one beside its weights, on disk or on
            the Hub, if any; False for none.
        kwargs: As for every pipeline of transformers.
    """

    def __init__(self, *, calibration: Calibration | bool = True, **kwargs: Any):
        # Never changed, always replaced by another: threads with other labels read and write it at the same time.
        self._label_embeds: dict[LabelSet, torch.Tensor] = {}
        self.calibration = calibration if isinstance(calibration, Calibration) else None
        if calibration is True:
            model = kwargs["model"]
            self.calibration = Calibration.beside(
                model.name_or_path, model, extractor=kwargs["feature_extractor"], tokenizer=kwargs["tokenizer"]
            )
        super().__init__(**kwargs)
        check_weights(self.model)
        optimize_if_possible(self.model)

    def __call__(
        self,
        audios: Any,
        *,
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str | Sequence[str] | None = None,
        sampling_rate: int | None = None,
        max_windows: int | None = None,
        function_to_apply: str | None = None,
        multi_label: bool | None = None,
        top_k: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Any:
        """Classify one sound or many. None means what the pipeline was made with.

        Args:
            audios: A sound, or a list, tuple, `datasets` column, generator or torch dataset of them. A sound is a
                path; the bytes of a sound file; a binary file object; a `clap_hf.Audio`; samples as a numpy array,
                torch tensor or list of numbers (`[samples]`, `[channels, samples]` or `[samples, channels]`) with
                `sampling_rate=`; a dict `{"array" or "raw": samples, "sampling_rate": Hz}` or
                `{"path" or "bytes": ...}`; a dataset's row with `"audio"`; or an AudioDecoder.
            candidate_labels: The labels; a single string is split at its commas.
            hypothesis_template: Text with "{}" where the label goes, or several: an ensemble, whose unit vectors are
                averaged and normalised again. "{}" alone takes the labels as they are. Default: `DEFAULT_TEMPLATE`.
            sampling_rate: Rate of samples that do not carry their own, Hz. Never guessed.
            max_windows: Windows of a sound at most, evenly spaced over it; as many as cover it by default.
            function_to_apply: `"softmax"` over the labels (default), `"sigmoid"` of every label by itself, or
                `"none"` for the logits, exp(logit_scale) x cosine; `"probability"` that the label is there, for a
                calibrated model. Sigmoids are not calibrated.
            multi_label: True is short for `function_to_apply="probability"`, False for `"softmax"`.
            top_k: Labels returned per sound; all by default.
            batch_size: Sounds that go through the model together (default 1).
            num_workers: Processes that decode (default 0: threads of this one, for a sequence).

        Returns:
            `[{"score": float, "label": str}, ...]`, best first, for a sound, with `"probability"` beside the score
            where the model is calibrated; a list of these for a list, tuple or column; an iterator over them for a
            generator or a torch dataset.

        Raises:
            TypeError: If a keyword is unknown, or a sound is of no known kind.
            ValueError: If labels or templates are missing or malformed; if a sound is a URL, is empty, is not finite
                or has an ambiguous shape; if a sampling rate is missing or impossible.
            AudioDecodeError: If a file, or bytes, cannot be decoded.
        """
        if candidate_labels is None and "candidate_labels" not in self._forward_params:
            raise ValueError("candidate_labels is missing, expected the labels to choose from, a list of texts.")
        options: dict[str, Any] = {
            "candidate_labels": candidate_labels,
            "hypothesis_template": hypothesis_template,
            "sampling_rate": sampling_rate,
            "max_windows": max_windows,
            "function_to_apply": function_to_apply,
            "multi_label": multi_label,
            "top_k": top_k,
            "batch_size": batch_size,
            "num_workers": num_workers,
        }
        if is_one_sound(audios) and is_long(self.feature_extractor, audios):
            return self._classify_file(audios, **options)
        if isinstance(audios, (list, tuple)) and (long := long_sounds(self.feature_extractor, audios)):
            rest = iter(self([sound for i, sound in enumerate(audios) if i not in long], **options))
            return [self._classify_file(own, **options) if i in long else next(rest) for i, own in enumerate(audios)]
        inputs, many = pipeline_inputs(audios, self._num_workers if num_workers is None else num_workers)
        outputs = super().__call__(inputs, **options)
        return list(outputs) if many else outputs

    def _classify_file(self, file: Any, **options: Any) -> list[dict[str, Any]]:
        """Scores of a file of any length, decoded in blocks."""
        given = {name: value for name, value in options.items() if name not in ("batch_size", "num_workers")}
        preprocess, forward, postprocess = self._sanitize_parameters(**given)
        limit = (self._preprocess_params | preprocess).get("max_windows")
        vector = embed_file(self.model, self.feature_extractor, file, limit)
        return self.score_vector(vector, forward, postprocess)

    def _sanitize_parameters(
        self,
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str | Sequence[str] | None = None,
        sampling_rate: int | None = None,
        max_windows: int | None = None,
        function_to_apply: str | None = None,
        multi_label: bool | None = None,
        top_k: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess: dict[str, Any] = {}
        forward: dict[str, Any] = {}
        postprocess: dict[str, Any] = {}
        if sampling_rate is not None:
            preprocess["sampling_rate"] = sampling_rate
        if max_windows is not None:
            preprocess["max_windows"] = max_windows
        if candidate_labels is not None:
            forward["candidate_labels"] = postprocess["candidate_labels"] = check_labels(candidate_labels)
        if hypothesis_template is not None:
            forward["hypothesis_template"] = check_templates(hypothesis_template)
        if multi_label is not None:
            if function_to_apply is not None:
                raise ValueError(
                    f"Both multi_label={multi_label} and function_to_apply={function_to_apply!r} were passed, "
                    "expected one of them."
                )
            function_to_apply = "probability" if multi_label else "softmax"
        if function_to_apply is not None:
            if function_to_apply not in FUNCTIONS:
                raise ValueError(f"function_to_apply is {function_to_apply!r}, expected one of {FUNCTIONS}.")
            if function_to_apply == "probability" and self.calibration is None:
                raise ValueError(
                    f"{'multi_label=True' if multi_label else 'function_to_apply=probability'} needs a calibrated "
                    "model, and this one has no calibration: CLAP is trained to rank labels, and its sigmoids would "
                    "call most of them present. Make one by scripts/calibrate.py and pass it as calibration=, or pass "
                    "function_to_apply='sigmoid' for the raw scores."
                )
            postprocess["function_to_apply"] = function_to_apply
        if top_k is not None:
            if top_k < 1:
                raise ValueError(f"top_k is {top_k}, expected 1 or more labels.")
            postprocess["top_k"] = top_k
        return preprocess, forward, postprocess

    def preprocess(
        self, audio: Any, sampling_rate: int | None = None, max_windows: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Decode a sound and turn it into log-mel windows, float32 whatever the model's dtype is."""
        return dict(self.feature_extractor(read_sound(audio), sampling_rate, max_windows=max_windows))

    def _forward(
        self,
        model_inputs: dict[str, torch.Tensor],
        candidate_labels: tuple[str, ...],
        hypothesis_template: tuple[str, ...] = (DEFAULT_TEMPLATE,),
    ) -> dict[str, torch.Tensor]:
        with evaluation_mode(self.model):
            audio_embeds = self.model.get_audio_features(**model_inputs).pooler_output
        return self._compare(audio_embeds, candidate_labels, hypothesis_template)

    def _compare(
        self,
        audio_embeds: torch.Tensor,
        candidate_labels: tuple[str, ...],
        hypothesis_template: tuple[str, ...] = (DEFAULT_TEMPLATE,),
    ) -> dict[str, torch.Tensor]:
        label_set, kept = (candidate_labels, hypothesis_template), self._label_embeds
        label_embeds = kept.get(label_set)
        if label_embeds is None:
            label_embeds = self.embed_labels(*label_set)
            self._label_embeds = dict([*kept.items(), (label_set, label_embeds)][-LABEL_SETS:])
        found = {"logits": self.model.compute_similarity(audio_embeds, label_embeds)}
        if self.calibration is not None:
            audio, text = (F.normalize(own.float(), dim=-1).cpu().numpy() for own in (audio_embeds, label_embeds))
            found["probabilities"] = torch.from_numpy(self.calibration.probabilities(audio, text))
        return found

    @torch.inference_mode()
    def score_vector(
        self,
        vector: torch.Tensor,
        forward: dict[str, Any] | None = None,
        postprocess: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Scores of a sound that is embedded already, such as by `embed_files`.

        Args:
            vector: Its unit vector `[projection_dim]`.
            forward: Parameters of `_forward` that replace those that the pipeline was made with.
            postprocess: Those of `postprocess`.

        Returns:
            As a call with the labels and options that the pipeline was made with.
        """
        compared = self._compare(vector[None].to(self.model.device), **(self._forward_params | (forward or {})))
        logits = {name: value.cpu() for name, value in compared.items()}
        return self.postprocess(logits, **(self._postprocess_params | (postprocess or {})))

    def embed_labels(self, labels: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """Embed labels, as the mean over the templates; warn of those that the tokenizer cannot read.

        Args:
            labels: Labels.
            templates: Texts with "{}" where the label goes.

        Returns:
            Unit vectors `[labels, projection_dim]`.
        """
        warn_of_unreadable_labels(self.tokenizer, labels)
        texts = [[template.replace("{}", label) for template in templates] for label in labels]
        return embed_classes(self.model, self.tokenizer, texts)

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        candidate_labels: tuple[str, ...],
        function_to_apply: str = "softmax",
        top_k: int | None = None,
    ) -> list[dict[str, Any]]:
        """Scores of one sound, best first."""
        scores = model_outputs["logits"][0]
        if function_to_apply == "softmax":
            scores = scores.softmax(dim=0)
        elif function_to_apply == "sigmoid":
            scores = scores.sigmoid()
        elif function_to_apply == "probability":
            scores = model_outputs["probabilities"][0]
        # Stable: labels that score the same keep the caller's order.
        values, order = scores.sort(descending=True, stable=True)
        ranked = [
            {"score": score, "label": candidate_labels[index]}
            for score, index in zip(values.tolist(), order.tolist(), strict=True)
        ]
        if "probabilities" in model_outputs:
            for entry, probability in zip(ranked, model_outputs["probabilities"][0][order].tolist(), strict=True):
                entry["probability"] = probability
        return ranked[:top_k]
