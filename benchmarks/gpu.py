#!/usr/bin/env python
"""Speed on a GPU, beside `msclap` with the same weights and LAION's CLAP, and beside what the GPU can do.

    python benchmarks/gpu.py            everything, into benchmarks/gpu.json
    python benchmarks/gpu.py --profile  also which kernels the audio tower's time goes to

Needs what `benchmarks/speed.py` needs.
"""

from __future__ import annotations

from peers import (
    LAION_RATE,
    LAION_S,
    RATE,
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import large_squares, machine, take_turns, timed
from torch.profiler import ProfilerActivity, profile

from clap_hf import embed_files, load_audio
from clap_hf.atomic_io import write_json
from clap_hf.embedding import embed_texts

RESULTS = Path(__file__).parent / "gpu.json"
LARGE = 256  # windows


class Bench:
    """The models on the device, and what was measured so far."""

    def __init__(self, peers: Peers, device: torch.device, seconds: float, large: int):
        self.peers, self.device, self.seconds, self.large = peers, device, seconds, large
        for module in (peers.model, peers.msclap.clap, peers.laion):
            module.to(device)
        peers.msclap.use_cuda = device.type == "cuda"
        self.small = in_bfloat16(peers.model).to(device)
        self.extractor = peers.processor.feature_extractor
        self.rows: list[dict[str, Any]] = []

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def compare(self, name: str, unit: str, per_call: float, candidates: dict[str, Callable[[], Any]]) -> None:
        """Time candidates in turns and print what one of `unit` costs."""
        whole = {title: lambda call=call: (call(), self.wait()) for title, call in candidates.items()}
        timings = take_turns(whole, self.seconds)
        self.rows.append({"name": name, "unit": unit, "per_call": per_call, "timings": timings})
        found = ", ".join(f"{key} {t['seconds']['median'] / per_call * 1e3:.3f}" for key, t in timings.items())
        print(f"{name}, ms a {unit}: {found}", flush=True)

    def clips(self, count: int) -> torch.Tensor:
        """Recordings on the device `[clips, samples]`."""
        return waveforms(count, WINDOW_S, RATE).to(self.device)

    def features(self, count: int) -> torch.Tensor:
        """Their log-mels."""
        return self.extractor(list(self.clips(count)), RATE, device=self.device)["input_features"].flatten(0, 1)


def rates(bench: Bench) -> dict[str, float]:
    """What the device can do: products of large squares, TFLOP/s, and copies, TB/s, read and written."""
    side = 8192 if bench.device.type == "cuda" else 512
    found = {}
    for name, product in large_squares(side, bench.device).items():
        run = lambda product=product: (product(), bench.wait())  # noqa: E731
        run()
        found[f"{name}, TFLOP/s"] = 2 * side**3 / min(timed(run) for _ in range(8)) / 1e12
    block = torch.empty(side * side * 8, dtype=torch.float32, device=bench.device)
    target = torch.empty_like(block)
    copied = min(timed(lambda: (target.copy_(block), bench.wait())) for _ in range(8))
    return found | {"copies, TB/s": 2 * block.nbytes / copied / 1e12}


def front_end(bench: Bench) -> None:
    """Waveforms on the device to log-mels."""
    htsat = bench.peers.msclap.clap.audio_encoder.base.htsat
    for batch in (1, 32, bench.large):
        clips = bench.clips(batch)
        candidates: dict[str, Callable[[], Any]] = {
            "ours": lambda clips=clips: bench.extractor(list(clips), RATE, device=bench.device),
            "msclap": lambda clips=clips: htsat.logmel_extractor(htsat.spectrogram_extractor(clips)),
        }
        bench.compare(f"front end, batch {batch}", "clip of 7 s", batch, candidates)


def audio(bench: Bench) -> dict[str, float]:
    """Waveforms on the device to embeddings; LAION's without its front end, which has no GPU path."""
    peers = bench.peers
    for batch in (1, 8, 32, bench.large):
        clips = bench.clips(batch)
        candidates: dict[str, Callable[[], Any]] = {
            "ours": lambda clips=clips: peers.embed(peers.model, clips),
            "ours, bfloat16": lambda clips=clips: peers.embed(bench.small, clips),
            "msclap": lambda clips=clips: peers.msclap.clap.audio_encoder(clips)[0],
        }
        bench.compare(f"audio embedding, batch {batch}", "clip of 7 s", batch, candidates)
    sounds = list(waveforms(4, LAION_S, LAION_RATE).numpy())
    one = torch.as_tensor(peers.laion_extractor(sounds, sampling_rate=LAION_RATE)["input_features"])
    laion, longer = one.repeat(8, 1, 1, 1).to(bench.device), torch.zeros(32, 1, dtype=torch.bool, device=bench.device)
    features = bench.features(32)
    towers: dict[str, Callable[[], Any]] = {
        "ours": lambda: peers.model.get_audio_features(features),
        "ours, bfloat16": lambda: bench.small.get_audio_features(features),
        "laion": lambda: peers.laion.get_audio_features(input_features=laion, is_longer=longer),
    }
    bench.compare("audio tower, batch 32", "clip of 7 or 10 s", 32, towers)
    clips = bench.clips(10)
    ours = peers.embed(peers.model, clips)
    theirs = F.normalize(peers.msclap.clap.audio_encoder(clips)[0], dim=-1)
    alone = torch.cat([peers.embed(peers.model, clips[i : i + 1]) for i in range(10)])
    return {
        "largest_difference_to_msclap": float((ours - theirs).abs().max()),
        "largest_difference_alone_or_in_batch": float((ours - alone).abs().max()),
        "lowest_cosine_bfloat16": float((ours * peers.embed(bench.small, clips)).sum(dim=-1).min()),
    }


def compiled(bench: Bench) -> dict[str, float]:
    """The towers by `torch.compile`; of one clip, as CUDA graphs."""
    warm = {}
    for batch, mode in ((bench.large, "default"), (1, "reduce-overhead")):
        clips, features = bench.clips(batch), bench.features(batch)
        candidates: dict[str, Callable[[], Any]] = {}
        for name, model in (("ours, compiled", bench.peers.model), ("ours, bfloat16, compiled", bench.small)):
            fast = copy.deepcopy(model)
            fast.audio_model.compile(dynamic=False, mode=mode)
            started = time.perf_counter()
            for _ in range(3):  # a graph is recorded at the second call
                fast.get_audio_features(features)
            bench.wait()
            warm[f"{name}, batch {batch}"] = time.perf_counter() - started
            candidates[name] = lambda fast=fast, clips=clips: bench.peers.embed(fast, clips)
        candidates["msclap"] = lambda clips=clips: bench.peers.msclap.clap.audio_encoder(clips)[0]
        bench.compare(f"audio embedding, batch {batch}, compiled", "clip of 7 s", batch, candidates)
    return {f"warm_up_s, {name}": seconds for name, seconds in warm.items()}


def text(bench: Bench) -> None:
    """Prompts to embeddings; msclap pads each to 77 tokens."""
    tokenizer = bench.peers.processor.tokenizer
    for count in (50, 1000):
        texts = labels(count)
        candidates: dict[str, Callable[[], Any]] = {
            "ours": lambda texts=texts: embed_texts(bench.peers.model, tokenizer, texts),
            "ours, bfloat16": lambda texts=texts: embed_texts(bench.small, tokenizer, texts),
            "msclap": lambda texts=texts: bench.peers.msclap.get_text_embeddings(texts),
        }
        bench.compare(f"text embedding, {count:,} labels", "label", count, candidates)


def files(bench: Bench) -> None:
    """WAV, FLAC and MP3 files to embeddings: decoding, resampling, log-mel and model; msclap 30 files a call."""
    with tempfile.TemporaryDirectory() as folder:
        few = write_files(Path(folder), 30)
        many = few * (bench.large // 8)
        ours: dict[str, Callable[[], Any]] = {
            "ours": lambda: embed_files(bench.peers.model, bench.peers.processor, many),
            "ours, bfloat16": lambda: embed_files(bench.small, bench.peers.processor, many),
            "decoding alone, one thread": lambda: [load_audio(path) for path in few * 2],
        }
        for name, call in ours.items():
            count = 60 if "alone" in name else len(many)
            call()
            seconds = timed(call)
            bench.rows.append({"name": "files to embeddings", "unit": "file", "candidate": name, "s": seconds / count})
            print(f"files to embeddings, {name}: {count / seconds:.0f} files/s", flush=True)
        theirs = lambda: bench.peers.msclap.get_audio_embeddings(few, resample=True)  # noqa: E731
        theirs()
        seconds = timed(theirs)
        bench.rows.append(
            {"name": "files to embeddings", "unit": "file", "candidate": "msclap", "s": seconds / len(few)}
        )
        print(f"files to embeddings, msclap: {len(few) / seconds:.0f} files/s", flush=True)


def training(bench: Bench) -> None:
    """Steps of the paper's pair, HTSAT and GPT-2: forward, loss, backward and AdamW in bfloat16."""
    model = copy.deepcopy(bench.peers.model).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=bench.device.type == "cuda")
    batch = bench.large // 2
    clips = bench.clips(batch)
    tokens = bench.peers.processor(text=labels(batch)).to(bench.device)

    def step() -> None:
        with torch.enable_grad():
            features = bench.extractor.log_mels(clips.unbind())[:, None].clone()
            with torch.autocast(bench.device.type, torch.bfloat16):
                loss = model(input_features=features, return_loss=True, **tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    bench.compare(f"training step, batch {batch}, bfloat16", "pair", batch, {"ours": step})


def kernels(bench: Bench) -> None:
    """Print which kernels the time of a large batch goes to."""
    features = bench.features(bench.large)
    for model in (bench.peers.model, bench.small):
        model.get_audio_features(features)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            model.get_audio_features(features)
            bench.wait()
        print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=70))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="the device; the CPU only to try the script out")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds a comparison, at least three turns")
    parser.add_argument("--large", type=int, default=LARGE, help="windows of the large batch")
    parser.add_argument("--profile", action="store_true", help="print the kernels of the audio tower")
    parser.add_argument("--skip", nargs="*", default=[], choices=("compiled", "files", "training"), help="leave out")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file")
    args = parser.parse_args()
    device = torch.device(args.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    results: dict[str, Any] = {
        "machine": machine() | {"gpu": gpu},
        "versions": {"torch": torch.__version__},
    }
    with torch.inference_mode():
        peers = build()
        results["audio_gflop_per_clip"] = peers.gflop_per_clip()
        bench = Bench(peers, device, args.seconds, args.large)
        results["rates"] = rates(bench)
        print(json.dumps(results), flush=True)
        if args.profile:
            kernels(bench)
        front_end(bench)
        results["equal"] = audio(bench)
        text(bench)
        if "files" not in args.skip:
            files(bench)
    if "training" not in args.skip:
        training(bench)
    with torch.inference_mode():
        if "compiled" not in args.skip:
            results["compiled"] = compiled(bench)
    results["rows"] = bench.rows
    write_json(args.output, results)


if __name__ == "__main__":
    main()
