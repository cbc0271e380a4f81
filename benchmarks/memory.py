#!/usr/bin/env python
"""Peak memory of commands and pipelines on recordings of 10 minutes, 3 hours and 10 hours.

    python benchmarks/memory.py --output benchmarks/memory.json

The recordings are stereo FLAC of 16 kHz, made and removed here. Every measurement is a process of its own. `timeline`
keeps 4 bytes for every step and label of its answer, so that its scores are few here: two labels, a step a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile
from harness import machine

from clap_hf.atomic_io import write_json

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
LENGTHS_S = {"10 min": 600, "3 h": 3 * 3600, "10 h": 10 * 3600}
RATE = 16_000
MEASURED = """
import json, resource, sys, time
started = time.perf_counter()
{code}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps({{"peak_mb": round(peak), "seconds": round(time.perf_counter() - started, 1)}}))
"""
COMMAND = """
import contextlib, io
from clap_hf.cli import app
with contextlib.redirect_stdout(io.StringIO()):
    try:
        app({arguments}, standalone_mode=False)
    except SystemExit as error:
        assert not error.code, error.code
"""
PIPELINE = """
import clap_hf
from transformers import pipeline
options = {options}
answer = pipeline({task!r}, model={model!r}, device="cpu", **options)({file!r})
assert answer, answer
"""


def write_recording(path: Path, seconds: int) -> None:
    """A minute of noise and a tone again and again, stereo."""
    import numpy as np

    random, time_s = np.random.default_rng(0), np.arange(60 * RATE) / RATE
    tone = 0.2 * np.sin(2 * np.pi * time_s * 300)
    minute = (tone[:, None] + random.normal(0, 0.02, (len(time_s), 2))).astype("float32")
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16", format="FLAC") as file:
        for _ in range(seconds // 60):
            file.write(minute)


def kinds(model: str, captioner: str, file: str, folder: Path) -> dict[str, str]:
    """Code of every measurement of a recording."""

    def command(*arguments: str) -> str:
        return COMMAND.format(arguments=[*arguments, "--device", "cpu"])

    labels = "candidate_labels=['dog', 'rain'], pipeline_class=clap_hf.MSClapZeroShotAudioClassificationPipeline"
    task = "zero-shot-audio-classification"
    return {
        "embed": command("embed", file, "--output", str(folder / "index"), "--model", model),
        "classify": command("classify", file, "--labels", "dog,rain", "--model", model),
        "timeline": command("timeline", file, "--labels", "dog,rain", "--step", "1", "--windows", "--model", model),
        "caption": command("caption", file, "--model", captioner),
        "zero-shot pipeline": PIPELINE.format(options=f"dict({labels})", task=task, model=model, file=file),
        "captioning pipeline": PIPELINE.format(options="{}", task="audio-captioning", model=captioner, file=file),
    }


def write_models(folder: Path) -> tuple[str, str]:
    """Tiny models of the tests: a model's own memory is the same for every length."""
    import torch

    from clap_hf import MSClapCaptioningConfig, MSClapForAudioCaptioning, MSClapProcessor
    from clap_hf.tokenization import sentence_tokenizer
    from conftest import GPT2_TOKENIZER, TINY_AUDIO, TINY_GPT2, make_config, make_feature_extractor, make_model

    tokenizer = sentence_tokenizer(GPT2_TOKENIZER, make_config().text_config, max_length=77)
    processor = MSClapProcessor(make_feature_extractor(duration_s=10.0, hop_length=800), tokenizer)  # few windows
    sizes = {"projection_dim": 24, "prefix_length": 4, "mapper_input_length": 4, "mapper_num_layers": 1}
    config = MSClapCaptioningConfig(text_config=TINY_GPT2, audio_config=TINY_AUDIO, mapper_num_heads=4, **sizes)
    torch.manual_seed(0)
    captioner = MSClapForAudioCaptioning(config)
    captioner.generation_config.max_new_tokens = 6
    for name, model in {"clap": make_model(), "captioner": captioner}.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return str(folder / "clap"), str(folder / "captioner")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", help="some of the measurements")
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS_S), help="some of the lengths")
    parser.add_argument("--output", type=Path, help="JSON file for the measurements; those in it are kept")
    args = parser.parse_args()
    record: dict[str, Any] = {}
    if args.output is not None and args.output.exists():
        record = json.loads(args.output.read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, captioner = write_models(folder)
        record |= {"machine": machine(), "recordings": f"FLAC, stereo, {RATE} Hz"}
        for length in args.lengths:
            file = folder / f"{LENGTHS_S[length]}.flac"
            write_recording(file, LENGTHS_S[length])
            for kind, code in kinds(model, captioner, str(file), folder / length).items():
                if args.kinds and kind not in args.kinds:
                    continue
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                command = [sys.executable, "-c", MEASURED.format(code=code)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                record.setdefault(kind, {})[length] = json.loads(done.stdout.splitlines()[-1])
                print(kind, length, record[kind][length], flush=True)
                if args.output is not None:
                    write_json(args.output, record)
            file.unlink()


if __name__ == "__main__":
    main()
