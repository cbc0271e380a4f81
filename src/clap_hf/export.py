"""Export of both towers to ONNX, for runtimes without PyTorch, and for web pages.

The feature extractor stays outside: the audio graph begins at the log-mel, as the model does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from .atomic_io import replace_folder, write_json
from .calibration import FALSE_ALARMS, LOW, MIDDLE, RATES, Calibration
from .model.feature_extraction_msclap import MSClapFeatureExtractor
from .model.modeling_msclap import MSClapModel
from .model.processing_msclap import MSClapProcessor

AUDIO, TEXT = "audio", "text"
TOLERANCE = 1e-4  # largest difference of unit vectors that counts as equal, float32
CHECK_SEED = 0
# Axis of a weight's inputs: 8-bit weights keep a scale for every block along it, and for every row of an embedding
# table, whose rounding matters less.
INPUT_AXIS = {"MatMul": 0, "Gemm": 1, "Conv": 1, "Gather": 1}
BLOCK = 16  # weights of a scale
SMALLEST_QUANTIZED = 4096  # weights; smaller ones stay float32
OPSET = 21  # the first that dequantises by blocks


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


class _Graph(NamedTuple):
    """A tower and how to compare its graph with it."""

    name: str
    tower: nn.Module
    traced: dict[str, torch.Tensor]
    checked: dict[str, torch.Tensor]  # other numbers of rows and tokens than the graph is traced with


def _graphs(model: MSClapModel, processor: MSClapProcessor) -> Iterator[_Graph]:
    traced, checked = _inputs(model, processor, 2), _inputs(model, processor, 5)
    for name, tower in ((AUDIO, _AudioTower(model)), (TEXT, _TextTower(model))):
        yield _Graph(name, tower, traced[name], checked[name])


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Export to ONNX needs {error.name}: pip install 'clap-hf[onnx]'.") from error


def _logit_scale(model: MSClapModel) -> float:
    with torch.inference_mode():
        return float(model.compute_similarity(torch.eye(1, 2), torch.eye(1, 2)))  # clamped as the model does


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
        int8: Also write `audio_int8.onnx` and `text_int8.onnx`: weights of matrix products and embedding tables as
            8-bit integers with a scale for every output, activations quantised as they come. Smaller and for most
            texts faster, and not equal: read the differences.

    Returns:
        What `onnx.json` holds: `logit_scale`, and for every graph its size in bytes, the largest difference of an
        element and the lowest cosine to the model's vectors.

    Raises:
        ImportError: If the extra `onnx` is not installed.
        RuntimeError: If a float32 graph differs from the model by more than 1e-4.
    """
    _require_onnx()
    model = model.float().cpu().eval()
    report: dict[str, Any] = {"logit_scale": _logit_scale(model), "graphs": {}}

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        processor.save_pretrained(folder)
        for graph in _graphs(model, processor):
            path = folder / f"{graph.name}.onnx"
            report["graphs"][path.name] = _export(graph, path)
            if int8:
                target = folder / f"{graph.name}_int8.onnx"
                _quantize_dynamic(path, target)
                report["graphs"][target.name] = _compare(graph, target)
        write_json(folder / "onnx.json", report)

    replace_folder(output_dir, write)
    return report


def export_web(
    model: MSClapModel, processor: MSClapProcessor, output_dir: Path, calibration: Calibration | None = None
) -> dict[str, Any]:
    """Write what the page in `web/` downloads: both towers with 8-bit weights, the tokenizer, and the front end.

    The graphs' inputs and outputs are those of `export_onnx`. Their weights are 8-bit integers with a scale for every
    block of them; activations are float32, so that the vectors stay close to the model's.

    Args:
        model: The model.
        processor: Its processor; `n_fft` of its feature extractor must be a power of two.
        output_dir: The folder to write: `audio.onnx`, `text.onnx`, `tokenizer.json`, `tokenizer_config.json` and
            `model.json`, whose keys are those of `front_end` and `text_limits`, `logit_scale`, and `graphs`, as of
            `export_onnx`.
        calibration: Of the model, for "none of these"; its vectors go to `calibration.bin`, little-endian float32, its
            numbers to `model.json`.

    Returns:
        What `model.json` holds.

    Raises:
        ImportError: If the extra `onnx` is not installed.
        RuntimeError: If a float32 graph differs from the model by more than 1e-4.
        ValueError: If `n_fft` is no power of two.
    """
    _require_onnx()
    model = model.float().cpu().eval()
    report = front_end(processor.feature_extractor) | text_limits(processor.tokenizer)
    report |= {"logit_scale": _logit_scale(model), "graphs": {}}
    if calibration is not None:
        report["calibration"] = calibration_numbers(calibration)

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        processor.tokenizer.save_pretrained(folder)
        if calibration is not None:
            vectors = np.concatenate([calibration.sounds, calibration.texts])
            (folder / "calibration.bin").write_bytes(vectors.astype("<f4").tobytes())
        with TemporaryDirectory() as float32:
            for graph in _graphs(model, processor):
                source, target = Path(float32) / f"{graph.name}.onnx", folder / f"{graph.name}.onnx"
                _export(graph, source)
                _quantize_weights(source, target)
                report["graphs"][target.name] = _compare(graph, target)
        write_json(folder / "model.json", report)

    replace_folder(output_dir, write)
    return report


