"""What an evaluation asks of a model, and CLAP's answer to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from .. import texts as texts_module
from ..audio import Audio
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor

WINDOWS_PER_BATCH = 32


class Encoder(Protocol):
    """Anything that embeds sounds and texts into one space."""

    key: str  # changes whenever the embeddings of sounds may change
    logit_scale: float  # what cosines are multiplied with before softmax or sigmoid

    def prepare(self, audio: Audio) -> Any:
        """What the model hears of a sound; runs in loader processes."""

    def embed_audio(self, prepared: Sequence[Any]) -> torch.Tensor:
        """Unit vectors of prepared sounds, `[clips, dim]`, float32 on the CPU."""

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of texts, `[texts, dim]`, float32 on the CPU."""

    def settings(self) -> dict[str, Any]:
        """Everything about the model that affects a score, for the record."""


def embed_texts(model: MSClapModel, processor: MSClapProcessor, texts: list[str]) -> torch.Tensor:
    """Unit vectors of texts, `[texts, projection_dim]`, float32 on the CPU."""
    return texts_module.embed_texts(model, processor.tokenizer, texts).cpu()


@torch.inference_mode()
def embed_windows(model: MSClapModel, input_features: torch.Tensor) -> torch.Tensor:
    """Unit vectors of log-mel windows `[windows, 1, frames, mel]`, `[windows, projection_dim]`, float32 on the CPU."""
    batches = input_features.split(WINDOWS_PER_BATCH)
    vectors = [model.get_audio_features(batch.to(model.device)).pooler_output.float().cpu() for batch in batches]
    return torch.cat(vectors)


def fingerprint(model: MSClapModel, settings: dict[str, Any], prefixes: tuple[str, ...] = ("",)) -> str:
    """Hash of weights and front-end settings.

    Args:
        model: The model.
        settings: Of the front end.
        prefixes: Which weights; all by default.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class ClapEncoder:
    """CLAP for evaluation.

    Args:
        model: In evaluation mode, on its device.
        processor: Its processor.
        name: Folder or Hub id, for the record.
        long_audio: Policy for clips longer than the window; the processor's own when None.
        short_audio: Policy for shorter ones.

    Raises:
        ValueError: If `long_audio` is "random": such embeddings are not reproducible.
    """

    def __init__(
        self,
        model: MSClapModel,
        processor: MSClapProcessor,
        name: str = "",
        long_audio: str | None = None,
        short_audio: str | None = None,
    ):
        extractor = processor.feature_extractor
        self.model, self.processor, self.name = model, processor, name
        self.long_audio = long_audio or extractor.long_audio
        self.short_audio = short_audio or extractor.short_audio
        if self.long_audio == "random":
            raise ValueError(
                "long_audio is 'random', expected 'windows' or 'center': scores would change by themselves."
            )
        self._front_end = {
            **{key: value for key, value in extractor.to_dict().items() if not key.startswith(("_", "mel_filters"))},
            "long_audio": self.long_audio,
            "short_audio": self.short_audio,
            "dtype": str(model.dtype),
        }
        self.key = fingerprint(model, self._front_end, ("audio_model.", "audio_projection."))
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self._settings = self._described()

    def prepare(self, audio: Audio) -> dict[str, torch.Tensor]:
        """Log-mel windows of a sound."""
        extractor = self.processor.feature_extractor
        policies = {"long_audio": self.long_audio, "short_audio": self.short_audio}
        return dict(extractor(audio.samples, audio.sampling_rate, **policies))

    def embed_audio(self, prepared: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Unit vectors of prepared sounds, `[clips, projection_dim]`: their windows' mean, normalised again."""
        windows = embed_windows(self.model, torch.cat([item["input_features"] for item in prepared]))
        counts = [int(item["num_windows"].sum()) for item in prepared]
        return F.normalize(torch.stack([part.mean(dim=0) for part in windows.split(counts)]), dim=-1)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of texts, `[texts, projection_dim]`."""
        return embed_texts(self.model, self.processor, texts)

    def settings(self) -> dict[str, Any]:
        """Model, revision, front end and dtype."""
        return self._settings

    def _described(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "revision": self.model.config.__dict__.get("_commit_hash"),  # only configurations from the Hub have it
            "fingerprint": fingerprint(self.model, self._front_end)[:16],
            "logit_scale": round(self.logit_scale, 4),
            "mono": "mean of the channels",
            "resampler": "windowed sinc (torchaudio's default kernel)",
            **self._front_end,
        }
