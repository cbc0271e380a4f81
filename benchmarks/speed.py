#!/usr/bin/env python
"""Speed side by side, in one process: this package, PyPI `msclap` with the same weights, transformers' LAION CLAP.

    python benchmarks/speed.py                       everything, into benchmarks/results.json and speed.png
    python benchmarks/speed.py --only audio text     some parts, merged into what is there

Needs `msclap` as the parity tests do: pip install --no-deps -r requirements-parity.txt
"""

from __future__ import annotations

from peers import (
    LAION_RATE,
    LAION_S,
    RATE,
    ROOT,
    WINDOW_S,
    Peers,
    build,
    in_bfloat16,
    labels,
    waveforms,
    write_files,
)  # first

# isort: split

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import onnxruntime
import torch
import torch.nn.functional as F
from harness import SQUARE_GFLOP, in_new_process, large_squares, machine, peak_memory, spread, take_turns, timed
from report import RESULTS, draw, table
from torch._inductor import config as inductor_config
from torch._inductor.utils import fresh_cache
from torch.profiler import profile

from clap_hf import embed_files
from clap_hf.atomic_io import write_json
from clap_hf.embedding import embed_texts
from clap_hf.export import export_onnx

KINDS = {
    "matrix products": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "window attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "GELU": ("aten::gelu",),
    "layer norm": ("aten::native_layer_norm",),
    "copies": ("aten::copy_", "aten::index_select", "aten::cat"),
}
VERSIONS = ("clap-hf", "torch", "transformers", "msclap", "numpy", "soundfile")


def row(name: str, unit: str, per: float, timings: dict[str, Any]) -> dict[str, Any]:
    """A comparison: what one of `unit` costs, of which a call has `per`."""
    return {"name": name, "unit": unit, "per_call": per, "timings": timings}


def shares_of_time(model: Any, features: torch.Tensor) -> dict[str, float]:
    """Which kinds of operations the audio tower's time goes to."""
    model.get_audio_features(features)
    with profile() as found:
        model.get_audio_features(features)
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    shares = {kind: sum(t for key, t in times.items() if key in keys) for kind, keys in KINDS.items()}
    return {kind: time / sum(times.values()) for kind, time in shares.items()}


def front_end(peers: Peers, seconds: float) -> dict[str, Any]:
    """Waveform to log-mel, and how far the two log-mels are apart."""
    extractor, htsat = peers.processor.feature_extractor, peers.msclap.clap.audio_encoder.base.htsat
    rows = []
    for batch in (1, 32):
        clips, laion_clips = waveforms(batch, WINDOW_S, RATE), waveforms(batch, LAION_S, LAION_RATE)
        ours, theirs = list(clips), [clip.numpy() for clip in laion_clips]
        candidates = {
            "ours": lambda ours=ours: extractor(ours, RATE),
            "msclap": lambda clips=clips: htsat.logmel_extractor(htsat.spectrogram_extractor(clips)),
        }
        rows.append(row(f"front end, batch {batch}", "clip of 7 s", batch, take_turns(candidates, seconds)))
        timings = take_turns(
            {
                "ours": candidates["ours"],
                "laion": lambda theirs=theirs: peers.laion_extractor(theirs, sampling_rate=LAION_RATE),
            },
            seconds,
        )
        timings["laion"]["ratio"] = {
            name: value * WINDOW_S / LAION_S for name, value in timings["laion"]["ratio"].items()
        }
        timings["laion"]["per_call"] = batch * LAION_S
        rows.append(row(f"front end, batch {batch}", "second of sound", batch * WINDOW_S, timings))
    return {"rows": rows}


def audio(peers: Peers, seconds: float) -> dict[str, Any]:
    """Waveform to embedding."""
    small = in_bfloat16(peers.model)
    extractor, encoder = peers.processor.feature_extractor, peers.msclap.clap.audio_encoder
    extracted = peers.laion_extractor(list(waveforms(32, LAION_S, LAION_RATE).numpy()), sampling_rate=LAION_RATE)
    laion_features = torch.as_tensor(extracted["input_features"])
    rows = []
    for batch in (1, 8, 32):
        clips = waveforms(batch, WINDOW_S, RATE)
        candidates: dict[str, Callable[[], Any]] = {
            "ours": lambda clips=clips: peers.embed(peers.model, clips),
            "ours, plain": lambda clips=clips: peers.embed(peers.plain, clips),
            **(large_squares() if batch == 32 else {}),
            "ours, bfloat16": lambda clips=clips: peers.embed(small, clips),
            "msclap": lambda clips=clips: encoder(clips)[0],
        }
        rows.append(row(f"audio embedding, batch {batch}", "clip of 7 s", batch, take_turns(candidates, seconds)))
    laion = {
        "ours": lambda: peers.model.get_audio_features(
            extractor(list(waveforms(8, WINDOW_S, RATE)), RATE)["input_features"].flatten(0, 1)
        ),
        "laion": lambda: peers.laion.get_audio_features(
            input_features=laion_features[:8], is_longer=torch.zeros(8, 1, dtype=torch.bool)
        ),
    }
    timings = take_turns(laion, seconds)
    rows.append(row("audio embedding, batch 8; LAION's without front end", "clip of 7 or 10 s", 8, timings))
    clips = waveforms(10, WINDOW_S, RATE)
    features = extractor(list(clips), RATE)
    ours = peers.model.get_audio_features(**features).pooler_output
    drift = F.cosine_similarity(small.get_audio_features(**features).pooler_output, ours)
    difference = float((F.normalize(encoder(clips)[0], dim=-1) - ours).abs().max())
    return {
        "rows": rows,
        "equal": {"audio": difference},
        "lowest_cosine": {"audio, bfloat16": float(drift.min())},
    }


