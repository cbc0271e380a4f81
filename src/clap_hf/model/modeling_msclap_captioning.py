# Copyright 2026 The clap_hf authors. MIT License.
"""The generative half: CLAP's audio embedding, mapped to vectors that a causal language model continues with text.

`MSClapForAudioCaptioning` is the captioning of the paper (Fig. 1, Section 2.3): only the mapper learns.
`MSClapForConditionalGeneration` is what its audio tower was pretrained with (Section 2.2, Eq. 5): audio and a prompt.
"""

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cache, GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from .configuration_msclap import MSClapCaptioningConfig, MSClapConditionalGenerationConfig
from .modeling_msclap import MSClapModel, MSClapProjection, build_audio_tower, embed_audio
from .modeling_msclap_base import MSClapPreTrainedModel, require_gradient
from .modeling_msclap_mappers import MSClapTransformerMapper, build_mapper

if TYPE_CHECKING:  # never run: `save_pretrained` copies what it sees imported, so captioners carry their pipeline
    from .pipeline_msclap import MSClapCaptioningPipeline  # noqa: F401

# Longest caption and beams of the released code (`CLAPWrapper.generate_caption`).
MAX_NEW_TOKENS = 67
NUM_BEAMS = 5


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
    base_model_prefix = "language_model"
    num_mappers = 1  # each makes `prefix_length` vectors
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

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Embed audio as CLAP does; arguments and result as of `MSClapModel.get_audio_features`."""
        return embed_audio(self.audio_model, self.audio_projection, input_features, num_windows, **kwargs)

    def continue_prefix(
        self,
        prefix: torch.Tensor | None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss, of texts after their prefixes (Eq. 5).

        Args:
            prefix: `[clips, prefix, size]`; None if the cache holds it.
            input_ids: Tokens `[clips, tokens]`.
            attention_mask: 1 for tokens, 0 for padding, `[clips, tokens]`, those in the cache included.
            labels: Tokens to predict, -100 where none is, `[clips, tokens]`.
            inputs_embeds: Word embeddings `[clips, tokens, size]` in place of `input_ids`.
            cache: Keys and values of what came before, from an earlier call with `use_cache`.
            use_cache: Whether to return the cache.
            logits_to_keep: Number of last positions to return logits of, 0 for all, the prefix' too; None for one
                more than there are tokens.
            shift_labels: Labels `[clips, labels]` of the last positions, in place of `labels`: what follows each.

        Returns:
            Output with logits `[clips, tokens + 1, vocabulary]`: `logits[:, i]` predicts token i, of which the first
            comes from the prefix alone. Without a prefix there is one less.

        Raises:
            ValueError: If there are both `input_ids` and `inputs_embeds`, or nothing to continue with.
        """
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("Got both input_ids and inputs_embeds, expected one of them.")
        if input_ids is not None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        parts = [part for part in (prefix, inputs_embeds) if part is not None]
        if not parts:
            raise ValueError("The cache holds the prefix already: pass input_ids or inputs_embeds to continue it.")
        tokens = 0 if inputs_embeds is None else inputs_embeds.shape[1]
        if tokens == 0:
            attention_mask = None
        elif attention_mask is not None:
            length = self.num_mappers * self.config.prefix_length
            attention_mask = torch.cat([attention_mask.new_ones(len(attention_mask), length), attention_mask], dim=1)
        layers = [module for module in self.language_model.modules() if isinstance(module, GradientCheckpointingLayer)]
        # The prefix' own positions predict nothing: their logits, most of the work in a short caption, are left out.
        predicted = tokens + (prefix is not None)
        keep = predicted if logits_to_keep is None else logits_to_keep
        targets = labels if shift_labels is None else shift_labels
        outputs = self.language_model(
            inputs_embeds=require_gradient(torch.cat(parts, dim=1), layers),
            attention_mask=attention_mask,
            cache=cache,
            use_cache=use_cache,
            logits_to_keep=keep and max(keep, 0 if targets is None else predicted),
            **kwargs,
        )
        loss = None
        if targets is not None:
            # The last position predicts no label; `labels[:, i]` is predicted by the position before token i.
            logits = outputs.logits[:, :-1] if shift_labels is None else outputs.logits
            loss = self.loss_function(
                logits[:, -targets.shape[1] :].contiguous(),
                labels=None,
                vocab_size=outputs.logits.shape[-1],
                shift_labels=targets.contiguous(),
                **kwargs,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=outputs.logits[:, -keep:],
            cache=outputs.cache,
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
            input_features: Log-mels `[clips, windows, 1, frames, mel]` from `MSClapFeatureExtractor`, or
                `[clips, 1, frames, mel]` of one window each.
            num_windows: Windows of each clip `[clips]`, the rest of its row being padding; None means that no row is
                padded.

        Returns:
            `[clips, prefix_length, size]`.
        """
        embeds = self.get_audio_features(input_features, num_windows, **kwargs).pooler_output
        return self.mapper(embeds[:, None].to(next(self.mapper.parameters()).dtype), **kwargs)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor | None = None,
        num_windows: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CausalLMOutputWithPast:
        """Predict captions token by token.

        Args:
            input_features: Log-mel windows `[windows, 1, frames, mel]`; None where a cache holds the prefix.
            num_windows: Windows of each clip `[clips]`, the rest of its row being padding; None means that no row is
                padded.
            input_ids: Captions `[clips, tokens]`, with their end token; None predicts the first token only.
            attention_mask: 1 for tokens, 0 for padding, `[clips, tokens]`.
            labels: `input_ids` with -100 on padding, `[clips, tokens]`; nothing is learned from the prefix.
            inputs_embeds: Word embeddings `[clips, tokens, size]` in place of `input_ids`.
            cache: Cache of an earlier call, which this one continues.
            use_cache: Whether to return the cache; None does not.
            logits_to_keep: Number of last positions to return logits of, 0 for all, the prefix' too.
            kwargs: Further ones of transformers' causal language models: `shift_labels`, `output_hidden_states`...

        Returns:
            `CausalLMOutputWithPast` with `loss` if labels are given, the mean cross-entropy over their tokens (Eq. 5),
            and `logits` `[clips, tokens + 1, vocabulary]`: `logits[:, i]` predicts token i.
        """
        prefix = None
        if cache is None or cache.get_seq_length() == 0:
            if input_features is None:
                raise ValueError("input_features are missing; only a cache that holds the prefix does without them.")
            prefix = self.get_prefix(input_features, num_windows)
        return self.continue_prefix(
            prefix,
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            inputs_embeds=inputs_embeds,
            cache=cache,
            use_cache=bool(use_cache),
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

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
            input_features: Log-mels `[clips, windows, 1, frames, mel]`.
            num_windows: Windows of each clip `[clips]`, the rest of its row being padding; None means that no row is
                padded.
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
    num_mappers = 2

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
            input_features: Log-mels `[clips, windows, 1, frames, mel]`.
            prompt_ids: Prompts `[clips, tokens]`.
            prompt_mask: 1 for tokens, 0 for padding, `[clips, tokens]`.
            num_windows: Windows of each clip `[clips]`, the rest of its row being padding; None means that no row is
                padded.

        Returns:
            `[clips, 2 * prefix_length, size]`.
        """
        embeds = self.get_audio_features(input_features, num_windows, **kwargs).pooler_output
        words = self.get_input_embeddings()(prompt_ids)
        dtype = next(self.mapper.parameters()).dtype
        audio_prefix = self.mapper(embeds[:, None].to(dtype), **kwargs)
        return torch.cat([audio_prefix, self.prompt_mapper(words.to(dtype), prompt_mask, **kwargs)], dim=1)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor | None = None,
        prompt_ids: torch.Tensor | None = None,
        prompt_mask: torch.Tensor | None = None,
        num_windows: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | CausalLMOutputWithPast:
        """Predict answers token by token; arguments as of `get_prefix` and of `MSClapForAudioCaptioning.forward`."""
        prefix = None
        if cache is None or cache.get_seq_length() == 0:
            if input_features is None or prompt_ids is None:
                raise ValueError(
                    "input_features or prompt_ids are missing; only a cache that holds the prefix does without them."
                )
            prefix = self.get_prefix(input_features, prompt_ids, prompt_mask, num_windows)
        return self.continue_prefix(
            prefix,
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            inputs_embeds=inputs_embeds,
            cache=cache,
            use_cache=bool(use_cache),
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

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
