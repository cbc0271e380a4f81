# Copyright 2026 The clap_hf authors. MIT License.
"""HTSAT, the hierarchical token-semantic audio transformer (Chen et al., ICASSP 2022), CLAP 2023's audio tower.

A log-mel spectrogram is stretched to a fixed number of frames, cut into time chunks that are stacked along frequency,
and the resulting image goes through four stages of Swin window attention. The pooled output is the mean over the
tokens of the last stage.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_msclap import MSClapAudioConfig
from .onednn import MSClapFusedLinear, add_linear, packed_weights


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


class MSClapBatchNorm(nn.BatchNorm2d):
    """Normalises every mel bin of a log-mel `[batch, 1, frames, mel]`, and augments it in training.

    Attributes:
        statistics: Mean and variance of every mel bin, `[mel]` each, to normalise by in training instead of the
            batch's own: where a batch is seen in chunks, those of the whole batch.
    """

    def __init__(self, config: MSClapAudioConfig):
        super().__init__(config.num_mel_bins)
        self.config = config
        self.statistics: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        # Decibel values need float32: bfloat16 resolves 0.5 dB at -100 dB.
        features = input_features.to(self.weight.dtype).transpose(1, 3)
        if self.training and self.statistics is not None:
            normed = F.batch_norm(features, *self.statistics, self.weight, self.bias, eps=self.eps).transpose(1, 3)
        else:
            normed = super().forward(features).transpose(1, 3)
        if self.training and self.config.spec_augment:
            config = self.config
            normed = mask_stripes(normed, 2, config.spec_augment_time_width, config.spec_augment_time_stripes)
            normed = mask_stripes(normed, 3, config.spec_augment_freq_width, config.spec_augment_freq_stripes)
        return normed


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


def take(states: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Rows or columns of `[rows, columns]` (`dim` 0 or 1) by their numbers, in the order given."""
    if torch.is_grad_enabled():  # the gradient of index_select goes row by row
        return states[index] if dim == 0 else states[:, index]
    return states.index_select(dim, index)  # twice as fast


def drop_path(states: torch.Tensor, drop_prob: float, training: bool) -> torch.Tensor:
    """Stochastic depth: drop all that a residual path adds, for some clips of the batch, scaling up the others."""
    if drop_prob == 0.0 or not training:
        return states
    keep_prob = 1.0 - drop_prob
    shape = (states.shape[0],) + (1,) * (states.ndim - 1)
    return states * (torch.rand(shape, device=states.device) < keep_prob).to(states.dtype) / keep_prob


