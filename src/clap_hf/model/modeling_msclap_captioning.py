# Copyright 2026 The clap_hf authors. MIT License.
"""The generative half: CLAP's audio embedding, mapped to vectors that a causal language model continues with text.

`MSClapForAudioCaptioning` is the captioning of the paper (Fig. 1, Section 2.3): only the mapper learns.
`MSClapForConditionalGeneration` is what its audio tower was pretrained with (Section 2.2, Eq. 5): audio and a prompt.
"""

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_msclap import MSClapCaptioningConfig, MSClapConditionalGenerationConfig
from .modeling_msclap import (
    MSClapModel,
    MSClapPreTrainedModel,
    MSClapProjection,
    build_audio_tower,
    embed_audio,
)
from .modeling_msclap_htsat import eager_attention_forward

if TYPE_CHECKING:  # never run: `save_pretrained` copies what it sees imported, so captioners carry their pipeline
    from .pipeline_msclap import MSClapCaptioningPipeline  # noqa: F401

# Longest caption and beams of the released code (`CLAPWrapper.generate_caption`).
MAX_NEW_TOKENS = 67
NUM_BEAMS = 5


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


@torch.no_grad()
def average_beam_search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateBeamDecoderOnlyOutput:
    """Beam search as the released captioner does it, batched and with a key-value cache.

    Beams compete by the average log-probability of their tokens. A finished caption stays in the beam at its average,
    where longer ones must beat it; transformers' own search compares sums among running beams only and keeps finished
    captions aside, so that both can find different captions.

    To be passed to `generate` as `custom_generate`, which calls it with everything prepared.

    Args:
        model: Causal language model.
        input_ids: Tokens before the caption, none here, `[batch * beams, 0]`.
        logits_processor: Processors of log-probabilities.
        stopping_criteria: Not looked at: end tokens and the greatest length end the search.
        generation_config: Beams, lengths, end and padding tokens.
        model_kwargs: What else `generate` prepared, of which only `inputs_embeds` is needed: the prefixes, without
            padding, each repeated for its beams, `[batch * beams, prefix, size]`.

    Returns:
        Token ids `[batch * num_return_sequences, tokens]`, best first, padded after the end token; with
        `return_dict_in_generate` also `sequences_scores`, the averages.

    Source: `msclap.CLAPWrapper._generate_beam`.
    """
    beams, keep = generation_config.num_beams, generation_config.num_return_sequences
    prefixes = model_kwargs["inputs_embeds"][::beams]  # the first step is the same for all beams
    batch, device = prefixes.shape[0], prefixes.device
    steps = generation_config.max_length - input_ids.shape[1]
    ends = torch.as_tensor(generation_config.eos_token_id, device=device).flatten()
    padding = ends[0].item() if generation_config.pad_token_id is None else generation_config.pad_token_id
    outputs = model(inputs_embeds=prefixes, use_cache=True, logits_to_keep=1)
    cache = outputs.cache
    cache.batch_repeat_interleave(beams)
    tokens = torch.empty(batch, beams, 0, dtype=torch.long, device=device)
    scores = torch.zeros(batch, beams, device=device)  # sums of log-probabilities
    lengths = torch.zeros(batch, beams, device=device)
    stopped = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    for step in range(steps):
        log_probs = outputs.logits[:, -1].float().log_softmax(dim=-1)
        if step == 0:
            log_probs = logits_processor(tokens[:, 0], log_probs)[:, None]  # [batch, 1, vocabulary]
            totals, new_lengths = log_probs, lengths[:, :1] + 1
        else:
            log_probs = logits_processor(tokens.flatten(0, 1), log_probs).view(batch, beams, -1)
            # A stopped beam goes on at no cost, and in one way only.
            log_probs = log_probs.masked_fill(stopped[..., None], -math.inf)
            log_probs[..., padding] = torch.where(stopped, 0.0, log_probs[..., padding])
            totals, new_lengths = scores[..., None] + log_probs, lengths + (~stopped).float()
        averages, chosen = (totals / new_lengths[..., None]).flatten(1).topk(beams, dim=-1)
        source, next_tokens = chosen // totals.shape[-1], chosen % totals.shape[-1]
        lengths = new_lengths.gather(1, source)
        scores = averages * lengths
        stopped = stopped.gather(1, source) | torch.isin(next_tokens, ends)
        tokens = torch.cat([tokens.gather(1, source[..., None].expand_as(tokens)), next_tokens[..., None]], dim=-1)
        if stopped.all() or step == steps - 1:
            break
        rows = (torch.arange(batch, device=device)[:, None] * beams + source).flatten()
        cache.reorder_cache(rows)
        outputs = model(input_ids=next_tokens.reshape(-1, 1), cache=cache, use_cache=True)
    averages, order = (scores / lengths).sort(dim=-1, descending=True)
    best = tokens.gather(1, order[:, :keep, None].expand(-1, -1, tokens.shape[-1])).flatten(0, 1)
    if not generation_config.return_dict_in_generate:
        return best
    return GenerateBeamDecoderOnlyOutput(sequences=best, sequences_scores=averages[:, :keep].flatten())


