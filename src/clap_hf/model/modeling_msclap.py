# Copyright 2026 The clap_hf authors. MIT License.
"""Microsoft CLAP: an audio and a text tower in one space (Elizalde et al., 2023)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, CLIPTextModelWithProjection
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_msclap import MSClapAudioConfig, MSClapConfig
from .modeling_msclap_cnn14 import MSClapCnn14Model
from .modeling_msclap_htsat import MSClapHtsatModel

AUDIO_TOWERS: dict[str, type[PreTrainedModel]] = {"htsat": MSClapHtsatModel, "cnn14": MSClapCnn14Model}


@dataclass
class MSClapOutput(ModelOutput):
    """Output of `MSClapModel`.

    Args:
        loss: Symmetric contrastive loss, scalar, when asked for.
        logits_per_audio: exp(logit_scale) x cosine similarity, `[clips, texts]`.
        logits_per_text: Its transpose, `[texts, clips]`.
        audio_embeds: Unit vectors `[clips, projection_dim]`.
        text_embeds: Unit vectors `[texts, projection_dim]`.
        audio_model_output: Output of the audio tower; one row per window.
        text_model_output: Output of the text tower.
    """

    loss: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def contrastive_loss(logits_per_text: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy over the similarity matrix (paper Eq. 4).

    Args:
        logits_per_text: Scaled similarities `[batch, batch]`, matching pairs on the diagonal.

    Returns:
        Scalar: the mean of the text-to-audio and the audio-to-text cross-entropy.
    """
    target = torch.arange(logits_per_text.shape[0], device=logits_per_text.device)
    logits = logits_per_text.float()
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))


def mean_over_windows(window_values: torch.Tensor, num_windows: torch.Tensor | None) -> torch.Tensor:
    """Average consecutive rows that belong to one clip.

    Args:
        window_values: `[windows, ...]`.
        num_windows: Windows of each clip `[clips]`, or None for one window per clip.

    Returns:
        `[clips, ...]`.
    """
    if num_windows is None or window_values.shape[0] == num_windows.shape[0]:
        return window_values
    clips = torch.arange(num_windows.shape[0], device=num_windows.device)
    clip_of_window = clips.repeat_interleave(num_windows)
    sums = window_values.new_zeros(num_windows.shape[0], *window_values.shape[1:])
    sums = sums.index_add(0, clip_of_window, window_values)
    return sums / num_windows.to(sums.dtype).view(-1, *[1] * (sums.ndim - 1))


