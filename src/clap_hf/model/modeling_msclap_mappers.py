# Copyright 2026 The clap_hf authors. MIT License.
"""Mappers: from CLAP's audio embedding, or a prompt's words, to vectors that a language model continues."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_msclap import MSClapCaptioningConfig
from .modeling_msclap_base import require_gradient
from .modeling_msclap_htsat import eager_attention_forward


class MSClapMapperAttention(nn.Module):
    """Multi-head self-attention of a mapper; queries, keys and values without bias, as released."""

    def __init__(self, config: MSClapCaptioningConfig, size: int):
        super().__init__()
        self.config = config
        self.num_heads = config.mapper_num_heads
        self.head_dim = size // config.mapper_num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.to_queries = nn.Linear(size, size, bias=False)
        self.to_keys_values = nn.Linear(size, 2 * size, bias=False)
        self.project = nn.Linear(size, size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        batch, tokens, size = hidden_states.shape
        heads = (self.num_heads, self.head_dim)
        query = self.to_queries(hidden_states).view(batch, tokens, *heads).transpose(1, 2)
        key, value = self.to_keys_values(hidden_states).view(batch, tokens, 2, *heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, _ = attention(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.project(context.reshape(batch, tokens, size))


class MSClapMapperMLP(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.relu(self.fc1(hidden_states)))


class MSClapMapperLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer."""

    def __init__(self, config: MSClapCaptioningConfig, size: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(size)
        self.attn = MSClapMapperAttention(config, size)
        self.norm2 = nn.LayerNorm(size)
        self.mlp = MSClapMapperMLP(size, int(size * config.mapper_mlp_ratio))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), attention_mask, **kwargs)
        return hidden_states + self.mlp(self.norm2(hidden_states))


class MSClapTransformerMapper(nn.Module):
    """Maps vectors to a prefix of fixed length, through learned constants that attend to them.

    Args:
        config: Sizes of the mapper.
        input_size: Size of the vectors that are mapped.
        input_length: Vectors made of each of them: `mapper_input_length` of an audio embedding, 1 of a prompt's token.

    Source: `msclap.models.mapper.TransformerMapper`; Pengi's `TransformerMapperSeq` for prompts.
    """

    def __init__(self, config: MSClapCaptioningConfig, input_size: int, input_length: int):
        super().__init__()
        self.size = config.text_config.hidden_size
        self.linear = nn.Linear(input_size, input_length * self.size)
        self.prefix_const = nn.Parameter(torch.zeros(config.prefix_length, self.size))
        self.layers = nn.ModuleList(MSClapMapperLayer(config, self.size) for _ in range(config.mapper_num_layers))

    def forward(
        self,
        vectors: torch.Tensor,
        mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Map vectors to a prefix.

        Args:
            vectors: `[batch, vectors, input_size]`.
            mask: 1 for vectors, 0 for padding, `[batch, vectors]`.

        Returns:
            `[batch, prefix_length, size]`.
        """
        batch = vectors.shape[0]
        constants = self.prefix_const.expand(batch, -1, -1)
        hidden_states = torch.cat([self.linear(vectors).view(batch, -1, self.size), constants], dim=1)
        bias = None
        if mask is not None:
            # Added to the scores of every head and query; the constants are always there.
            allowed = torch.cat([mask, mask.new_ones(batch, constants.shape[1])], dim=1).bool()
            bias = torch.zeros_like(allowed, dtype=hidden_states.dtype)
            bias = bias.masked_fill(~allowed, torch.finfo(hidden_states.dtype).min)[:, None, None]
            bias = bias.expand(-1, -1, hidden_states.shape[1], -1)
        hidden_states = require_gradient(hidden_states, self.layers)
        for layer in self.layers:
            hidden_states = layer(hidden_states, bias, **kwargs)
        return hidden_states[:, -constants.shape[1] :]


class MSClapMlpMapper(nn.Module):
    """Maps an audio embedding to a prefix by two linear layers (`msclap.models.mapper.MLP`)."""

    def __init__(self, config: MSClapCaptioningConfig):
        super().__init__()
        self.size = config.text_config.hidden_size
        total = self.size * config.prefix_length
        self.fc1 = nn.Linear(config.projection_dim, total // 2)
        self.fc2 = nn.Linear(total // 2, total)

    def forward(self, vectors: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Map `[batch, 1, projection_dim]` to `[batch, prefix_length, size]`."""
        return self.fc2(torch.tanh(self.fc1(vectors))).view(vectors.shape[0], -1, self.size)


def build_mapper(config: MSClapCaptioningConfig) -> MSClapTransformerMapper | MSClapMlpMapper:
    """The mapper of audio embeddings, as `config.mapper_type` says."""
    if config.mapper_type == "mlp":
        return MSClapMlpMapper(config)
    return MSClapTransformerMapper(config, config.projection_dim, config.mapper_input_length)


__all__ = ["MSClapMlpMapper", "MSClapTransformerMapper", "build_mapper"]
