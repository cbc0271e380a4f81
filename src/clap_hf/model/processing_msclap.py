# Copyright 2026 The clap_hf authors. MIT License.
"""Processor of Microsoft CLAP: feature extractor and tokenizer behind one call."""

from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, ProcessorMixin, TextKwargs, Unpack

# Of transformers' audio options: windows have one length, so there is nothing to pad or cut to a length.
PADDING_OPTIONS = {"padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask"}


class MSClapAudioKwargs(AudioKwargs, total=False):  # type: ignore[call-arg]
    """Options of `MSClapFeatureExtractor.__call__`."""

    long_audio: str | None
    short_audio: str | None
    generator: torch.Generator | None


class MSClapProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Options of a call, and their defaults where neither the call nor the tokenizer's own settings have them."""

    audio_kwargs: MSClapAudioKwargs

    _defaults = {
        "text_kwargs": {"padding": True, "truncation": True},
        "common_kwargs": {"return_tensors": "pt"},
    }


OPTIONS = {*MSClapProcessorKwargs.__annotations__, *TextKwargs.__annotations__, *MSClapAudioKwargs.__annotations__}


class MSClapProcessor(ProcessorMixin):
    """Prepares audio and text for `MSClapModel`.

    The tokenizer carries the sentence rules itself, so that stock pipelines get them too: for GPT-2 towers its
    post-processor appends the end token (" <|endoftext|>", ids 220 50256, as released), which truncation keeps.

    Args:
        feature_extractor: `MSClapFeatureExtractor`.
        tokenizer: Fast tokenizer of the text tower, with `model_max_length` set to the longest text in tokens.
    """

    valid_processor_kwargs = MSClapProcessorKwargs

    def __init__(self, feature_extractor: Any, tokenizer: Any):
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        **kwargs: Unpack[MSClapProcessorKwargs],
    ) -> BatchFeature:
        """Tokenize texts and turn audio into log-mel windows.

        Args:
            text: A text or a list of texts.
            audio: A clip or a list of clips, see `MSClapFeatureExtractor.__call__`.
            kwargs: Options by name or in `text_kwargs`, `audio_kwargs` and `common_kwargs`, as of every processor of
                transformers. Texts: `padding` (default True, to the longest of the call), `truncation` (default True;
                the end token stays), `max_length` (default the tokenizer's `model_max_length`) and others of the
                tokenizer; its own settings come before these defaults. Audio: `sampling_rate` (of clips that do not
                carry their own, Hz), `long_audio`, `short_audio`, `generator` and `device` of the feature extractor,
                whose windows have one length: `padding`, `truncation` and `max_length` do not reach it. Both:
                `return_tensors`, `"pt"` (default) or `"np"`.

        Returns:
            `input_ids` and `attention_mask` `[texts, tokens]` if there is text; `input_features`
            `[clips, windows, 1, frames, mel]` and `num_windows` `[clips]` if there is audio.

        Raises:
            TypeError: If an option is unknown.
            ValueError: If neither text nor audio is given, either is malformed, or an option is given twice.
        """
        if text is None and audio is None:
            raise ValueError("Nothing to process: pass text=, audio= or both.")
        options = {name: value for name, value in kwargs.items() if value is not None}
        if options.get("images_kwargs") or options.get("videos_kwargs"):
            raise ValueError("images_kwargs or videos_kwargs hold settings, but CLAP takes audio and text only.")
        if unknown := sorted(set(options) - OPTIONS - {"common_kwargs"}):
            raise TypeError(f"MSClapProcessor got unknown options {unknown}, see its documentation.")
        # Not merged: merging copies, and the copy of a generator would draw the same crops in every call; and the
        # feature extractor checks a rate with more in its message.
        audio_options = dict(options.pop("audio_kwargs", {}))
        for name in ("generator", "sampling_rate"):
            if name in options:
                audio_options[name] = options.pop(name)
        settings = dict(self.tokenizer.init_kwargs)
        if settings.get("max_length"):  # saved by sentence-transformers, also where the model takes fewer
            settings["max_length"] = min(settings["max_length"], self.tokenizer.model_max_length)
        merged = self._merge_kwargs(tokenizer_init_kwargs=settings, **options)
        features: dict[str, Any] = {}
        if text is not None:
            features.update(self.tokenizer(text, **merged["text_kwargs"]))
        if audio is not None:
            audio_options = {**merged["audio_kwargs"], **audio_options}
            features.update(
                self.feature_extractor(
                    audio, **{name: value for name, value in audio_options.items() if name not in PADDING_OPTIONS}
                )
            )
        return BatchFeature(features)


__all__ = ["MSClapProcessor", "MSClapProcessorKwargs"]