def calibration_numbers(calibration: Calibration) -> dict[str, Any]:
    """Numbers of a calibration, for an implementation in another language.

    Args:
        calibration: The calibration.

    Returns:
        How many background `sounds` and `texts` its vectors are, its `weights` and `thresholds`, the `rates` of these,
        the quantiles `low` and `middle` of standardised scores, and `false_alarms`, the rate of "none of these".
    """
    return {
        "sounds": len(calibration.sounds),
        "texts": len(calibration.texts),
        "low": LOW,
        "middle": MIDDLE,
        "weights": calibration.weights.tolist(),
        "rates": RATES.tolist(),
        "thresholds": calibration.thresholds.tolist(),
        "false_alarms": FALSE_ALARMS,
    }


def front_end(extractor: MSClapFeatureExtractor) -> dict[str, Any]:
    """Settings of the log-mel, for an implementation in another language.

    Args:
        extractor: The feature extractor of the model.

    Returns:
        `sampling_rate` (Hz), `window_samples`, `n_fft` and `hop_length` (samples), `short_audio`, and `mel_filters`:
        for every mel band its first bin of the spectrum and the weights of that bin and the following ones.

    Raises:
        ValueError: If `n_fft` is no power of two.
    """
    if extractor.n_fft & (extractor.n_fft - 1):
        raise ValueError(f"n_fft is {extractor.n_fft}, expected a power of two: the page has no other transform.")
    filters = []
    for weights in extractor.mel_filters.T:
        used = np.flatnonzero(weights)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, -1)
        filters.append({"first": first, "weights": [float(weight) for weight in weights[first : last + 1]]})
    return {
        "sampling_rate": extractor.sampling_rate,
        "window_samples": extractor.window_samples,
        "n_fft": extractor.n_fft,
        "hop_length": extractor.hop_length,
        "short_audio": extractor.short_audio,
        "mel_filters": filters,
    }


def text_limits(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """How texts are cut, for tokenizers that do not do it.

    Args:
        tokenizer: The tokenizer of the model.

    Returns:
        `max_tokens`, the longest text with its special tokens, and `end_ids`, the tokens that end every text.
    """
    one, other = (list(reversed(tokenizer(text)["input_ids"])) for text in ("a", "the"))
    same = [left == right for left, right in zip(one, other, strict=False)]
    ends = same.index(False) if False in same else len(same)
    return {"max_tokens": tokenizer.model_max_length, "end_ids": one[:ends][::-1]}


def _export(graph: _Graph, path: Path) -> dict[str, Any]:
    """Write a tower in float32 and refuse a graph that differs from it."""
    windows, texts, tokens = (torch.export.Dim(name) for name in ("windows", "texts", "tokens"))
    shapes: dict[str, Any] = {
        AUDIO: {"input_features": {0: windows}},
        TEXT: {"input_ids": {0: texts, 1: tokens}, "attention_mask": {0: texts, 1: tokens}},
    }
    with torch.inference_mode(), warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        program = torch.onnx.export(
            graph.tower,
            tuple(graph.traced.values()),
            dynamo=True,
            dynamic_shapes=shapes[graph.name],
            input_names=list(graph.traced),
            output_names=[f"{graph.name}_embeds"],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    found = _compare(graph, path)
    if not found["largest_difference"] <= TOLERANCE:
        raise RuntimeError(
            f"{path.name} differs from the model by {found['largest_difference']:.2g}, expected at most {TOLERANCE}. "
            "Nothing was kept; try other versions of torch and onnxscript."
        )
    return found


def _compare(graph: _Graph, path: Path) -> dict[str, Any]:
    """Size of a file in bytes, and how far its vectors are from the tower's."""
    import onnxruntime

    with torch.inference_mode():
        expected = graph.tower(**graph.checked).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in graph.checked.items()})[0]
    return {
        "bytes": path.stat().st_size,
        "largest_difference": float(np.abs(found - expected).max()),
        "lowest_cosine": float((found * expected).sum(axis=1).min()),
    }


def _quantize_dynamic(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
    )


def _quantize_weights(source: Path, target: Path) -> None:
    """Store weights as 8-bit integers, with a scale for every block of them; all computation stays float32."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    users = {name: node.op_type for node in model.graph.node for name in node.input}
    nodes = []
    for weight in list(model.graph.initializer):
        values = numpy_helper.to_array(weight)
        axis = INPUT_AXIS.get(users[weight.name])
        if axis is None or values.dtype != np.float32 or values.ndim < 2 or values.size < SMALLEST_QUANTIZED:
            continue
        if values.shape[axis] % BLOCK:
            continue
        blocks = np.moveaxis(values, axis, -1).reshape(-1, BLOCK)
        scales = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
        moved = np.moveaxis(values, axis, -1).shape
        integers = np.moveaxis(np.round(blocks / scales).astype(np.int8).reshape(moved), -1, axis)
        scales = np.moveaxis(scales.reshape(*moved[:-1], -1), -1, axis)
        names = [f"{weight.name}_int8", f"{weight.name}_scales"]
        model.graph.initializer.remove(weight)
        model.graph.initializer.append(numpy_helper.from_array(integers, names[0]))
        model.graph.initializer.append(numpy_helper.from_array(scales, names[1]))
        nodes.append(helper.make_node("DequantizeLinear", names, [weight.name], axis=axis, block_size=BLOCK))
    for node in nodes:
        model.graph.node.insert(0, node)
    onnx.save(model, target)
