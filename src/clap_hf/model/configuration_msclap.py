# Copyright 2026 The clap_hf authors. MIT License.
"""Configurations of Microsoft CLAP: audio tower (HTSAT or CNN14), dual encoder, captioning, audio tasks."""

import copy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

# How a text tower's states become one sentence vector, for the towers the paper compares (Table 1).
DEFAULT_TEXT_POOLING = {
    "gpt2": "last_token",
    "bert": "cls",
    "roberta": "cls",
    "clip_text_model": "projection",
}
TEXT_POOLINGS = ("last_token", "cls", "mean", "projection")
MAPPER_TYPES = ("transformer", "mlp")
BEAM_SCORES = ("sum", "average")


@strict
class MSClapAudioConfig(PreTrainedConfig):
    """Configuration of an audio tower; the defaults are HTSAT as in the released 2023 model.

    Args:
        architecture: `"htsat"` (hierarchical token-semantic audio transformer, 2023) or `"cnn14"` (PANNs, 2022).
        num_mel_bins: Mel bins of the input features.
        hidden_size: Size of the pooled output. HTSAT derives it (`embed_dim * 2 ** (stages - 1)`); for CNN14, 0 means
            its last channel count (2,048).
        num_labels_frame_map: Classes of HTSAT's token-semantic head (527 AudioSet classes in the released
            checkpoints); 0 builds no such head.
        num_frames: Frames that HTSAT's input is stretched to, bicubically.
        num_time_chunks: Equal time chunks that HTSAT stacks along frequency to make its image more square:
            64 mel bins x 1,024 frames in 4 chunks make 256 x 256.
        patch_size: Side of HTSAT's patches, in mel bins and in frames.
        embed_dim: Channels of HTSAT's first stage; they double at every following stage.
        depths: Blocks of each HTSAT stage.
        num_attention_heads: Attention heads of each HTSAT stage.
        window_size: Side of the attention windows, in patches.
        mlp_ratio: Hidden size of a block's MLP over its channels.
        qkv_bias: Whether query, key and value projections have a bias.
        hidden_act: Activation of HTSAT's MLPs.
        layer_norm_eps: Epsilon of HTSAT's layer norms.
        drop_path_rate: Stochastic depth of the last HTSAT block; earlier blocks ramp up to it linearly from 0.
        hidden_dropout_prob: Dropout after HTSAT's patch embedding, attention output and MLP layers.
        attention_probs_dropout_prob: Dropout of HTSAT's attention weights.
        conv_channels: Output channels of CNN14's blocks.
        conv_dropout: Dropout after each CNN14 block.
        head_dropout: Dropout before and after CNN14's fully connected layer.
        spec_augment: Whether random stripes of the log-mel are masked in training.
        spec_augment_time_stripes: Time stripes masked per clip.
        spec_augment_time_width: Upper bound of a time stripe's width, frames.
        spec_augment_freq_stripes: Frequency stripes masked per clip.
        spec_augment_freq_width: Upper bound of a frequency stripe's width, mel bins.
        initializer_range: Standard deviation of newly initialised weights.
    """

    model_type = "msclap_audio"
    base_config_key = "audio_config"

    architecture: str = "htsat"
    num_mel_bins: int = 64
    hidden_size: int = 0
    num_labels_frame_map: int = 0

    num_frames: int = 1024
    num_time_chunks: int = 4
    patch_size: int = 4
    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    drop_path_rate: float | int = 0.1
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0

    conv_channels: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    conv_dropout: float | int = 0.2
    head_dropout: float | int = 0.5

    spec_augment: bool = True
    spec_augment_time_stripes: int = 2
    spec_augment_time_width: int = 64
    spec_augment_freq_stripes: int = 2
    spec_augment_freq_width: int = 8

    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.architecture == "htsat":
            self.hidden_size = self.embed_dim * 2 ** (len(self.depths) - 1)
        elif self.hidden_size == 0:
            self.hidden_size = self.conv_channels[-1]
        super().__post_init__(**kwargs)

    def validate_architecture_name(self) -> None:
        """`architecture` names a tower that exists."""
        if self.architecture not in ("htsat", "cnn14"):
            raise ValueError(f"architecture is {self.architecture!r}, expected 'htsat' or 'cnn14'.")

    def validate_htsat_geometry(self) -> None:
        """The folded spectrogram divides into patches, patch merges and attention windows."""
        if self.architecture != "htsat":
            return
        if len(self.depths) != len(self.num_attention_heads):
            raise ValueError(
                f"depths {tuple(self.depths)} and num_attention_heads {tuple(self.num_attention_heads)} must name the "
                "same number of stages."
            )
        merged = self.patch_size * 2 ** (len(self.depths) - 1)
        height, width = self.num_mel_bins * self.num_time_chunks, self.num_frames // self.num_time_chunks
        if self.num_frames % self.num_time_chunks or height % merged or width % merged:
            raise ValueError(
                f"The folded spectrogram is {height} x {self.num_frames / self.num_time_chunks:g} "
                f"(mel bins x chunks, frames / chunks); both sides must be multiples of {merged} "
                "(patch_size * 2 ** (stages - 1)). Change num_frames, num_time_chunks or patch_size."
            )
        for stage, heads in enumerate(self.num_attention_heads):
            rows, columns = height // self.patch_size // 2**stage, width // self.patch_size // 2**stage
            window = min(self.window_size, rows, columns)
            if rows % window or columns % window:
                raise ValueError(
                    f"Stage {stage + 1} is {rows} x {columns} patches, not a multiple of its attention window "
                    f"{window}. Change window_size, num_frames or num_time_chunks."
                )
            if self.embed_dim * 2**stage % heads:
                raise ValueError(
                    f"Stage {stage + 1} has {self.embed_dim * 2**stage} channels, not divisible by its {heads} heads."
                )


