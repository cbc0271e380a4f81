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
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .configuration_msclap import MSClapAudioConfig, MSClapConfig
from .modeling_msclap_base import MSClapPreTrainedModel
from .modeling_msclap_cnn14 import MSClapCnn14Model
from .modeling_msclap_htsat import MSClapHtsatModel

# The classes of a CLAP folder by Auto class; `config.json` names them where code is saved with the model.
AUTO_MAP = {
    "AutoModel": "modeling_msclap.MSClapModel",
    "AutoModelForAudioClassification": "modeling_msclap.MSClapForAudioClassification",
}
AUDIO_TOWERS: dict[str, type[PreTrainedModel]] = {"htsat": MSClapHtsatModel, "cnn14": MSClapCnn14Model}


@dataclass
class MSClapOutput(ModelOutput):
    """Output of `MSClapModel`; of one side alone, what that side decides.

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


def unpad_windows(input_features: torch.Tensor, num_windows: torch.Tensor | None) -> torch.Tensor:
    """Windows of all clips one after another, without the padding after a clip's last window.

    Args:
        input_features: Log-mels `[clips, windows, 1, frames, mel]`, or `[clips, 1, frames, mel]` of one window each.
        num_windows: Windows of each clip `[clips]`; None means that no row is padded.

    Returns:
        `[windows of all clips, 1, frames, mel]`.

    Raises:
        ValueError: If `num_windows` is not a number from 1 to `windows` for each row.
    """
    clips = input_features.shape[0]
    windows = input_features.shape[1] if input_features.ndim == 5 else 1
    if num_windows is not None:
        known = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        if num_windows.shape != (clips,) or (known and not (1 <= num_windows.min() and num_windows.max() <= windows)):
            raise ValueError(
                f"num_windows is {num_windows.tolist()}, input_features are {list(input_features.shape)}; expected "
                f"numbers from 1 to {windows}, one for each of {clips} clips: each row of input_features is a clip."
            )
    if input_features.ndim == 4:
        return input_features
    if num_windows is None or windows == 1:
        return input_features.flatten(0, 1)
    valid = torch.arange(windows, device=num_windows.device) < num_windows[:, None]
    return input_features[valid.to(input_features.device)]


def mean_over_windows(window_values: torch.Tensor, num_windows: torch.Tensor | None, clips: int) -> torch.Tensor:
    """Average the windows of each clip.

    Args:
        window_values: `[windows of all clips, ...]`, a clip's one after another.
        num_windows: Windows of each clip `[clips]`; None means equally many.
        clips: Number of clips.

    Returns:
        `[clips, ...]`.
    """
    if window_values.shape[0] == clips:
        return window_values
    if num_windows is None:
        return window_values.unflatten(0, (clips, -1)).mean(dim=1)
    num_windows = num_windows.to(window_values.device)
    clip_of_window = torch.arange(clips, device=num_windows.device).repeat_interleave(num_windows)
    sums = window_values.new_zeros(clips, *window_values.shape[1:]).index_add(0, clip_of_window, window_values)
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
        input_features: Log-mels `[clips, windows, 1, frames, mel]`.
        num_windows: Windows of each clip `[clips]`, the rest of its row being padding; None means that no row is
                padded.

    Returns:
        Output of the audio tower, with the unit vectors `[clips, projection_dim]` as `pooler_output`.
    """
    outputs = audio_model(unpad_windows(input_features, num_windows), return_dict=True, **kwargs)
    windows = F.normalize(audio_projection(outputs.pooler_output).float(), dim=-1)
    outputs.pooler_output = F.normalize(mean_over_windows(windows, num_windows, input_features.shape[0]), dim=-1)
    return outputs


def build_audio_tower(config: MSClapAudioConfig) -> PreTrainedModel:
    """HTSAT or CNN14, as `config.architecture` says."""
    return AUDIO_TOWERS[config.architecture]._from_config(config)


def build_text_tower(config: MSClapConfig) -> tuple[PreTrainedModel, int]:
    """The text tower of a configuration, and the size of its pooled vectors."""
    text_config = config.text_config
    if config.text_pooling == "projection":
        return CLIPTextModelWithProjection._from_config(text_config), text_config.projection_dim
    # An unused pooler would have parameters without gradient, which breaks distributed training.
    options = {"add_pooling_layer": False} if text_config.model_type in ("bert", "roberta") else {}
    return AutoModel.from_config(text_config, **options), text_config.hidden_size


