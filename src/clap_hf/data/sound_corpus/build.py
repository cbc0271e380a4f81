"""From packages to parquet: every package in its own resumable step, then one deterministic assembly."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features, List, Value

from clap_hf.data.sound_corpus.card import write_card
from clap_hf.data.sound_corpus.decode import SAMPLING_RATE
from clap_hf.data.sound_corpus.duplicates import find_near_duplicates
from clap_hf.data.sound_corpus.manifest import SPLITS, Clip
from clap_hf.data.sound_corpus.packages import PackageError
from clap_hf.data.sound_corpus.rows import (
    PUBLIC_FIELDS,
    PackageJob,
    Problem,
    build_package,
    is_finished,
    rows_file,
)
from clap_hf.data.sound_corpus.soundfonts import Font, plan_notes

SEED = 2023
ROWS_PER_GROUP = 200
ROWS_PER_FILE = 3000

Report = dict[str, object]


@dataclass(frozen=True)
class _Index:
    """Where one row lies, and what the assembly decides by."""

    table: int
    row: int
    id: str
    package: str
    split: str
    digest: str


def plan_jobs(
    clips: Iterable[Clip],
    fonts: Iterable[Font],
    packages: Iterable[str] = (),
    skip: Iterable[str] = (),
    limit: int | None = None,
) -> list[PackageJob]:
    """Groups clips and notes by package.

    Args:
        clips: recorded clips.
        fonts: soundfonts to render.
        packages: take only these; all if empty.
        skip: leave these out.
        limit: take at most this many clips, and notes of each font, from a package; all if None.

    Returns:
        One job a package, sorted by package.

    Raises:
        ValueError: `packages` or `skip` names a package without clips.
    """
    fonts = list(fonts)
    by_package: dict[str, list[Clip]] = {font.package: [] for font in fonts}
    for clip in clips:
        by_package.setdefault(clip.package, []).append(clip)
    only, without = set(packages), set(skip)
    unknown = sorted((only | without) - set(by_package))
    if unknown:
        raise ValueError(f"packages {unknown} give no clips; use names that the manifest has")
    jobs = []
    for package in sorted(by_package):
        if package in without or (only and package not in only):
            continue
        planned = tuple((font, tuple(plan_notes(font)[:limit])) for font in fonts if font.package == package)
        jobs.append(PackageJob(package, tuple(by_package[package][:limit]), planned))
    return jobs


def build_packages(
    jobs: list[PackageJob],
    work_dir: Path,
    processes: int = 2,
    on_finished: Callable[[PackageJob], None] | None = None,
) -> list[Problem]:
    """Makes the rows of every package that is not finished yet.

    Args:
        jobs: the packages.
        work_dir: the builder's own folder.
        processes: worker processes.
        on_finished: told of each package when it is done.

    Returns:
        The packages that could not be fetched or unpacked, with the reason.
    """
    waiting = []
    for job in jobs:
        if not is_finished(job, work_dir):
            waiting.append(job)
        elif on_finished is not None:
            on_finished(job)
    failed: list[Problem] = []
    # Spawned, since a forked child of a process with torch threads may hang. Largest first, to end together.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(build_package, job, work_dir): job for job in sorted(waiting, key=lambda job: -job.size)}
        for future in as_completed(futures):
            job = futures[future]
            try:
                future.result()
            except PackageError as error:
                failed.append({"id": "", "package": job.package, "path": "", "reason": str(error)})
            if on_finished is not None:
                on_finished(job)
    return sorted(failed, key=lambda problem: problem["package"])


def _without_repeats(rows: list[_Index]) -> tuple[list[_Index], int]:
    """Drops byte-equal sounds inside one split: many kits and banks reuse a recording."""
    kept: list[_Index] = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = (row.split, row.digest)
        if row.split == "test" or key not in seen:
            kept.append(row)
        seen.add(key)
    return kept, len(rows) - len(kept)


def _without_leaks(rows: list[_Index], thumbnails: dict[str, np.ndarray]) -> tuple[list[_Index], list[dict[str, object]]]:
    """Drops from validation what sounds like a test clip, and from train what sounds like either."""
    leaks: list[dict[str, object]] = []
    kept = {split: [row for row in rows if row.split == split] for split in SPLITS}
    held_out = kept["test"]
    for split in ("validation", "train"):
        candidates = kept[split]
        found = find_near_duplicates(
            np.array([thumbnails[row.id] for row in candidates]),
            [row.package for row in candidates],
            np.array([thumbnails[row.id] for row in held_out]),
            [row.package for row in held_out],
        )
        for index, (other, cosine) in sorted(found.items()):
            leak = {"id": candidates[index].id, "split": split, "like": held_out[other].id, "cosine": cosine}
            leaks.append(leak)
        kept[split] = [row for index, row in enumerate(candidates) if index not in found]
        held_out = held_out + kept[split]
    return [row for split in SPLITS for row in kept[split]], leaks


def _corpus_schema() -> pa.Schema:
    """The public columns, with the note that makes `datasets` read `audio` as sound."""
    special = {"audio": Audio(sampling_rate=SAMPLING_RATE), "captions": List(Value("string"))}
    features = Features(
        {field.name: special.get(field.name) or Value(str(field.type).replace("float", "float32")) for field in PUBLIC_FIELDS}
    )
    return pa.schema(PUBLIC_FIELDS, metadata=features.arrow_schema.metadata)


def _write_split(split: str, rows: list[_Index], tables: list[pa.Table], folder: Path) -> None:
    files = max(1, -(-len(rows) // ROWS_PER_FILE))
    share = -(-len(rows) // files)
    for number in range(files):
        part = rows[number * share : (number + 1) * share]
        path = folder / f"{split}-{number:05d}-of-{files:05d}.parquet"
        with pq.ParquetWriter(path, _corpus_schema(), compression="zstd", write_statistics=False) as writer:
            for start in range(0, len(part), ROWS_PER_GROUP):
                slices = [tables[row.table].slice(row.row, 1) for row in part[start : start + ROWS_PER_GROUP]]
                group = pa.concat_tables(slices).combine_chunks()
                writer.write_table(group.cast(_corpus_schema()), row_group_size=ROWS_PER_GROUP)


def _summary(rows: list[_Index], tables: list[pa.Table]) -> Report:
    by_split: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    by_package: dict[str, Counter[str]] = {}
    hours: Counter[str] = Counter()
    licences: dict[str, str] = {}
    columns = [table.select(["category", "licence", "duration_s"]).to_pydict() for table in tables]
    for row in rows:
        values = columns[row.table]
        by_split[row.split][values["category"][row.row]] += 1
        by_package.setdefault(row.package, Counter())[row.split] += 1
        hours[row.split] += values["duration_s"][row.row] / 3600
        licences[row.package] = values["licence"][row.row]
    return {
        "rows": {split: sum(counts.values()) for split, counts in by_split.items()},
        "hours": {split: round(hours[split], 2) for split in SPLITS},
        "categories": {split: dict(sorted(counts.items())) for split, counts in by_split.items()},
        "packages": {
            package: {"licence": licences[package], "rows": dict(sorted(counts.items()))}
            for package, counts in sorted(by_package.items())
        },
    }


def assemble(jobs: list[PackageJob], work_dir: Path, output_dir: Path, failed: list[Problem]) -> Report:
    """Writes the parquet files, the report and the dataset card from the finished packages.

    Rows are shuffled by a fixed seed, so that each row group is a mix. Equal input gives equal bytes.

    Args:
        jobs: the packages to put in; those without rows in the work folder are left out.
        work_dir: the builder's own folder.
        output_dir: folder to write; `datasets.load_dataset` opens it.
        failed: packages that could not be fetched, for the report.

    Returns:
        What `build_report.json` holds.

    Raises:
        ValueError: no package has a row.
    """
    tables: list[pa.Table] = []
    rows: list[_Index] = []
    thumbnails: dict[str, np.ndarray] = {}
    problems = list(failed)
    public = [field.name for field in PUBLIC_FIELDS]
    for job in jobs:
        if not is_finished(job, work_dir):
            continue
        path = rows_file(job.package, work_dir)
        problems += json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["problems"]
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        keys = table.select(["id", "split", "digest", "thumbnail"]).to_pydict()
        for row, (name, split, digest, picture) in enumerate(zip(*keys.values(), strict=True)):
            rows.append(_Index(len(tables), row, name, job.package, split, digest))
            thumbnails[name] = np.frombuffer(picture, np.float16)
        tables.append(table.select(public))
    if not rows:
        raise ValueError(f"no clip of {len(jobs)} packages could be used; problems: {problems[:3]}")
    rows, repeats = _without_repeats(rows)
    rows, leaks = _without_leaks(rows, thumbnails)
    report: Report = {
        **_summary(rows, tables),
        "repeats_dropped": repeats,
        "near_duplicates_dropped": leaks,
        "reasons": dict(Counter(problem["reason"].split(":")[0] for problem in problems).most_common()),
        "problems": problems,
        "seed": SEED,
    }
    fresh = output_dir / "data.part"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for split in SPLITS:
        chosen = [row for row in rows if row.split == split]
        random.Random(SEED).shuffle(chosen)
        if chosen:
            _write_split(split, chosen, tables, fresh)
    shutil.rmtree(output_dir / "data", ignore_errors=True)
    os.replace(fresh, output_dir / "data")
    _write_text(output_dir / "build_report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    _write_text(output_dir / "README.md", write_card(report))
    return report


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
