"""Pairs of one's own, as they lie there: folders of sounds, tables, archives, saved datasets, and objects in Python.

Nothing is decoded or copied here: a row names a file, or a place in an archive, or holds the bytes that are stored;
`clap_hf.data.stream.make_example` decodes a crop of it by the package's own reader.
"""

from __future__ import annotations

import csv
import hashlib
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ..atomic_io import check_unpacked
from ..audio import AUDIO_EXTENSIONS, audio_files, open_audio, read_ahead
from ..audio.load import files_below
from ..audio.reader import printable
from ..audio.stored import AUDIO_COLUMNS, CONTAINERS, inside, sounds_inside
from ..pretrained import HUB_ID
from ..text_files import parse_json, read_json, read_json_lines, read_text
from .source import (
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    NoSuchSplit,
    RowError,
    StreamSource,
    number_of,
    resolve_columns,
)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
TABLES = (".csv", ".tsv", ".jsonl")
TEXTS = ("txt", "json", "cls")  # of members of an archive
MAX_TEXT = 1 << 20  # bytes of one
CHECKED_ROWS = 20_000  # of a source that are opened before the run
NAMED_REASONS = 20  # reasons of unreadable rows that a run's record keeps
FORMS = (
    "a folder with metadata.csv or .jsonl (file_name and text, caption or label), a folder of sounds per class, a "
    "table (.csv, .tsv or .jsonl), parquet files, WebDataset tars, a folder of save_to_disk, or a Hub id"
)

Given = Mapping[str, datasets.Dataset | Mapping[str, datasets.Dataset]]


@dataclass(frozen=True)
class Pairs:
    """Rows of one source that can be read by their number.

    Args:
        source: The source, with its columns named.
        rows: All rows; audio as `{bytes, path}`, or `{path, offset, size}` for a member of an archive.
        kept: Numbers of the rows that can be read.
        skipped: Names of the others, with the reason.
        checked: How many rows were looked at; further ones are in `kept` unseen.
    """

    source: StreamSource
    rows: datasets.Dataset
    kept: Sequence[int]
    skipped: dict[str, str] = field(default_factory=dict)
    checked: int = 0

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[int(self.kept[place])]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[place] for place in range(len(self)))

    def name(self, place: int) -> str:
        """Names a row for people and for its random choices."""
        return self.source.name_of(self[place], int(self.kept[place]))

    def texts(self) -> list[list[str]]:
        """Texts of all kept rows."""
        rows = self.rows.select_columns(self.source.text_side).select(self.kept)
        return [self.source.read_texts(row) for row in rows]

    def text_counts(self) -> list[int]:
        """Pairs of every kept row: its texts, or 1 where a visit draws one of them or the row has none."""
        if not self.source.lists_pairs:
            return [1] * len(self)

        def count(row: dict[str, Any]) -> int:
            try:
                return len(self.source.read_texts(row))
            except RowError:
                return 1

        return [count(row) for row in self.rows.select_columns(self.source.text_side).select(self.kept)]

    def hold_out(self, share: float, seed: int) -> tuple[Pairs, Pairs]:
        """Divide into pairs to train on and held-out ones.

        Rows of equal sound, and of an equal value of the source's `group`, stay together; of labelled sounds, every
        label gives its share.

        Args:
            share: Share of the rows that is held out.
            seed: Source of the choice.

        Raises:
            ValueError: If either side would be without rows.
        """
        members: dict[str, list[int]] = defaultdict(list)
        for place, group in enumerate(self._groups()):
            members[group].append(place)
        texts = self.texts()
        strata: dict[str, list[list[int]]] = defaultdict(list)
        for group in sorted(members, key=lambda group: number_of(f"{seed}:{group}")):
            places = members[group]
            strata[texts[places[0]][0] if self.source.labelled else ""].append(places)
        held: set[int] = set()
        for groups in strata.values():
            wanted = share * sum(map(len, groups))
            count = 0
            for places in groups[:-1]:  # the last is for training
                if count + len(places) / 2 > wanted and (count or not self.source.labelled):
                    break
                held.update(places)
                count += len(places)
        if len(held) < 2:
            raise ValueError(
                f"{self.source.dataset}: {len(held)} of {len(self)} pairs can be held out by a share of {share:g}, in "
                f"{len(members)} groups of equal sound; expected 2 at least. Add sounds, or raise the share."
            )
        sides = ([p for p in range(len(self)) if (p in held) is side] for side in (False, True))
        train, rest = (replace(self, kept=[self.kept[p] for p in side]) for side in sides)
        return train, replace(rest, skipped={}, checked=0)

    def _groups(self) -> list[str]:
        """A key for every kept row: of its group, or else of its sound."""
        if self.source.group is not None:
            column = self.rows.select_columns(self.source.group).select(self.kept)
            return [str(row[self.source.group]) for row in column]
        stored = [self.source.stored_sound(row) for row in self]
        sizes = [Path(own).stat().st_size if isinstance(own, str) else len(own) for own in stored]
        of_size = Counter(sizes)

        def key(place: int) -> str:
            if of_size[sizes[place]] == 1:
                return self.name(place)
            own = stored[place]
            content = Path(own).read_bytes() if isinstance(own, str) else own
            return hashlib.blake2b(content, digest_size=16).hexdigest()

        return [key(place) for place in range(len(self))]


