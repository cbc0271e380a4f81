"""Evaluation sets of one's own: CSVs, a folder a class, or a dataset of labels or captions, on disk or on the Hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from ..audio import AUDIO_EXTENSIONS
from ..data.splits import load_split
from .benchmarks import Task
from .loading import (
    SEPARATOR,
    AudioColumn,
    DataLocation,
    DataSourceError,
    TaskData,
    classified,
    from_rows,
    read_csv,
    rows_location,
)
from .runner import Job

TEMPLATE = "this is a sound of {}"
METADATA = "metadata.csv"  # of an audiofolder: its task is named after the folder
COLUMNS = {"label": ("label", "labels"), "caption": ("caption", "captions", "text")}  # of a dataset


def own_jobs(data_dir: str, split: str) -> list[Job]:
    """Jobs of an evaluation set: classification where there are labels, retrieval both ways where there are captions.

    Args:
        data_dir: A folder with CSVs `path,label` or `path,caption` (or an audiofolder's `metadata.csv`), with a folder
            of sounds a class, or with parquet files as `scripts/build_evaluation_set.py` writes them; or a dataset on
            the Hub.
        split: Split of the dataset, for parquet files and on the Hub.

    Raises:
        DataSourceError: If there is no such set, with the reason of every file that is none.
    """
    folder = Path(data_dir)
    if not folder.is_dir() or any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")):
        return _dataset_jobs(data_dir, split)
    jobs: list[Job] = []
    refused: list[str] = []
    for path in sorted(folder.glob("*.csv")):
        try:
            rows = read_csv(path)
        except DataSourceError as error:
            refused.append(str(error))
            continue
        jobs += _row_jobs(folder.resolve().name if path.name == METADATA else path.stem, rows, folder, path)
    if not jobs:
        rows = list(_rows_of_folders(folder))
        if len({row["label"] for row in rows}) > 1:
            return _row_jobs(folder.resolve().name, rows, folder, None)
        expected = "CSVs with columns path,label or path,caption, parquet files, or a folder of sounds for each class"
        raise DataSourceError("; ".join([f"{folder} holds no evaluation set, expected {expected}", *refused]))
    return jobs


def tasks_of(name: str, labels: Iterable[list[str]] | None, captioned: bool) -> list[Task]:
    """Tasks of a set.

    Args:
        name: Its name.
        labels: Labels of every sound, where it has some.
        captioned: Whether it has captions.
    """
    tasks = []
    if labels is not None:
        metric = "mAP" if any(len(own) != 1 for own in labels) else "accuracy"
        tasks.append(Task(name, "classification", metric, "own", templates=(TEMPLATE,)))
    if captioned:
        tasks += [Task(f"{name} {kind}", kind, "R@1", "own") for kind in ("audio-to-text", "text-to-audio")]
    return tasks


def _rows_of_folders(folder: Path) -> Iterator[dict[str, str]]:
    """A row for every sound of a folder's folders, which are named after their classes."""
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in AUDIO_EXTENSIONS:
            yield {"path": path.relative_to(folder).as_posix(), "label": path.parent.name}


def _row_jobs(name: str, rows: list[dict[str, str]], folder: Path, table: Path | None) -> list[Job]:
    """Jobs on sounds that rows name, relative to a folder."""
    location = rows_location(rows, folder, table)
    labels = None
    if "label" in rows[0]:
        counts = Counter(row["path"] for row in rows)
        several = max(counts.values()) > 1 or any(SEPARATOR in row["label"] for row in rows)
        labels = [["", ""]] if several else [[""]]
    return [
        Job(task, partial(iter, [location]), partial(_load_rows, task, rows, folder))
        for task in tasks_of(name, labels, "caption" in rows[0])
    ]


def _load_rows(task: Task, rows: list[dict[str, str]], folder: Path, location: DataLocation) -> TaskData:
    return from_rows(task, rows, lambda name: folder / name)


def _dataset_jobs(name: str, split: str) -> list[Job]:
    """Jobs on a split of a dataset with the column `audio`."""
    try:
        rows = load_split(name, split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataSourceError(f"{name}, split {split}: {str(error).strip().splitlines()[0]}") from error
    columns = {kind: next((c for c in known if c in rows.column_names), None) for kind, known in COLUMNS.items()}
    if "audio" not in rows.column_names or not any(columns.values()):
        raise DataSourceError(f"{name} has columns {rows.column_names}, expected audio, and label or caption")
    values = {kind: _values(rows, column) for kind, column in columns.items() if column is not None}
    audio = AudioColumn(rows, "audio")
    location = DataLocation(None, None, f"{name}, {split}", f"own:{rows._fingerprint}")

    def data_of(task: Task, location: DataLocation) -> TaskData:
        if task.kind == "classification":
            return classified(task, audio, dict(enumerate(values["label"])))
        return TaskData(audio, list(range(len(rows))), captions=values["caption"])

    title = Path(name).resolve().name if Path(name).is_dir() else name.rpartition("/")[2]
    return [
        Job(task, partial(iter, [location]), partial(data_of, task))
        for task in tasks_of(title, values.get("label"), "caption" in values)
    ]


def _values(rows: datasets.Dataset, column: str) -> list[list[str]]:
    """Labels or captions of every row, as texts."""
    feature: Any = rows.features[column]
    feature = feature.feature if isinstance(feature, datasets.List) else feature

    def text(value: Any) -> str:
        return feature.int2str(value) if isinstance(feature, datasets.ClassLabel) else str(value)

    return [[text(item) for item in (value if isinstance(value, list) else [value])] for value in rows[column][:]]