class MSClapHtsatResidual(nn.Module):
    """The end of a residual path: its last linear layer, dropout, stochastic depth, and the sum."""

    def __init__(self, config: MSClapAudioConfig, drop_path_rate: float):
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path_rate = drop_path_rate

    def forward(self, residual: torch.Tensor, layer: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        """`residual`, `[batch, tokens, channels]`, and what the layer makes of `[batch, tokens, in]`, added up."""
        if self.training or self.dropout.training:
            return residual + drop_path(self.dropout(layer(hidden_states)), self.drop_path_rate, self.training)
        return add_linear(residual, layer, hidden_states)


class MSClapHtsatAttention(nn.Module):
    """Multi-head self-attention within (shifted) windows of an image, with a learned relative position bias.

    On a residual path.
    """

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
        self.config = config
        self.resolution = resolution
        self.num_heads = num_heads
        self.window = window = min(config.window_size, *resolution)
        # A single window has nothing to shift.
        self.shift = config.window_size // 2 if shifted and min(resolution) > config.window_size else 0
        self.head_dim = channels // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.relative_position_index: torch.Tensor
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", self.make_relative_position_index(), persistent=False)
        self.qkv = MSClapFusedLinear(channels, 3 * channels, bias=config.qkv_bias)
        self.proj = MSClapFusedLinear(channels, channels)
        self.residual = MSClapHtsatResidual(config, drop_path_rate)
        inner = (resolution[0] // window - 1, resolution[1] // window - 1)
        # Inner windows, those of the last column, of the last row, and the corner; or one kind only.
        self.windows_per_mask = [math.prod(inner), *inner, 1] if self.shift else [math.prod(resolution) // window**2]
        self.window_tokens: torch.Tensor
        self.token_places: torch.Tensor
        self.shift_masks: torch.Tensor | None
        windows, places, masks = self.make_windows()
        self.register_buffer("window_tokens", windows, persistent=False)
        self.register_buffer("token_places", places, persistent=False)
        self.register_buffer("shift_masks", masks, persistent=False)

    def make_relative_position_index(self) -> torch.Tensor:
        """Row of the bias table for every pair of positions in a window, `[window ** 2, window ** 2]`."""
        rows = torch.arange(self.window).repeat_interleave(self.window)
        columns = torch.arange(self.window).repeat(self.window)
        row_offset = rows[:, None] - rows[None, :] + self.window - 1
        column_offset = columns[:, None] - columns[None, :] + self.window - 1
        return row_offset * (2 * self.window - 1) + column_offset

    def make_windows(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Cut the image into windows, after a cyclic shift in every other block.

        The shift makes neighbours of what lies at opposite edges. Windows at the last row and the last column hide
        these from each other; there are four kinds of windows, and those of a kind stand together.

        Returns:
            The token at every place of every window `[windows, window ** 2]`; its inverse, the first place of every
            token's window and the token's place in it, `[2, tokens]`; and a mask for each kind of windows, 0 within a
            region and -100 across, `[kinds, window ** 2, window ** 2]`, or None if nothing is shifted.
        """
        (rows, columns), side = self.resolution, self.window
        image = torch.arange(rows * columns).view(rows, columns).roll((-self.shift, -self.shift), (0, 1))
        windows = image.view(rows // side, side, columns // side, side).transpose(1, 2).reshape(-1, side**2)
        if not self.shift:
            return windows, self.places_of(windows), None
        kind = torch.zeros(rows // side, columns // side, dtype=torch.long)
        kind[:, -1] += 1
        kind[-1] += 2
        windows = windows[kind.flatten().argsort(stable=True)]
        whole, split = torch.zeros(side, dtype=torch.long), (torch.arange(side) >= side - self.shift).long()
        masks = []
        for row_region, column_region in ((whole, whole), (whole, split), (split, whole), (split, split)):
            region = (2 * row_region[:, None] + column_region).flatten()
            masks.append(torch.where(region[:, None] == region, 0.0, -100.0))
        return windows, self.places_of(windows), torch.stack(masks)

    @staticmethod
    def places_of(windows: torch.Tensor) -> torch.Tensor:
        """Where `[windows, area]` hold every token: its window's first place, and the place in it, `[2, tokens]`."""
        places = windows.flatten().argsort()
        within = places % windows.shape[1]
        return torch.stack([places - within, within])

    @property
    def shift_mask(self) -> torch.Tensor | None:
        """Mask of every window, row by row, as released files hold it, `[windows, window ** 2, window ** 2]`."""
        if self.shift_masks is None:
            return None
        kinds = torch.arange(4).repeat_interleave(torch.tensor(self.windows_per_mask))
        return self.shift_masks[kinds[self.window_tokens[:, 0].argsort()]]

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within windows.

        Args:
            hidden_states: `[batch, image tokens, channels]`.
            residual: What the attended states are added to, alike.

        Returns:
            The sum `[batch, image tokens, channels]` and, of eager attention only, weights
            `[batch * windows, heads, tokens, tokens]`, windows in the order of the image.
        """
        batch, image_tokens, channels = hidden_states.shape
        windows, tokens = self.window_tokens.shape
        # Shift and cut are one permutation of all tokens, and so one copy; so is the way back. Windows of all clips
        # that have a mask in common follow each other.
        clips = torch.arange(batch, device=hidden_states.device)
        gather = (self.window_tokens[:, None] + image_tokens * clips[:, None]).flatten()  # [windows, batch, tokens]
        first, place = self.token_places
        back = (batch * first + tokens * clips[:, None] + place).flatten()  # [batch, image tokens]

        image = take(hidden_states.view(-1, channels), 0, gather)
        qkv = self.qkv(image).view(windows * batch, tokens, 3, self.num_heads, self.head_dim)
        states = qkv.permute(2, 0, 3, 1, 4)  # query, key and value, [batch * windows, heads, tokens, head_dim] each

        bias = take(self.relative_position_bias_table.t(), 1, self.relative_position_index.flatten())
        bias = bias.view(1, self.num_heads, tokens, tokens)
        if self.shift_masks is not None:
            bias = bias + self.shift_masks[:, None].to(bias.dtype)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended = [
            attention(
                self,
                *part,
                mask[None],
                scaling=self.scaling,
                dropout=self.dropout if self.training else 0.0,
                **kwargs,
            )
            for part, mask in zip(
                states.split([count * batch for count in self.windows_per_mask], 1), bias, strict=True
            )
        ]
        context = torch.cat([part for part, _ in attended]) if len(attended) > 1 else attended[0][0]
        context = take(context.reshape(-1, channels), 0, back).view(batch, image_tokens, channels)
        weights = None
        if attended[0][1] is not None:
            weights = torch.cat([part for _, part in attended]).unflatten(0, (-1, batch))
            weights = weights[self.window_tokens[:, 0].argsort()].transpose(0, 1).flatten(0, 1)
        return self.residual(residual, self.proj, context), weights


class MSClapHtsatMLP(nn.Module):
    """Two linear layers with an activation between them, on a residual path."""

    def __init__(self, config: MSClapAudioConfig, channels: int, drop_path_rate: float):
        super().__init__()
        hidden = int(channels * config.mlp_ratio)
        self.fc1 = MSClapFusedLinear(channels, hidden, activation=config.hidden_act)
        self.fc2 = MSClapFusedLinear(hidden, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.residual = MSClapHtsatResidual(config, drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.residual(residual, self.fc2, self.dropout(self.fc1(hidden_states)))


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
        self.attn = MSClapHtsatAttention(config, channels, resolution, num_heads, shifted, drop_path_rate)
        self.norm2 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = MSClapHtsatMLP(config, channels, drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states, _ = self.attn(self.norm1(hidden_states), hidden_states, **kwargs)
        return self.mlp(self.norm2(hidden_states), hidden_states)


class MSClapHtsatPatchMerging(nn.Module):
    """Halves both sides of the token image and doubles its channels."""

    def __init__(self, config: MSClapAudioConfig, channels: int, resolution: tuple[int, int]):
        super().__init__()
        self.resolution = resolution
        self.norm = nn.LayerNorm(4 * channels, eps=config.layer_norm_eps)
        self.reduction = MSClapFusedLinear(4 * channels, 2 * channels, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch, _, channels = hidden_states.shape
        rows, columns = self.resolution
        image = hidden_states.view(batch, rows // 2, 2, columns // 2, 2, channels)
        # Order of the four neighbours: (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
        image = image.permute(0, 1, 3, 4, 2, 5).reshape(batch, rows * columns // 4, 4 * channels)
        return self.reduction(self.norm(image))


class MSClapHtsatStage(nn.Module):
    """A run of Swin blocks at one resolution, then patch merging except after the last stage."""

    def __init__(self, config: MSClapAudioConfig, stage: int, resolution: tuple[int, int], drop_paths: list[float]):
        super().__init__()
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


def in_parts(
    function: Callable[..., torch.Tensor],
    stage: nn.Module,
    batch: torch.Tensor,
    at_once: int | None,
    tokens: int,
    **kwargs: Unpack[TransformersKwargs],
) -> torch.Tensor:
    """Apply a stage, or what ends with it, to a batch, `at_once` clips of `tokens` at a time; None is all."""
    if at_once is None or len(batch) <= at_once:  # first: an exported graph's batch has no length
        return function(batch, **kwargs)
    with packed_weights(stage, at_once * tokens, torch.float32):
        return torch.cat([function(part, **kwargs) for part in batch.split(at_once)])


class MSClapHtsatModel(PreTrainedModel):
    """HTSAT: log-mel spectrogram to one vector, with token and frame-level outputs.

    Reference: `msclap.models.htsat`, as released with CLAP 2023.
    """

    config: MSClapAudioConfig
    base_model_prefix = "audio_model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MSClapHtsatBlock"]
    _keep_in_fp32_modules_strict = ["batch_norm"]
    _supports_sdpa = True
    _supports_attention_backend = True
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
            init.copy_(module.relative_position_index, module.make_relative_position_index())
            windows, places, masks = module.make_windows()
            init.copy_(module.window_tokens, windows)
            init.copy_(module.token_places, places)
            if masks is not None:
                init.copy_(module.shift_masks, masks)

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

    def first_stage(self, input_features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Log-mel spectrograms, normalised and cut into patches, through the first stage."""
        image = self.fold(self.batch_norm(input_features))
        patches = self.patch_embed(image.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        return self.stages[0](self.dropout(self.patch_norm(patches)), **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every stage by itself: they take different numbers of windows. Arguments of `nn.Module.compile`."""
        for stage in self.stages:
            stage.compile(*args, **kwargs)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        windows_at_once: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Encode log-mel spectrograms.

        Args:
            input_features: Log-mel `[batch, 1, frames, mel]`, dB, from `MSClapFeatureExtractor`.
            windows_at_once: How many of the batch the first stage takes at a time. Every further stage takes twice as
                many, so that all work on as many values, and the weights, most of which are in the last stages, are
                read for many windows. None is all.

        Returns:
            `last_hidden_state` `[batch, tokens, hidden]` and `pooler_output` `[batch, hidden]`, the mean over tokens.

        Raises:
            ValueError: If there are more frames or other mel bins than the model takes.
        """
        frames, mel = input_features.shape[-2:]
        if frames > self.config.num_frames or mel != self.config.num_mel_bins:
            raise ValueError(
                f"input_features are [batch, 1, {frames}, {mel}], this model takes up to {self.config.num_frames} "
                f"frames of {self.config.num_mel_bins} mel bins. Use the feature extractor saved with the model."
            )
        at_once = windows_at_once
        tokens = math.prod(self.last_resolution) << 2 * (len(self.stages) - 1)
        hidden_states = in_parts(self.first_stage, self.stages[0], input_features, at_once, tokens, **kwargs)
        for stage in self.stages[1:]:
            at_once, tokens = at_once and 2 * at_once, tokens // 4
            hidden_states = in_parts(stage, stage, hidden_states, at_once, tokens, **kwargs)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(dim=1))

    def frame_map(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Class probabilities over time from the token-semantic head (HTSAT, Section 2.2).

        Args:
            last_hidden_state: Tokens `[batch, tokens, hidden]` from `forward`.

        Returns:
            Probabilities `[batch, steps, classes]`; the steps divide the clip evenly (32 in the released model).

        Raises:
            ValueError: If the checkpoint has no such head.
        """
        if self.frame_head is None:
            raise ValueError(
                "This checkpoint has no token-semantic head (audio_config.num_labels_frame_map is 0); "
                "the released 2023 checkpoints, converted, have one."
            )
        batch, _, channels = last_hidden_state.shape
        rows, columns = self.last_resolution
        chunks = self.config.num_time_chunks
        image = last_hidden_state.transpose(1, 2).view(batch, channels, chunks, rows // chunks, columns)
        image = image.transpose(2, 3).reshape(batch, channels, rows // chunks, chunks * columns)
        return torch.sigmoid(self.frame_head(image).squeeze(2)).transpose(1, 2)


__all__ = ["MSClapHtsatModel"]