def read_pairs(source: StreamSource, given: Given | None = None) -> Pairs:
    """Read the rows of a source and leave out those that cannot be read.

    Args:
        source: Names a folder, file or Hub id, or a dataset in `given`.
        given: Datasets in Python by the name that `source.dataset` has for them.

    Raises:
        NoSuchSplit: If it has other splits.
        ValueError: If it is none of the forms that are known, columns are missing, or no row can be read; the message
            has the first row's reason.
    """
    rows, labelled = _rows_of(source, (given or {}).get(source.dataset))
    if not len(rows):
        raise ValueError(f"{source.dataset} has no rows, expected at least one sound with a text.")
    source = resolve_columns(source, rows.features, labelled)
    if isinstance(rows.features[source.sound_column], (datasets.Audio, datasets.Value)):
        rows = rows.cast_column(source.sound_column, datasets.Audio(decode=False))
    rows = rows.select_columns([name for name in source.columns if name in rows.column_names])
    skipped: dict[int, str] = {}
    checked = range(min(len(rows), CHECKED_ROWS))
    found = [number for number, _ in read_ahead(checked, lambda number: _check(source, rows[number]), skipped)]
    if not found:
        first = min(skipped)
        raise ValueError(
            f"{source.dataset}, {source.split}: none of {len(checked)} rows can be read; the first, "
            f"{source.name_of(rows[first], first)}: {skipped[first]}"
        )
    reasons = {source.name_of(rows[number], number): reason for number, reason in skipped.items()}
    return Pairs(source, rows, [*found, *range(len(checked), len(rows))], reasons, len(checked))