def pool_text(outputs: ModelOutput, attention_mask: torch.Tensor | None, pooling: str | None) -> torch.Tensor:
    """One vector per text, `[texts, hidden]`.

    Args:
        outputs: Output of the text tower.
        attention_mask: 1 for tokens, 0 for padding, `[texts, tokens]`; None where there is no padding.
        pooling: `MSClapConfig.text_pooling`.
    """
    if pooling == "projection":
        return outputs.text_embeds
    states = outputs.last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    if attention_mask is None:
        attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    if pooling == "mean":
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    # The mask, not the ids, says where a text ends: msclap counts non-zero ids, and "!" has id 0.
    positions = torch.arange(states.shape[1], device=states.device)
    last = (positions * attention_mask).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), last]


def embed_text(
    text_model: PreTrainedModel,
    text_projection: MSClapProjection,
    pooling: str | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Unpack[TransformersKwargs],
) -> BaseModelOutputWithPooling:
    """Embed texts.

    Args:
        text_model: The text tower.
        text_projection: Its projection.
        pooling: `MSClapConfig.text_pooling`.
        input_ids: Token ids `[texts, tokens]`.
        attention_mask: 1 for tokens, 0 for padding, `[texts, tokens]`.

    Returns:
        Output of the text tower, with the unit vectors `[texts, projection_dim]` as `pooler_output`.
    """
    if pooling == "last_token":
        kwargs["use_cache"] = False  # nothing is generated here
    outputs = text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
    pooled = pool_text(outputs, attention_mask, pooling)
    return BaseModelOutputWithPooling(
        last_hidden_state=outputs.last_hidden_state,
        pooler_output=F.normalize(text_projection(pooled).float(), dim=-1),
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


class MSClapModel(MSClapPreTrainedModel):
    """CLAP: embeds audio and text into one space and compares them.

    Source: paper Section 2.1; `msclap.models.clap.CLAP`.
    """

    config: MSClapConfig
    base_model_prefix = ""
    auto_map = AUTO_MAP
    _keep_in_fp32_modules_strict = ["batch_norm", "logit_scale"]

    def __init__(self, config: MSClapConfig):
        super().__init__(config)
        self.text_model, text_size = build_text_tower(config)
        self.audio_model = build_audio_tower(config.audio_config)
        self.audio_projection = MSClapProjection(config.audio_config.hidden_size, config)
        self.text_projection = MSClapProjection(text_size, config)
        scale = torch.tensor(math.log(config.logit_scale_init_value), dtype=torch.float32)
        self.logit_scale = nn.Parameter(scale)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MSClapModel):
            init.constant_(module.logit_scale, math.log(module.config.logit_scale_init_value))

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def pool_text(self, outputs: ModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """One vector per text, `[batch, hidden]`, by `config.text_pooling`."""
        return pool_text(outputs, attention_mask, self.config.text_pooling)

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
        pooling = self.config.text_pooling
        return embed_text(self.text_model, self.text_projection, pooling, input_ids, attention_mask, **kwargs)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Embed audio.

        Args:
            input_features: Log-mels `[clips, windows, 1, frames, mel]` from `MSClapFeatureExtractor`, or
                `[clips, 1, frames, mel]` of one window each.
            num_windows: Windows of each clip `[clips]`, the rest of its row being padding; None means that no row is
                padded.

        Returns:
            Output of the audio tower, one row per window; its `pooler_output` is the unit vector
            `[clips, projection_dim]`: the mean of the windows' unit vectors, normalised again.
        """
        return embed_audio(self.audio_model, self.audio_projection, input_features, num_windows, **kwargs)

    def get_audio_frame_features(self, input_features: torch.Tensor) -> torch.Tensor:
        """Embed every position of the audio tower's last feature map, as if the window were pooled over it alone.

        Nothing was trained for it: the projection knows windows only. A position's states depend on its neighbours.

        Args:
            input_features: Log-mels `[windows, 1, frames, mel]` from `MSClapFeatureExtractor`.

        Returns:
            Unit vectors `[windows, positions, projection_dim]`; position `i` stands for the frames from
            `i * audio_model.frames_per_position(frames)` on.
        """
        states = self.audio_model(input_features, return_dict=True).last_hidden_state
        return F.normalize(self.audio_projection(self.audio_model.pool_positions(states)).float(), dim=-1)

    def compute_similarity(self, audio_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Compare embeddings made earlier.

        Args:
            audio_embeds: Unit vectors `[clips, projection_dim]`.
            text_embeds: Unit vectors `[texts, projection_dim]`.

        Returns:
            exp(logit_scale) x cosine similarity, `[clips, texts]`, in float32 also within `torch.autocast`.
        """
        scale = self.logit_scale.float().exp()
        if self.config.logit_scale_max is not None:
            scale = scale.clamp(max=self.config.logit_scale_max)
        audio_embeds, text_embeds = audio_embeds.to(text_embeds.device).float(), text_embeds.float()
        # Cosines times a factor of up to 100: half precision would round away the differences between classes.
        with maybe_autocast(text_embeds.device.type, enabled=False):
            return (scale * text_embeds @ audio_embeds.t()).t()

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
        """Compare every clip with every text, or embed clips or texts alone.

        Args:
            input_ids: Token ids `[texts, tokens]`.
            attention_mask: `[texts, tokens]`.
            input_features: Log-mels `[clips, windows, 1, frames, mel]`.
            num_windows: Windows of each clip `[clips]`, the rest of its row being padding; None means that no row is
                padded.
            token_type_ids: See `get_text_features`.
            return_loss: Whether to return the symmetric contrastive loss; the batch is then matching pairs.

        Returns:
            `MSClapOutput`.

        Raises:
            ValueError: If text and audio are missing, or the loss is asked for with unequal numbers of the two.
        """
        if input_ids is None and input_features is None:
            raise ValueError("forward got neither input_ids nor input_features: pass texts, audio or both.")
        if return_loss and (input_ids is None or input_features is None):
            missing = "input_ids" if input_ids is None else "input_features"
            raise ValueError(f"{missing} is missing: return_loss=True needs matching pairs of audio and text.")
        audio = text = logits_per_text = loss = None
        if input_features is not None:
            audio = self.get_audio_features(input_features, num_windows, **kwargs)
        if input_ids is not None:
            text = self.get_text_features(input_ids, attention_mask, token_type_ids, **kwargs)
        if audio is not None and text is not None:
            logits_per_text = self.compute_similarity(audio.pooler_output, text.pooler_output).t()
            if return_loss:
                texts, clips = logits_per_text.shape
                if texts != clips:
                    raise ValueError(f"return_loss=True got {texts} texts and {clips} clips, expected matching pairs.")
                loss = contrastive_loss(logits_per_text)
        return MSClapOutput(
            loss=loss,
            logits_per_audio=None if logits_per_text is None else logits_per_text.t(),
            logits_per_text=logits_per_text,
            audio_embeds=None if audio is None else audio.pooler_output,
            text_embeds=None if text is None else text.pooler_output,
            audio_model_output=audio,
            text_model_output=text,
        )


class MSClapAudioModel(MSClapPreTrainedModel):
    """The audio half of CLAP by itself: tower and projection, loaded by `from_pretrained` from any CLAP folder."""

    config: MSClapConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", "logit_scale"]

    def __init__(self, config: MSClapConfig):
        super().__init__(config)
        self.audio_model = build_audio_tower(config.audio_config)
        self.audio_projection = MSClapProjection(config.audio_config.hidden_size, config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        num_windows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Embed audio; arguments and result as of `MSClapModel.get_audio_features`."""
        return embed_audio(self.audio_model, self.audio_projection, input_features, num_windows, **kwargs)


class MSClapTextModel(MSClapPreTrainedModel):
    """The text half of CLAP by itself: tower and projection, loaded by `from_pretrained` from any CLAP folder."""

    config: MSClapConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _no_split_modules = ["MSClapProjection"]
    _keep_in_fp32_modules_strict: list[str] = []
    _keys_to_ignore_on_load_unexpected = [r"^audio_model\.", r"^audio_projection\.", "logit_scale"]

    def __init__(self, config: MSClapConfig):
        super().__init__(config)
        self.text_model, text_size = build_text_tower(config)
        self.text_projection = MSClapProjection(text_size, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Embed texts; arguments and result as of `MSClapModel.get_text_features`."""
        pooling = self.config.text_pooling
        return embed_text(self.text_model, self.text_projection, pooling, input_ids, attention_mask, **kwargs)


class MSClapForAudioClassification(MSClapPreTrainedModel):
    """The audio tower with a linear head, for fine-tuning (paper Section 4.2, ESC-50).

    Takes the full `MSClapConfig`, so that `from_pretrained` on any CLAP checkpoint loads its audio tower;
    `num_labels`, `id2label`, `label2id` and `problem_type` are the usual ones. Logits of a long clip are the
    mean over its windows.
    """

    config: MSClapConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    auto_map = AUTO_MAP
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
            input_features: Log-mels `[clips, windows, 1, frames, mel]`.
            num_windows: Windows of each clip `[clips]`, the rest of its row being padding; None means that no row is
                padded.
            labels: Class ids `[clips]` (single label), multi-hot floats `[clips, num_labels]` (multi label) or values
                (regression).

        Returns:
            `SequenceClassifierOutput` with `loss` if labels are given and `logits` `[clips, num_labels]`.
        """
        outputs = self.audio_model(unpad_windows(input_features, num_windows), return_dict=True, **kwargs)
        window_logits = self.classifier(self.dropout(outputs.pooler_output))
        logits = mean_over_windows(window_logits, num_windows, input_features.shape[0])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "MSClapAudioModel",
    "MSClapForAudioClassification",
    "MSClapModel",
    "MSClapPreTrainedModel",
    "MSClapTextModel",
]
