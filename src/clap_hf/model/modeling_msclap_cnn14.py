# Copyright 2026 The clap_hf authors. MIT License.
"""CNN14 (PANNs; Kong et al., 2020), the audio tower of CLAP 2022 and of the paper's Table 1."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_msclap import MSClapAudioConfig
from .modeling_msclap_base import (
    MSClapBatchNorm,
    MSClapPreTrainedModel,
    check_input_features,
    require_gradient,
    spec_augment,
)


class MSClapCnn14Block(GradientCheckpointingLayer):
    """Two 3 x 3 convolutions with batch norm and ReLU, then average pooling and dropout."""

    def __init__(self, in_channels: int, out_channels: int, pool_size: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool_size = pool_size
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = F.relu(self.bn1(self.conv1(hidden_states)))
        hidden_states = F.relu(self.bn2(self.conv2(hidden_states)))
        return self.dropout(F.avg_pool2d(hidden_states, self.pool_size))


class MSClapCnn14Model(MSClapPreTrainedModel):
    """CNN14: log-mel spectrogram to one vector.

    Reference: `msclap.models.audio.Cnn14`, as released with CLAP 2022.
    """

    config: MSClapAudioConfig
    base_model_prefix = "audio_model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _no_split_modules = ["MSClapCnn14Block"]
    _can_record_outputs = {"hidden_states": MSClapCnn14Block}

    def __init__(self, config: MSClapAudioConfig):
        super().__init__(config)
        self.batch_norm = MSClapBatchNorm(config)
        channels = [1, *config.conv_channels]
        last = len(config.conv_channels) - 1
        self.blocks = nn.ModuleList(
            MSClapCnn14Block(channels[i], channels[i + 1], 1 if i == last else 2, config.conv_dropout)
            for i in range(len(config.conv_channels))
        )
        self.dropout = nn.Dropout(config.head_dropout)
        self.fc = nn.Linear(channels[-1], config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            init.xavier_uniform_(module.weight)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, input_features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """Encode log-mel spectrograms.

        Args:
            input_features: Log-mel `[batch, 1, frames, mel]`, dB, from `MSClapFeatureExtractor`.

        Returns:
            `last_hidden_state` `[batch, steps, channels]`, one vector per 32 frames, and `pooler_output`
            `[batch, hidden]`.

        Raises:
            ValueError: If the shape is another, or the mel bins are not the model's.
        """
        check_input_features(input_features, self.config.num_mel_bins)
        features = self.batch_norm(input_features)
        if self.training and self.config.spec_augment:
            features = spec_augment(features, self.config)
        hidden_states = require_gradient(features.to(next(self.blocks.parameters()).dtype), self.blocks)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        hidden_states = hidden_states.mean(dim=3).transpose(1, 2)  # [batch, steps, channels]
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=self.pool(hidden_states))

    def pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maximum plus mean over steps, then the dense layer: `[..., steps, channels]` to `[..., hidden]`."""
        pooled = self.dropout(hidden_states.amax(dim=-2) + hidden_states.mean(dim=-2))
        return self.dropout(F.relu(self.fc(pooled)))

    def pool_positions(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Pooled output of every step alone.

        Args:
            last_hidden_state: `[batch, steps, channels]` from `forward`.

        Returns:
            `[batch, steps, hidden]`.
        """
        return self.pool(last_hidden_state.unsqueeze(-2))

    def frames_per_position(self, frames: int) -> float:
        """Frames of the input that a step stands for; `frames`, the input's length, does not matter here."""
        return float(2 ** (len(self.blocks) - 1))


__all__ = ["MSClapCnn14Model"]
