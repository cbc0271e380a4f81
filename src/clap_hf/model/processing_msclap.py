# Copyright 2026 The clap_hf authors. MIT License.
"""Processor of Microsoft CLAP: feature extractor and tokenizer behind one call."""

from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin


class MSClapProcessor(ProcessorMixin):
    """Prepares audio and text for `MSClapModel`.

    The tokenizer carries the sentence rules itself, so that stock pipelines get them too: for GPT-2 towers its
    post-processor appends the end token (" <|endoftext|>", ids 220 50256, as released), which truncation keeps.

    Args:
        feature_extractor: `MSClapFeatureExtractor`.
        tokenizer: Fast tokenizer of the text tower, with `model_max_length` set to the longest text in tokens.
    """

    def __init__(self, feature_extractor: Any, tokenizer: Any):
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        *,
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
        text_kwargs: dict[str, Any] | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        images_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Tokenize texts and turn audio into log-mel windows.

        Args:
            text: A text or a list of texts.
            audio: A clip or a list of clips, see `MSClapFeatureExtractor.__call__`.
            sampling_rate: Rate of clips that do not carry their own, Hz.
            padding: Padding of the texts; True pads to the longest of the call.
            truncation: Whether texts are cut to `max_length`; the end token stays.
            max_length: Longest text, tokens; the tokenizer's `model_max_length` when None.
            text_kwargs: Further arguments of the tokenizer; they win over the ones above.
            audio_kwargs: Further arguments of the feature extractor (`long_audio`, `generator`, `device`...).
                `padding`, which harnesses pass to every audio model, means nothing here: windows have one length.
            images_kwargs: Empty: part of transformers 5's calling convention, which sentence-transformers follows.
            videos_kwargs: Empty, likewise.
            common_kwargs: `return_tensors`, in that convention.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `input_ids` and `attention_mask` `[texts, tokens]` if there is text; `input_features`
            `[windows, 1, frames, mel]` and `num_windows` `[clips]` if there is audio.

        Raises:
            ValueError: If neither text nor audio is given, or either is malformed.
        """
        if text is None and audio is None:
            raise ValueError("Nothing to process: pass text=, audio= or both.")
        if images_kwargs or videos_kwargs:
            raise ValueError("images_kwargs or videos_kwargs hold settings, but CLAP takes audio and text only.")
        return_tensors = (common_kwargs or {}).get("return_tensors", return_tensors)
        features: dict[str, torch.Tensor] = {}
        if text is not None:
            options = {"padding": padding, "truncation": truncation, "max_length": max_length} | (text_kwargs or {})
            tokens = self.tokenizer(text, return_tensors=return_tensors, **options)
            features.update(tokens)
        if audio is not None:
            options = {"sampling_rate": sampling_rate} | (audio_kwargs or {})
            options.pop("padding", None)
            features.update(self.feature_extractor(audio, return_tensors=return_tensors, **options))
        return BatchFeature(features)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model inputs this processor makes."""
        return [*self.tokenizer.model_input_names, *self.feature_extractor.model_input_names]


__all__ = ["MSClapProcessor"]
