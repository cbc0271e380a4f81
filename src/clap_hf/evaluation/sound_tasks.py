"""Held-out tasks on a split of the sound corpus, read from `sound_tasks.yaml`: classes, clips and phrases."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from ..embedding import TEMPLATES
from .benchmarks import Task, read_table
from .general_midi import FAMILY, PROGRAM_NAME
from .loading import TaskData, classified

Row = dict[str, Any]  # a corpus row without its audio

_TABLE = read_table("sound_tasks.yaml")
RETRIEVAL_SOURCE: str = _TABLE["retrieval_source"]
DESCRIBED = "described"  # quality of a clip whose caption was written for it alone
RELABELLED_COLUMNS = ("category", "label", "quality")


def _instrument_phrases() -> dict[str, list[str]]:
    """Phrases of every instrument family: each of its instruments in three registers."""
    phrases: dict[str, list[str]] = defaultdict(list)
    for program, family in FAMILY.items():
        phrases[family] += [f"a {pitch} pitched {PROGRAM_NAME[program]} note" for pitch in ("low", "medium", "high")]
    return dict(phrases)


@dataclass(frozen=True)
class SoundTask:
    """A classification task over corpus rows.

    Args:
        name: Name in reports.
        clips: Classes with fewer clips than the first number are left out; of classes with more than the second, that
            many are taken, by a hash of the clips' ids.
        columns: Columns that hold the labels of a row; of several, the first is the class by which clips are taken.
        categories: Categories of the rows that take part; all when empty.
        labels: Their labels; all when empty.
        without: Labels that take no part.
        rendered: Only notes rendered from soundfonts (True) or only recordings (False); both when None.
        weak: Whether rows with doubtful labels take part.
        words: Class of a value of the first column; the value itself when empty.
        phrases: Texts of a class; the templates around its name when it has none.
        note: A remark for reports.
        scored: Whether it counts in the zero-shot score.
    """

    name: str
    clips: tuple[int, int]
    columns: tuple[str, ...] = ("label",)
    categories: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    rendered: bool | None = None
    weak: bool = True
    words: dict[Any, str] = field(default_factory=dict)
    phrases: dict[str, list[str]] = field(default_factory=dict)
    note: str = ""
    scored: bool = True

    def class_of(self, row: Row) -> str | None:
        """Class of a row, or None if the row is not part of the task."""
        if (
            (self.categories and row["category"] not in self.categories)
            or (self.labels and row["label"] not in self.labels)
            or row["label"] in self.without
            or (self.rendered is not None and self.rendered is not (row["velocity"] is not None))
            or (not self.weak and row["quality"] == "weak")
        ):
            return None
        value = row[self.columns[0]]
        return self.words.get(value) if self.words else value

    def labels_of(self, row: Row) -> list[str]:
        """Labels of a row of the task, each once."""
        return list(dict.fromkeys([str(self.class_of(row)), *(row[name] for name in self.columns[1:])]))


def _sound_task(entry: dict[str, Any]) -> SoundTask:
    if "column" in entry:
        entry["columns"] = [entry.pop("column")]
    if entry.get("phrases") == "instruments":
        entry["phrases"] = _instrument_phrases()
    fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in entry.items()}
    return SoundTask(**fields)


SOUND_TASKS = tuple(_sound_task(entry) for entry in _TABLE["tasks"])


def _order(row: Row) -> str:
    return hashlib.sha256(row["id"].encode()).hexdigest()


def select_clips(task: SoundTask, rows: Sequence[Row]) -> dict[int, str]:
    """Clips of a task and their classes.

    Args:
        task: The task.
        rows: Corpus rows of one split.

    Returns:
        Class by index into `rows`; empty if fewer than two classes have enough clips.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        name = task.class_of(row)
        if name is not None:
            members[name].append(i)
    fewest, most = task.clips
    classes = {name: clips for name, clips in members.items() if len(clips) >= fewest}
    if len(classes) < 2:
        return {}
    return {
        i: name for name, clips in sorted(classes.items()) for i in sorted(clips, key=lambda i: _order(rows[i]))[:most]
    }


def _has_own_caption(row: Row) -> bool:
    return row["source"] == RETRIEVAL_SOURCE or row["quality"] == DESCRIBED


def corpus_tasks(rows: Sequence[Row], audio: Sequence[dict[str, Any]]) -> list[tuple[Task, TaskData]]:
    """All tasks of a split with their clips; a task whose classes have too few clips has none.

    Args:
        rows: Corpus rows of the split, without audio.
        audio: Its encoded sounds.
    """
    tasks = [_classification(task, rows, audio) for task in SOUND_TASKS]
    written = [i for i, row in enumerate(rows) if _has_own_caption(row)]
    first = TaskData(audio, written, captions=[rows[i]["captions"][:1] for i in written])
    for name in ("text to audio", "audio to text"):
        task = Task(name, name.replace(" ", "-"), "R@1", "sound corpus", scored=True)
        tasks.append((task, first))
    events = next(task for task in SOUND_TASKS if task.name == "sound events")
    captioned = [i for i, row in enumerate(rows) if _has_own_caption(row) or events.class_of(row)]
    task = Task("captions", "captioning", "SPIDEr", "sound corpus", note="Events, with all captions.")
    return [*tasks, (task, TaskData(audio, captioned, captions=[rows[i]["captions"] for i in captioned]))]


def _classification(task: SoundTask, rows: Sequence[Row], audio: Sequence[dict[str, Any]]) -> tuple[Task, TaskData]:
    given = {i: task.labels_of(rows[i]) for i in select_clips(task, rows)}
    names = sorted({name for labels in given.values() for name in labels})
    described = Task(
        task.name,
        "classification",
        "accuracy" if len(task.columns) == 1 else "mAP",
        "sound corpus",
        classes={name: () for name in names},
        templates=TEMPLATES,
        size=len(given),
        note=task.note,
        phrases={name: tuple(task.phrases[name]) for name in names if name in task.phrases},
        scored=task.scored,
    )
    return described, classified(described, audio, given) if given else TaskData(audio, [])


def with_labels(split: datasets.Dataset, labels: Mapping[str, Mapping[str, str]]) -> datasets.Dataset:
    """A split in which clips have other labels.

    Args:
        split: A split of the sound corpus.
        labels: The clips' ids; each with its `category`, `label` and `quality`.

    Raises:
        ValueError: If the split lacks one of the clips.
    """
    ids = split["id"][:]
    missing = sorted(labels.keys() - set(ids))
    if missing:
        raise ValueError(
            f"The split lacks {len(missing)} of {len(labels)} relabelled clips, the first {missing[0]!r}."
        )
    for column in RELABELLED_COLUMNS:
        values = [labels.get(name, row)[column] for name, row in zip(ids, split.select_columns(column), strict=True)]
        split = split.remove_columns(column).add_column(column, values)
    return split
