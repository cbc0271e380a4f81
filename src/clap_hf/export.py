"""Export of both towers to ONNX, for runtimes without PyTorch.

The feature extractor stays outside: the audio graph begins at the log-mel, as the model does.
"""

from __future__ import annotations

import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .atomic_io import replace_folder, write_json
from .model.modeling_msclap import MSClapModel
from .model.processing_msclap import MSClapProcessor

AUDIO, TEXT = "audio", "text"
TOLERANCE = 1e-4  # largest difference of unit vectors that counts as equal, float32
CHECK_SEED = 0


class _AudioTower(nn.Module):
    def __init__(self, model: MSClapModel):
        super().__init__()
        self.model = model

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        return self.model.get_audio_features(input_features).pooler_output


class _TextTower(nn.Module):
    def __init__(self, model: MSClapModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


def _inputs(model: MSClapModel, processor: MSClapProcessor, rows: int) -> dict[str, dict[str, torch.Tensor]]:
    """Inputs of each tower: noise at the level of recordings, and texts of several lengths."""
    extractor = processor.feature_extractor
    frames = 1 + extractor.window_samples // extractor.hop_length
    noise = torch.randn(rows, 1, frames, extractor.feature_size, generator=torch.Generator().manual_seed(CHECK_SEED))
    tokens = processor(text=[" and ".join(["a dog barking"] * (row % 3 + 1)) for row in range(rows)])
    return {
        AUDIO: {"input_features": noise * 10 - 40},
        TEXT: {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]},
    }


def export_onnx(
    model: MSClapModel, processor: MSClapProcessor, output_dir: Path, *, int8: bool = False
) -> dict[str, Any]:
    """Write `audio.onnx` and `text.onnx`, compare them with the model, and report how far they differ.

    The audio graph takes `input_features` `[windows, 1, frames, mel]` (dB) and gives `audio_embeds`
    `[windows, projection_dim]`; the text graph takes `input_ids` and `attention_mask` `[texts, tokens]` and gives
    `text_embeds` `[texts, projection_dim]`; all are unit vectors. Windows, texts and tokens may be any number. The
    vector of a clip of several windows is the normalised mean of its windows' vectors; similarity is their dot product
    times `logit_scale` of `onnx.json`.

    Args:
        model: The model; exported in float32.
        processor: Its processor, saved beside the graphs.
        output_dir: The folder to write.
        int8: Also write `audio_int8.onnx` and `text_int8.onnx`: weights of matrix products as 8-bit integers,
            activations quantised as they come. Smaller, and not equal: read the differences.

    Returns:
        What `onnx.json` holds: `logit_scale`, and for every graph its size in bytes, the largest difference of an
        element and the lowest cosine to the model's vectors.

    Raises:
        ImportError: If the extra `onnx` is not installed.
        RuntimeError: If a float32 graph differs from the model by more than 1e-4.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Export to ONNX needs {error.name}: pip install 'clap-hf[onnx]'.") from error
    model = model.float().cpu().eval()
    towers = {AUDIO: _AudioTower(model), TEXT: _TextTower(model)}
    outputs = {AUDIO: "audio_embeds", TEXT: "text_embeds"}
    windows, texts, tokens = (torch.export.Dim(name) for name in ("windows", "texts", "tokens"))
    shapes = {
        AUDIO: {"input_features": {0: windows}},
        TEXT: {"input_ids": {0: texts, 1: tokens}, "attention_mask": {0: texts, 1: tokens}},
    }
    with torch.inference_mode():
        scale = float(model.compute_similarity(torch.eye(1, 2), torch.eye(1, 2)))  # clamped as the model does
    report: dict[str, Any] = {"logit_scale": scale, "graphs": {}}

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        processor.save_pretrained(folder)
        # Other numbers of rows and tokens than the graphs are traced with.
        traced, checked = _inputs(model, processor, 2), _inputs(model, processor, 5)
        for name, tower in towers.items():
            path = folder / f"{name}.onnx"
            _export(tower, traced[name], shapes[name], outputs[name], path)
            paths = [path]
            if int8:
                paths.append(folder / f"{name}_int8.onnx")
                _quantize(path, paths[1])
            with torch.inference_mode():
                expected = tower(**checked[name]).numpy()
            feed = {key: value.numpy() for key, value in checked[name].items()}
            for graph in paths:
                session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
                found = session.run(None, feed)[0]
                report["graphs"][graph.name] = {
                    "bytes": graph.stat().st_size,
                    "largest_difference": float(np.abs(found - expected).max()),
                    "lowest_cosine": float((found * expected).sum(axis=1).min()),
                }
            difference = report["graphs"][path.name]["largest_difference"]
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"{path.name} differs from the model by {difference:.2g}, expected at most {TOLERANCE}. "
                    "Nothing was kept; try other versions of torch and onnxscript."
                )
        write_json(folder / "onnx.json", report)

    replace_folder(output_dir, write)
    return report


def _export(
    tower: nn.Module, inputs: dict[str, torch.Tensor], shapes: dict[str, Any], output: str, path: Path
) -> None:
    with torch.inference_mode(), warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        program = torch.onnx.export(
            tower,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=[output],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
