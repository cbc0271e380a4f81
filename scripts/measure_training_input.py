#!/usr/bin/env python
"""Measure how fast one core turns stored clips into training examples, per format.

    OMP_NUM_THREADS=1 python scripts/measure_training_input.py --seconds 20

Clips of 10 s are read, cropped to 7 s and, where they are not at 44.1 kHz, resampled, as `clap_hf.data.stream` does.
Measure on a quiet machine.
"""

import io
import json
import platform
import time
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer

from clap_hf import MSClapFeatureExtractor, load_audio
from clap_hf.data.stream import CROP_ONLY, StreamSource, make_example

FORMATS = {
    "FLAC, 44.1 kHz": ("FLAC", "PCM_16", 44_100),
    "FLAC, 48 kHz": ("FLAC", "PCM_16", 48_000),
    "WAV, 44.1 kHz": ("WAV", "PCM_16", 44_100),
    "Ogg Vorbis, 44.1 kHz": ("OGG", "VORBIS", 44_100),
    "MP3, 44.1 kHz": ("MP3", "MPEG_LAYER_III", 44_100),
}


def encoded(samples: np.ndarray, rate: int, format: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def clips_per_second(row: dict, extractor: MSClapFeatureExtractor, seconds: float, log_mel: bool) -> float:
    source, done, started = StreamSource("measured"), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        example = make_example(row, "clip", source, extractor, CROP_ONLY, np.random.default_rng(done))
        if log_mel:
            extractor.log_mel(torch.from_numpy(example.waveform))
        done += 1
    return done / (time.perf_counter() - started)


def main(
    audio: Annotated[str, typer.Option(help="A recording, repeated to 10 s.")] = "examples/music.mp3",
    seconds: Annotated[float, typer.Option(help="Time per format, s.")] = 20.0,
) -> None:
    """Print clips a second for every format."""
    torch.set_num_threads(1)
    extractor = MSClapFeatureExtractor()
    mono = load_audio(audio).samples.mean(axis=0)
    print(json.dumps({"machine": f"{platform.processor() or platform.machine()}", "torch": torch.__version__}))
    for name, (format, subtype, rate) in FORMATS.items():
        samples = np.tile(mono, 10)[: 10 * rate]
        data = encoded(samples, rate, format, subtype)
        row = {"audio": data, "text": "a sound"}
        crop, mel = (clips_per_second(row, extractor, seconds, log_mel=log_mel) for log_mel in (False, True))
        result = {
            "format": name,
            "kB": len(data) // 1000,
            "clips_per_s": round(crop, 1),
            "with_log_mel": round(mel, 1),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    typer.run(main)
