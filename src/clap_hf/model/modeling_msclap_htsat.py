# Copyright 2026 The clap_hf authors. MIT License.
"""HTSAT, the hierarchical token-semantic audio transformer (Chen et al., ICASSP 2022), CLAP 2023's audio tower.

A log-mel spectrogram is stretched to a fixed number of frames, cut into time chunks that are stacked along frequency,
and the resulting image goes through four stages of Swin window attention. The pooled output is the mean over the
tokens of the last stage.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
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


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `attn_implementation="eager"`: the only one that also returns its weights.

    Args:
        module: The attention layer; only whether it is training matters here.
        query: `[batch * windows, heads, tokens, head_dim]`; `key` and `value` alike.
        attention_mask: Added to the scores, `[1 or batch * windows, heads, tokens, tokens]`.
        scaling: Factor of the scores.
        dropout: Probability of dropping an attention weight.

    Returns:
        Context `[batch * windows, tokens, heads, head_dim]` and weights `[batch * windows, heads, tokens, tokens]`.
    """
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class MSClapDropPath(nn.Module):
    """Stochastic depth: drops a whole residual path for some clips of a batch in training, scaling up the others."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1.0 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        kept = torch.rand(shape, device=hidden_states.device) < keep_prob
        return hidden_states * kept.to(hidden_states.dtype) / keep_prob

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class MSClapHtsatAttention(nn.Module):
    """Multi-head self-attention within (shifted) windows of an image, with a learned relative position bias.

    The shift and the cut into windows are one permutation of the image's tokens. Here of 4 x 4 tokens, with windows
    of 2 x 2 and a shift of 1; the numbers are the tokens' places in the image:

         0  1  2  3               5  6 |  7  4
         4  5  6  7   shifted     9 10 | 11  8     window_tokens = [[5, 6, 9, 10], [7, 4, 11, 8],
         8  9 10 11   -------->  ------+------                      [13, 14, 1, 2], [15, 12, 3, 0]]
        12 13 14 15              13 14 | 15 12     shift_mask keeps apart what the shift put together:
                                  1  2 |  3  0     7, 11 and 4, 8; 13, 14 and 1, 2; each of 15, 12, 3 and 0
    """

    def __init__(
        self, config: MSClapAudioConfig, channels: int, resolution: tuple[int, int], num_heads: int, shifted: bool
    ):
        super().__init__()
        self.config = config
        self.resolution = resolution
        self.num_heads = num_heads
        self.window = window = min(config.window_size, *resolution)
        # A single window has nothing to shift.
        self.shift = config.window_size // 2 if shifted and min(resolution) > config.window_size else 0
        self.head_dim = channels // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.relative_position_index: torch.Tensor
        self.window_tokens: torch.Tensor
        self.image_tokens: torch.Tensor
        self.shift_mask: torch.Tensor | None
        for name, values in self.make_buffers().items():
            self.register_buffer(name, values, persistent=False)

    def make_buffers(self) -> dict[str, torch.Tensor | None]:
        """Constants of the windows.

        Returns:
            relative_position_index: Row of the bias table for every pair of places in a window,
                `[window ** 2, window ** 2]`.
            window_tokens: Token of the image at every place of every window, `[windows * window ** 2]`.
            image_tokens: Its inverse, the place of every token of the image, alike.
            shift_mask: 0 within a region and -100 across, `[windows, window ** 2, window ** 2]`; None without shift.
        """
        (rows, columns), side, shift = self.resolution, self.window, self.shift
        row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
        row_offset = row[:, None] - row[None, :] + side - 1
        column_offset = column[:, None] - column[None, :] + side - 1

        def cut(image: torch.Tensor) -> torch.Tensor:
            """Windows `[windows, window ** 2]` of an image `[rows, columns]`."""
            return image.view(rows // side, side, columns // side, side).transpose(1, 2).reshape(-1, side**2)

        windows = cut(torch.arange(rows * columns).view(rows, columns).roll((-shift, -shift), (0, 1)))
        mask = None
        if shift:
            wrapped_row, wrapped_column = torch.arange(rows) >= rows - shift, torch.arange(columns) >= columns - shift
            region = cut(2 * wrapped_row[:, None].long() + wrapped_column.long())
            mask = torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)
        return {
            "relative_position_index": row_offset * (2 * side - 1) + column_offset,
            "window_tokens": windows.flatten(),
            "image_tokens": windows.flatten().argsort(),
            "shift_mask": mask,
        }

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within windows.

        Args:
            hidden_states: `[batch, image tokens, channels]`.

        Returns:
            The attended states `[batch, image tokens, channels]` and, of eager attention only, weights
            `[batch * windows, heads, window ** 2, window ** 2]`.
        """
        windows = hidden_states.index_select(1, self.window_tokens)
        context, weights = self.attend(self.qkv(windows), **kwargs)
        context = context.index_select(1, self.image_tokens)
        return self.dropout(self.proj(context)), weights

    def attend(
        self, qkv: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of every window's queries to its keys, with the position bias and the mask of the shift.

        Args:
            qkv: Queries, keys and values `[batch, image tokens, 3 * channels]`, window after window.

        Returns:
            Context `[batch, image tokens, channels]`, window after window, and weights as of `forward`.
        """
        batch, image_tokens, _ = qkv.shape
        tokens = self.window**2
        # [batch * windows, heads, tokens, head_dim] each
        query, key, value = qkv.view(-1, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)

        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(tokens, tokens, self.num_heads).permute(2, 0, 1).contiguous()[None]
        if self.shift_mask is not None:
            bias = (bias + self.shift_mask[:, None].to(bias.dtype)).repeat(batch, 1, 1, 1)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attention(
            self,
            query,
            key,
            value,
            bias,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return context.reshape(batch, image_tokens, -1), weights


class MSClapHtsatMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: MSClapAudioConfig, channels: int):
        super().__init__()
        hidden = int(channels * config.mlp_ratio)
        self.fc1 = nn.Linear(channels, hidden)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(self.fc1(hidden_states)))
        return self.dropout(self.fc2(hidden_states))


class MSClapHtsatBlock(GradientCheckpointingLayer):
    """A Swin block: (shifted) window attention and an MLP, pre-norm, each on a residual path."""

    def __init__(
        self,
        config: MSClapAudioConfig,
        channels: int,
        resolution: tuple[int, int],
        num_heads: int,
        shifted: bool,
        drop_path_rate: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attn = MSClapHtsatAttention(config, channels, resolution, num_heads, shifted)
        self.drop_path = MSClapDropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = MSClapHtsatMLP(config, channels)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        residual = hidden_states
        hidden_states, _ = self.attn(self.norm1(hidden_states), **kwargs)
        hidden_states = residual + self.drop_path(hidden_states)

        residual = hidden_states
        hidden_states = self.mlp(self.norm2(hidden_states))
        return residual + self.drop_path(hidden_states)


class MSClapHtsatPatchMerging(nn.Module):
    """Halves both sides of the token image and doubles its channels."""

    def __init__(self, config: MSClapAudioConfig, channels: int, resolution: tuple[int, int]):
        super().__init__()
        self.resolution = resolution
        self.norm = nn.LayerNorm(4 * channels, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.reduction(self.norm(self.merge(hidden_states)))

    def merge(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, channels]` to `[batch, tokens / 4, 4 * channels]`: every square of four tokens in a row."""
        batch, _, channels = hidden_states.shape
        rows, columns = self.resolution
        image = hidden_states.view(batch, rows // 2, 2, columns // 2, 2, channels)
        # Order of the four neighbours: (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
        return image.permute(0, 1, 3, 4, 2, 5).reshape(batch, rows * columns // 4, 4 * channels)


class MSClapHtsatStage(nn.Module):
    """A run of Swin blocks at one resolution, then patch merging except after the last stage."""

    def __init__(self, config: MSClapAudioConfig, stage: int, resolution: tuple[int, int], drop_paths: list[float]):
        super().__init__()
        self.config = config
        channels = config.embed_dim * 2**stage
        self.blocks = nn.ModuleList(
            MSClapHtsatBlock(config, channels, resolution, config.num_attention_heads[stage], bool(i % 2), rate)
            for i, rate in enumerate(drop_paths)
        )
        is_last = stage == len(config.depths) - 1
        self.downsample = None if is_last else MSClapHtsatPatchMerging(config, channels, resolution)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, **kwargs)
        return hidden_states if self.downsample is None else self.downsample(hidden_states)


class MSClapHtsatModel(MSClapPreTrainedModel):
    """HTSAT: log-mel spectrogram to one vector, with token and frame-level outputs.

    Reference: `msclap.models.htsat`, as released with CLAP 2023.
    """

    config: MSClapAudioConfig
    base_model_prefix = "audio_model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _no_split_modules = ["MSClapHtsatBlock"]
    _can_record_outputs = {"hidden_states": MSClapHtsatBlock, "attentions": MSClapHtsatAttention}

    def __init__(self, config: MSClapAudioConfig):
        super().__init__(config)
        self.batch_norm = MSClapBatchNorm(config)
        self.patch_embed = nn.Conv2d(1, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size)
        self.patch_norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

        rows = config.num_mel_bins * config.num_time_chunks // config.patch_size
        columns = config.num_frames // config.num_time_chunks // config.patch_size
        total = sum(config.depths)
        rates = [config.drop_path_rate * i / max(total - 1, 1) for i in range(total)]
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            stage_rates, rates = rates[:depth], rates[depth:]
            self.stages.append(MSClapHtsatStage(config, stage, (rows >> stage, columns >> stage), stage_rates))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        last = len(config.depths) - 1
        self.last_resolution = (rows >> last, columns >> last)
        self.frame_head = None
        if config.num_labels_frame_map:
            bins = self.last_resolution[0] // config.num_time_chunks
            self.frame_head = nn.Conv2d(config.hidden_size, config.num_labels_frame_map, (bins, 3), padding=(0, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):
            # torch's default, as released. Its bias is not zero: a masked patch would otherwise reach the layer norm
            # as a zero vector, whose gradient is scaled by 1 / sqrt(eps).
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, MSClapHtsatAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=0.02)
            for name, values in module.make_buffers().items():
                if values is not None:
                    init.copy_(module.get_buffer(name), values)

    def fold(self, features: torch.Tensor) -> torch.Tensor:
        """Stretch to the model's frames and stack time chunks along frequency.

        Args:
            features: Normalised log-mel `[batch, 1, frames, mel]`.

        Returns:
            Image `[batch, 1, chunks * mel, frames / chunks]`.
        """
        config = self.config
        batch, _, frames, mel = features.shape
        if frames < config.num_frames:
            size = (config.num_frames, mel)
            features = F.interpolate(features, size, mode="bicubic", align_corners=True)
        chunks = config.num_time_chunks
        features = features.view(batch, chunks, config.num_frames // chunks, mel)
        return features.transpose(2, 3).reshape(batch, 1, chunks * mel, config.num_frames // chunks)

    def embed_patches(self, input_features: torch.Tensor) -> torch.Tensor:
        """Patches `[batch, tokens, embed_dim]` of log-mel spectrograms `[batch, 1, frames, mel]`."""
        features = self.batch_norm(input_features)
        if self.training and self.config.spec_augment:
            features = spec_augment(features, self.config)
        image = self.fold(features)
        patches = self.patch_embed(image.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        return self.dropout(self.patch_norm(patches))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """Encode log-mel spectrograms.

        Args:
            input_features: Log-mel `[batch, 1, frames, mel]`, dB, from `MSClapFeatureExtractor`.

        Returns:
            `last_hidden_state` `[batch, tokens, hidden]` and `pooler_output` `[batch, hidden]`, the mean over tokens.

        Raises:
            ValueError: If there are more frames or other mel bins than the model takes.
        """
        check_input_features(input_features, self.config.num_mel_bins, self.config.num_frames)
        blocks = [module for module in self.stages.modules() if isinstance(module, MSClapHtsatBlock)]
        hidden_states = require_gradient(self.embed_patches(input_features), blocks)
        for stage in self.stages:
            hidden_states = stage(hidden_states, **kwargs)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(dim=1))

    def frame_logits(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Class scores over time from the token-semantic head (HTSAT, Section 2.2).

        Args:
            last_hidden_state: Tokens `[batch, tokens, hidden]` from `forward`.

        Returns:
            Logits `[batch, steps, classes]`; the steps divide the clip evenly (32 in the released model).

        Raises:
            ValueError: If the checkpoint has no such head.
        """
        if self.frame_head is None:
            raise ValueError(
                "This checkpoint has no token-semantic head (audio_config.num_labels_frame_map is 0); "
                "the released 2023 checkpoints, converted, have one."
            )
        image = self.token_map(last_hidden_state)
        return self.frame_head(image).squeeze(2).transpose(1, 2)

    def frame_map(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Class probabilities over time; arguments and shape as of `frame_logits`."""
        return torch.sigmoid(self.frame_logits(last_hidden_state))

    def token_map(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Tokens as an image of frequency and time, the time chunks one after another again.

        Args:
            last_hidden_state: Tokens `[batch, tokens, hidden]` from `forward`.

        Returns:
            `[batch, hidden, bins, steps]`.
        """
        batch, _, channels = last_hidden_state.shape
        rows, columns = self.last_resolution
        chunks = self.config.num_time_chunks
        image = last_hidden_state.transpose(1, 2).view(batch, channels, chunks, rows // chunks, columns)
        return image.transpose(2, 3).reshape(batch, channels, rows // chunks, chunks * columns)

    def pool_positions(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Mean over the tokens of every step: its pooled output alone.

        Args:
            last_hidden_state: Tokens `[batch, tokens, hidden]` from `forward`.

        Returns:
            `[batch, steps, hidden]`.
        """
        return self.token_map(last_hidden_state).mean(dim=2).transpose(1, 2)

    def frames_per_position(self, frames: int) -> float:
        """Frames of the input, which has `frames`, that a step stands for; the steps divide it evenly."""
        return frames / (self.config.num_time_chunks * self.last_resolution[1])


__all__ = ["MSClapHtsatModel"]
