"""The suite `sounds`: held-out tasks of the sound corpus in the form of the paper's, run by the same machinery."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import datasets

from .benchmarks import Task
from .loading import AudioColumn, DataLocation, DataSourceError, TaskData, classified
from .runner import Job
from .sound_tasks import (
    CLASSIFICATION_TASKS,
    EVENT_CATEGORIES,
    RETRIEVAL_SOURCE,
    TEMPLATES,
    Row,
    SoundTask,
    select_clips,
)

LOUDNESS = {35: "soft", 80: "medium", 120: "loud"}  # MIDI velocities of the held-out notes
VELOCITY_TASK = SoundTask(
    "velocity",
    lambda row: None if row["velocity"] is None else LOUDNESS.get(row["velocity"]),
    {
        "soft": ["a soft note", "a quiet note"],
        "medium": ["a note of medium loudness"],
        "loud": ["a loud note", "a note played hard"],
    },
    20,
    200,
)
EVENTS_TASK = SoundTask(
    "sound events, several labels",
    lambda row: row["label"] if _is_event(row) else None,
    {},
    5,
    20,
)


def sound_jobs(dataset: str, split: str = "test") -> list[Job]:
    """Jobs on a split of the sound corpus.

    Args:
        dataset: Folder or Hub id of the corpus, see `python -m tools.sound_corpus`.
        split: The split.
    """
    corpus = datasets.load_dataset(dataset, split=split)
    rows = corpus.remove_columns("audio").to_list()
    audio = AudioColumn(corpus, "audio")
    place = DataLocation(None, None, f"sound corpus, {split}", f"corpus:{corpus._fingerprint}")
    jobs = [_classification(task, rows, audio, place) for task in (*CLASSIFICATION_TASKS, VELOCITY_TASK)]
    jobs.append(_events(rows, audio, place))
    spoken = [i for i, row in enumerate(rows) if row["source"] == RETRIEVAL_SOURCE]  # captions written by people
    for kind in ("audio-to-text", "text-to-audio"):
        task = Task(f"retrieval {kind}", kind, "R@1", "retrieval", {}, (), "ours", ())
        first: list[Any] = [rows[i]["captions"][:1] for i in spoken]
        jobs.append(Job(task, partial(_found, place, task.name, bool(spoken)), partial(_told, audio, spoken, first)))
    told = [i for i, row in enumerate(rows) if row["source"] == RETRIEVAL_SOURCE or _is_event(row)]
    task = Task("captions", "captioning", "SPIDEr", "captions", {}, (), "ours", (), note="Events, with all captions.")
    captions: list[Any] = [rows[i]["captions"] for i in told]
    jobs.append(Job(task, partial(_found, place, task.name, bool(told)), partial(_told, audio, told, captions)))
    return jobs


def _is_event(row: Row) -> bool:
    return row["category"] in EVENT_CATEGORIES and row["quality"] != "weak"


def _found(place: DataLocation, name: str, there: bool) -> Iterator[DataLocation | DataSourceError]:
    yield place if there else DataSourceError(f"{place.name} has too few clips for {name}")


def _classification(task: SoundTask, rows: list[Row], audio: AudioColumn, place: DataLocation) -> Job:
    chosen = select_clips(task, rows)
    names = sorted(set(chosen.values()))
    note = "Notes differ in level above all: a task of loudness." if task is VELOCITY_TASK else ""
    described = Task(
        task.name,
        "classification",
        "accuracy",
        "sound corpus",
        {name: () for name in names},
        TEMPLATES,
        "ours",
        (),
        size=len(chosen),
        note=note,
        phrases={name: tuple(task.texts(name)) for name in names},
    )
    given = {row: [name] for row, name in chosen.items()}
    return Job(described, partial(_found, place, task.name, bool(chosen)), partial(_data, described, audio, given))


def _events(rows: list[Row], audio: AudioColumn, place: DataLocation) -> Job:
    """Event and kind of event: a clip is "dog" and "animal", as AudioSet's and FSD50K's clips carry both."""
    chosen = select_clips(EVENTS_TASK, rows)
    given = {row: list(dict.fromkeys([name, rows[row]["category"]])) for row, name in chosen.items()}
    names = sorted({name for labels in given.values() for name in labels})
    task = Task(
        EVENTS_TASK.name, "classification", "mAP", "sound corpus", {name: () for name in names}, TEMPLATES, "ours", (),
        size=len(given),
    )  # fmt: skip
    return Job(task, partial(_found, place, task.name, bool(chosen)), partial(_data, task, audio, given))


def _data(task: Task, audio: AudioColumn, given: dict[int, list[str]], place: DataLocation) -> TaskData:
    return classified(task, audio, given)


def _told(audio: AudioColumn, chosen: list[int], captions: list[Any], place: DataLocation) -> TaskData:
    return TaskData(audio, chosen, captions=captions)
