"""A source of pairs: where its rows are, and how texts and sound are read from one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from ..audio.stored import AUDIO_COLUMNS, stored_sound

TEXT_COLUMNS = ("text", "caption", "captions")
LABEL_COLUMNS = ("label", "labels", "classname")
TEMPLATE = "this is a sound of {}"


class RowError(ValueError):
    """A row without text or without audio that can be decoded."""


class NoSuchSplit(ValueError):
    """A source without the split that was asked for."""

    def __init__(self, name: str, found: Sequence[str], wanted: str):
        remedy = "Hold out a share of the pairs instead (held_out), or name another split."
        super().__init__(f"{name} has splits {sorted(found)}, expected {wanted!r} among them. {remedy}")


@dataclass(frozen=True)
class StreamSource:
    """A dataset of pairs: parquet files, or any other form that `clap_hf.data.own` reads.

    Args:
        dataset: Hub id, or a local folder or file.
        split: Its split.
        config: Its configuration, where it has several.
        revision: Branch, tag or commit on the Hub.
        weight: How often an epoch passes over it.
        audio: Column of audio: `{bytes, path}` as `datasets.Audio` stores it, `{array, sampling_rate}`, bytes, or the
            path of a file; the first of `AUDIO_COLUMNS` when None.
        text: Column of a text or a list of texts; the first of `TEXT_COLUMNS` and `LABEL_COLUMNS` when None.
        every_text: Whether each text of a list is a pair of its own, so that an epoch goes over all of them. If not,
            a visit draws one of them, as it does of what `texts` forms, and where rows come from a `SimpleStream`.
        texts: Forms the texts of a row instead, from `text_columns`.
        text_columns: What `texts` needs.
        template: Text with `{}` for what the column holds; `TEMPLATE` for labels, none for texts when None.
        label_names: Names of labels that are stored as numbers, where the dataset does not have them.
        id: Column that names a row; its place in the files when None.
        duration: Column of a clip's length, s; read from the audio's header when None.
        group: Column of recordings, rooms or speakers, none of which is divided where pairs are held out.
    """

    dataset: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    weight: float = 1.0
    audio: str | None = None
    text: str | None = None
    every_text: bool = True
    texts: Callable[[dict[str, Any]], list[str]] | None = None
    text_columns: tuple[str, ...] = ()
    template: str | None = None
    label_names: Sequence[str] = ()
    id: str | None = None
    duration: str | None = None
    group: str | None = None

    @property
    def sound_column(self) -> str:
        """Column of audio."""
        return self.audio or AUDIO_COLUMNS[0]

    @property
    def text_side(self) -> list[str]:
        """Columns that the texts are read or formed of."""
        return [*self.text_columns] if self.texts else [self.text or TEXT_COLUMNS[0]]

    @property
    def lists_pairs(self) -> bool:
        """Whether each text of a row is a pair of its own."""
        return self.every_text and self.texts is None

    @property
    def labelled(self) -> bool:
        """Whether the texts are labels in a template; known once the columns are (`resolve_columns`)."""
        return self.template is not None

    @property
    def columns(self) -> list[str]:
        """Columns to read."""
        own = (self.id, self.duration, self.group)
        return list(dict.fromkeys([self.sound_column, *self.text_side, *filter(None, own)]))

    def read(self, row: dict[str, Any]) -> tuple[list[str], str | bytes]:
        """Texts and encoded audio of a row, the latter as the path of its file or as bytes.

        Raises:
            RowError: If it has no text or no audio.
        """
        return self.read_texts(row), self.stored_sound(row)

    def read_texts(self, row: dict[str, Any]) -> list[str]:
        """Texts of a row.

        Raises:
            RowError: If it has none.
        """
        found = self.texts(row) if self.texts else row[self.text_side[0]]
        texts = [
            self._text(one) for one in (found if isinstance(found, (list, tuple)) else [found]) if one is not None
        ]
        texts = [text for text in texts if text]
        if not texts or not texts[0].strip():
            raise RowError("no text")
        return texts

    def _text(self, value: Any) -> str:
        """A stored text, or a label by its name and in the template."""
        text = str(value)
        if isinstance(value, int) or (self.labelled and text.isdigit()):
            if not 0 <= int(text) < len(self.label_names):
                raise RowError(
                    f"the label is {text}, a number, of {len(self.label_names)} label_names; name its class"
                )
            text = self.label_names[int(text)]
        return self.template.replace("{}", text) if self.template is not None and text else text

    def stored_sound(self, row: dict[str, Any]) -> str | bytes:
        """Path of a row's sound file, or its bytes.

        Raises:
            RowError: If it has neither.
        """
        try:
            return stored_sound(row[self.sound_column], Path(self.dataset))
        except ValueError as error:
            raise RowError(str(error)) from error

    def name_of(self, row: dict[str, Any], number: int) -> str:
        """Names a row for people: its id, its file below the dataset, or its number."""
        if self.id is not None:
            return str(row[self.id])
        audio = row.get(self.sound_column)
        path = audio.get("path") if isinstance(audio, dict) and not audio.get("bytes") else audio
        if not isinstance(path, str):
            return str(number)
        place = f"@{audio['offset']}" if isinstance(audio, dict) and audio.get("offset") is not None else ""
        below = Path(path).is_relative_to(self.dataset)
        return f"{Path(path).relative_to(self.dataset) if below else path}{place}"

    def files(self) -> list[str]:
        """Locations of the split's parquet files; Hub ones name the commit.

        Raises:
            NoSuchSplit: If the dataset has no such split.
            ValueError: If it has other files than parquet.
        """
        builder = datasets.load_dataset_builder(self.dataset, self.config, revision=self.revision)
        files = builder.config.data_files or {}
        if self.split not in files:
            raise NoSuchSplit(self.dataset, [str(name) for name in files], self.split)
        found = [str(file) for file in files[self.split]]
        if not all(file.endswith(".parquet") for file in found):
            raise ValueError(f"{self.dataset} holds {found[0]}, expected parquet files.")
        return found


def resolve_columns(
    source: StreamSource, features: Mapping[str, Any], labelled: bool = False, where: str | None = None
) -> StreamSource:
    """A source with its columns named, and the names and the template of its labels.

    Args:
        source: The source.
        features: What `datasets` knows of every column; None for a plain one.
        labelled: Whether its texts are labels whatever their column is called.
        where: What messages call it.

    Raises:
        ValueError: If a column is missing.
    """
    where, names = where or source.dataset, list(features)
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    audio = source.audio or next((name for name in (*AUDIO_COLUMNS, *typed) if name in names), None)
    texts = (*TEXT_COLUMNS, *LABEL_COLUMNS)
    text = source.text or next((name for name in texts if name in names), None)
    for found, known, setting in ((audio, AUDIO_COLUMNS, "audio"), (text or source.texts, texts, "text")):
        if found is None:
            raise ValueError(
                f"{where} has columns {names}, expected one of {list(known)} among them. Name its own column by the "
                f"source's setting '{setting}'."
            )
    named = replace(source, audio=audio, text=text)
    if missing := [column for column in named.columns if column not in names]:
        raise ValueError(f"{where} has columns {names}, expected {missing} among them. Name the source's own columns.")
    if source.texts is not None:
        return named
    feature = features[named.text_side[0]]
    feature = feature.feature if isinstance(feature, datasets.List) else feature
    is_label = isinstance(feature, datasets.ClassLabel)
    if source.template is None and (labelled or is_label or text in LABEL_COLUMNS):
        named = replace(named, template=TEMPLATE)
    if named.template is not None and "{}" not in named.template:
        raise ValueError(f"{where}: template is {named.template!r}, expected a text with {{}} for the label.")
    return replace(named, label_names=feature.names) if is_label and not source.label_names else named


def number_of(name: str) -> int:
    """A stable number of 63 bits for a string."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
