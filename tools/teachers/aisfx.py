"""aiSFX (Ma and Lerch, "Representation Learning for the Automatic Indexing of Sound Effects Libraries", ISMIR 2022):
a convolutional network trained on sound-effect libraries and their categories.

Its weights are in the PyPI package `aisfx` (code MIT, model CC BY 4.0). The package offers two spectrograms; this is
the one of librosa.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.audio_utils import mel_filter_bank

SAMPLING_RATE = 44_100  # Hz
MIN_SAMPLES = 2_048  # silence follows shorter clips
_FFT, _HOP, _BANDS = 2048, 1024, 96
_BLOCK = 100  # frames, about 2.3 s
_SCALE = 9.457798957824707  # the largest value of the authors' training data
_CONVOLUTIONS = 8


class AiSFX(nn.Module):
    """The embedding network.

    Args:
        weights: `models/checkpoint.pth` of the package `aisfx`.

    Raises:
        ValueError: If the file holds something else.
    """

    def __init__(self, weights: Path):
        super().__init__()
        # The file's table of data sets, which is not used, holds NumPy numbers.
        scalar = np.float64(0).__reduce__()[0]
        names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # the second since NumPy 2
        allowed: list[Any] = [np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
        allowed += [(scalar, name) for name in names]
        try:
            with torch.serialization.safe_globals(allowed):
                state, _ = torch.load(weights, map_location="cpu", weights_only=True)
            blocks = [f"embedding_net.conv_block{1 + k // 2}" for k in range(_CONVOLUTIONS)]
            for k, block in enumerate(blocks):
                part = 1 + k % 2
                norm = {
                    key: state[f"{block}.bn{part}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
                }
                scale = norm["weight"] / torch.sqrt(norm["running_var"] + nn.BatchNorm2d(1).eps)
                self.register_buffer(f"kernel{k}", state[f"{block}.conv{part}.weight"] * scale[:, None, None, None])
                self.register_buffer(f"bias{k}", norm["bias"] - norm["running_mean"] * scale)
        except (pickle.UnpicklingError, KeyError, TypeError, ValueError, RuntimeError, EOFError) as error:
            raise ValueError(f"{weights} is not the checkpoint of the package aisfx: {error}") from error
        filters = mel_filter_bank(_FFT // 2 + 1, _BANDS, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, mel_scale="htk")
        filters /= filters.sum(axis=0, keepdims=True).clip(min=1e-12)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)

    def log_mel(self, samples: torch.Tensor) -> torch.Tensor:
        """Blocks of the log-mel spectrogram, half of each in common with the next.

        Args:
            samples: One clip `[samples]` at 44,100 Hz, float32.

        Returns:
            `[blocks, 1, 100, 96]`, float32.
        """
        peak = samples.abs().max()
        samples = samples / peak if peak > 0 else samples
        stft = torch.stft(
            samples, _FFT, _HOP, window=torch.hann_window(_FFT), pad_mode="constant", return_complex=True
        )
        log_mel = (stft.abs().square().T @ self.get_buffer("filters") * 1e4 + 1).log10() / _SCALE
        blocks = 1 + max(0, len(log_mel) - _BLOCK) // (_BLOCK // 2)
        log_mel = F.pad(log_mel, (0, 0, 0, max(0, _BLOCK - len(log_mel))))
        return log_mel.unfold(0, _BLOCK, _BLOCK // 2)[:blocks].transpose(1, 2)[:, None]

    @torch.inference_mode()
    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Mean and maximum over blocks of the embeddings.

        Args:
            samples: One clip `[samples]` at 44,100 Hz, float32.

        Returns:
            `[1024]`, float32, non-negative.
        """
        hidden = self.log_mel(samples)
        for k in range(_CONVOLUTIONS):
            hidden = F.conv2d(hidden, self.get_buffer(f"kernel{k}"), self.get_buffer(f"bias{k}"), padding=1).relu()
            if k in (1, 3, 5):  # the last block pools by one, which changes nothing
                hidden = F.max_pool2d(hidden, 2)
        embeddings = hidden.mean(dim=3).amax(dim=2)
        return torch.cat([embeddings.mean(dim=0), embeddings.amax(dim=0)])
