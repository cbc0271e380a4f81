# Copyright 2026 The clap_hf authors. MIT License.
"""What all models of Microsoft CLAP share: their base class, and the normalisation of their input."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_msclap import MSClapAudioConfig


def check_input_features(input_features: torch.Tensor, num_mel_bins: int, num_frames: int | None = None) -> None:
    """Raise ValueError unless a tower's input is `[windows, 1, frames, mel]`, of its bins and at most its frames."""
    shape = list(input_features.shape)
    if len(shape) == 4 and shape[1] == 1 and shape[3] == num_mel_bins and (not num_frames or shape[2] <= num_frames):
        return
    limit = f"up to {num_frames} frames" if num_frames else "frames"
    raise ValueError(
        f"input_features are {shape}, this tower takes [windows, 1, frames, mel] with {limit} of {num_mel_bins} mel "
        "bins. Use the feature extractor saved with the model; for clips of several windows, a model above the tower."
    )


def mask_stripes(features: torch.Tensor, dim: int, max_width: int, num_stripes: int) -> torch.Tensor:
    """Zero random stripes of a spectrogram, other ones for every clip (SpecAugment, as torchlibrosa draws them).

    Args:
        features: Spectrograms `[batch, 1, frames, mel]`.
        dim: 2 masks frames, 3 masks mel bins.
        max_width: Stripes are `0 ... max_width - 1` wide.
        num_stripes: Stripes per clip.

    Returns:
        Spectrograms of the same shape with the stripes set to 0 (the mean, after normalisation).
    """
    batch, length = features.shape[0], features.shape[dim]
    position = torch.arange(length, device=features.device)
    keep = torch.ones(batch, length, dtype=torch.bool, device=features.device)
    for _ in range(num_stripes):
        width = torch.randint(0, max_width, (batch, 1), device=features.device)
        start = (torch.rand(batch, 1, device=features.device) * (length - width)).long()
        keep &= (position < start) | (position >= start + width)
    shape = [batch, 1, 1, 1]
    shape[dim] = length
    return features * keep.view(shape)


def spec_augment(features: torch.Tensor, config: MSClapAudioConfig) -> torch.Tensor:
    """Mask time and frequency stripes of normalised spectrograms `[batch, 1, frames, mel]`, for training."""
    features = mask_stripes(features, 2, config.spec_augment_time_width, config.spec_augment_time_stripes)
    return mask_stripes(features, 3, config.spec_augment_freq_width, config.spec_augment_freq_stripes)


class MSClapBatchNorm(nn.BatchNorm2d):
    """Normalises every mel bin of a log-mel `[batch, 1, frames, mel]`, in float32.

    Attributes:
        statistics: Mean and variance of every mel bin, `[mel]` each, to normalise by in training instead of the
            batch's own: where a batch is seen in chunks, those of the whole batch.
    """

    def __init__(self, config: MSClapAudioConfig):
        super().__init__(config.num_mel_bins, dtype=torch.float32)
        self.statistics: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        # Decibel values need float32: bfloat16 resolves 0.5 dB at -100 dB.
        features = input_features.to(self.weight.dtype).transpose(1, 3)
        if self.training and self.statistics is not None:
            return F.batch_norm(features, *self.statistics, self.weight, self.bias, eps=self.eps).transpose(1, 3)
        return super().forward(features).transpose(1, 3)


def require_gradient(hidden_states: torch.Tensor, layers: Iterable[nn.Module]) -> torch.Tensor:
    """Let the input of layers require a gradient in training, if they are checkpointed.

    Reentrant checkpointing gives no gradient to the weights of a layer none of whose inputs requires one: those of
    adapters in an otherwise frozen model.
    """
    if torch.is_grad_enabled() and any(layer.training and layer.gradient_checkpointing for layer in layers):
        hidden_states.requires_grad_()
    return hidden_states


class MSClapPreTrainedModel(PreTrainedModel):
    """Base class of the CLAP models and their audio towers.

    Batch norms do not move in training where their weights do not train: a frozen tower stays what it was, and an
    adapter that is saved without their statistics fits the model that it was trained on.

    Attributes:
        missing_weights: Names of the weights that the checkpoint did not hold, in its sizes, and that are therefore
            new.
    """

    missing_weights: tuple[str, ...] = ()

    config: PreTrainedConfig
    base_model_prefix = "audio_model"
    input_modalities: tuple[str, ...] = ("audio", "text")
    auto_map: dict[str, str] = {}  # classes of `config.json` by Auto class, beside the one that is saved
    supports_gradient_checkpointing = True
    _no_split_modules = ["MSClapHtsatBlock", "MSClapCnn14Block", "MSClapProjection"]
    _keep_in_fp32_modules_strict = ["batch_norm"]
    # CNN14 has no attention, but takes the setting, so that code need not know the tower.
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # torch's default, as released: 0.02 would shrink the residual paths of projections and mappers.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a checkpoint, see `PreTrainedModel.from_pretrained`; `missing_weights` names what it did not hold."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model.missing_weights = tuple(sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}))
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model, see `PreTrainedModel.save_pretrained`, for every Auto class if its code goes with it."""
        if self._auto_class is not None:
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **self.auto_map}
        return super().save_pretrained(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights, apart from those kept in float32 (batch norm, logit scale)."""
        for name, parameter in self.named_parameters():
            kept = not set(self._keep_in_fp32_modules_strict).isdisjoint(name.split("."))
            if parameter.is_floating_point() and not kept:
                return parameter.dtype
        return super().dtype

    def train(self, mode: bool = True) -> "MSClapPreTrainedModel":
        """Set the mode of what trains; parts without trainable weights stay in evaluation mode.

        Parts are the model, its direct children and every batch norm.
        """
        super().train(mode)
        if not mode:
            return self
        batch_norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for part in (self, *self.children(), *batch_norms):
            trains = [parameter.requires_grad for parameter in part.parameters()]
            if trains and not any(trains):
                part.eval()
        return self


__all__ = ["MSClapPreTrainedModel"]
