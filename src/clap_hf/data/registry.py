"""The paper's training sets (Section 3): where they are, under which terms, and how their pairs are formed.

The table is `training_sets.yaml`, beside this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from .source import StreamSource
from .source_texts import RULES

TABLE = Path(__file__).parent / "training_sets.yaml"
ACCESS = ("open", "per clip", "own copy")
PRETRAINING_ONLY = ("clotho_aqa", "freesound")  # of HTSAT-22's tasks, and not among the 20 sets of the pairs
NUMBERS = ("clips", "epoch_pairs", "seconds")
KINDS: dict[str, Any] = {  # of the fields that are no texts
    **dict.fromkeys(("hub_ids", "splits", "columns", "keep", "formed"), list),
    **dict.fromkeys(NUMBERS, (int, float)),
    "example": dict,
}


@dataclass(frozen=True)
class TrainingSet:
    """One of the training sets.

    Args:
        title: Its name.
        original: Where it comes from.
        hub_ids: Repositories on the Hub that hold it, or parts of it; unofficial unless said otherwise.
        license: Of the audio and of the labels, where they differ.
        access: One of `ACCESS`. `"open"`: its license allows passing it on. `"per clip"`: each clip has its own
            Creative Commons license, which a built row carries. `"own copy"`: everybody must get it from its owner;
            what is built stays local.
        splits: Splits that may be trained on.
        columns: Metadata that the texts are formed of.
        keep: Metadata that built rows keep beside the texts: labels that prompts of pretraining ask for.
        texts: Forms the texts of a row; in the table, the name of a rule in `source_texts`.
        example: A row's metadata, for the worked example.
        formed: The texts of that row.
        exclude: What must be left out, because a downstream task of the paper tests on it.
        pairs: Size, as published.
        clips: The same as a number, for planning; 0 where nothing is published.
        epoch_pairs: Pairs of an epoch, each caption of a clip being one.
        seconds: Mean length of a clip, rounded, s.
        layout: What `python -m tools.training_sets` expects below its root.
    """

    title: str
    original: str
    hub_ids: tuple[str, ...]
    license: str
    access: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    keep: tuple[str, ...]
    texts: Callable[[dict[str, Any]], list[str]]
    example: dict[str, Any]
    formed: list[str]
    exclude: str
    pairs: str
    clips: int
    epoch_pairs: int
    seconds: float
    layout: str


def read_training_sets(path: Path) -> dict[str, TrainingSet]:
    """Read and check a table of training sets.

    Args:
        path: YAML file: by the key of every set, the fields of `TrainingSet`.

    Raises:
        ValueError: If an entry misses a field or has an unknown one, or a field holds something else.
    """
    sets = {}
    for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        expected = {field.name for field in fields(TrainingSet)}
        if set(entry) != expected:
            raise ValueError(f"{path.name}: {name} differs in the fields {sorted(set(entry) ^ expected)}.")
        for field, value in entry.items():
            if not isinstance(value, KINDS.get(field, str)):
                words = "number" if field in NUMBERS else KINDS.get(field, str).__name__
                raise ValueError(f"{path.name}: {name}.{field} is {value!r}, expected a {words}.")
        for field, known in (("access", ACCESS), ("texts", tuple(RULES))):
            if entry[field] not in known:
                raise ValueError(f"{path.name}: {name}.{field} is {entry[field]!r}, expected one of {known}.")
        tuples = {field: tuple(entry[field]) for field in ("hub_ids", "splits", "columns", "keep")}
        sets[name] = TrainingSet(**(entry | tuples | {"texts": RULES[entry["texts"]]}))
    return sets


@cache
def training_sets() -> dict[str, TrainingSet]:
    """The paper's 20 training sets and `PRETRAINING_ONLY`, by their keys."""
    return read_training_sets(TABLE)


def training_set(name: str) -> TrainingSet:
    """One of the sets, by its key.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in training_sets():
        raise ValueError(f"There is no training set {name!r}, expected one of {sorted(training_sets())}.")
    return training_sets()[name]


def source_of(settings: dict[str, Any], split: str) -> StreamSource:
    """A stream's source from a recipe's settings.

    Args:
        settings: Settings of `StreamSource`. With `source`, the key of a training set, the texts are formed by its
            rule from its own columns, and the dataset is its first Hub repository unless one is named.
        split: The split, unless the settings name one.

    Raises:
        ValueError: If a setting is unknown, or there is no dataset.
    """
    settings = {"split": split} | settings
    if "source" in settings:
        chosen = training_set(settings.pop("source"))
        settings = {"texts": chosen.texts, "text_columns": chosen.columns} | settings
        if chosen.hub_ids:
            settings.setdefault("dataset", chosen.hub_ids[0])
    known = {field.name for field in fields(StreamSource)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"A source has unknown settings {unknown}, expected some of {sorted(known)}.")
    if "dataset" not in settings:
        raise ValueError(f"A source names no dataset: {settings}.")
    return StreamSource(**settings)