def operations(peers: Peers, seconds: float) -> dict[str, Any]:
    """What the audio tower's time goes to."""
    clips = waveforms(4, WINDOW_S, RATE)
    features = peers.processor.feature_extractor(list(clips), RATE)["input_features"].flatten(0, 1)
    models = {"float32": peers.model, "float32, plain": peers.plain, "bfloat16": in_bfloat16(peers.model)}
    return {"shares": {name: shares_of_time(model, features) for name, model in models.items()}}


def compiled(peers: Peers, seconds: float) -> dict[str, Any]:
    """Waveform to embedding, the tower by `torch.compile` with its weights frozen, and what the warm-up takes."""
    fast, small = copy.deepcopy(peers.plain), in_bfloat16(peers.model)
    extractor = peers.processor.feature_extractor
    clips = waveforms(32, WINDOW_S, RATE)
    features = extractor(list(clips), RATE)["input_features"].flatten(0, 1)
    eager = peers.model.get_audio_features(features).pooler_output
    warm = {}
    # What an earlier run compiled would hide the warm-up. Frozen as TORCHINDUCTOR_FREEZING=1 does it.
    with fresh_cache(), inductor_config.patch(freezing=True):
        for name, model in (("ours, compiled", fast), ("ours, bfloat16, compiled", small)):
            model.audio_model.compile(dynamic=False)
            warm[name] = timed(lambda model=model: model.get_audio_features(features))
    difference = float((fast.get_audio_features(features).pooler_output - eager).abs().max())
    candidates: dict[str, Callable[[], Any]] = {
        "ours": lambda: peers.embed(peers.model, clips),
        "ours, compiled": lambda: peers.embed(fast, clips),
        **large_squares(),
        "ours, bfloat16, compiled": lambda: peers.embed(small, clips),
        "msclap": lambda: peers.msclap.clap.audio_encoder(clips)[0],
    }
    rows = [row("audio embedding, batch 32, beside compiled", "clip of 7 s", 32, take_turns(candidates, seconds))]
    return {"rows": rows, "warm_up_s": warm, "equal": {"audio, compiled, to eager": difference}}


def text(peers: Peers, seconds: float) -> dict[str, Any]:
    """Prompts to embeddings; msclap pads each to 77 tokens."""
    small, tokenizer, rows = in_bfloat16(peers.model), peers.processor.tokenizer, []
    for count in (50, 1000):
        texts = labels(count)
        candidates: dict[str, Callable[[], Any]] = {
            "ours": lambda texts=texts: embed_texts(peers.model, tokenizer, texts),
            "ours, bfloat16": lambda texts=texts: embed_texts(small, tokenizer, texts),
        }
        if count == 50:
            candidates["msclap"] = lambda texts=texts: peers.msclap.get_text_embeddings(texts)
            tokens = tokenizer(texts, padding=True, return_tensors="pt")
            ids = tokens["input_ids"].clamp(3)
            candidates["laion"] = lambda ids=ids, mask=tokens["attention_mask"]: peers.laion.get_text_features(
                input_ids=ids, attention_mask=mask
            )
        timings = take_turns(candidates, seconds, rounds=3 if count == 50 else 1)
        rows.append(row(f"text embedding, {count:,} labels", "label", count, timings))
    texts = labels(50)
    ours = embed_texts(peers.model, tokenizer, texts)
    drift = F.cosine_similarity(embed_texts(small, tokenizer, texts), ours)
    difference = float((F.normalize(peers.msclap.get_text_embeddings(texts), dim=-1) - ours).abs().max())
    return {"rows": rows, "equal": {"text": difference}, "lowest_cosine": {"text, bfloat16": float(drift.min())}}


def files(peers: Peers, seconds: float) -> dict[str, Any]:
    """From WAV, FLAC and MP3 files to embeddings: decoding, resampling, log-mel and model; msclap 8 files a call."""
    small = in_bfloat16(peers.model)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), 24)
        chunks = [paths[i : i + 8] for i in range(0, len(paths), 8)]
        candidates: dict[str, Callable[[], Any]] = {
            "ours": lambda: embed_files(peers.model, peers.processor, paths),
            "ours, bfloat16": lambda: embed_files(small, peers.processor, paths),
            "msclap": lambda: [peers.msclap.get_audio_embeddings(chunk, resample=True) for chunk in chunks],
        }
        timings = take_turns(candidates, seconds)
    return {"rows": [row("files to embeddings", "file", 24, timings)]}


