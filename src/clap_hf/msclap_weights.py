"""Microsoft's official CLAP checkpoints (`microsoft/msclap` on the Hub, MIT) as transformers models.

Every key of a checkpoint is accounted for: renamed by `_RELEASES`, recomputed by the model and compared, or listed as
unused with the reason. Whatever else is found, or misses, is an error.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig
from transformers.initialization import no_init_weights

from .model.configuration_msclap import MSClapAudioConfig, MSClapCaptioningConfig, MSClapConfig
from .model.feature_extraction_msclap import MSClapFeatureExtractor
from .model.modeling_msclap import MSClapModel
from .model.modeling_msclap_captioning import MSClapForAudioCaptioning
from .model.processing_msclap import MSClapProcessor
from .tokenization import END_TOKEN, sentence_tokenizer

OFFICIAL_REPO = "microsoft/msclap"

_HTSAT = "audio_encoder.base.htsat."
_CNN14 = "audio_encoder.base."
_TEXT = "caption_encoder.base."
_CAPTION_HTSAT = "clap.base.htsat."
_CAPTION_GPT2 = "gpt.transformer."
_MAPPER = "clap_project."

# Where HTSAT and GPT-2 stand in a dual encoder or a captioner, as patterns.
_ANY_HTSAT = rf"(?:{_HTSAT}|{_CAPTION_HTSAT})".replace(".", r"\.")
_ANY_GPT2 = rf"(?:{_TEXT}|{_CAPTION_GPT2})".replace(".", r"\.")


# Our names -> official names, by prefix.
def _htsat_names(prefix: str) -> dict[str, str]:
    return {
        "audio_model.batch_norm.": f"{prefix}bn0.",
        "audio_model.patch_embed.": f"{prefix}patch_embed.proj.",
        "audio_model.patch_norm.": f"{prefix}patch_embed.norm.",
        "audio_model.stages.": f"{prefix}layers.",
        "audio_model.norm.": f"{prefix}norm.",
        "audio_model.frame_head.": f"{prefix}tscam_conv.",
    }


_PROJECTIONS = {
    "logit_scale": "logit_scale",
    "audio_projection.": "audio_encoder.projection.",
    "text_projection.": "caption_encoder.projection.",
    "text_model.": _TEXT,  # both are the keys of transformers' text model
}


class _Release(NamedTuple):
    """What one official checkpoint is, beyond its tensors (`msclap/configs/config_<version>.yml`)."""

    file: str
    marker: str  # a key that only this version has
    front_end: str  # prefix of the torchlibrosa layers
    renamed: dict[str, str]
    tokenizer: str
    max_length: int  # tokens
    duration_s: float


_RELEASES = {
    "2022": _Release(
        file="CLAP_weights_2022.pth",
        marker=f"{_CNN14}conv_block1.conv1.weight",
        front_end=_CNN14,
        renamed={
            "audio_model.batch_norm.": f"{_CNN14}bn0.",
            **{f"audio_model.blocks.{i}.": f"{_CNN14}conv_block{i + 1}." for i in range(6)},
            "audio_model.fc.": f"{_CNN14}fc1.",
            **_PROJECTIONS,
        },
        tokenizer="bert-base-uncased",
        max_length=100,
        duration_s=5.0,
    ),
    "2023": _Release(
        file="CLAP_weights_2023.pth",
        marker=f"{_HTSAT}patch_embed.proj.weight",
        front_end=_HTSAT,
        renamed=_htsat_names(_HTSAT) | _PROJECTIONS,
        tokenizer="gpt2",
        max_length=77,
        duration_s=7.0,
    ),
    "clapcap": _Release(
        file="clapcap_weights_2023.pth",
        marker=f"{_MAPPER}prefix_const",
        front_end=_CAPTION_HTSAT,
        renamed={
            **_htsat_names(_CAPTION_HTSAT),
            "audio_projection.": "clap.projection.",
            "language_model.": "gpt.",
            "mapper.layers.": f"{_MAPPER}transformer.layers.",
            "mapper.": _MAPPER,
        },
        tokenizer="gpt2",
        max_length=77,
        duration_s=7.0,
    ),
}

# Weights that no output of CLAP depends on: pattern -> why it is dropped.
_UNUSED = {
    rf"{_ANY_HTSAT}head\.(weight|bias)": "527 x 527 layer that the released code builds and never calls",
    rf"{_CNN14}fc_audioset\.(weight|bias)": "AudioSet classes of CNN14; CLAP takes the layer before",
    rf"{_TEXT}pooler\.dense\.(weight|bias)": "BERT's pooler; CLAP takes the state at [CLS] itself",
    rf"{_ANY_GPT2}h\.\d+\.attn\.masked_bias": "what older transformers wrote into masked attention scores",
}


# Constants that the model computes itself: pattern -> the expected value.
_RECOMPUTED: dict[str, Callable[[re.Match[str], PreTrainedModel], torch.Tensor | None]] = {
    rf"{_ANY_HTSAT}layers\.(\d+\.blocks\.\d+\.attn)\.relative_position_index": (
        lambda match, model: model.get_submodule(f"audio_model.stages.{match[1]}").relative_position_index
    ),
    rf"{_ANY_HTSAT}layers\.(\d+\.blocks\.\d+)\.attn_mask": (
        lambda match, model: model.get_submodule(f"audio_model.stages.{match[1]}.attn").shift_mask
    ),
    rf"{_ANY_GPT2}h\.\d+\.attn\.bias": (
        lambda match, model: torch.ones([model.config.text_config.n_positions] * 2).tril()[None, None]
    ),
    rf"{_TEXT}embeddings\.position_ids": (
        lambda match, model: torch.arange(model.config.text_config.max_position_embeddings)[None]
    ),
    # Tied to the word embeddings.
    r"gpt\.lm_head\.weight": lambda match, model: model.get_output_embeddings().weight,
}

# Settings the stored filterbank may have been made with: mel_sampling_rate (Hz), fmax (Hz). The released 2023 code
# designs its filters for 32 kHz and 14 kHz, whatever its YAML (44.1 kHz, 8 kHz) says.
_MEL_SETTINGS = [(rate, fmax) for rate in (44_100, 32_000, 48_000) for fmax in (8_000.0, 14_000.0)]

_UNLIKE_PROMPTS = (
    "a dog barking;heavy rain on a tin roof;a solo violin;a man giving a speech;an engine that does not "
    "start;glass breaking;a crowd cheering in a stadium;a baby crying;church bells;keyboard typing;thunder far "
    "away;a cat purring;fast techno music with a heavy bass;waves on a beach;a door slammed shut;silence;a "
    "helicopter;frying food;a woman laughing;birds at dawn"
).split(";")


class _State:
    """The tensors of a checkpoint file, and which of them have been accounted for."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors = _read(path)
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self.tensors:
            raise ValueError(f"{self.path} misses the key {key!r}. Download the official file again.")
        self.used.add(key)
        return self.tensors[key]

    def shape(self, key: str, dimensions: int) -> torch.Size:
        """Shape of a tensor, from which sizes of the model are read."""
        shape = self[key].shape
        if len(shape) != dimensions:
            raise ValueError(f"{self.path}: {key!r} is {list(shape)}, expected {dimensions} dimensions.")
        return shape

    def count(self, prefix: str) -> int:
        """Number of layers in the list of layers called `prefix`."""
        return len({key[len(prefix) :].split(".")[0] for key in self.tensors if key.startswith(prefix)})


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of an official file, `{"model": state_dict}`; nothing in the file is run."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file, expected an official checkpoint such as {_RELEASES['2023'].file}. "
            f"Download it from {OFFICIAL_REPO} on the Hub."
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # to torch's unpickler garbage is a program, which fails in any way
        # Its own message advises weights_only=False, which would run whatever the file holds.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        found = f"it asks for {refused[1]}, code" if refused else "it is damaged or of another format"
        raise ValueError(
            f"{path} is not a checkpoint of plain tensors: {found}. Nothing was run. Expected "
            f"{{'model': state_dict}} as in {OFFICIAL_REPO}; download the official file again."
        ) from None
    state = loaded.get("model") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = (
            f"a dict with keys {sorted(map(str, loaded))[:5]}" if isinstance(loaded, dict) else type(loaded).__name__
        )
        raise ValueError(f"{path} holds {found}, expected {{'model': state_dict}} as in {OFFICIAL_REPO}.")
    return state