@strict
class MSClapConfig(PreTrainedConfig):
    """Configuration of a CLAP dual encoder; the defaults are HTSAT + GPT-2 as in the released 2023 model.

    Args:
        text_config: Configuration of the text tower, any transformers text encoder or GPT-style model.
        audio_config: Configuration of the audio tower (`MSClapAudioConfig`).
        projection_dim: Size of the shared space.
        projection_dropout: Dropout inside the two projections.
        text_pooling: How the text tower's states become one vector: `"last_token"` (state at the end token; GPT-2),
            `"cls"` (first token; BERT, RoBERTa), `"mean"` (over the tokens; sentence encoders such as MiniLM) or
            `"projection"` (the tower's own pooled projection; CLIP). Chosen by the text model's type when None.
        logit_scale_init_value: Initial exp(logit_scale). The released code starts at 1 / 0.07 (default); the paper
            (Section 3) says its temperature was initialised to 0.007, which is 1 / 0.007 here.
        logit_scale_max: Upper clamp of exp(logit_scale), or None for no clamp (paper and released code). CLIP's clamp
            of 100 would cut the paper's initial 142.9.
        initializer_range: Standard deviation of newly initialised weights of projections and heads.
        classifier_dropout: Dropout before the head of `MSClapForAudioClassification`.
    """

    model_type = "msclap"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="gpt2"),
        "audio_config": MSClapAudioConfig,
    }

    # Given as a dict, a configuration or None; configurations from `__post_init__` on.
    text_config: Any = None
    audio_config: Any = None
    projection_dim: int = 1024
    projection_dropout: float | int = 0.5
    text_pooling: str | None = None
    logit_scale_init_value: float | int = 1 / 0.07
    logit_scale_max: float | int | None = None
    initializer_range: float = 0.02
    classifier_dropout: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.text_pooling is None:
            self.text_pooling = DEFAULT_TEXT_POOLING.get(self.text_config.model_type)

    def validate_text_pooling(self) -> None:
        """`text_pooling` is known, and given where the text model's type does not decide it."""
        if self.text_pooling not in TEXT_POOLINGS:
            raise ValueError(
                f"text_pooling is {self.text_pooling!r} for a text tower of type {self.text_config.model_type!r}, "
                f"expected one of {TEXT_POOLINGS}. Pass text_pooling= to MSClapConfig."
            )


CAPTIONING_PIPELINE = {
    "audio-captioning": {
        "impl": "pipeline_msclap.MSClapCaptioningPipeline",
        "pt": ["AutoModelForMultimodalLM"],
        "type": "multimodal",
    }
}


