"""Turns a training set, as its owner distributes it, into parquet files that `clap_hf.data.stream` reads.

Rows are mono FLAC at 44.1 kHz of at most 30 s, with texts, labels, length, license and provenance. The files are the
parts of a `PartStore`: a build that was stopped goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import soxr
from rich.progress import track

from clap_hf.atomic_io import PartStore, part_facts, write_json, write_text
from clap_hf.audio import encode_flac, load_audio
from clap_hf.data.registry import TrainingSet, training_set
from clap_hf.data.source import number_of
from clap_hf.text_files import read_text
from tools.training_sets.originals import ORIGINALS, Original

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
        name: Its key in `training_sets()`.
        root: Your copy of it.
        output: Gets `train-*.parquet`, `README.md` and `build_report.json`; files of an earlier, perhaps stopped, run
            of the same build are kept.
        exclude: Ids of clips to leave out, for example those of test sets.
        hold_out: Clips that go into `validation-*.parquet` instead, chosen by a hash of their ids.

    Returns:
        The report: counts, and the clips that were skipped with the reason.

    Raises:
        ValueError: If there is no such set, nothing of it could be built, or the folder holds another build.
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
    files = {}
    for split, members in splits.items():
        starts = range(0, len(members), CLIPS_PER_FILE)
        for number, start in enumerate(starts):
            files[f"{split}-{number:05d}-of-{len(starts):05d}"] = members[start : start + CLIPS_PER_FILE]
    store = PartStore(output, _identity(name, splits), _schema(about))
    for path in store.paths():
        if path.stem not in files:
            raise ValueError(
                f"{path}: a file of another build, expected only the {len(files)} files of this one. Remove it, or "
                "build into another folder."
            )
    parts = []
    for stem, members in track(files.items(), description=f"Building {about.title}"):
        if not store.has(stem):
            _write_part(store, stem, name, about, members)
        parts.append(part_facts(store.path(stem)))
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


def refuse_to_share(name: str) -> None:
    """Raise an error if a training set may not be passed on.

    Args:
        name: Its key in `training_sets()`.

    Raises:
        PermissionError: If its license does not allow it.
    """
    about = training_set(name)
    if about.access == "own copy":
        raise PermissionError(
            f"{about.title} may not be passed on ({about.license}): what is built of it stays on your machines, and "
            f"everybody builds it from their own copy (python -m tools.training_sets {name} --root ...)."
        )


def read_ids(path: Path) -> set[str]:
    """Ids of clips in a file.

    Args:
        path: One id a line, or JSON: a list, or an object of lists, as WavCaps' blacklists are.
    """
    text = read_text(path)
    if path.suffix != ".json":
        return set(text.split())
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}), expected a list, or an object of lists.") from error
    lists = content.values() if isinstance(content, dict) else [content]
    return {Path(str(name)).stem for names in lists for name in names}


def _schema(about: TrainingSet) -> pa.Schema:
    """Columns of a set's rows: `SCHEMA`, and the metadata that it keeps, in the types of its example."""
    return pa.schema([*SCHEMA, *(pa.field(name, pa.scalar(about.example[name]).type) for name in about.keep)])


def _identity(name: str, splits: dict[str, list[Original]]) -> str:
    """Hash of the clips of every split, wherever their files are."""
    clips = {
        split: [[clip.id, clip.metadata, clip.start_s, clip.end_s, clip.license] for clip in members]
        for split, members in splits.items()
    }
    return hashlib.sha256(json.dumps([name, CLIPS_PER_FILE, clips]).encode()).hexdigest()


def _write_part(store: PartStore, stem: str, name: str, about: TrainingSet, clips: list[Original]) -> None:
    """Write one file, which keeps its counts and the clips that were skipped."""
    facts: dict[str, Any] = {"clips": 0, "rows": 0, "seconds": 0.0, "skipped": {}}

    def rows() -> Iterator[dict[str, Any]]:
        for clip in clips:
            try:
                pieces = list(_rows_of(clip, name, about))
            except ValueError as error:
                facts["skipped"][clip.id] = str(error)
                continue
            facts["clips"] += 1
            facts["rows"] += len(pieces)
            facts["seconds"] += sum(row["duration"] for row in pieces)
            yield from pieces

    store.write(rows(), stem, lambda: facts)


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
            **{name: clip.metadata[name] for name in about.keep},
        }
