"""From finished packages to the data set: joined with labels and captions, cleaned of leaks, written as parquet."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, List, Value

from clap_hf.atomic_io import part_facts, replace_folder, write_json, write_text
from tools.sound_corpus.captions import caption_variants
from tools.sound_corpus.card import write_card
from tools.sound_corpus.decode import SAMPLING_RATE
from tools.sound_corpus.duplicates import Outside, find_near_duplicates
from tools.sound_corpus.manifest import SPLITS, Clip
from tools.sound_corpus.sounds import PackageJob, Problem, is_finished

SEED = 2023
ROWS_PER_GROUP = 200
ROWS_PER_FILE = 3000
ORDER = ("test", "sealed", "validation", "train", "unlabelled")  # of splits with one sound, the first keeps it

FEATURES = Features(
    {
        "id": Value("string"),
        "audio": Audio(sampling_rate=SAMPLING_RATE),
        "captions": List(Value("string")),
        "label": Value("string"),
        "raw_label": Value("string"),
        "category": Value("string"),
        "quality": Value("string"),
        "source": Value("string"),
        "license": Value("string"),
        "duration_s": Value("float32"),
        "original_sampling_rate": Value("int32"),
        "lang": Value("string"),
        "transcript": Value("string"),
        "family": Value("string"),
        "midi": Value("int32"),
        "velocity": Value("int32"),
        "register": Value("string"),
        "kit": Value("string"),
        "program": Value("int32"),
    }
)

Report = dict[str, Any]


@dataclass(frozen=True)
class _Sound:
    """One sound: where its bytes lie, and what is known of it."""

    table: int
    row: int
    id: str
    clip: Clip
    duration_s: float
    original_sampling_rate: int
    digest: str


def _load(
    jobs: Iterable[PackageJob], work_dir: Path
) -> tuple[list[_Sound], list[pa.Table], np.ndarray, list[Problem]]:
    """Read the finished packages; the FLAC bytes stay on disk, mapped into memory."""
    sounds: list[_Sound] = []
    tables: list[pa.Table] = []
    pictures: list[np.ndarray] = []
    problems: list[Problem] = []
    for job in jobs:
        if not is_finished(job, work_dir):
            continue
        store = job.store(work_dir)
        table = store.read(store.path(job.part))
        problems += part_facts(store.path(job.part))["problems"]
        clips = {clip.id: clip for clip in job.clips}
        clips |= {phrase.clip.id: phrase.clip for _, phrases in job.fonts for phrase in phrases}
        facts = table.select(["id", "clip", "duration_s", "original_sampling_rate", "digest"]).to_pylist()
        for row, fact in enumerate(facts):
            sounds.append(_Sound(len(tables), row, **(fact | {"clip": clips[fact["clip"]]})))
        pictures += [np.frombuffer(picture, np.float16) for picture in table["thumbnail"].to_pylist()]
        tables.append(table.select(["flac"]))
    return sounds, tables, np.array(pictures), problems


def _without_repeats(sounds: list[_Sound], order: list[int]) -> list[int]:
    """Drop byte-equal sounds inside each split but the test: many kits and banks reuse a recording."""
    kept: list[int] = []
    seen: set[tuple[str, str]] = set()
    for index in order:
        key = (sounds[index].clip.split, sounds[index].digest)
        if key not in seen or key[0] == "test":
            kept.append(index)
        seen.add(key)
    return kept


def _without_leaks(
    sounds: list[_Sound], order: list[int], pictures: np.ndarray
) -> tuple[list[int], list[dict[str, object]]]:
    """Drop from every split near-duplicates of the splits before it, in `ORDER`."""
    leaks: list[dict[str, object]] = []
    kept = [index for index in order if sounds[index].clip.split == ORDER[0]]
    for split in ORDER[1:]:
        candidates = [index for index in order if sounds[index].clip.split == split]
        found = find_near_duplicates(pictures[candidates], pictures[kept])
        for position, (other, cosine) in sorted(found.items()):
            twin = sounds[kept[other]]
            leaks.append({"id": sounds[candidates[position]].id, "split": split, "like": twin.id, "cosine": cosine})
        kept += [index for position, index in enumerate(candidates) if position not in found]
    return sorted(kept), leaks


def _without_outside(
    sounds: list[_Sound], order: list[int], pictures: np.ndarray, outside: Outside
) -> tuple[list[int], list[dict[str, object]]]:
    """Drop near-duplicates of sounds of other datasets and folders."""
    found = find_near_duplicates(pictures[order], outside.pictures)
    dropped: list[dict[str, object]] = []
    for position, (other, cosine) in sorted(found.items()):
        sound = sounds[order[position]]
        dropped.append({"id": sound.id, "split": sound.clip.split, "like": outside.names[other], "cosine": cosine})
    return [index for position, index in enumerate(order) if position not in found], dropped


def _without_shared(
    sounds: list[_Sound], order: list[int], pictures: np.ndarray
) -> tuple[list[int], list[dict[str, object]]]:
    """Drop from git repositories what an earlier source has: projects copy sounds, takes inside one stay.

    Sources of tests come first, so that what is tested does not depend on what is trained on.
    """
    shared: list[dict[str, object]] = []
    kept = [index for index in order if sounds[index].clip.commit is None]
    by_source: dict[str, list[int]] = {}
    for index in order:
        if sounds[index].clip.commit is not None:
            by_source.setdefault(sounds[index].clip.package, []).append(index)
    for indices in sorted(by_source.values(), key=lambda own: min(ORDER.index(sounds[i].clip.split) for i in own)):
        found = find_near_duplicates(pictures[indices], pictures[kept])
        for position, (other, cosine) in sorted(found.items()):
            clip = sounds[indices[position]]
            twin = sounds[kept[other]]
            shared.append({"id": clip.id, "split": clip.clip.split, "like": twin.id, "cosine": cosine})
        kept += [index for position, index in enumerate(indices) if position not in found]
    return sorted(kept), shared


def _row(sound: _Sound, tables: list[pa.Table]) -> dict[str, object]:
    clip = sound.clip
    return {
        "id": sound.id,
        "audio": {"bytes": tables[sound.table]["flac"][sound.row].as_py(), "path": f"{sound.id}.flac"},
        "captions": caption_variants(clip),
        "label": clip.label,
        "raw_label": clip.raw_label,
        "category": clip.category,
        "quality": clip.quality,
        "source": clip.package,
        "license": clip.license,
        "duration_s": sound.duration_s,
        "original_sampling_rate": sound.original_sampling_rate,
        "lang": clip.lang,
        "transcript": clip.transcript,
        "family": clip.family,
        "midi": clip.midi,
        "velocity": clip.velocity,
        "register": clip.register,
        "kit": clip.kit,
        "program": clip.program,
    }


def _write_split(split: str, sounds: list[_Sound], tables: list[pa.Table], folder: Path) -> None:
    files = -(-len(sounds) // ROWS_PER_FILE)
    share = -(-len(sounds) // files)
    schema = FEATURES.arrow_schema
    for number in range(files):
        part = sounds[number * share : (number + 1) * share]
        path = folder / f"{split}-{number:05d}-of-{files:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False) as writer:
            for start in range(0, len(part), ROWS_PER_GROUP):
                rows = [_row(sound, tables) for sound in part[start : start + ROWS_PER_GROUP]]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _joined(authors: set[str]) -> str:
    """Join a few authors; many are named file by file in the manifest."""
    return "; ".join(sorted(authors)) if len(authors) <= 3 else f"{len(authors)} statements, by file in the manifest"


def _summary(sounds: list[_Sound]) -> Report:
    by_split: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    by_package: dict[str, Counter[str]] = {}
    seconds = dict.fromkeys(SPLITS, 0.0)
    licenses: dict[str, set[str]] = {}
    authors: dict[str, set[str]] = {}
    commits: dict[str, str] = {}
    for sound in sounds:
        clip = sound.clip
        by_split[clip.split][clip.category] += 1
        by_package.setdefault(clip.package, Counter())[clip.split] += 1
        seconds[clip.split] += sound.duration_s
        licenses.setdefault(clip.package, set()).add(clip.license)
        if clip.author is not None:
            authors.setdefault(clip.package, set()).add(clip.author)
        if clip.commit is not None:
            commits[clip.package] = clip.commit
    return {
        "rows": {split: sum(counts.values()) for split, counts in by_split.items()},
        "hours": {split: round(seconds[split] / 3600, 2) for split in SPLITS},
        "categories": {split: dict(sorted(counts.items())) for split, counts in by_split.items()},
        "packages": {
            package: {"license": ", ".join(sorted(licenses[package])), "rows": dict(sorted(counts.items()))}
            | ({"author": _joined(authors[package])} if package in authors else {})
            | ({"commit": commits[package]} if package in commits else {})
            for package, counts in sorted(by_package.items())
        },
    }


def assemble(
    jobs: list[PackageJob], work_dir: Path, output_dir: Path, failed: list[Problem], outside: Outside | None = None
) -> Report:
    """Write the parquet files, the report and the dataset card from the finished packages.

    Rows are shuffled by a fixed seed, so that each row group is a mix. Equal input gives equal bytes.

    Args:
        jobs: The packages to put in; those without sounds in the work folder are left out.
        work_dir: The builder's own folder.
        output_dir: Folder to write; `datasets.load_dataset` opens it.
        failed: Packages that could not be fetched, for the report.
        outside: Sounds of other datasets; what sounds like them is left out.

    Returns:
        What `build_report.json` holds.

    Raises:
        ValueError: No package has a usable sound.
    """
    sounds, tables, pictures, problems = _load(jobs, work_dir)
    problems = failed + problems
    if not sounds:
        raise ValueError(f"no clip of {len(jobs)} packages could be used; first problems: {problems[:3]}")
    everything = list(range(len(sounds)))
    unrepeated = _without_repeats(sounds, everything)
    apart = unrepeated
    known: list[dict[str, object]] = []
    if outside is not None:
        apart, known = _without_outside(sounds, unrepeated, pictures, outside)
    unshared, shared = _without_shared(sounds, apart, pictures)
    kept, leaks = _without_leaks(sounds, unshared, pictures)
    report: Report = {
        **_summary([sounds[index] for index in kept]),
        "repeats_dropped": len(everything) - len(unrepeated),
        "near_duplicates_dropped": leaks,
        "shared_dropped": shared,
        "outside_dropped": known,
        "reasons": dict(Counter(problem["reason"].split(":")[0] for problem in problems).most_common()),
        "problems": problems,
        "seed": SEED,
    }

    def write_splits(folder: Path) -> None:
        folder.mkdir(parents=True)
        for split in SPLITS:
            chosen = [sounds[index] for index in kept if sounds[index].clip.split == split]
            random.Random(SEED).shuffle(chosen)
            if chosen:
                _write_split(split, chosen, tables, folder)

    replace_folder(output_dir / "data", write_splits)
    write_json(output_dir / "build_report.json", report)
    write_text(output_dir / "README.md", write_card(report))
    return report
