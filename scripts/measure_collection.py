#!/usr/bin/env python
"""Measure collections: seconds of a query, recall of approximate search, and duplicates found among real sounds.

    python scripts/measure_collection.py SOUNDS --record benchmarks/collections.json

SOUNDS is what `python -m tools.sound_corpus` wrote. Recorded sounds of it, drawn by seed, are written in 6 codecs at 3
levels, every third copy cut shorter, and the copies must be found again. The threshold was chosen by the correlations
of some of the sounds, and is measured on the others.
"""

import itertools
import json
import sys
import tempfile
import time
from collections import Counter
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
from clap_hf.search.duplicates import ALIKE, SIMILAR, fingerprint, likeness, waveform
from clap_hf.search.index import Vectors

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.sound_corpus.decode import SAMPLING_RATE  # noqa: E402
from tools.sound_corpus.duplicates import find_near_duplicates, thumbnail  # noqa: E402
from tools.sound_corpus.soundfonts import FONTS  # noqa: E402

GAINS_DB = (0, -6, -12)
SUFFIXES = {"wav": ".wav", "flac": ".flac", "vorbis": ".ogg", "opus": ".opus", "mp3": ".mp3", "ulaw": ".au"}
CODECS = tuple(SUFFIXES)
SAME = 0.9  # correlation of two originals at 44.1 kHz, aligned, that hold one recording
SEED = 0
SHORTEST_S, LONGEST_S = 1.0, 4.0  # shorter ones are clicks, with no shape that a codec keeps; longer ones take long
DIM = 512
TOP = 10
QUERIES = 50


def encode(samples: np.ndarray, rate: int, codec: str, file: Path) -> Path:
    """Write samples by a codec, where no file is there yet."""
    target = file.with_suffix(SUFFIXES[codec])
    if target.exists():
        return target
    if codec == "wav":
        soundfile.write(target, samples, rate, "PCM_16")
    elif codec == "flac":
        soundfile.write(target, samples, rate, "PCM_24")
    elif codec == "vorbis":
        soundfile.write(target, samples, rate, "VORBIS")
    elif codec == "opus":
        soundfile.write(target, soxr.resample(samples, rate, 48_000), 48_000, "OPUS", format="OGG")
    elif codec == "mp3":
        soundfile.write(target, samples, rate, "MPEG_LAYER_III")
    else:  # A telephone's: 8-bit u-law at 16 kHz
        soundfile.write(target, soxr.resample(samples, rate, 16_000), 16_000, "ULAW")
    return target


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


def choose(source: Path, count: int) -> list[tuple[str, np.ndarray, int]]:
    """Names, samples and rates of recorded sounds of 1 to 4 s, drawn by seed, none the copy of another one drawn.

    Which are copies is decided as the corpus does it between its splits, not as `find_duplicates` does.
    """
    files = sorted(source.glob("data/*.parquet")) if source.is_dir() else [source]
    data = datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train")
    rendered = {font.package for font in FONTS}
    rows = [number for number, package in enumerate(data["source"]) if package not in rendered]
    audio, names = AudioColumn(data, "audio"), data["id"]
    chosen: list[tuple[str, np.ndarray, int]] = []
    pictures = np.empty((0, 1024), np.float16)
    for number in np.random.default_rng(SEED).permutation(rows).tolist():
        sound = load_stored_audio(audio[number])
        samples, rate = sound.samples.mean(axis=0), sound.sampling_rate
        if not SHORTEST_S <= len(samples) / rate <= LONGEST_S:
            continue
        picture = thumbnail(soxr.resample(samples, rate, SAMPLING_RATE))[None]
        if find_near_duplicates(picture, pictures):
            continue
        pictures = np.concatenate([pictures, picture])
        chosen.append((names[number], 0.9 * samples / np.abs(samples).max(), rate))
        if len(chosen) == count:
            return chosen
    raise ValueError(f"{source} holds {len(chosen)} such sounds, expected {count}. Ask for fewer.")


def write_copies(sounds: list[tuple[str, np.ndarray, int]], folder: Path) -> dict[Path, str]:
    """Write every sound in all codecs at all levels, every third copy cut shorter; names of the sounds by file."""
    truth: dict[Path, str] = {}
    for place, (name, samples, rate) in enumerate(sounds):
        random = np.random.default_rng([SEED, place])
        for copy, (codec, gain) in enumerate(itertools.product(CODECS, GAINS_DB)):
            start, stop = (random.uniform(0, 0.1, size=2) * len(samples)).astype(int) if copy % 3 == 2 else (0, 0)
            cut = samples[start : len(samples) - stop] * 10 ** (gain / 20)
            truth[encode(cut, rate, codec, folder / f"{place:04}-{copy:02}")] = name
    return truth