def sound_names(given: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Names of sounds, whether or not they have a text, each once.

    Args:
        given: Sound files; folders of them; parquet or Arrow files and tar archives, whose sounds are named like
            `set.parquet#12`, and folders of these, such as `save_to_disk` writes; and Hub ids of datasets, which are
            fetched into the Hub's cache.

    Raises:
        FileNotFoundError: One of them does not exist.
        ValueError: One of them holds no sound.
    """
    found: dict[str, None] = {}
    for one in given:
        name, path = str(one), Path(one)
        if not path.exists() and HUB_ID.fullmatch(name) and path.suffix.lower() not in AUDIO_EXTENSIONS:
            path = _fetched(StreamSource(name))
        if path.is_dir():
            files = sorted(files_below(path, {*AUDIO_EXTENSIONS, *CONTAINERS}))
        else:
            files = [path] if inside(name) else audio_files([path])
        own = [
            sound
            for file in files
            for sound in (sounds_inside(file, AUDIO_EXTENSIONS) if file.suffix in CONTAINERS else [str(file)])
        ]
        if not own:
            raise ValueError(
                f"{printable(name)}: no sound is here, expected files named {' '.join(sorted(AUDIO_EXTENSIONS))}, or "
                f"{' '.join(CONTAINERS)} files with sounds"
            )
        found.update(dict.fromkeys(map(os.path.abspath, own)))
    return list(found)


def is_parquet(source: StreamSource) -> bool:
    """Whether a source is a folder or a repository of parquet files, which can be streamed by row group."""
    path = Path(source.dataset)
    if path.is_dir():
        other = ("dataset_dict.json", "state.json", *(f"metadata{ending}" for ending in TABLES))
        return not any((path / name).exists() for name in other) and any(path.rglob("*.parquet"))
    if path.exists() or not HUB_ID.fullmatch(source.dataset):
        return False
    try:
        files = HfApi().list_repo_files(source.dataset, repo_type="dataset", revision=source.revision)
    except (HfHubHTTPError, OSError):
        return False  # the reader names what is wrong
    return any(file.endswith(".parquet") for file in files)


def _check(source: StreamSource, row: dict[str, Any]) -> None:
    """Read the texts and the header of the sound of a row.

    Raises:
        ValueError: If there are none.
    """
    _, sound = source.read(row)
    open_audio(sound).close()


def _rows_of(source: StreamSource, given: Any) -> tuple[datasets.Dataset, bool]:
    """Rows of a source's split, and whether their texts are labels whatever the column's name."""
    name, split = source.dataset, source.split
    if given is not None:
        return _of_split(given, name, split), False
    path = Path(name)
    if not path.exists():
        path = _fetched(source)
    if not path.is_dir():
        return _of_files(source, [path], path.parent), False
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _of_split(_saved(path), name, split), False
    files = _below(path)
    for kind in (
        [f for f in files if f.stem == "metadata" and f.suffix in (*TABLES, ".parquet")],
        [f for f in files if f.suffix == ".parquet"],
        [f for f in files if f.suffix == ".tar"],
        [f for f in files if f.parent in (path, path / "data") and f.suffix in TABLES and _names_sounds(source, f)],
    ):
        if kind:
            return _of_files(source, _in_split(source, kind, path), path), False
    return _of_classes(source, path), True


def _saved(folder: Path) -> Any:
    """What `save_to_disk` wrote."""
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".json":
            read_json(file)
        elif file.suffix == ".arrow":
            try:
                if not file.is_file():  # opening a FIFO would wait
                    raise OSError("no regular file")
                pa.ipc.open_stream(pa.memory_map(str(file)))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise ValueError(f"{file}: {error}; expected a file of save_to_disk. Save it again.") from error
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # of a file's reader, or of what its values are taken for
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{folder}: no dataset of save_to_disk ({reason}). Save it again.") from error


def _of_split(given: Any, name: str, split: str) -> datasets.Dataset:
    """The split of a dataset in memory; one that is not divided is the split `train`."""
    found = given if isinstance(given, Mapping) else {"train": given}
    if split not in found:
        raise NoSuchSplit(name, sorted(found), split)
    if not isinstance(found[split], datasets.Dataset):
        raise ValueError(f"{name} is a {type(found[split]).__name__}, expected a datasets.Dataset or a DatasetDict.")
    return found[split].with_format(None)


def _fetched(source: StreamSource) -> Path:
    """Folder with a copy of a repository of the Hub, in its cache."""
    if not HUB_ID.fullmatch(source.dataset):
        raise ValueError(f"{source.dataset}: no such file or folder, expected {FORMS}.")
    try:
        return Path(snapshot_download(source.dataset, repo_type="dataset", revision=source.revision))
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{source.dataset}: no such folder here and no such dataset on the Hub, expected {FORMS}."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source.dataset} cannot be fetched from the Hub: {reason}") from error


def _below(folder: Path) -> list[Path]:
    """Files at any depth, without hidden ones, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _split_name(path: Path) -> str | None:
    """Split that a relative path names: by a folder, or by the beginning of the file's name."""
    words = [*path.parts[:-1], path.stem.replace("_", "-").replace(".", "-").split("-")[0]]
    for split, aliases in SPLITS.items():
        if any(word.lower() in aliases for word in words):
            return split
    return None


def _in_split(source: StreamSource, files: list[Path], root: Path) -> list[Path]:
    """Files of the source's split; where no name has one, all are the split `train`."""
    named = {file: _split_name(file.relative_to(root)) or "train" for file in files}
    found = [file for file, split in named.items() if split == source.split]
    if not found:
        raise NoSuchSplit(source.dataset, sorted(set(named.values())), source.split)
    return found


def _of_files(source: StreamSource, files: list[Path], root: Path) -> datasets.Dataset:
    """Rows of parquet files, of archives, or of tables."""
    kind = files[0].suffix
    if kind == ".parquet":
        for file in files:
            check_unpacked(file)
        try:
            rows = datasets.Dataset.from_parquet([str(file) for file in files])
        except (pa.ArrowInvalid, datasets.exceptions.DatasetGenerationError) as error:
            cause = error.__cause__ or error
            raise ValueError(f"{files[0]}: {str(cause).splitlines()[0]} Expected a parquet file.") from error
        return rows
    if kind == ".tar":
        return datasets.Dataset.from_list([row for file in files for row in _members(source, file)])
    if kind not in TABLES:
        raise ValueError(f"{files[0]} ends in {kind!r}, expected {FORMS}.")
    rows = [row for file in files for row in _sounds_of_table(source, file)]
    if any("split" in row for row in rows):
        splits = sorted({row.get("split") or "train" for row in rows})
        rows = [row for row in rows if (row.get("split") or "train") == source.split]
        if not rows:
            raise NoSuchSplit(source.dataset, splits, source.split)
    elif len(files) == 1 and source.split != "train" and _split_name(files[0].relative_to(root)) != source.split:
        raise NoSuchSplit(source.dataset, ["train"], source.split)
    return datasets.Dataset.from_list(rows)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of sounds, each a value by column.

    Args:
        path: CSV with a head (`.csv`), the same with tabs (`.tsv`), or a JSON object a line (`.jsonl`); UTF-8.

    Raises:
        ValueError: If it is not such a table, or has no rows.
    """
    if path.suffix == ".jsonl":
        rows = read_json_lines(path)
    else:
        reader = csv.DictReader(
            read_text(path).splitlines(keepends=True), delimiter="\t" if path.suffix == ".tsv" else ","
        )
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: {'more' if None in row else 'fewer'} values than the "
                    f"{len(reader.fieldnames or ())} columns of its head, expected one each. Quote values with commas."
                )
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows below its head, expected at least one sound.")
    return rows


def _names_sounds(source: StreamSource, table: Path) -> bool:
    """Whether a table that lies beside sounds has a column of their files."""
    try:
        names = set(read_table(table)[0])
    except ValueError:
        return False
    return bool(names & {source.audio, *AUDIO_COLUMNS}) and bool(names & {source.text, *TEXT_COLUMNS, *LABEL_COLUMNS})


def _sounds_of_table(source: StreamSource, table: Path) -> list[dict[str, Any]]:
    """Rows of a table, whose files are relative to it; rows of one file are one sound with all their texts."""
    rows = read_table(table)
    found = resolve_columns(source, dict.fromkeys(rows[0]), False, str(table))
    column, text = found.sound_column, found.text_side[0]
    sounds: dict[str, dict[str, Any]] = {}
    for row in rows:
        file = str(row.get(column) or "").strip()
        value = row.get(text)
        texts = [str(part).strip() for part in (value if isinstance(value, list) else [value]) if part is not None]
        if found.labelled:
            texts = [part.strip() for label in texts for part in label.split("|")]
        sound = {"bytes": None, "path": str(table.parent / file) if file else None}
        if file in sounds and file:
            sounds[file][text] += texts
        else:
            sounds[file or f"{len(sounds)}"] = row | {column: sound, text: texts}
    return list(sounds.values())


def _of_classes(source: StreamSource, root: Path) -> datasets.Dataset:
    """Sounds in a folder per class; where the folders are splits, in those."""
    try:
        files = audio_files([root])
    except ValueError as error:
        raise ValueError(f"{root} holds no sounds ({sorted(AUDIO_EXTENSIONS)[:3]} ...), expected {FORMS}.") from error
    tops = {file.relative_to(root).parts[0] for file in files if file.parent != root}
    if tops and all(_split_name(Path(top) / "x") for top in tops) and not any(file.parent == root for file in files):
        files = _in_split(source, files, root)
        classes = {file: file.parent for file in files if len(file.relative_to(root).parts) > 2}
    else:
        if source.split != "train":
            raise NoSuchSplit(source.dataset, ["train"], source.split)
        classes = {file: file.parent for file in files if file.parent != root}
    if len(classes) < len(files):
        loose = next(file for file in files if file not in classes)
        raise ValueError(
            f"{loose} has no text: {root} holds neither metadata.csv nor metadata.jsonl, and the file lies in no "
            "folder of a class. Write metadata.csv with the columns file_name and text, caption or label."
        )
    rows = [{"audio": {"bytes": None, "path": str(f)}, "label": folder.name} for f, folder in classes.items()]
    return datasets.Dataset.from_list(rows)


def _members(source: StreamSource, archive: Path) -> Iterator[dict[str, Any]]:
    """Samples of a WebDataset tar: a sound, where it lies in the archive, and texts of its other members."""
    samples: dict[str, dict[str, Any]] = {}
    if not archive.is_file():  # opening a FIFO would wait
        raise ValueError(f"{archive}: no regular file, expected a tar archive.")
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                if not member.isfile() or not stem:
                    continue
                if member.issparse() or (ending in TEXTS and member.size > MAX_TEXT):
                    raise ValueError(
                        f"{archive}: {member.name} has {member.size:,} bytes, expected stored sounds, and texts of at "
                        f"most {MAX_TEXT:,}."
                    )
                row = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
                if f".{ending.lower()}" in AUDIO_EXTENSIONS:
                    place = {"path": str(archive), "offset": member.offset_data, "size": member.size}
                    row["audio"] = {"bytes": None} | place
                elif ending in TEXTS:
                    content = tar.extractfile(member)
                    assert content is not None  # a regular file
                    text = content.read().decode("utf-8", errors="replace").strip()
                    row |= (
                        parse_json(text, f"{archive}, {member.name}")
                        if ending == "json"
                        else {"text" if ending == "txt" else "label": text}
                    )
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is no tar archive ({error}), expected an uncompressed one.") from error
    known = sorted({name for row in samples.values() for name in row} - {"audio"})
    with_sound = [row for row in samples.values() if "audio" in row]
    if not with_sound:
        raise ValueError(
            f"{archive} holds {len(samples)} samples without a sound, expected .wav, .flac, .mp3 or .ogg."
        )
    yield from ({"audio": row["audio"]} | {name: row.get(name) for name in known} for row in with_sound)
