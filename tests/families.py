"""Tiny random models of other families, saved as their libraries save them."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PeAudioConfig,
    PeAudioFeatureExtractor,
    PeAudioFrameLevelModel,
    PeAudioModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.pe_audio.processing_pe_audio import PeAudioProcessor

from tokenizers import Tokenizer, models, pre_tokenizers

RATE = 16_000
NAMES = ("laion", "laion-fused", "pe-audio", "pe-frames", "sentence-transformers")


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Larger weights than usual, so that inputs make a difference."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
            elif name.endswith("text_audio_logit_scale"):
                parameter.fill_(10.0)
    return model.eval()


def laion(fused: bool, rate: int = RATE, window_s: int = 1) -> tuple[PreTrainedModel, ClapFeatureExtractor]:
    """LAION's CLAP, 100 frames a window."""
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    audio = {
        **{"spec_size": 128, "patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": [1, 1], "window_size": 4},
        **{"num_attention_heads": [2, 2], "num_hidden_layers": 2, "enable_fusion": fused, "num_mel_bins": 64},
        **{"enable_patch_layer_norm": True, "fusion_type": "aff_2d" if fused else None, "fusion_num_hidden_layers": 1},
    }
    text |= {"vocab_size": 300, "max_position_embeddings": 130, "pad_token_id": 1}
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=24)
    truncation = "fusion" if fused else "rand_trunc"
    extractor = ClapFeatureExtractor(
        sampling_rate=rate,
        max_length_s=window_s,
        hop_length=rate * window_s // 100,
        frequency_max=8_000,
        truncation=truncation,
    )
    return ClapModel(config), extractor


def pe_audio(cls: type[PreTrainedModel]) -> tuple[PreTrainedModel, PeAudioFeatureExtractor]:
    """PE-A or PE-A-Frame, a vector every 80 samples."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    dac = {"encoder_hidden_size": 4, "downsampling_ratios": [8, 10], "codebook_dim": 16, "hidden_size": 16}
    audio = {**text, "head_dim": 16, "dac_config": dac}
    text |= {"vocab_size": 300, "max_position_embeddings": 128, "pad_token_id": 0}
    config = PeAudioConfig(text_config=text, audio_config=audio)
    return cls(config), PeAudioFeatureExtractor(sampling_rate=RATE, hop_length=80)


def byte_tokenizer(pad_id: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i + 4 for i, letter in enumerate(letters)} | {"<pad>": pad_id, "<unk>": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=77
    )


def save_family(name: str, folder: Path, **front_end: int) -> Path:
    """Save a tiny model.

    Args:
        name: One of `NAMES`.
        folder: Where to.
        front_end: Arguments of `laion`.
    """
    torch.manual_seed(0)
    words = byte_tokenizer(0 if name.startswith("pe") else 1)
    if name.startswith("pe"):
        model, extractor = pe_audio(PeAudioFrameLevelModel if name == "pe-frames" else PeAudioModel)
        processor = PeAudioProcessor(extractor, words)
    else:
        model, extractor = laion(fused=name == "laion-fused", **front_end)
        processor = ClapProcessor(extractor, words)
    randomised(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    if name == "sentence-transformers":
        SentenceTransformer(str(folder), device="cpu").save(str(folder / "saved"))
        return folder / "saved"
    return folder
