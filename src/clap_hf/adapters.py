"""Other families of sound and text models, as a model and a processor that every tool of this package takes.

`load_model(name)` gives for any family what `load_checked` gives for our own, and imports no family that is not asked
for. A `Family` makes features of a window, and vectors of features and texts; windows of a fixed length, their mean
and the identity are the same for all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .embedding import NO_EFFECT
from .model.feature_extraction_msclap import MSClapFeatureExtractor
from .model.modeling_msclap import MSClapModel, mean_over_windows, unpad_windows
from .pretrained import SAVE_AGAIN, check_finite, load_checked, load_config, model_type

WINDOW_S = 10.0  # of families that take any length
LOGIT_SCALE = 100.0  # of families that have none


class Family(Protocol):
    """One family's model: a module whose weights are all that its vectors depend on, beside `settings`."""

    sampling_rate: int  # Hz
    window_s: float
    dim: int  # elements of a vector
    logit_scale: float  # what cosines are multiplied with
    tokenizer: Any
    settings: dict[str, Any]  # what shapes a vector beside weights: configuration and front end
    hop_length: int  # samples from a row of `features` to the next
    mel_filters: np.ndarray  # `[bins, columns]`, whose peaks are the columns' frequencies

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        """What the model takes of a window `[samples]` of at most `window_s`: rows over time, of one shape for all."""

    def embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        """Vectors `[windows, dim]` of `features` `[windows, rows, columns]`."""

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Vectors `[texts, dim]` of what `tokenizer` makes of them, `[texts, tokens]`."""


class WindowModule(nn.Module):
    """A family's model that has one vector for a window, and by default takes its samples."""

    hop_length = 1
    mel_filters = np.eye(2)

    @staticmethod
    def frames_per_position(frames: int) -> int:
        """Rows of a window's features that a vector stands for: all."""
        return frames


class LaionClap(WindowModule):
    """LAION's CLAP, `transformers.ClapModel`. A clip of more than a window is covered by several, not cropped.

    A fused model gets what its feature extractor makes of a short clip by itself: four equal log-mels, marked longer.
    """

    def __init__(self, name: str):
        from transformers import AutoProcessor, ClapModel

        super().__init__()
        self.model = _loaded(ClapModel, name)
        processor = AutoProcessor.from_pretrained(name)
        self.front_end, self.tokenizer = processor.feature_extractor, processor.tokenizer
        self.sampling_rate, self.window_s = self.front_end.sampling_rate, float(self.front_end.max_length_s)
        self.hop_length, self.mel_filters = self.front_end.hop_length, self.front_end.mel_filters_slaney
        self.dim = self.model.config.projection_dim
        self.logit_scale = float(self.model.logit_scale_a.detach().exp())
        self.settings = {"model": self.model.config.to_dict(), "front_end": self.front_end.to_dict()}

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        made = self.front_end(samples.cpu().numpy(), sampling_rate=self.sampling_rate, return_tensors="pt")
        return made["input_features"][0, 0].float()

    def embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        fused = self.model.config.audio_config.enable_fusion
        longer = torch.full((len(features), 1), fused, device=features.device)
        stacked = features[:, None].expand(-1, 4 if fused else 1, -1, -1)
        return self.model.get_audio_features(stacked, is_longer=longer).pooler_output

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


class PeAudio(WindowModule):
    """PE-AV's audio model and PE-A-Frame, whose vector of a window is the mean of its frames' unit vectors."""

    def __init__(self, name: str):
        from transformers import AutoProcessor, PeAudioFrameLevelModel, PeAudioModel

        super().__init__()
        frames = "PeAudioFrameLevelModel" in (load_config(name).architectures or [])
        cls = PeAudioFrameLevelModel if frames else PeAudioModel
        self.model = _loaded(cls, name)
        processor = AutoProcessor.from_pretrained(name)
        self.front_end, self.tokenizer = processor.feature_extractor, processor.tokenizer
        self.sampling_rate, self.window_s = self.front_end.sampling_rate, WINDOW_S
        self.dim = self.model.config.text_config.hidden_size
        self.logit_scale = max(float(self.model.text_audio_logit_scale.detach()), torch.finfo(torch.float32).tiny)
        self.settings = {
            "model": self.model.config.to_dict(),
            "class": cls.__name__,
            "front_end": self.front_end.to_dict(),
        }

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        return _marked(samples, round(self.window_s * self.sampling_rate))

    def embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        return _by_length(features, self._embed)

    def _embed(self, waveforms: torch.Tensor) -> torch.Tensor:
        rows = list(waveforms.cpu().numpy())
        inputs = self.front_end(rows, sampling_rate=self.sampling_rate, return_tensors="pt").to(waveforms.device)
        vectors = self.model.get_audio_embeds(**inputs)
        return F.normalize(vectors, dim=-1).mean(dim=1) if vectors.ndim == 3 else vectors

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.model.text_model(input_ids, attention_mask, output_hidden_states=True).hidden_states[-1][:, 0]
        return self.model.text_audio_head(states)


