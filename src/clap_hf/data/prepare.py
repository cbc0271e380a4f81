"""Turns a training set, as its owner distributes it, into parquet files that `clap_hf.data.stream` reads.

Rows are mono FLAC at 44.1 kHz of at most 30 s, with texts, length, license and provenance. Files are written whole,
one after the other, so that a build that was stopped goes on after the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import soxr
from rich.progress import track

from ..atomic_io import write_json, write_parquet, write_text
from ..audio import encode_flac, load_audio
from ..hub import push
from .originals import ORIGINALS, Original
from .registry import TrainingSet, training_set
from .stream import number_of

SAMPLING_RATE = 44_100  # of rows, Hz
MAX_ROW_S = 30.0
MIN_ROW_S = 0.1  # a rest shorter than this is dropped
CLIPS_PER_FILE = 1000

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "text": pa.list_(pa.string()),
        "duration": pa.float32(),
        "source": pa.string(),
        "license": pa.string(),
        "provenance": pa.string(),
    }
)
CARD = """---
license: other
license_name: see-rows
pretty_name: {title} for CLAP training
task_categories: [zero-shot-classification]
tags: [audio, clap]
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.parquet
{validation}---

# {title}, as audio-text pairs

{rows:,} pairs of {clips:,} clips from {original}, made by clap-hf: mono FLAC at 44.1 kHz, at most 30 s a row.
License: {license}; every row names its own. {skipped:,} clips were left out as missing or unreadable.
Leave out before evaluating: {exclude}.
"""


def build_dataset(
    name: str, root: Path, output: Path, exclude: frozenset[str] = frozenset(), hold_out: int = 0
) -> dict[str, Any]:
    """Build one of the paper's training sets.

    Args:
        name: Its key in `TRAINING_SETS`.
        root: Your copy of it.
        output: Gets `train-*.parquet`, `README.md` and `build_report.json`; files that are there already are kept.
        exclude: Ids of clips to leave out, for example those of test sets.
        hold_out: Clips that go into `validation-*.parquet` instead, chosen by a hash of their ids.

    Returns:
        The report: counts, and the clips that were skipped with the reason.

    Raises:
        ValueError: If there is no such set, or nothing of it could be built.
        FileNotFoundError: If the folder does not hold the set's listings.
    """
    about = training_set(name)
    try:
        clips = list(ORIGINALS[name](root))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename}: no such file; expected {root} to hold {about.title} as {about.layout}. Get it from "
            f"{about.original} ({about.license})."
        ) from error
    kept = [clip for clip in clips if clip.id not in exclude and clip.id.rsplit("_", 1)[0] not in exclude]
    if not kept:
        raise ValueError(f"{root} lists no clips of {about.title}; expected {about.layout}.")
    output.mkdir(parents=True, exist_ok=True)
    by_chance = sorted(kept, key=lambda clip: number_of(clip.id))
    held = {clip.id for clip in by_chance[:hold_out]}
    splits = {
        "train": [clip for clip in kept if clip.id not in held],
        "validation": [clip for clip in kept if clip.id in held],
    }
    files = []
    for split, members in splits.items():
        starts = range(0, len(members), CLIPS_PER_FILE)
        for number, start in enumerate(starts):
            files.append((f"{split}-{number:05d}-of-{len(starts):05d}", members[start : start + CLIPS_PER_FILE]))
    parts = []
    for stem, members in track(files, description=f"Building {about.title}"):
        record = output / ".parts" / f"{stem}.json"
        if not (record.exists() and (output / f"{stem}.parquet").exists()):
            write_json(record, _write_part(output / f"{stem}.parquet", name, about, members))
        parts.append(json.loads(record.read_text()))
    report = {
        "source": name,
        "license": about.license,
        "original": about.original,
        "listed": len(clips),
        "excluded": len(clips) - len(kept),
        "held_out": len(held),
        "clips": sum(part["clips"] for part in parts),
        "rows": sum(part["rows"] for part in parts),
        "seconds": sum(part["seconds"] for part in parts),
        "skipped": {clip: reason for part in parts for clip, reason in part["skipped"].items()},
    }
    if not report["rows"]:
        first = next(iter(report["skipped"].items()))
        raise ValueError(f"No clip of {about.title} below {root} could be built; the first, {first[0]}: {first[1]}")
    write_json(output / "build_report.json", report)
    validation = "  - split: validation\n    path: validation-*.parquet\n" if held else ""
    card = CARD.format(**vars(about) | report | {"skipped": len(report["skipped"]), "validation": validation})
    write_text(output / "README.md", card)
    return report


def push_dataset(name: str, folder: Path, repo_id: str, private: bool) -> str:
    """Upload a built set to the Hub, if its license allows that.

    Args:
        name: Its key in `TRAINING_SETS`.
        folder: What `build_dataset` wrote.
        repo_id: Repository, made if need be.
        private: Whether the repository must be private; that does not change what a license allows.

    Returns:
        The repository's address.

    Raises:
        PermissionError: If the set may not be passed on.
    """
    about = training_set(name)
    refuse_to_share(name, about)
    commit = push(folder, repo_id, repo_type="dataset", private=private or None).commit
    assert commit is not None  # it was no dry run
    return str(commit.repo_url)


def refuse_to_share(name: str, about: TrainingSet) -> None:
    """Raise PermissionError if a set may not be passed on."""
    if about.access == "own copy":
        raise PermissionError(
            f"{about.title} may not be passed on ({about.license}): what is built of it stays on your machines, and "
            f"everybody builds it from their own copy (scripts/build_dataset.py {name} --root ...)."
        )


def _write_part(path: Path, name: str, about: TrainingSet, clips: list[Original]) -> dict[str, Any]:
    """Write one parquet file; returns its counts and the clips that were skipped."""
    part: dict[str, Any] = {"clips": 0, "rows": 0, "seconds": 0.0, "skipped": {}}

    def rows() -> Iterator[dict[str, Any]]:
        for clip in clips:
            try:
                pieces = list(_rows_of(clip, name, about))
            except ValueError as error:
                part["skipped"][clip.id] = str(error)
                continue
            part["clips"] += 1
            part["rows"] += len(pieces)
            part["seconds"] += sum(row["duration"] for row in pieces)
            yield from pieces

    write_parquet(path, SCHEMA, rows())
    return part


def _rows_of(clip: Original, name: str, about: TrainingSet) -> Iterator[dict[str, Any]]:
    """Rows of a clip.

    Raises:
        ValueError: If its file is missing or cannot be decoded, or it has no text.
    """
    if clip.path is None:
        raise ValueError("its sound file is not there")
    texts = about.texts(clip.metadata)
    if not texts:
        raise ValueError("no text can be formed of its metadata")
    length = None if clip.end_s is None else clip.end_s - clip.start_s
    if length is not None and length <= 0:
        raise ValueError(f"it ends at {clip.end_s} s, before it starts at {clip.start_s} s")
    audio = load_audio(clip.path, start_s=clip.start_s, duration_s=length)  # AudioDecodeError is a ValueError
    mono = audio.samples.mean(axis=0)
    if audio.sampling_rate != SAMPLING_RATE:
        mono = soxr.resample(mono, audio.sampling_rate, SAMPLING_RATE, quality="HQ")
    limit = int(MAX_ROW_S * SAMPLING_RATE)
    for number, start in enumerate(range(0, len(mono), limit)):
        place = clip.start_s + start / SAMPLING_RATE
        samples = mono[start : start + limit]
        if number and len(samples) < MIN_ROW_S * SAMPLING_RATE:
            continue
        yield {
            "id": f"{clip.id}-{number}" if len(mono) > limit else clip.id,
            "audio": {"bytes": encode_flac(samples, SAMPLING_RATE), "path": None},
            "text": texts,
            "duration": len(samples) / SAMPLING_RATE,
            "source": name,
            "license": clip.license or about.license,
            "provenance": f"{about.original} {clip.id}, {clip.path.name} at {place:g} s",
        }
