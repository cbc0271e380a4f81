#!/usr/bin/env python
"""Measure collections: seconds of a query, recall of approximate search, and duplicates found among real sounds.

    python scripts/measure_collection.py SOUNDS --record benchmarks/collections.json

SOUNDS is a folder of sound files, or a parquet file with a column `audio`. Each of `--sounds` of them is written in 6
codecs at 3 levels, every third one cut shorter, and the copies must be found again.
"""

import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import soundfile
import soxr
import torch
import typer

from clap_hf import MSClapModel, SoundCollection
from clap_hf.atomic_io import write_json
from clap_hf.audio import load_stored_audio
from clap_hf.evaluation.loading import AudioColumn
from clap_hf.pretrained import checkpoint_path, load_checked
from clap_hf.search import find_duplicates
from clap_hf.search.approximate import approximate_index
from clap_hf.search.index import Vectors

GAINS_DB = (0, -6, -12)
DIM = 512
TOP = 10
QUERIES = 50


def encode(samples: np.ndarray, rate: int, codec: str, file: Path) -> Path:
    """Write samples by a codec."""
    if codec == "wav":
        soundfile.write(target := file.with_suffix(".wav"), samples, rate, "PCM_16")
    elif codec == "flac":
        soundfile.write(target := file.with_suffix(".flac"), samples, rate, "PCM_24")
    elif codec == "vorbis":
        soundfile.write(target := file.with_suffix(".ogg"), samples, rate, "VORBIS")
    elif codec == "opus":
        resampled = soxr.resample(samples, rate, 48_000)
        soundfile.write(target := file.with_name(file.name + "-opus.ogg"), resampled, 48_000, "OPUS")
    elif codec == "mp3":
        soundfile.write(target := file.with_suffix(".mp3"), samples, rate, "MPEG_LAYER_III")
    else:  # A telephone's: 8-bit u-law at 16 kHz
        soundfile.write(target := file.with_suffix(".au"), soxr.resample(samples, rate, 16_000), 16_000, "ULAW")
    return target


CODECS = ("wav", "flac", "vorbis", "opus", "mp3", "ulaw")


def measure_queries(count: int) -> dict[str, Any]:
    """Milliseconds of an exact query and of an approximate one, and its recall, over vectors in clusters."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(max(1, count // 100), DIM)).astype(np.float32)
    matrix = centers[random.integers(len(centers), size=count)] + 0.7 * random.normal(size=(count, DIM)).astype(
        np.float32
    )
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    names, zeros, nothing = [f"{number:08}.wav" for number in range(count)], [0] * count, np.full(count, np.nan)
    vectors = Vectors(matrix, np.arange(count), nothing, nothing, names, zeros, zeros, [""] * count, frozenset())
    queries = matrix[random.choice(count, QUERIES)] + 0.02 * random.normal(size=(QUERIES, DIM)).astype(np.float32)
    spent, computed = [], []
    for query in queries:
        started, before = time.perf_counter(), time.process_time()
        best, _ = vectors.best(query)
        np.argsort(-best, kind="stable")[:TOP]
        spent.append(time.perf_counter() - started)
        computed.append(time.process_time() - before)
    exact = {"exact_ms": np.median(spent), "exact_cpu_ms": np.median(computed)}  # the latter also on a busy machine
    found: dict[str, Any] = {"vectors": count, "threads": torch.get_num_threads()}
    found |= {name: 1000 * float(value) for name, value in exact.items()}
    started = time.perf_counter()
    index = approximate_index(matrix)
    if index is not None:
        built, spent = time.perf_counter() - started, []
        for query in queries:
            started = time.perf_counter()
            index.nearest(query, TOP)
            spent.append(time.perf_counter() - started)
        approximate = {"kind": index.kind, "effort": index.effort, "recall": index.recall, "build_s": built}
        found["approximate"] = {**approximate, "ms": 1000 * float(np.median(spent))}
    return found


def measure_duplicates(source: Path, count: int, folder: Path) -> dict[str, Any]:
    """Precision and recall of pairs of files that hold one recording."""
    data = datasets.load_dataset("parquet", data_files=str(source), split="train")
    audio = AudioColumn(data, "audio")
    truth: dict[Path, int] = {}
    random = np.random.default_rng(0)
    used = 0
    for number in range(len(data)):
        sound = load_stored_audio(audio[number])
        samples = sound.samples.mean(axis=0)
        if len(samples) < sound.sampling_rate:  # clicks have no shape that a codec keeps
            continue
        samples = 0.9 * samples / np.abs(samples).max()
        for copy, (codec, gain) in enumerate(itertools.product(CODECS, GAINS_DB)):
            start, stop = (random.uniform(0, 0.1, size=2) * len(samples)).astype(int) if copy % 3 == 2 else (0, 0)
            cut = samples[start : len(samples) - stop] * 10 ** (gain / 20)
            truth[encode(cut, sound.sampling_rate, codec, folder / f"{used:04}-{copy:02}")] = used
        used += 1
        if used == count:
            break
    model, processor = load_checked(MSClapModel, checkpoint_path("embedded"))
    started = time.perf_counter()
    collection = SoundCollection(folder / "index", model, processor, "embedded")
    collection.add(truth)
    embedded = time.perf_counter() - started
    started = time.perf_counter()
    groups = find_duplicates(folder / "index").groups
    spent = time.perf_counter() - started
    same = sum(n * (n - 1) // 2 for n in np.bincount(list(truth.values())).tolist())
    claimed = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    right = sum(truth[one] == truth[other] for group in groups for one, other in itertools.combinations(group, 2))
    precision, recall = right / max(1, claimed), right / same
    mixed = [sorted({truth[file] for file in group}) for group in groups]
    return {
        "sounds": used,
        "files": len(truth),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "joined": [group for group in mixed if len(group) > 1],
        "embed_s": embedded,
        "search_s": spent,
    }


def main(
    source: Annotated[Path, typer.Argument(help="Parquet file with a column `audio`.")],
    record: Annotated[Path, typer.Option(help="JSON to write.")],
    sounds: Annotated[int, typer.Option(min=2, help="Sounds that are copied.")] = 500,
    vectors: Annotated[list[int] | None, typer.Option(help="Sizes of collections; repeatable.")] = None,
) -> None:
    """Measure and write."""
    found: dict[str, Any] = {"queries": [measure_queries(count) for count in vectors or (100_000,)]}
    with tempfile.TemporaryDirectory() as folder:
        found["duplicates"] = measure_duplicates(source, sounds, Path(folder))
    write_json(record, found)
    typer.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
