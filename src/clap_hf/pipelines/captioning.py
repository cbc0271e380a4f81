"""Audio captioning, a task that transformers does not have: `pipeline("audio-captioning", model=...)`.

It takes every sound that the zero-shot pipeline takes, and stands on the same decoding, outside `model/`. Where this
package is not installed, the same task with `trust_remote_code=True` captions samples: `model/pipeline_msclap.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from ..audio import is_one_sound, pipeline_inputs, read_sound
from ..embedding import evaluation_mode
from ..fast_cpu import optimize_if_possible
from ..model.pipeline_msclap import MSClapCaptioningPipeline
from ..pretrained import check_weights
from .long_files import embed_file, is_long, long_sounds

TASK = "audio-captioning"


class MSClapAudioCaptioningPipeline(MSClapCaptioningPipeline):
    """Describes sounds in words.

    Example:

    ```python
    >>> import clap_hf
    >>> from transformers import pipeline
    >>> describe = pipeline("audio-captioning", model="path/to/captioner")
    >>> describe("dog.ogg")
    ```

    Options of transformers' `generate`, such as `num_beams`, go into `pipeline(...)` or into a call's
    `generate_kwargs`. Clips longer than the model's window are covered by several windows, whose embeddings are
    averaged; files of more than 32 windows are decoded in blocks, so that memory does not grow with them.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        check_weights(self.model)
        optimize_if_possible(self.model)

    def __call__(
        self,
        audios: Any,
        *,
        sampling_rate: int | None = None,
        max_windows: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
    ) -> Any:
        """Caption one sound or many. None means what the pipeline was made with.

        Args:
            audios: A sound, or a list, tuple, `datasets` column, generator or torch dataset of them, each of any kind
                that `MSClapZeroShotAudioClassificationPipeline` takes.
            sampling_rate: Rate of samples that do not carry their own, Hz. Never guessed.
            max_windows: Windows of a sound at most, evenly spaced over it; as many as cover it by default.
            max_new_tokens: Longest caption, tokens.
            generate_kwargs: Further options of transformers' `generate`.
            batch_size: Sounds that go through the model together (default 1).
            num_workers: Processes that decode (default 0: threads of this one, for a sequence).

        Returns:
            `[{"generated_text": str}, ...]` for a sound, as many as `num_return_sequences` (default 1), best first; a
            list of these for a list, tuple or column; an iterator over them for a generator or a torch dataset.

        Raises:
            TypeError: If a keyword is unknown, or a sound is of no known kind.
            ValueError: If a sound is a URL, is empty, is not finite or has an ambiguous shape; if a sampling rate is
                missing or impossible; if an option of `generate` is wrong.
            AudioDecodeError: If a file, or bytes, cannot be decoded.
        """
        options: dict[str, Any] = {
            "sampling_rate": sampling_rate,
            "max_windows": max_windows,
            "max_new_tokens": max_new_tokens,
            "generate_kwargs": generate_kwargs,
            "batch_size": batch_size,
            "num_workers": num_workers,
        }
        if is_one_sound(audios) and is_long(self.feature_extractor, audios):
            return self.caption_file(audios, **options)
        if isinstance(audios, (list, tuple)) and (long := long_sounds(self.feature_extractor, audios)):
            rest = iter(self([sound for i, sound in enumerate(audios) if i not in long], **options))
            return [self.caption_file(own, **options) if i in long else next(rest) for i, own in enumerate(audios)]
        inputs, many = pipeline_inputs(audios, self._num_workers if num_workers is None else num_workers)
        outputs = super().__call__(inputs, **options)
        return list(outputs) if many else outputs

    @torch.inference_mode()
    def caption_file(self, file: Any, **options: Any) -> list[dict[str, str]]:
        """Caption a file of any length, decoded in blocks.

        Args:
            file: Its path.
            options: Of a call.
        """
        preprocess, forward, _ = self._sanitize_parameters(
            **{name: options.get(name) for name in ("max_new_tokens", "generate_kwargs", "max_windows")}
        )
        limit = (self._preprocess_params | preprocess).get("max_windows")
        vector = embed_file(self.model, self.feature_extractor, file, limit).to(self.model.device)
        settings = (self._forward_params | forward).get("generate_kwargs") or {}
        with evaluation_mode(self.model):
            prefix = self.model.mapper(vector[None, None].to(next(self.model.mapper.parameters()).dtype))
            tokens = self.model.generate_from(prefix, **self._prepare_generate_kwargs(settings))
        return self.postprocess({"tokens": tokens[None]})

    def _sanitize_parameters(
        self,
        sampling_rate: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        max_windows: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(sampling_rate, max_new_tokens, generate_kwargs)
        if max_windows is not None:
            preprocess["max_windows"] = max_windows
        return preprocess, forward, postprocess

    def preprocess(
        self, audio: Any, sampling_rate: int | None = None, max_windows: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Decode a sound and turn it into log-mel windows, float32 whatever the model's dtype is."""
        return dict(self.feature_extractor(read_sound(audio), sampling_rate, max_windows=max_windows))

    def _forward(
        self, model_inputs: dict[str, torch.Tensor], generate_kwargs: dict[str, Any] | None = None
    ) -> dict[str, torch.Tensor]:
        with evaluation_mode(self.model):
            return super()._forward(model_inputs, generate_kwargs)
