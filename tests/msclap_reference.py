"""PyPI `msclap` 1.3.4 beside current libraries and without the Hub: random seeded weights in the official file format.

msclap is written for older libraries. What it needs is put in place inside its own modules only, while it builds a
model: text towers from their configuration in place of a download, local vocabularies, `encode_plus` (gone from
transformers 5), and soundfile in place of `torchaudio.load` (which needs torchcodec by now).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import soundfile
import torch
import yaml
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

import clap_hf  # noqa: F401  makes a torchaudio built for another torch importable, which msclap needs

try:
    with warnings.catch_warnings():  # msclap silences all warnings, and transformers, for the whole process
        verbosity = logging.get_verbosity()
        import msclap.CLAPWrapper as wrapper_module
        import msclap.models.clap as clap_module
        from msclap.models import audio as audio_module
        from msclap.models import config as htsat_settings
        from msclap.models import mapper as mapper_module
        from msclap.models.htsat import HTSAT_Swin_Transformer

        logging.set_verbosity(verbosity)
except ImportError as error:
    raise ImportError(
        "The parity tests compare with msclap, which does not import. Install it beside the 'test' extra: "
        "pip install --no-deps -r requirements-parity.txt"
    ) from error

EXAMPLES = Path(__file__).parent.parent / "examples"
TOKENIZERS = Path(__file__).parent / "tokenizers"
VERSIONS = {"2022": "bert-base-uncased", "2023": "gpt2", "clapcap": "gpt2"}
TOKENIZER = {version: TOKENIZERS / name for version, name in VERSIONS.items()}
STYLES = ("current", "hub")
STOP = 220  # the lone space, where msclap's captions end

TEXT_CONFIGS = {"bert-base-uncased": BertConfig(), "gpt2": GPT2Config()}
SMALL_TEXT_CONFIGS = {
    "bert-base-uncased": BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=192, max_position_embeddings=128
    ),
    "gpt2": GPT2Config(n_embd=128, n_layer=2, n_head=2, n_inner=192, n_positions=128),
}
SMALL_CNN14_CHANNELS = (8, 16, 16, 32, 32, 64)


class SmallHtsat(nn.Module):
    """msclap's `HTSATWrapper` with other sizes than its fixed ones."""

    def __init__(self, *_: Any):
        super().__init__()
        self.htsat = HTSAT_Swin_Transformer(
            config=htsat_settings, embed_dim=16, depths=[1, 2, 2, 1], num_heads=[2, 2, 4, 8], mlp_ratio=2.0
        )

    def forward(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.htsat(waveforms)
        return outputs | {"embedding": outputs["latent_output"]}


def small_cnn14(*settings: Any) -> nn.Module:
    """msclap's `Cnn14` with fewer channels than its fixed ones."""
    with mock.patch.object(audio_module, "ConvBlock", lambda **_: nn.Identity()):
        tower = audio_module.Cnn14(*settings)
    channels = (1, *SMALL_CNN14_CHANNELS)
    for i in range(6):
        setattr(tower, f"conv_block{i + 1}", audio_module.ConvBlock(channels[i], channels[i + 1]))
    tower.fc1 = nn.Linear(channels[-1], settings[-1])
    return tower


def load_with_soundfile(path: str | Path) -> tuple[torch.Tensor, int]:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


wrapper_module.torchaudio = SimpleNamespace(load=load_with_soundfile)


def local_tokenizer(name: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / name)
    tokenizer.encode_plus = tokenizer.__call__
    return tokenizer


@contextmanager
def shims(small: bool) -> Iterator[None]:
    """What msclap needs to build and load a model here."""
    configs = SMALL_TEXT_CONFIGS if small else TEXT_CONFIGS
    with ExitStack() as stack:
        put = lambda module, **names: stack.enter_context(mock.patch.multiple(module, **names))  # noqa: E731
        put(clap_module, AutoModel=SimpleNamespace(from_pretrained=lambda name: AutoModel.from_config(configs[name])))
        language_model = SimpleNamespace(from_pretrained=lambda name: GPT2LMHeadModel(configs[name]))
        put(mapper_module, GPT2LMHeadModel=language_model)
        put(wrapper_module, AutoTokenizer=SimpleNamespace(from_pretrained=local_tokenizer))
        if small:
            towers = {"HTSAT": SmallHtsat, "Cnn14": small_cnn14}
            put(clap_module, get_audio_encoder=towers.__getitem__)
            put(wrapper_module, CLAP=lambda **settings: clap_module.CLAP(**settings | small_sizes(settings)))
            put(wrapper_module, get_clapcap=lambda name: small_captioner)
        yield


def small_sizes(settings: dict[str, Any]) -> dict[str, int]:
    tower = SMALL_CNN14_CHANNELS[-1] if settings["audioenc_name"] == "Cnn14" else 128
    return {"out_emb": tower, "transformer_embed_dim": 128, "d_proj": 96}


def small_captioner(clap: nn.Module, text_decoder: str, *settings: Any) -> nn.Module:
    """msclap's captioner of the small parts, with a prefix of 6 vectors and 2 layers in the mapper."""
    return mapper_module.ClapCaptionModel(clap, text_decoder, 6, 4, 96, 2, mapping_type="transformer")


def random_clap(version: str, seed: int, small: bool = False) -> nn.Module:
    """msclap's model of `version` with seeded random weights, lively enough that every one of them matters."""
    config = (Path(wrapper_module.__file__).parent / "configs" / f"config_{version}.yml").read_text()
    settings = yaml.safe_load(config)
    names = "audioenc_name window_size mel_bins fmin fmax out_emb text_model transformer_embed_dim d_proj".split()
    torch.manual_seed(seed)
    with shims(small):
        # Looked up in the wrapper's module, where the shims put the small one.
        clap = wrapper_module.CLAP(
            **{name: settings[name] for name in names},
            sample_rate=settings["sampling_rate"],
            hop_size=settings["hop_size"],
            classes_num=settings["num_classes"],
        )
    randomise(clap.eval())
    calibrate(clap.audio_encoder.base)
    return clap


def random_captioner(seed: int, small: bool = False, stop_gain: float = 1.0) -> nn.Module:
    """msclap's captioner with seeded random weights, lively enough that captions depend on the clip.

    Args:
        seed: Source of the weights.
        small: Whether its parts are small.
        stop_gain: Factor on the end mark's logits: from about 4, some captions end early.
    """
    clap = random_clap("2023", seed, small)
    with shims(small):
        captioner = wrapper_module.get_clapcap("ClapCaption")(
            clap, "gpt2", 40, 40, 1024, 8, True, "transformer", True, True
        )
    with torch.no_grad():
        for name, weight in captioner.named_parameters():
            if name.startswith(("clap.", "gpt.lm_head")):
                continue
            noise = torch.randn_like(weight)
            if weight.ndim == 1:
                weight.add_(0.1 * noise)
            elif name == "clap_project.linear.weight":
                weight.mul_(200.0 if small else 30.0)
            elif name.startswith("gpt.transformer.h."):
                weight.mul_(12.0 if small else 4.0)
        captioner.gpt.transformer.wte.weight[STOP] *= stop_gain
    return captioner.eval()


@torch.no_grad()
def randomise(clap: nn.Module) -> None:
    """Spread the weights, biases, gains and bias tables that fresh models start at 0, 1 or nearly 0."""
    clap.logit_scale.fill_(3.5)
    for name, weight in clap.named_parameters():
        noise = torch.randn_like(weight)
        if not weight.requires_grad or name == "logit_scale":  # the front end's constants
            continue
        if name.endswith("relative_position_bias_table"):
            weight.copy_(0.5 * noise)
        elif weight.ndim == 1:
            weight.add_(0.1 * noise)
        elif name.startswith("audio_encoder.base"):
            weight.copy_(noise * weight[0].numel() ** -0.5)
        elif name.startswith("caption_encoder.base") and "embed" not in name:
            weight.mul_(6.0)


@torch.no_grad()
def calibrate(audio_tower: nn.Module) -> None:
    """Set the batch norms' statistics from real recordings, as training would have."""
    names = ("bird.wav", "chainsaw.flac", "fire.ogg", "speech.wav", "stream.ogg", "dog.ogg")
    clips = [load_with_soundfile(EXAMPLES / name)[0][0] for name in names]
    waveforms = torch.stack([clip.repeat(220_500 // len(clip) + 1)[:220_500] for clip in clips])
    norms = [module for module in audio_tower.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average, of one batch here
        norm.train()
    audio_tower(waveforms)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def official_state(clap: nn.Module, version: str, style: str) -> dict[str, torch.Tensor]:
    """The state dict as an official file holds it.

    Args:
        clap: msclap's model.
        version: `"2022"`, `"2023"` or `"clapcap"`.
        style: `"current"`: the keys that current libraries write; `"hub"`: with the buffers of the older transformers
            that the published files were written with, and for 2023 every tensor float32, as published.
    """
    state = dict(clap.state_dict())
    if style == "current":
        return state
    if version == "2022":
        positions = state["caption_encoder.base.embeddings.position_embeddings.weight"].shape[0]
        return state | {"caption_encoder.base.embeddings.position_ids": torch.arange(positions)[None]}
    gpt2 = "gpt.transformer" if version == "clapcap" else "caption_encoder.base"
    positions = state[f"{gpt2}.wpe.weight"].shape[0]
    for layer in range(len(clap.get_submodule(gpt2).h)):
        prefix = f"{gpt2}.h.{layer}.attn"
        state[f"{prefix}.bias"] = torch.ones(positions, positions, dtype=torch.uint8).tril()[None, None]
        state[f"{prefix}.masked_bias"] = torch.tensor(-1e4)
    return {name: value.float() for name, value in state.items()}


def reference_wrapper(checkpoint: Path, version: str, small: bool = False) -> Any:
    """`msclap.CLAPWrapper` on the CPU, loaded from an official file as its users load it."""
    with warnings.catch_warnings(), shims(small):
        wrapper = wrapper_module.CLAPWrapper(model_fp=checkpoint, version=version, use_cuda=False)
    # It loads with strict=False: without this, a checkpoint that does not fit would go unnoticed.
    saved = torch.load(checkpoint, weights_only=True)["model"]
    loaded = wrapper.clapcap if version == "clapcap" else wrapper.clap
    assert all(bool((value == saved[name]).all()) for name, value in loaded.state_dict().items())
    if version == "clapcap":
        wrapper.args.prefix_length = loaded.prefix_length  # the small one's
    return wrapper


def caption_tokens(wrapper: Any, files: list[Path], beam_size: int = 5, entry_length: int = 67) -> list[list[int]]:
    """Token ids that `generate_caption` decodes for each file; the end mark is the last, if it came."""
    with mock.patch.object(wrapper.tokenizer, "decode", lambda ids: " ".join(map(str, ids))):
        captions = wrapper.generate_caption(files, beam_size=beam_size, entry_length=entry_length)
    return [[int(token) for token in caption.split()] for caption in captions]
