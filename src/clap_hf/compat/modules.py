"""What `CLAP.clap` and `CLAP.clapcap` of the msclap interface hold: msclap's modules, by the parts of our models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LogitsProcessor, PreTrainedModel

from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from ..model.modeling_msclap import MSClapModel, pool_text
from ..model.modeling_msclap_captioning import MSClapForAudioCaptioning

CROP, CROP_HOP = 689, 344  # frames: how msclap's HTSAT covers an input of more frames than it takes


class AudioTower(nn.Module):
    """`audio_encoder.base`: waveforms to a dict of outputs.

    Args:
        tower: Audio tower of our model.
        extractor: Its feature extractor.
        classes: CNN14's AudioSet layer, which our models do not have; None leaves `clipwise_output` None.
    """

    waves: torch.Tensor
    mel_filters: torch.Tensor

    def __init__(self, tower: PreTrainedModel, extractor: MSClapFeatureExtractor, classes: nn.Linear | None):
        super().__init__()
        self.tower: Any = tower
        self.extractor, self.classes = extractor, classes
        n_fft = extractor.n_fft
        angles = torch.outer(torch.arange(n_fft // 2 + 1), torch.arange(n_fft)).double() * (2 * torch.pi / n_fft)
        window = torch.hann_window(n_fft, dtype=torch.float64)
        waves = torch.cat([angles.cos() * window, -angles.sin() * window]).float()
        self.register_buffer("waves", waves[:, None], persistent=False)
        self.register_buffer("mel_filters", torch.from_numpy(extractor.mel_filters), persistent=False)

    def log_mel(self, x: torch.Tensor) -> torch.Tensor:
        """Log-mels `[clips, 1, frames, mel]`, dB, by convolutions as torchlibrosa's.

        Between them and the extractor's Fourier transform quiet bands differ by 0.01 dB of rounding, and CNN14's
        outputs by up to 1e-4.
        """
        half = self.extractor.n_fft // 2
        padded = F.pad(x[:, None], (half, half), mode="reflect")
        real, imaginary = F.conv1d(padded, self.waves, stride=self.extractor.hop_length).chunk(2, dim=1)
        power = (real.square() + imaginary.square()).transpose(1, 2) @ self.mel_filters
        return 10.0 * torch.log10(power.clamp(min=1e-10))[:, None]

    @property
    def htsat(self) -> AudioTower:
        """This module: msclap wraps its HTSAT once more."""
        return self

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """Encode waveforms `[clips, samples]` at the model's sampling rate.

        Returns:
            `embedding` `[clips, hidden]` and `clipwise_output` `[clips, 527]`; of HTSAT also `framewise_output`
            `[clips, 1024, 527]` and `latent_output`, which is `embedding`.
        """
        features = self.log_mel(x)
        config = self.tower.config
        if config.architecture == "cnn14":
            pooled = self.tower(features).pooler_output
            classes = None if self.classes is None else torch.sigmoid(self.classes(pooled))
            return {"clipwise_output": classes, "embedding": pooled}
        frames = features.shape[2]
        if frames <= config.num_frames:
            return self._outputs(features)
        starts = range(0, frames - CROP - 1, CROP_HOP)
        crops = [self._outputs(features[:, :, start : start + CROP]) for start in starts]
        return {name: sum(crop[name] for crop in crops) / len(crops) for name in crops[0]}

    def _outputs(self, features: torch.Tensor) -> dict[str, Any]:
        outputs = self.tower(features)
        pooled = outputs.pooler_output
        found: dict[str, Any] = {"framewise_output": None, "clipwise_output": None}
        if self.tower.config.num_labels_frame_map:
            logits = self.tower.frame_logits(outputs.last_hidden_state)
            repeats = self.tower.config.num_frames // logits.shape[1]
            found["framewise_output"] = torch.sigmoid(logits).repeat_interleave(repeats, dim=1)
            found["clipwise_output"] = torch.sigmoid(logits.mean(dim=1))
        return {**found, "latent_output": pooled, "embedding": pooled}


class AudioEncoder(nn.Module):
    """`audio_encoder`: waveforms `[clips, samples]` to (vectors `[clips, d_proj]`, `clipwise_output`)."""

    def __init__(self, base: AudioTower, projection: nn.Module):
        super().__init__()
        self.base, self.projection = base, projection

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        outputs = self.base(x)
        return self.projection(outputs["embedding"]), outputs["clipwise_output"]


class TextEncoder(nn.Module):
    """`caption_encoder`: tokens `{"input_ids", "attention_mask"}` to vectors `[texts, d_proj]`."""

    def __init__(self, model: MSClapModel, count_ids: bool):
        super().__init__()
        self.base, self.projection = model.text_model, model.text_projection
        self.pooling, self.count_ids = model.config.text_pooling, count_ids

    def forward(self, x: Mapping[str, torch.Tensor]) -> torch.Tensor:
        outputs = self.base(**x)
        if not self.count_ids:
            return self.projection(pool_text(outputs, x.get("attention_mask"), self.pooling))
        states, last = outputs.last_hidden_state, (x["input_ids"] != 0).sum(dim=-1) - 1
        return self.projection(states[torch.arange(len(states), device=states.device), last])


class DualEncoder(nn.Module):
    """`CLAP.clap`: both encoders and the logit scale."""

    def __init__(self, audio_encoder: AudioEncoder, caption_encoder: TextEncoder, logit_scale: nn.Parameter):
        super().__init__()
        self.audio_encoder, self.caption_encoder, self.logit_scale = audio_encoder, caption_encoder, logit_scale

    def forward(
        self, audio: torch.Tensor, text: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.caption_encoder(text), self.audio_encoder(audio)[0], self.logit_scale.exp()


class Captioner(nn.Module):
    """`CLAP.clapcap`: the audio encoder, the mapper and the language model."""

    def __init__(self, audio_encoder: AudioEncoder, model: MSClapForAudioCaptioning):
        super().__init__()
        self.clap, self.clap_project, self.gpt = audio_encoder, model.mapper, model.language_model
        self.prefix_length, self.normalize_prefix = model.config.prefix_length, True


class Temperature(LogitsProcessor):
    """Log-probabilities at a temperature, where beams compete by their sums."""

    def __init__(self, temperature: float):
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return (scores / self.temperature).log_softmax(dim=-1)