def onnx(peers: Peers, seconds: float) -> dict[str, Any]:
    """Both towers in onnxruntime, in float32 and with 8-bit weights, beside PyTorch."""
    extractor, tokenizer = peers.processor.feature_extractor, peers.processor.tokenizer
    features = extractor(list(waveforms(8, WINDOW_S, RATE)), RATE)["input_features"].flatten(0, 1)
    tokens = tokenizer(labels(50), padding=True, return_tensors="pt")
    towers: dict[str, tuple[int, str, dict[str, torch.Tensor], Callable[[], Any]]] = {
        "audio tower, batch 8": (
            8,
            "audio",
            {"input_features": features},
            lambda: peers.model.get_audio_features(features),
        ),
        "text tower, 50 labels": (50, "text", dict(tokens), lambda: peers.model.get_text_features(**tokens)),
    }
    rows, cosine, equal = [], {}, {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        export_onnx(copy.deepcopy(peers.model), peers.processor, Path(folder) / "onnx", int8=True)
        for title, (count, name, inputs, ours) in towers.items():
            feed = {key: value.numpy() for key, value in inputs.items()}
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            sessions = {
                kind: onnxruntime.InferenceSession(
                    Path(folder) / "onnx" / file, options, providers=["CPUExecutionProvider"]
                )
                for kind, file in (("ONNX", f"{name}.onnx"), ("ONNX, 8 bits", f"{name}_int8.onnx"))
            }
            candidates: dict[str, Callable[[], Any]] = {"ours": torch.inference_mode()(ours)}
            expected = candidates["ours"]().pooler_output.numpy()
            for kind, session in sessions.items():
                candidates[f"ours, {kind}"] = lambda session=session, feed=feed: session.run(None, feed)
                found = session.run(None, feed)[0]
                cosine[f"{name}, {kind}"] = float((found * expected).sum(axis=1).min())
                if kind == "ONNX":
                    equal[f"{name}, ONNX, to PyTorch"] = float(abs(found - expected).max())
            rows.append(
                row(title, "clip of 7 s" if name == "audio" else "label", count, take_turns(candidates, seconds))
            )
    return {"rows": rows, "equal": equal, "lowest_cosine": cosine}


def footprint(peers: Peers, seconds: float) -> dict[str, Any]:
    """Import, loading and memory."""
    folder = str(ROOT / "src" / "clap_hf" / "embedded")
    load = f"AutoModel.from_pretrained({folder!r})"
    both = "import torch, transformers"
    ready = f"{both}, clap_hf; from transformers import AutoModel; import clap_hf.model.modeling_msclap"
    clips = waveforms(32, WINDOW_S, RATE)
    extractor, encoder = peers.processor.feature_extractor, peers.msclap.clap.audio_encoder
    with tempfile.TemporaryDirectory() as saved:
        peers.model.save_pretrained(saved)
        again = take_turns({"ours": lambda: type(peers.model).from_pretrained(saved)}, 0, 3)["ours"]["seconds"]
    return {
        "footprint": {
            "import_s": spread([in_new_process(both, "import clap_hf") for _ in range(3)]),
            "load_embedded_s": spread([in_new_process(ready, load) for _ in range(3)]),
            "first_load_with_modelling_imports_s": spread(
                [in_new_process(f"{both}, clap_hf", f"from transformers import AutoModel; {load}") for _ in range(3)]
            ),
            "load_2023_s": again,
            "peak_mb_batch_32": {
                "ours": peak_memory(lambda: peers.model.get_audio_features(**extractor(list(clips), RATE))),
                "msclap": peak_memory(lambda: encoder(clips)),
            },
        }
    }


PARTS = {
    "front_end": front_end,
    "audio": audio,
    "operations": operations,
    "text": text,
    "files": files,
    "onnx": onnx,
    "footprint": footprint,
    "compiled": compiled,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=list(PARTS), help="parts to measure")
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds a comparison, at least three turns")
    parser.add_argument("--clock", choices=harness.CLOCKS, default="wall", help="see harness.py")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file, merged into")
    args = parser.parse_args()
    harness.clock = args.clock
    results = json.loads(args.output.read_text()) if args.output.exists() else {"parts": {}}
    if results.get("machine") != machine():
        results = {"parts": {}}  # what was measured in another way, or elsewhere, does not mix
    results["machine"] = machine()
    results["versions"] = {name: metadata.version(name) for name in VERSIONS}
    peers = build()
    with torch.inference_mode():
        results["flops"] = {
            "audio_gflop_per_clip": peers.gflop_per_clip(),
            "large_square_gflop": SQUARE_GFLOP,
        }
        for name in args.only:
            results["parts"][name] = PARTS[name](peers, args.seconds)
            print(table({**results, "parts": {name: results["parts"][name]}}), flush=True)
            write_json(args.output, results)
    captions = args.output.with_name("captioning.json")
    if captions.exists():
        found = json.loads(captions.read_text())
        results["captioning"] = {name: value for name, value in found.items() if name not in ("rows", "machine")}
    write_json(args.output, results)
    draw(results, args.output.with_name("speed.png"))


if __name__ == "__main__":
    main()