class MSClapProjection(nn.Module):
    """Two-layer residual projection into the shared space (released code, `msclap.models.clap.Projection`)."""

    def __init__(self, in_features: int, config: PreTrainedConfig):
        super().__init__()
        self.linear1 = nn.Linear(in_features, config.projection_dim, bias=False)
        self.linear2 = nn.Linear(config.projection_dim, config.projection_dim, bias=False)
        self.layer_norm = nn.LayerNorm(config.projection_dim)
        self.dropout = nn.Dropout(config.projection_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        projected = self.linear1(hidden_states)
        return self.layer_norm(projected + self.dropout(self.linear2(F.gelu(projected))))


def embed_audio(
    audio_model: PreTrainedModel,
    audio_projection: MSClapProjection,
    input_features: torch.Tensor,
    num_windows: torch.Tensor | None,
    **kwargs: Unpack[TransformersKwargs],
) -> BaseModelOutputWithPooling:
    """Embed clips: every window's unit vector, averaged over a clip's windows and normalised again.

    Args:
        audio_model: The audio tower.
        audio_projection: Its projection.
        input_features: Log-mel windows `[windows, 1, frames, mel]`.
        num_windows: Windows of each clip `[clips]`; None means one window per clip.

    Returns:
        Output of the audio tower, with the unit vectors `[clips, projection_dim]` as `pooler_output`.
    """
    outputs = audio_model(input_features, return_dict=True, **kwargs)
    windows = F.normalize(audio_projection(outputs.pooler_output).float(), dim=-1)
    outputs.pooler_output = F.normalize(mean_over_windows(windows, num_windows), dim=-1)
    return outputs


class MSClapPreTrainedModel(PreTrainedModel):
    """Weight initialisation and capabilities shared by the CLAP models."""

    config: MSClapConfig
    base_model_prefix = "msclap"
    input_modalities: tuple[str, ...] = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MSClapHtsatBlock", "MSClapCnn14Block", "MSClapProjection"]
    _keep_in_fp32_modules_strict = ["batch_norm", "logit_scale"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # torch's default, as released: 0.02 would shrink the residual paths of projections and mappers.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, MSClapModel):
            init.constant_(module.logit_scale, math.log(module.config.logit_scale_init_value))


def build_audio_tower(config: MSClapAudioConfig) -> PreTrainedModel:
    """HTSAT or CNN14, as `config.architecture` says."""
    return AUDIO_TOWERS[config.architecture]._from_config(config)


class MSClapModel(MSClapPreTrainedModel):
    """CLAP: embeds audio and text into one space and compares them.

    Source: paper Section 2.1; `msclap.models.clap.CLAP`.
    """

    def __init__(self, config: MSClapConfig):
        super().__init__(config)
        text_config = config.text_config
        if config.text_pooling == "projection":
            self.text_model = CLIPTextModelWithProjection._from_config(text_config)
            text_size = text_config.projection_dim
        else:
            # An unused pooler would have parameters without gradient, which breaks distributed training.
            options = {"add_pooling_layer": False} if text_config.model_type in ("bert", "roberta") else {}
            self.text_model = AutoModel.from_config(text_config, **options)
            text_size = text_config.hidden_size
        self.audio_model = build_audio_tower(config.audio_config)
        self.audio_projection = MSClapProjection(config.audio_config.hidden_size, config)
        self.text_projection = MSClapProjection(text_size, config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale_init_value)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def pool_text(self, outputs: ModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """One vector per text, `[batch, hidden]`, by `config.text_pooling`."""
        if self.config.text_pooling == "projection":
            return outputs.text_embeds
        states = outputs.last_hidden_state
        if self.config.text_pooling == "cls":
            return states[:, 0]
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        if self.config.text_pooling == "mean":
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        # The mask, not the ids, says where a text ends: msclap counts non-zero ids, and "!" has id 0.
        positions = torch.arange(states.shape[1], device=states.device)
        last = (positions * attention_mask).argmax(dim=1)
        return states[torch.arange(states.shape[0], device=states.device), last]

    def project_text(self, pooled: torch.Tensor) -> torch.Tensor:
        """Unit vectors `[texts, projection_dim]`, float32, of pooled states `[texts, hidden]`."""
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Embed texts.

        Args:
            input_ids: Token ids `[texts, tokens]` from `MSClapProcessor`.
            attention_mask: 1 for tokens, 0 for padding, `[texts, tokens]`.
            token_type_ids: Accepted because BERT tokenizers make it; a single text is all zeros, which is also what
                the tower assumes without it.

        Returns:
            Output of the text tower; its `pooler_output` is the unit vector `[texts, projection_dim]`.
        """
        if self.config.text_pooling == "last_token":
            kwargs["use_cache"] = False  # nothing is generated here
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.project_text(self.pool_text(outputs, attention_mask)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Embed audio.

        Args:
            input_features: Log-mel windows `[windows, 1, frames, mel]` from `MSClapFeatureExtractor`.
            num_windows: Windows of each clip `[clips]`; None means one window per clip.

        Returns:
            Output of the audio tower, one row per window; its `pooler_output` is the unit vector
            `[clips, projection_dim]`: the mean of the windows' unit vectors, normalised again.
        """
        return embed_audio(self.audio_model, self.audio_projection, input_features, num_windows, **kwargs)

    def compute_similarity(self, audio_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Compare embeddings made earlier.

        Args:
            audio_embeds: Unit vectors `[clips, projection_dim]`.
            text_embeds: Unit vectors `[texts, projection_dim]`.

        Returns:
            exp(logit_scale) x cosine similarity, `[clips, texts]`.
        """
        scale = self.logit_scale.float().exp()
        if self.config.logit_scale_max is not None:
            scale = scale.clamp(max=self.config.logit_scale_max)
        return (scale * text_embeds @ audio_embeds.to(text_embeds.device).t()).t()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        num_windows: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_loss: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | MSClapOutput:
        """Compare every clip with every text.

        Args:
            input_ids: Token ids `[texts, tokens]`.
            attention_mask: `[texts, tokens]`.
            input_features: Log-mel windows `[windows, 1, frames, mel]`.
            num_windows: Windows of each clip `[clips]`; None means one window per clip.
            token_type_ids: See `get_text_features`.
            return_loss: Whether to return the symmetric contrastive loss; the batch is then matching pairs.

        Returns:
            `MSClapOutput`.

        Raises:
            ValueError: If text or audio is missing, or the loss is asked for with unequal numbers of the two.
        """
        if input_ids is None or input_features is None:
            missing = "input_ids" if input_ids is None else "input_features"
            raise ValueError(
                f"{missing} is missing: forward compares audio with text. For one side alone, call "
                "get_text_features or get_audio_features."
            )
        audio = self.get_audio_features(input_features, num_windows, **kwargs)
        text = self.get_text_features(input_ids, attention_mask, token_type_ids, **kwargs)
        audio_embeds, text_embeds = audio.pooler_output, text.pooler_output
        logits_per_text = self.compute_similarity(audio_embeds, text_embeds).t()
        loss = None
        if return_loss:
            if logits_per_text.shape[0] != logits_per_text.shape[1]:
                raise ValueError(
                    f"return_loss=True got {logits_per_text.shape[0]} texts and {logits_per_text.shape[1]} clips, "
                    "expected matching pairs."
                )
            loss = contrastive_loss(logits_per_text)
        return MSClapOutput(
            loss=loss,
            logits_per_audio=logits_per_text.t(),
            logits_per_text=logits_per_text,
            audio_embeds=audio_embeds,
            text_embeds=text_embeds,
            audio_model_output=audio,
            text_model_output=text,
        )


class MSClapForAudioClassification(MSClapPreTrainedModel):
    """The audio tower with a linear head, for fine-tuning (paper Section 4.2, ESC-50).

    Takes the full `MSClapConfig`, so that `from_pretrained` on any CLAP checkpoint loads its audio tower;
    `num_labels`, `id2label`, `label2id` and `problem_type` are the usual ones. Logits of a long clip are the
    mean over its windows.
    """

    main_input_name = "input_features"
    input_modalities = ("audio",)
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^text_projection\.",
        r"^audio_projection\.",
        "logit_scale",
    ]

    def __init__(self, config: MSClapConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.audio_model = build_audio_tower(config.audio_config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.audio_config.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier:
            PreTrainedModel._init_weights(self, module)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | SequenceClassifierOutput:
        """Classify clips.

        Args:
            input_features: Log-mel windows `[windows, 1, frames, mel]`.
            num_windows: Windows of each clip `[clips]`; None means one window per clip.
            labels: Class ids `[clips]` (single label), multi-hot floats `[clips, num_labels]` (multi label) or values
                (regression).

        Returns:
            `SequenceClassifierOutput` with `loss` if labels are given and `logits` `[clips, num_labels]`.
        """
        outputs = self.audio_model(input_features, return_dict=True, **kwargs)
        logits = mean_over_windows(self.classifier(self.dropout(outputs.pooler_output)), num_windows)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["MSClapForAudioClassification", "MSClapModel", "MSClapPreTrainedModel"]