class MSClapGenerativeModel(MSClapPreTrainedModel, GenerationMixin):
    """Audio tower, projection and language model, and how a prefix is continued; the mappers are the subclasses'."""

    config: MSClapCaptioningConfig
    main_input_name = "input_features"
    _no_split_modules = ["MSClapHtsatBlock", "MSClapCnn14Block", "MSClapProjection", "MSClapMapperLayer"]

    def __init__(self, config: MSClapCaptioningConfig):
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        self.audio_model = build_audio_tower(config.audio_config)
        self.audio_projection = MSClapProjection(config.audio_config.hidden_size, config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.generation_config = GenerationConfig(
            num_beams=NUM_BEAMS,
            max_new_tokens=MAX_NEW_TOKENS,
            bos_token_id=config.text_config.bos_token_id,
            eos_token_id=config.text_config.eos_token_id,
            pad_token_id=config.text_config.eos_token_id,
        )

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, see `PreTrainedModel.from_pretrained`; what the configuration freezes is frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info=True
        model.freeze()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MSClapTransformerMapper):
            init.normal_(module.prefix_const)  # as released

    def freeze(self) -> None:
        """Take what the configuration freezes out of training; loading does this too."""
        for parts, frozen in (
            ((self.audio_model, self.audio_projection), self.config.freeze_audio),
            ((self.language_model,), self.config.freeze_language_model),
        ):
            for part in parts:
                part.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "MSClapGenerativeModel":
        """Set the mode of what trains; parts without trainable weights stay in evaluation mode.

        Otherwise batch norms of a frozen tower would go on moving, and its dropout would blur what the mapper sees.
        """
        super().train(mode)
        for part in (self.audio_model, self.audio_projection, self.language_model):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def get_audio_features(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Embed audio as CLAP does.

        Args:
            input_features: Log-mel windows `[windows, 1, frames, mel]` from `MSClapFeatureExtractor`.
            num_windows: Windows of each clip `[clips]`; None means one window per clip.

        Returns:
            Unit vectors `[clips, projection_dim]`.
        """
        outputs = embed_audio(self.audio_model, self.audio_projection, input_features, num_windows, **kwargs)
        return outputs.pooler_output

    def continue_prefix(
        self,
        prefix: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss, of texts after their prefixes (Eq. 5).

        Args:
            prefix: `[clips, prefix, size]`.
            input_ids: Tokens `[clips, tokens]`.
            attention_mask: 1 for tokens, 0 for padding, `[clips, tokens]`.
            labels: Tokens to predict, -100 where none is, `[clips, tokens]`.

        Returns:
            Output with logits `[clips, tokens + 1, vocabulary]`: `logits[:, i]` predicts token i, of which the first
            comes from the prefix alone.
        """
        clips, length = prefix.shape[:2]
        inputs_embeds, mask, tokens = prefix, None, 0
        if input_ids is not None:
            tokens = input_ids.shape[1]
            inputs_embeds = torch.cat([prefix, self.get_input_embeddings()(input_ids)], dim=1)
            if attention_mask is not None:
                mask = torch.cat([attention_mask.new_ones(clips, length), attention_mask], dim=1)
        # The prefix' own positions predict nothing: their logits, most of the work in a short caption, are left out.
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=mask, use_cache=False, logits_to_keep=tokens + 1, **kwargs
        )
        loss = None
        if labels is not None:
            loss = self.loss_function(
                outputs.logits[:, :-1].contiguous(),
                labels=None,
                vocab_size=outputs.logits.shape[-1],
                shift_labels=labels.contiguous(),
                **kwargs,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=outputs.logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate_from(
        self, prefix: torch.Tensor, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> torch.Tensor | Any:
        """Let the language model continue prefixes, by all that transformers' `generate` offers."""
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        kwargs = config.update(**kwargs)
        if self.config.beam_scores == "average" and (config.num_beams or 1) > 1 and not config.do_sample:
            kwargs.setdefault("custom_generate", average_beam_search)
        mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
        return self.language_model.generate(
            inputs_embeds=prefix, attention_mask=mask, generation_config=config, **kwargs
        )


class MSClapForAudioCaptioning(MSClapGenerativeModel):
    """Describes sounds: CLAP's audio tower, a mapper, and a language model; only the mapper trains.

    Source: paper Fig. 1 and Section 2.3; `msclap.models.mapper.ClapCaptionModel`.
    """

    input_modalities = ("audio",)

    def __init__(self, config: MSClapCaptioningConfig):
        super().__init__(config)
        self.mapper = build_mapper(config)
        self.post_init()
        self.freeze()

    @classmethod
    def from_clap(
        cls, clap: MSClapModel, language_model: PreTrainedModel, **settings: Any
    ) -> "MSClapForAudioCaptioning":
        """Put a captioner together from a CLAP model and a causal language model, with a new mapper.

        Args:
            clap: Gives the audio tower and its projection.
            language_model: Any causal language model of transformers.
            settings: Further settings of `MSClapCaptioningConfig`.

        Returns:
            The captioner, with copies of their weights.
        """
        config = MSClapCaptioningConfig(
            text_config=language_model.config.to_dict(),
            audio_config=clap.config.audio_config.to_dict(),
            projection_dim=clap.config.projection_dim,
            projection_dropout=clap.config.projection_dropout,
            **settings,
        )
        captioner = cls(config)
        captioner.audio_model.load_state_dict(clap.audio_model.state_dict())
        captioner.audio_projection.load_state_dict(clap.audio_projection.state_dict())
        captioner.language_model.load_state_dict(language_model.state_dict())
        return captioner

    def get_prefix(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """What stands before a clip's caption.

        Args:
            input_features: Log-mel windows `[windows, 1, frames, mel]` from `MSClapFeatureExtractor`.
            num_windows: Windows of each clip `[clips]`; None means one window per clip.

        Returns:
            `[clips, prefix_length, size]`.
        """
        embeds = self.get_audio_features(input_features, num_windows, **kwargs)
        return self.mapper(embeds[:, None].to(next(self.mapper.parameters()).dtype), **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CausalLMOutputWithPast:
        """Predict captions token by token.

        Args:
            input_features: Log-mel windows `[windows, 1, frames, mel]`.
            num_windows: Windows of each clip `[clips]`; None means one window per clip.
            input_ids: Captions `[clips, tokens]`, with their end token; None predicts the first token only.
            attention_mask: 1 for tokens, 0 for padding, `[clips, tokens]`.
            labels: `input_ids` with -100 on padding, `[clips, tokens]`; nothing is learned from the prefix.

        Returns:
            `CausalLMOutputWithPast` with `loss` if labels are given, the mean cross-entropy over their tokens (Eq. 5),
            and `logits` `[clips, tokens + 1, vocabulary]`: `logits[:, i]` predicts token i.
        """
        prefix = self.get_prefix(input_features, num_windows)
        return self.continue_prefix(prefix, input_ids, attention_mask, labels, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | Any:
        """Write captions.

        Args:
            input_features: Log-mel windows `[windows, 1, frames, mel]`.
            num_windows: Windows of each clip `[clips]`; None means one window per clip.
            generation_config: Settings of generation; the model's own when None.
            kwargs: Further arguments of transformers' `generate`: `num_beams`, `max_new_tokens`, `do_sample`...

        Returns:
            Token ids of the captions alone, `[clips * num_return_sequences, tokens]`, or what
            `return_dict_in_generate` asks for.
        """
        return self.generate_from(self.get_prefix(input_features, num_windows), generation_config, **kwargs)


class MSClapForConditionalGeneration(MSClapGenerativeModel):
    """Answers a task prompt about a sound: the multi-task pretraining that made HTSAT-22.

    Audio and prompt are mapped to k vectors each, which stand before the answer (paper Section 2.2, Eq. 5, after
    Pengi). By default the audio tower and the mappers train and the language model does not. The prompt is read
    through the language model's own word embeddings, as in Pengi's variant without a second text encoder.
    """

    config: MSClapConditionalGenerationConfig

    def __init__(self, config: MSClapConditionalGenerationConfig):
        super().__init__(config)
        size = config.text_config.hidden_size
        self.mapper = build_mapper(config)
        self.prompt_mapper = MSClapTransformerMapper(config, size, 1)
        self.post_init()
        self.freeze()

    def get_prefix(
        self,
        input_features: torch.Tensor,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor | None = None,
        num_windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """The 2k vectors before an answer: the audio's, then the prompt's.

        Args:
            input_features: Log-mel windows `[windows, 1, frames, mel]`.
            prompt_ids: Prompts `[clips, tokens]`.
            prompt_mask: 1 for tokens, 0 for padding, `[clips, tokens]`.
            num_windows: Windows of each clip `[clips]`; None means one window per clip.

        Returns:
            `[clips, 2 * prefix_length, size]`.
        """
        embeds = self.get_audio_features(input_features, num_windows, **kwargs)
        words = self.get_input_embeddings()(prompt_ids)
        dtype = next(self.mapper.parameters()).dtype
        audio_prefix = self.mapper(embeds[:, None].to(dtype), **kwargs)
        return torch.cat([audio_prefix, self.prompt_mapper(words.to(dtype), prompt_mask, **kwargs)], dim=1)

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor | None = None,
        num_windows: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CausalLMOutputWithPast:
        """Predict answers token by token; arguments as of `get_prefix` and of `MSClapForAudioCaptioning.forward`."""
        prefix = self.get_prefix(input_features, prompt_ids, prompt_mask, num_windows)
        return self.continue_prefix(prefix, input_ids, attention_mask, labels, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor | None = None,
        num_windows: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | Any:
        """Write answers; arguments as of `get_prefix` and of `MSClapForAudioCaptioning.generate`."""
        prefix = self.get_prefix(input_features, prompt_ids, prompt_mask, num_windows)
        return self.generate_from(prefix, generation_config, **kwargs)


__all__ = ["MSClapForAudioCaptioning", "MSClapForConditionalGeneration", "MSClapGenerativeModel"]
