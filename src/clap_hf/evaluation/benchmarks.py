"""The paper's 26 tasks, read from `benchmarks.yaml`: sources, classes, prompts, metrics and published figures.

Sources are tried from the first to the last; `fidelity` is how close each is to what the paper measured. No
revision means that none is known to be right yet: the run resolves the newest one and records it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KINDS = ("classification", "audio-to-text", "text-to-audio", "captioning")
METRICS = ("accuracy", "mAP", "F1", "R@1", "SPIDEr")
LAYOUTS = ("rows", "files", "pairs", "actions")
FIDELITIES = ("paper", "subset", "proxy")


@dataclass(frozen=True)
class Source:
    """One copy of a data set.

    Args:
        repo: Hub id of the data set.
        split: Split that is measured; several joined by "+".
        revision: Commit, branch or tag; the newest when None.
        config: Configuration of the data set.
        label: Columns that may hold the label or the captions, the first one there is taken.
        names: Meaning of integer labels, by their number, where the column's own type has no names.
        layout: `"rows"`: one row a clip, or one a caption. `"files"`: audio files, loose or in zip archives, and CSVs
            `path,classname` (`split` is then their names). `"pairs"`: configurations queries, corpus and qrels.
            `"actions"`: rows of ESC-50, joined with the crowd's counts of actions, a CSV in the data folder.
        group: Column whose equal values mark the captions of one clip.
        multi_hot: The label is a list of 0 and 1 over `names`.
        rest: Class of all labels that are none of the task's, where the task has such a class.
        fidelity: `"paper"`, `"subset"` (of the paper's clips) or `"proxy"` (other clips of the same task).
        note: What differs from the paper, or is not verified.
    """

    repo: str
    split: str = "train"
    revision: str | None = None
    config: str | None = None
    label: tuple[str, ...] = ("label",)
    names: tuple[str, ...] = ()
    layout: str = "rows"
    group: str | None = None
    multi_hot: bool = False
    rest: str | None = None
    fidelity: str = "paper"
    note: str = ""

    def __post_init__(self) -> None:
        _expect(self.repo, "layout", self.layout, LAYOUTS)
        _expect(self.repo, "fidelity", self.fidelity, FIDELITIES)


@dataclass(frozen=True)
class Task:
    """One line of the paper's Table 2, or a task of one's own.

    Args:
        name: As in reports, and of its CSV in a data folder.
        kind: `"classification"`, `"audio-to-text"`, `"text-to-audio"` or `"captioning"`.
        metric: `"accuracy"`, `"mAP"`, `"F1"`, `"R@1"` or `"SPIDEr"`.
        domain: Group of the paper's Table 2.
        classes: Words of every class -> further names that data sets give it. Empty: taken from the data.
        templates: Prompts with {} for the words; several are averaged.
        prompt_status: `"published"`, `"inferred"` or `"ours"`.
        sources: Where the sounds are, the best first; none: only from a data folder.
        size: Test clips in the paper, where known.
        paper: The paper's CLAP, in Table 2 (R@1 for retrieval).
        benchmark: The best before it, in Table 2.
        paper_map: Its mAP@10, for retrieval.
        benchmark_map: The benchmark's mAP@10.
        note: What is not settled.
        phrases: Texts of a class that replace the templates.
        scored: Whether its value counts in the suite's zero-shot score.
    """

    name: str
    kind: str
    metric: str
    domain: str
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    prompt_status: str = "ours"
    sources: tuple[Source, ...] = ()
    size: int | None = None
    paper: float | None = None
    benchmark: float | None = None
    paper_map: float | None = None
    benchmark_map: float | None = None
    note: str = ""
    phrases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    scored: bool = False

    def __post_init__(self) -> None:
        _expect(self.name, "kind", self.kind, KINDS)
        _expect(self.name, "metric", self.metric, METRICS)
        if wrong := [template for template in self.templates if "{}" not in template]:
            raise ValueError(f"{self.name}: templates {wrong} have no {{}} for the label.")

    @property
    def multi_label(self) -> bool:
        """Whether clips have any number of labels."""
        return self.metric in ("mAP", "F1")

    @property
    def dataset(self) -> str:
        """Name of its CSV in a data folder: directions of one data set share it."""
        return self.name.split(" ")[0]


def _expect(name: str, field_name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {field_name} is {value!r}, expected one of {allowed}.")


def read_table(name: str) -> dict[str, Any]:
    """Content of a YAML file beside this module."""
    return yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8"))


def named(entries: Iterable[str | int]) -> dict[str, tuple[str, ...]]:
    """Classes with their further names, from entries `words` or `words=other=other`."""
    classes = {}
    for entry in entries:
        words, *others = str(entry).split("=")
        classes[words] = tuple(others)
    return classes


def _task(entry: dict[str, Any], class_names: dict[str, list[str]], scored: list[str]) -> Task:
    given = entry.pop("classes", [])
    classes = named(class_names[given] if isinstance(given, str) else given)
    sources: list[dict[str, Any]] = [
        {name: tuple(value) if isinstance(value, list) else value for name, value in source.items()}
        | ({"names": tuple(classes)} if source.get("names") == "classes" else {})
        for source in entry.pop("sources")
    ]
    return Task(
        classes=classes,
        templates=tuple(entry.pop("templates", ())),
        sources=tuple(Source(**source) for source in sources),
        scored=entry["name"] in scored,
        **entry,
    )


_TABLE, _CLASS_NAMES = read_table("benchmarks.yaml"), read_table("class_names.yaml")
PAPER_TASKS = tuple(_task(entry, _CLASS_NAMES, _TABLE["table1_tasks"]) for entry in _TABLE["tasks"])
# Paper Table 1: its 16 tasks, whose unweighted mean is the zero-shot score, its rows, and the means as printed.
TABLE1_TASKS: tuple[str, ...] = tuple(_TABLE["table1_tasks"])
TABLE1_ROWS: dict[str, list[float]] = _TABLE["table1_rows"]
TABLE1_SCORES: dict[str, float] = _TABLE["table1_scores"]
SUITES: dict[str, tuple[Task, ...]] = {
    "paper": PAPER_TASKS,
    "table1": tuple(task for name in TABLE1_TASKS for task in PAPER_TASKS if task.name == name),
}