class SentenceTransformerAudio(WindowModule):
    """Any model of sentence-transformers that encodes sounds and texts, by its own `encode`."""

    def __init__(self, name: str):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                f"{name} needs sentence-transformers, which is not installed: pip install sentence-transformers"
            ) from error

        super().__init__()
        self.model = SentenceTransformer(name, device="cpu", model_kwargs={"use_safetensors": True})
        if not {"audio", "text"} <= set(self.model.modalities):
            raise ValueError(
                f"{name} encodes {sorted(map(str, self.model.modalities))}, expected a sentence-transformers model of "
                "audio and text."
            )
        processor = self.model.processor
        self.front_end = processor.feature_extractor if isinstance(processor, ProcessorMixin) else processor
        settings = self.front_end.to_dict()
        lengths = (settings.get(key) for key in ("max_length_s", "duration_s", "chunk_length"))
        self.sampling_rate = settings["sampling_rate"]
        self.window_s = float(next((length for length in lengths if length), WINDOW_S))
        self.dim = self.model.get_embedding_dimension() or self.model.encode("a").shape[-1]
        self.logit_scale = LOGIT_SCALE
        tokens = json.loads(self.model.tokenizer.backend_tokenizer.to_str())
        tokens = {key: value for key, value in tokens.items() if key not in ("padding", "truncation")}
        inner = self.model.transformers_model
        self.settings = {
            "model": inner.config.to_dict() if inner is not None else {},
            "modules": [type(module).__name__ for module in self.model],
            "front_end": settings,
        }
        self.tokenizer = TextBytes({"tokenizer": tokens, "prompts": self.model.prompts})

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        return _marked(samples, round(self.window_s * self.sampling_rate))

    def embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        return _by_length(features, self._embed)

    def _embed(self, waveforms: torch.Tensor) -> torch.Tensor:
        sounds = [{"array": row, "sampling_rate": self.sampling_rate} for row in waveforms.cpu().numpy()]
        return self.model.encode(sounds, convert_to_tensor=True, show_progress_bar=False)

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        texts = self.tokenizer.decode(input_ids, attention_mask)
        return self.model.encode(texts, convert_to_tensor=True, show_progress_bar=False)


