# Copyright 2026 The clap_hf authors. MIT License.
"""The captioning pipeline that ships with a captioner, for where only transformers is installed.

`pipeline("audio-captioning", model=..., trust_remote_code=True)` finds it by `custom_pipelines` in `config.json`. The
package's own pipeline adds every way of decoding sound.
"""

from typing import Any

import torch
from transformers import Pipeline


class MSClapCaptioningPipeline(Pipeline):
    """Describes sounds in words.

    Takes samples (NumPy or torch, `[samples]` or `[channels, samples]`) with `sampling_rate`, or dictionaries
    `{"array", "sampling_rate"}`, and lists of these. Options of transformers' `generate` go into `pipeline(...)` or
    into a call's `generate_kwargs`.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = True
    _pipeline_calls_generate = True

    def _sanitize_parameters(
        self,
        sampling_rate: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        generate = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            if "max_new_tokens" in generate:
                raise ValueError("max_new_tokens was passed twice, by itself and in generate_kwargs.")
            generate["max_new_tokens"] = max_new_tokens
        return (
            {} if sampling_rate is None else {"sampling_rate": sampling_rate},
            {"generate_kwargs": generate} if generate else {},
            {},
        )

    def preprocess(self, audio: Any, sampling_rate: int | None = None) -> dict[str, torch.Tensor]:
        """Turn a sound into log-mel windows, float32 whatever the model's dtype is."""
        return dict(self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt"))

    def _forward(
        self, model_inputs: dict[str, torch.Tensor], generate_kwargs: dict[str, Any] | None = None
    ) -> dict[str, torch.Tensor]:
        options = self._prepare_generate_kwargs(generate_kwargs or {})
        tokens = self.model.generate(**model_inputs, **options)
        # A row per sound, so that the pipeline can take batches apart.
        return {"tokens": tokens.view(model_inputs["num_windows"].shape[0], -1, tokens.shape[-1])}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:
        """Texts of one sound, best first."""
        texts = self.tokenizer.batch_decode(model_outputs["tokens"][0], skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]


__all__ = ["MSClapCaptioningPipeline"]