@strict
class MSClapCaptioningConfig(PreTrainedConfig):
    """Configuration of `MSClapForAudioCaptioning`; the defaults are the released `clapcap` model.

    Args:
        text_config: Configuration of the language model, any transformers causal LM.
        audio_config: Configuration of the audio tower (`MSClapAudioConfig`).
        projection_dim: Size of CLAP's shared space, where the mapper starts.
        projection_dropout: Dropout inside the audio projection.
        prefix_length: Vectors that the mapper puts before the caption.
        mapper_type: `"transformer"` (released) or `"mlp"`.
        mapper_input_length: Vectors that the transformer mapper makes of the audio embedding, before its constants.
        mapper_num_layers: Layers of the transformer mapper.
        mapper_num_heads: Attention heads of the transformer mapper.
        mapper_mlp_ratio: Hidden size of the mapper's MLPs over the language model's size.
        freeze_audio: Whether audio tower and projection stay as they are in training.
        freeze_language_model: Whether the language model stays as it is in training.
        beam_scores: How beams compete in beam search: `"sum"`, transformers' way, or `"average"`, the released code's
            (see `average_beam_search`).
        initializer_range: Standard deviation of newly initialised weights.
    """

    model_type = "msclap_captioning"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="gpt2"),
        "audio_config": MSClapAudioConfig,
    }

    text_config: Any = None
    audio_config: Any = None
    projection_dim: int = 1024
    projection_dropout: float | int = 0.5
    prefix_length: int = 40
    mapper_type: str = "transformer"
    mapper_input_length: int = 40
    mapper_num_layers: int = 8
    mapper_num_heads: int = 8
    mapper_mlp_ratio: float | int = 2.0
    freeze_audio: bool = True
    freeze_language_model: bool = True
    beam_scores: str = "sum"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not __name__.startswith("transformers_modules."):
            # In the package the task is a registered one; naming the pipeline would ask for trust in remote code.
            self.custom_pipelines: dict[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        """The configuration, with the pipeline that a saved captioner carries."""
        content = super().to_dict()
        content.pop("custom_pipelines", None)
        if self.model_type == "msclap_captioning":
            content["custom_pipelines"] = copy.deepcopy(CAPTIONING_PIPELINE)
        return content

    def validate_names(self) -> None:
        """`mapper_type` and `beam_scores` name what exists."""
        for name, value, known in (
            ("mapper_type", self.mapper_type, MAPPER_TYPES),
            ("beam_scores", self.beam_scores, BEAM_SCORES),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {known}.")

    def validate_mapper_heads(self) -> None:
        """The language model's size divides into the mapper's heads."""
        if self.mapper_type == "transformer" and self.text_config.hidden_size % self.mapper_num_heads:
            raise ValueError(
                f"mapper_num_heads is {self.mapper_num_heads}, which does not divide the language model's size "
                f"{self.text_config.hidden_size}."
            )


@strict
class MSClapConditionalGenerationConfig(MSClapCaptioningConfig):
    """Configuration of `MSClapForConditionalGeneration`: as for captioning, with a second mapper for the prompt.

    The defaults are those of Pengi (Deshmukh et al., 2023), which the paper follows: two mappers of 4 layers, and an
    audio tower that trains. Arguments are those of `MSClapCaptioningConfig`; `prefix_length` is the paper's k, so
    that 2k vectors come before the answer (Eq. 5).
    """

    model_type = "msclap_conditional_generation"

    mapper_num_layers: int = 4
    freeze_audio: bool = False

    def validate_prompt_mapper(self) -> None:
        """A prompt has any number of tokens, which only a transformer maps."""
        if self.mapper_type != "transformer":
            raise ValueError(f"mapper_type is {self.mapper_type!r}, expected 'transformer': prompts vary in length.")


AutoConfig.register("msclap_audio", MSClapAudioConfig, exist_ok=True)
AutoConfig.register("msclap", MSClapConfig, exist_ok=True)
AutoConfig.register("msclap_captioning", MSClapCaptioningConfig, exist_ok=True)
AutoConfig.register("msclap_conditional_generation", MSClapConditionalGenerationConfig, exist_ok=True)

__all__ = ["MSClapAudioConfig", "MSClapCaptioningConfig", "MSClapConditionalGenerationConfig", "MSClapConfig"]