def _same(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return found.shape == expected.shape and bool((found.double() - expected.double()).abs().max() <= tolerance)


def _feature_extractor(state: _State, release: _Release) -> MSClapFeatureExtractor:
    """The front end that the checkpoint's own constants describe: a Hann DFT and a mel filterbank."""
    real_key = f"{release.front_end}spectrogram_extractor.stft.conv_real.weight"
    imag_key = f"{release.front_end}spectrogram_extractor.stft.conv_imag.weight"
    mel_key = f"{release.front_end}logmel_extractor.melW"
    n_fft = state.shape(real_key, 3)[-1]
    angles = torch.outer(torch.arange(n_fft // 2 + 1), torch.arange(n_fft)).double() * (2 * torch.pi / n_fft)
    window = torch.hann_window(n_fft, dtype=torch.float64)
    for key, wave in ((real_key, angles.cos()), (imag_key, -angles.sin())):
        if not _same(state[key], (wave * window)[:, None], 1e-5):
            raise ValueError(f"{state.path}: {key} is not the {n_fft}-point Hann DFT that the front end computes.")
    stored = state[mel_key]
    num_mel_bins = state.shape(mel_key, 2)[1]
    for mel_sampling_rate, fmax in _MEL_SETTINGS:
        extractor = MSClapFeatureExtractor(
            feature_size=num_mel_bins,
            duration_s=release.duration_s,
            n_fft=n_fft,
            fmax=fmax,
            mel_sampling_rate=mel_sampling_rate,
        )
        if _same(stored, torch.from_numpy(extractor.mel_filters), 1e-6):
            return extractor
    raise ValueError(
        f"{state.path}: {mel_key}, shape {tuple(stored.shape)}, is none of the known Slaney filterbanks "
        f"(50 Hz up to {sorted({fmax for _, fmax in _MEL_SETTINGS})} Hz, designed for "
        f"{sorted({rate for rate, _ in _MEL_SETTINGS})} Hz). Add its settings to clap_hf.msclap_weights._MEL_SETTINGS."
    )


def _htsat_config(state: _State, prefix: str) -> MSClapAudioConfig:
    embed_dim, _, patch_size, _ = state.shape(f"{prefix}patch_embed.proj.weight", 4)
    stages = range(state.count(f"{prefix}layers."))
    table = "blocks.0.attn.relative_position_bias_table"  # [(2 * window - 1) ** 2, heads]
    tables = [state.shape(f"{prefix}layers.{i}.{table}", 2) for i in stages]
    return MSClapAudioConfig(
        architecture="htsat",
        num_mel_bins=state.shape(f"{prefix}logmel_extractor.melW", 2)[1],
        num_labels_frame_map=state.shape(f"{prefix}tscam_conv.weight", 4)[0],
        patch_size=patch_size,
        embed_dim=embed_dim,
        depths=[state.count(f"{prefix}layers.{i}.blocks.") for i in stages],
        num_attention_heads=[heads for _, heads in tables],
        window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
        mlp_ratio=state.shape(f"{prefix}layers.0.blocks.0.mlp.fc1.weight", 2)[0] / embed_dim,
    )


def _cnn14_config(state: _State) -> MSClapAudioConfig:
    return MSClapAudioConfig(
        architecture="cnn14",
        num_mel_bins=state.shape(f"{_CNN14}logmel_extractor.melW", 2)[1],
        hidden_size=state.shape(f"{_CNN14}fc1.weight", 2)[0],
        conv_channels=[state.shape(f"{_CNN14}conv_block{i}.conv1.weight", 4)[0] for i in range(1, 7)],
    )


def _gpt2_config(state: _State, prefix: str) -> dict[str, Any]:
    vocabulary, size = state.shape(f"{prefix}wte.weight", 2)
    return {
        "model_type": "gpt2",
        "vocab_size": vocabulary,
        "n_positions": state.shape(f"{prefix}wpe.weight", 2)[0],
        "n_embd": size,
        "n_layer": state.count(f"{prefix}h."),
        "n_head": size // 64,  # no tensor shows it; heads are 64 wide in every size of GPT-2
        "n_inner": state.shape(f"{prefix}h.0.mlp.c_fc.weight", 2)[1],
    }


def _bert_config(state: _State) -> dict[str, Any]:
    vocabulary, size = state.shape(f"{_TEXT}embeddings.word_embeddings.weight", 2)
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": size,
        "num_hidden_layers": state.count(f"{_TEXT}encoder.layer."),
        "num_attention_heads": size // 64,  # as in GPT-2
        "intermediate_size": state.shape(f"{_TEXT}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "max_position_embeddings": state.shape(f"{_TEXT}embeddings.position_embeddings.weight", 2)[0],
        "type_vocab_size": state.shape(f"{_TEXT}embeddings.token_type_embeddings.weight", 2)[0],
    }


def _copy_weights(state: _State, model: PreTrainedModel, renamed: dict[str, str]) -> None:
    """Fill the model; a missing, misshapen or non-finite weight is an error."""
    weights = {}
    tied = model.all_tied_weights_keys  # compared as constants
    for name, own in model.state_dict().items():
        if name in tied:
            continue
        prefix = next(prefix for prefix in renamed if name.startswith(prefix))
        key = renamed[prefix] + name[len(prefix) :]
        value = state[key]
        if value.shape != own.shape:
            raise ValueError(f"{state.path}: {key!r} is {list(value.shape)}, expected {list(own.shape)} ({name}).")
        if not torch.isfinite(value).all():
            raise ValueError(f"{state.path}: {key!r} holds NaN or infinite values. Download the official file again.")
        weights[name] = value
    model.load_state_dict(weights | {name: weights[source] for name, source in tied.items()})


def _check_constants(state: _State, model: PreTrainedModel) -> None:
    """Whatever is not a weight is a known constant with the value that the model computes, or known to be unused."""
    unknown = {key for key in state.tensors.keys() - state.used if not any(re.fullmatch(p, key) for p in _UNUSED)}
    for pattern, expected in _RECOMPUTED.items():
        for match in filter(None, [re.fullmatch(pattern, key) for key in unknown]):
            key, value = match[0], expected(match, model)
            if value is None or not _same(state[key], value, 0.0):
                raise ValueError(f"{state.path}: the constant {key!r} is not the one that the model computes.")
            unknown.remove(key)
    if unknown:
        raise ValueError(
            f"{state.path} holds {len(unknown)} unknown keys: {', '.join(map(repr, sorted(unknown)[:5]))}. Expected "
            f"exactly those of {OFFICIAL_REPO}; dropping a weight unseen would change the model."
        )


def official_file(version: str) -> str:
    """File name of an official checkpoint in `microsoft/msclap`.

    Raises:
        ValueError: If there is no such version.
    """
    if version not in _RELEASES:
        raise ValueError(f"version is {version!r}, expected one of {sorted(_RELEASES)}.")
    return _RELEASES[version].file


def load_msclap_checkpoint(
    path: str | Path, version: str, tokenizer: str | Path | None = None
) -> tuple[MSClapModel, MSClapProcessor]:
    """Convert an official checkpoint; nothing in the file is run, and no weight is left out unseen.

    Sizes come from the tensors, the front end's mel settings from the stored filterbank.

    Args:
        path: Official file, `{"model": state_dict}`.
        version: `"2022"` (CNN14 + BERT, 5 s, 100 tokens) or `"2023"` (HTSAT + GPT-2, 7 s, 77 tokens).
        tokenizer: Local folder or Hub id of the text tower's tokenizer; its own on the Hub when None.

    Returns:
        The model, float32, in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the version is unknown, the file holds anything but tensors, a key is unknown or missing, a
            tensor has another shape or value than the model needs, or the tokenizer does not fit the text tower.

    Source: `msclap.CLAPWrapper.load_clap`; parity is measured in `tests/test_parity.py`.
    """
    if version == "clapcap":
        raise ValueError(
            "version is 'clapcap', the captioner. Call load_clapcap_checkpoint, or pass '2022' or '2023'."
        )
    state, release = _open(path, version)
    feature_extractor = _feature_extractor(state, release)
    config = MSClapConfig(
        text_config=_gpt2_config(state, _TEXT) if version == "2023" else _bert_config(state),
        audio_config=_htsat_config(state, _HTSAT) if version == "2023" else _cnn14_config(state),
        projection_dim=state.shape("audio_encoder.projection.linear1.weight", 2)[0],
    )
    with no_init_weights():  # every weight is copied below
        model = MSClapModel(config).eval()
    _copy_weights(state, model, release.renamed)
    _check_constants(state, model)
    return model, MSClapProcessor(feature_extractor, _tokenizer(tokenizer, release, config.text_config, path))


def load_clapcap_checkpoint(
    path: str | Path, tokenizer: str | Path | None = None
) -> tuple[MSClapForAudioCaptioning, MSClapProcessor]:
    """Convert the official captioning checkpoint, `clapcap`; as strict as `load_msclap_checkpoint`.

    The captioner searches as the released code does: 5 beams, compared by their average, up to 67 tokens, stopping at
    the lone space (id 220) that its tokenizer puts before the end token.

    Args:
        path: Official file, `{"model": state_dict}`.
        tokenizer: Local folder or Hub id of GPT-2's tokenizer; `gpt2` on the Hub when None.

    Returns:
        The model, float32, in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `load_msclap_checkpoint`.

    Source: `msclap.CLAPWrapper.load_clapcap` and `generate_caption`; parity is measured in
    `tests/test_captioning_parity.py`.
    """
    state, release = _open(path, "clapcap")
    feature_extractor = _feature_extractor(state, release)
    prefix_length, size = state.shape(f"{_MAPPER}prefix_const", 2)
    mlp_size = state.shape(f"{_MAPPER}transformer.layers.0.mlp.fc1.weight", 2)[0]
    config = MSClapCaptioningConfig(
        text_config=_gpt2_config(state, _CAPTION_GPT2),
        audio_config=_htsat_config(state, _CAPTION_HTSAT),
        projection_dim=state.shape("clap.projection.linear1.weight", 2)[0],
        prefix_length=prefix_length,
        mapper_input_length=state.shape(f"{_MAPPER}linear.weight", 2)[0] // size,
        mapper_num_layers=state.count(f"{_MAPPER}transformer.layers."),
        mapper_num_heads=8,  # no tensor shows it; fixed in `msclap.models.mapper`
        mapper_mlp_ratio=mlp_size / size,
        beam_scores="average",
    )
    with no_init_weights():
        model = MSClapForAudioCaptioning(config).eval()
    model.tie_weights()  # which building without initialisation leaves out
    _copy_weights(state, model, release.renamed)
    _check_constants(state, model)
    text_tokenizer = _tokenizer(tokenizer, release, config.text_config, path)
    model.generation_config.eos_token_id = text_tokenizer(f" {END_TOKEN}", add_special_tokens=False)["input_ids"][0]
    return model, MSClapProcessor(feature_extractor, text_tokenizer)


def _open(path: str | Path, version: str) -> tuple[_State, _Release]:
    """The tensors of a file that is of this version."""
    official_file(version)
    state = _State(Path(path))
    found = next((name for name, other in _RELEASES.items() if other.marker in state.tensors), version)
    if found != version:
        remedy = "Call load_clapcap_checkpoint" if found == "clapcap" else f"Pass version={found!r}"
        raise ValueError(f"{path} is a {found!r} checkpoint, but version is {version!r}. {remedy}.")
    return state, _RELEASES[version]


def _tokenizer(
    name: str | Path | None, release: _Release, text_config: PreTrainedConfig, path: str | Path
) -> PreTrainedTokenizerFast:
    """The tokenizer of the text tower or language model, with CLAP's sentence rules."""
    name = release.tokenizer if name is None else name
    tokenizer = sentence_tokenizer(name, text_config, release.max_length)
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"The tokenizer {str(name)!r} has {len(tokenizer)} tokens, the text tower of {path} "
            f"{text_config.vocab_size}. Pass tokenizer={release.tokenizer!r}, a Hub id, or a folder of it."
        )
    return tokenizer


@torch.no_grad()
def mean_text_cosine(model: MSClapModel, processor: MSClapProcessor) -> float:
    """Mean pairwise cosine of 20 unlike prompts: near 1 when a text tower is broken, below 0.9 when it is not."""
    tokens = processor(text=_UNLIKE_PROMPTS).to(model.device)
    embeds = model.get_text_features(**tokens).pooler_output
    cosines = embeds @ embeds.t()
    count = len(_UNLIKE_PROMPTS)
    return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))