def scores(
    groups: list[list[Path]], truth: dict[Path, str], originals: dict[str, tuple[np.ndarray, int]]
) -> dict[str, Any]:
    """Precision, recall and F1 of pairs of files, and what was found wrong.

    `f1` takes every sound drawn for a recording of its own. Sounds that were joined are compared as they were, at full
    bandwidth: `f1_same` takes those that hold one recording, as where one is the other cut short, for one.
    """
    joined: list[dict[str, Any]] = []
    merged = {name: name for name in originals}
    for group in groups:
        for one, other in itertools.combinations(sorted({truth[file] for file in group}), 2):
            alike = likeness(*(full_band(*originals[name]) for name in (one, other)))
            joined.append({"sounds": [one, other], "correlation": alike})
            if alike >= SAME:
                old, new = merged[other], merged[one]
                merged = {name: new if root == old else root for name, root in merged.items()}
    alone = truth.keys() - {file for group in groups for file in group}
    parts = Counter(truth[group[0]] for group in groups)
    same = {f"{name}_same": value for name, value in rates(groups, {f: merged[n] for f, n in truth.items()}).items()}
    return {
        **rates(groups, truth),
        **same,
        "joined": joined,
        "split": sum(count > 1 for count in parts.values()),
        "alone": Counter(CODECS[int(file.stem[5:7]) // len(GAINS_DB)] for file in alone),
    }


def rates(groups: list[list[Path]], truth: dict[Path, str]) -> dict[str, float]:
    """Precision, recall and F1 of the pairs of files that are grouped."""
    same = sum(count * (count - 1) // 2 for count in Counter(truth.values()).values())
    claimed = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    right = sum(truth[one] == truth[other] for group in groups for one, other in itertools.combinations(group, 2))
    precision, recall = right / max(1, claimed), right / same
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(1e-9, precision + recall)}


def full_band(samples: np.ndarray, rate: int) -> np.ndarray:
    """Waveform of an original at the corpus' rate, whitened by a difference `[samples, 1]`."""
    return np.diff(soxr.resample(samples, rate, SAMPLING_RATE))[:, None].astype(np.float32)


def correlations(truth: dict[Path, str]) -> dict[str, Any]:
    """Correlations that the threshold has to lie between: of copies, and of sounds whose log-mels are similar.

    Returns:
        Quantiles over the copies of all sounds, each with the first copy of its sound; and the highest correlations of
        first copies of two sounds.
    """
    copies: dict[str, list[Path]] = {}
    for file, name in truth.items():
        copies.setdefault(name, []).append(file)
    found, first, pictures = [], {}, {}
    for name, (one, *others) in copies.items():
        first[name], pictures[name] = waveform(one), fingerprint(one)
        found += [likeness(first[name], waveform(other)) for other in others]
    apart = [
        {"sounds": [one, other], "correlation": likeness(first[one], first[other])}
        for one, other in itertools.combinations(copies, 2)
        if likeness(pictures[one], pictures[other]) >= SIMILAR
    ]
    shares = (0.0, 0.01, 0.05, 0.5)
    return {
        "sounds": len(copies),
        "files": len(truth),
        "copies": dict(zip(map(str, shares), np.quantile(found, shares).tolist(), strict=True)),
        "others_similar": len(apart),
        "others": sorted(apart, key=lambda pair: -pair["correlation"])[:8],
        "threshold": ALIKE,
    }


def measure_duplicates(source: Path, skip: int, chosen_on: int, count: int, folder: Path) -> dict[str, Any]:
    """Correlations of the first sounds drawn, by which the threshold was chosen, and F1 on the other ones."""
    sounds = choose(source, skip + chosen_on + count)[skip:]
    parts = {"chosen_on": sounds[:chosen_on], "measured_on": sounds[chosen_on:]}
    for part in parts:
        (folder / part).mkdir(exist_ok=True)
    truth = {part: write_copies(own, folder / part) for part, own in parts.items()}
    found: dict[str, Any] = {"chosen_on": correlations(truth["chosen_on"])} if chosen_on else {}
    typer.echo(json.dumps(found))
    model, processor = load_checked(MSClapModel, checkpoint_path("embedded"))
    started, files = time.perf_counter(), truth["measured_on"]
    SoundCollection(folder / "index", model, processor, "embedded").add(files)
    embedded, started = time.perf_counter() - started, time.perf_counter()
    groups = find_duplicates(folder / "index").groups
    facts = {"sounds": count, "files": len(files), "embed_s": embedded, "search_s": time.perf_counter() - started}
    originals = {name: (samples, rate) for name, samples, rate in parts["measured_on"]}
    packages = sorted({name.partition("/")[0] for name in originals})
    found["measured_on"] = facts | {"skipped": skip, "packages": packages} | scores(groups, files, originals)
    return found


def main(
    source: Annotated[Path, typer.Argument(help="The sound corpus, or one parquet file of it.")],
    record: Annotated[Path, typer.Option(help="JSON to write.")],
    sounds: Annotated[int, typer.Option(min=1, help="Sounds whose copies are looked for.")] = 500,
    chosen_on: Annotated[
        int, typer.Option(min=0, help="Further sounds, by which the threshold was chosen; 0 keeps the record's.")
    ] = 50,
    skip: Annotated[int, typer.Option(min=0, help="Sounds drawn first that are left out, as seen before.")] = 0,
    vectors: Annotated[list[int] | None, typer.Option(help="Sizes of collections; repeatable.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Keeps copies and collections, to go on after a stop.")] = None,
    part: Annotated[str | None, typer.Option(help="queries or duplicates alone; the record keeps the other.")] = None,
) -> None:
    """Measure and write."""
    found: dict[str, Any] = json.loads(record.read_text()) if part and record.is_file() else {}
    if part != "duplicates":
        found["queries"] = [measure_queries(count) for count in vectors or (100_000,)]
    if part != "queries":
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary) if folder is None else folder
            place.mkdir(parents=True, exist_ok=True)
            measured = measure_duplicates(source, skip, chosen_on, sounds, place)
            found["duplicates"] = found.get("duplicates", {}) | measured
    write_json(record, found)
    typer.echo(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