@dataclass
class TextBytes:
    """A tokenizer whose tokens are a text's bytes, for a model that takes texts themselves.

    Attributes:
        identity: What the model's own tokenizer is.
    """

    identity: dict[str, Any]
    unk_token_id: int | None = None
    model_max_length: int = 100_000

    def __call__(
        self, texts: Sequence[str], truncation: bool = False, add_special_tokens: bool = True
    ) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) or [32] for text in texts]}

    def pad(self, encoded: dict[str, list[list[int]]], return_tensors: str = "pt") -> Tokens:
        rows = [torch.tensor(ids) for ids in encoded["input_ids"]]
        masks = [torch.ones_like(row) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        return Tokens(input_ids=pad(rows, batch_first=True), attention_mask=pad(masks, batch_first=True))

    @staticmethod
    def decode(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> list[str]:
        rows = zip(input_ids.tolist(), attention_mask.sum(dim=1).tolist(), strict=True)
        return [bytes(ids[:length]).decode() for ids, length in rows]

    @property
    def backend_tokenizer(self) -> TextBytes:
        return self

    def to_str(self) -> str:
        return json.dumps(self.identity, default=str)


class Tokens(dict[str, torch.Tensor]):
    """Tensors of a batch of texts."""

    def to(self, device: torch.device | str) -> Tokens:
        """The same on a device."""
        return Tokens({name: tensor.to(device) for name, tensor in self.items()})


def _marked(samples: torch.Tensor, length: int) -> torch.Tensor:
    """A window with zeros up to `length`, and a column of ones where it has samples, `[length, 2]`."""
    return F.pad(torch.stack([samples, torch.ones_like(samples)], dim=1), (0, 0, 0, length - samples.shape[0]))


def _by_length(marked: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Vectors of marked windows `[windows, length, 2]`, of equally long ones together, so that nothing is padded."""
    lengths = marked[..., 1].sum(dim=-1).long()
    vectors: dict[int, torch.Tensor] = {}
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        vectors |= dict(zip(rows.tolist(), embed(marked[rows, :length, 0]), strict=True))
    return torch.stack([vectors[row] for row in range(len(marked))])


class AdaptedExtractor(MSClapFeatureExtractor):
    """Windows as of our models, in the features of a family; a shorter clip is one shorter window.

    Args:
        family: The family's model.
    """

    def __init__(self, family: Family):
        super().__init__(sampling_rate=family.sampling_rate, duration_s=family.window_s, fmax=family.sampling_rate / 2)
        self.family, self.short_audio = family, "own"
        self.hop_length, self.mel_filters = family.hop_length, family.mel_filters
        self.n_fft = 2 * (family.mel_filters.shape[0] - 1)
        for name in ("feature_size", "fmin", "fmax"):  # the family's own settings are in the configuration
            setattr(self, name, None)

    @staticmethod
    def _check_policies(long_audio: str, short_audio: str, max_windows: int | None) -> None:
        MSClapFeatureExtractor._check_policies(long_audio, "repeat", max_windows)

    def _cut(self, samples: torch.Tensor, *policies: Any) -> list[torch.Tensor]:
        return [samples] if samples.shape[0] < self.window_samples else super()._cut(samples, *policies)

    def log_mel(self, samples: torch.Tensor) -> torch.Tensor:
        """The family's features of a window `[samples]`, `[rows, columns]`."""
        return self.family.features(samples).to(samples.device)

    def log_mels(self, windows: Iterable[torch.Tensor]) -> torch.Tensor:
        """The family's features of windows, `[windows, rows, columns]`."""
        return torch.stack([self.log_mel(window) for window in windows])


class AdaptedConfig(PreTrainedConfig):
    """Configuration of an adapted model: what identifies its vectors."""

    model_type = "clap_hf_adapted"
    projection_dim: int = 0
    text_pooling: str = "own"


class AdaptedModel(PreTrainedModel):
    """A family's model with the methods of `MSClapModel` that the tools call.

    Args:
        family: The family's model.
        name: Folder or Hub id.
    """

    config: AdaptedConfig

    def __init__(self, family: Any, name: str):
        config = AdaptedConfig(projection_dim=family.dim)
        config.name_or_path = name
        config.audio_config = config.text_config = PreTrainedConfig(**_stable(family.settings))
        super().__init__(config)
        self.audio_model = family  # all weights count as those of the audio tower: a new vector for any that changes
        self.register_buffer("logit_scale", torch.tensor(math.log(family.logit_scale)), persistent=False)

    def get_audio_features(
        self, input_features: torch.Tensor, num_windows: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Unit vectors of clips as `pooler_output`; arguments as of `MSClapModel.get_audio_features`."""
        vectors = self.audio_model.embed_audio(unpad_windows(input_features, num_windows)[:, 0])
        windows = F.normalize(vectors.float(), dim=-1)
        pooled = mean_over_windows(windows, num_windows, input_features.shape[0])
        return BaseModelOutputWithPooling(pooler_output=F.normalize(pooled, dim=-1))

    def get_audio_frame_features(self, input_features: torch.Tensor) -> torch.Tensor:
        """Unit vectors `[windows, 1, dim]`: a window is one position."""
        return self.get_audio_features(input_features).pooler_output[:, None]

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Unit vectors of texts as `pooler_output`; arguments as of `MSClapModel.get_text_features`."""
        vectors = self.audio_model.embed_text(input_ids, attention_mask)
        return BaseModelOutputWithPooling(pooler_output=F.normalize(vectors.float(), dim=-1))

    def compute_similarity(self, audio_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Logit scale x cosine, `[clips, texts]`."""
        return self.logit_scale.exp() * audio_embeds.float() @ text_embeds.float().t()


@dataclass
class AdaptedProcessor:
    """Feature extractor and tokenizer of an adapted model."""

    feature_extractor: AdaptedExtractor
    tokenizer: Any


FAMILIES: dict[str, Callable[[str], Any]] = {
    "clap": LaionClap,
    "pe_audio": PeAudio,
    "sentence_transformers": SentenceTransformerAudio,
}


def load_model(name: str, **options: Any) -> tuple[Any, Any]:
    """A model of sounds and texts of any family, in evaluation mode, and its processor.

    Args:
        name: Folder or Hub id.
        options: Of `from_pretrained`, for our own models; others are float32.

    Raises:
        OSError: If a file is missing.
        ValueError: If the family is unknown, or the weights are damaged.
    """
    kind = model_type(name)
    if kind == "msclap":
        return load_checked(MSClapModel, name, **options)
    if kind not in FAMILIES:
        raise ValueError(f"{name} is of the type {kind!r}, expected one of {['msclap', *FAMILIES]}.")
    family = FAMILIES[kind](name)
    model = AdaptedModel(family, name).eval()
    check_finite(model, name)
    return model, AdaptedProcessor(AdaptedExtractor(family), family.tokenizer)


def _loaded(cls: Any, name: str) -> PreTrainedModel:
    """A model of transformers in float32, with all of its weights."""
    model, found = cls.from_pretrained(name, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        raise ValueError(
            f"{name} misses {len(found['missing_keys'])} weights of {cls.__name__}, such as "
            f"{min(found['missing_keys'])!r}, expected all of them. {SAVE_AGAIN}"
        )
    return model


def _stable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those of training and of where a model came from, at any depth."""
    return {
        name: _stable(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if not (str(name).startswith("_") or "drop" in str(name) or name in NO_EFFECT)
    }
