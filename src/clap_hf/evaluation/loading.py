"""From a task's source to its clips and their truth: Hub data sets in their own columns, or a folder with a CSV."""

from __future__ import annotations

import csv
import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoSibling

from ..atomic_io import check_ratio, replace_folder
from ..data.own import read_table
from .benchmarks import Source, Task

ACTIONS_CSV = "actionvector_one_per_audiofile_sum.csv"
ACTIONS_COUNT = 7  # of 12; the mean prevalence is then 0.048, nearest to the paper's chance of 0.045
SEPARATOR = "|"  # between the labels of a clip in a CSV
OTHER_NAMES = {"file_name": "path", "file": "path", "classname": "label", "text": "caption"}  # of a CSV's columns
_AUDIO_FILES = ("*.wav", "*.flac", "*.ogg", "*.mp3", "*.zip")


class DataSourceError(RuntimeError):
    """A source that cannot be reached or read; the message has the reason."""


@dataclass(frozen=True)
class DataLocation:
    """Where a task's clips were found.

    Attributes:
        source: The Hub source, or None for a CSV of one's own.
        csv: The CSV: the clips' own, or the one a source is joined with.
        name: For people: repository and split, or the CSV's path.
        identity: Changes whenever the sounds may have changed.
        revision: Commit of the data set.
        files: Parquet files of the split, in the repository; empty if the layout gives no hint.
        bytes: Size of what is fetched, at most.
    """

    source: Source | None
    csv: Path | None
    name: str
    identity: str
    revision: str | None = None
    files: tuple[str, ...] = ()
    bytes: int | None = None

    @property
    def fidelity(self) -> str:
        """How near this is to what the paper measured."""
        return "own data" if self.source is None else self.source.fidelity


@dataclass(frozen=True)
class TaskData:
    """Clips of a task and their truth.

    Attributes:
        audio: Encoded sounds of the whole location by row, `{"bytes": ..., "path": ...}`; its tasks share them.
        rows: Row of every clip `[clips]`.
        classes: Words of the classes.
        labels: Indices into `classes` of every clip `[clips]`; one each for a single-label task.
        captions: Captions of every clip `[clips]`, for retrieval and captioning.
        left_out: Labels that are none of the task's, and how often they came.
    """

    audio: Sequence[dict[str, Any]]
    rows: list[int]
    classes: tuple[str, ...] = ()
    labels: list[tuple[int, ...]] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, clips: Sequence[int]) -> TaskData:
        """The same with some of its clips."""
        chosen: list[list[Any]] = [
            [own[i] for i in clips] if own else [] for own in (self.rows, self.labels, self.captions)
        ]
        rows, labels, captions = chosen
        return replace(self, rows=rows, labels=labels, captions=captions)


class AudioColumn(Sequence[dict[str, Any]]):
    """A data set's audio column, still encoded, read a row at a time."""

    def __init__(self, rows: datasets.Dataset, column: str):
        self.rows = rows.select_columns([column]).cast_column(column, datasets.Audio(decode=False))
        self.column = column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index][self.column]


def locations(task: Task, data_dir: Path | None) -> Iterator[DataLocation | DataSourceError]:
    """Where a task's clips may be found, the best first; an error for each source out of reach."""
    own = None if data_dir is None else data_dir / f"{task.dataset}.csv"
    if own is not None and own.is_file():
        yield csv_location(own)
    for source in task.sources:
        try:
            yield _hub_location(source, data_dir)
        except DataSourceError as error:
            yield error


def csv_location(path: Path) -> DataLocation:
    """A CSV `path,label` or `path,caption` and the sounds it names, identified by their sizes and times."""
    return rows_location(read_csv(path), path.parent, path)


def rows_location(rows: list[dict[str, str]], folder: Path, table: Path | None) -> DataLocation:
    """The sounds that rows name, relative to a folder, identified by their sizes and times.

    Args:
        rows: What `read_csv` gave.
        folder: Where the sounds are.
        table: The CSV, where the rows come from one.
    """
    digest = hashlib.sha256()
    for name in dict.fromkeys(row["path"] for row in rows):
        file = folder / name
        stat = file.stat() if file.is_file() else None
        digest.update(f"{name}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return DataLocation(None, table, str(table or folder), f"csv:{digest.hexdigest()}")


def _hub_location(source: Source, data_dir: Path | None) -> DataLocation:
    joined = None
    if source.layout == "actions":
        joined = None if data_dir is None else data_dir / ACTIONS_CSV
        if joined is None or not joined.is_file():
            raise DataSourceError(f"{source.repo}: its labels are in {ACTIONS_CSV}, which is not in the data folder")
    try:
        info = HfApi().dataset_info(source.repo, revision=source.revision, files_metadata=True)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise DataSourceError(f"{source.repo}: {_first_sentence(error)}") from error
    siblings = info.siblings or []
    files = () if source.layout == "files" else tuple(_split_files(siblings, source))
    fetched = [s for s in siblings if s.rfilename in files] if files else siblings
    name = " ".join(filter(None, (source.repo, source.config, source.split)))
    identity = f"hub:{source.repo}@{info.sha}:{source.config}:{source.split}"
    return DataLocation(source, joined, name, identity, info.sha, files, sum(s.size or 0 for s in fetched))


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _split_files(siblings: Iterable[RepoSibling], source: Source, config: str | None = None) -> list[str]:
    """Parquet files of a split, where their paths name it; else load_dataset reads the data set's own description."""
    config = config or source.config
    parquet = [s.rfilename for s in siblings if s.rfilename.endswith(".parquet")]
    if config is not None:
        parquet = [name for name in parquet if config in name.split("/")[:-1]]
    found = [name for name in parquet if source.split in re.split(r"[/._-]", name)]
    return sorted(found) if len({name.rpartition("/")[0] for name in found}) == 1 else []


def load(task: Task, location: DataLocation, cache_dir: Path) -> TaskData:
    """Read a task's truth, and its sounds as they are stored; nothing is decoded here.

    Args:
        task: The task.
        location: Where its clips are.
        cache_dir: Archives are unpacked below it.

    Raises:
        DataSourceError: If the data cannot be fetched or are not laid out as expected.
    """
    if location.source is None:
        assert location.csv is not None
        return from_rows(task, read_csv(location.csv), lambda name: location.csv.parent / name)  # type: ignore[union-attr]
    try:
        if location.source.layout == "files":
            return _from_files(task, location, cache_dir)
        if location.source.layout == "pairs":
            return _from_pairs(location)
        return _from_dataset(task, location)
    except (HfHubHTTPError, OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataSourceError):
            raise
        raise DataSourceError(f"{location.name}: {_first_sentence(error)}") from error


# Classes ------------------------------------------------------------------------------------------------------------


def _key(label: str) -> str:
    return re.sub(r"[\W_]+", " ", label.casefold()).strip()


def _truth(
    task: Task, given: list[list[str]], rest: str | None
) -> tuple[tuple[str, ...], list[tuple[int, ...] | None], dict[str, int]]:
    """Classes, every row's class indices (None: not of this task), and the labels that were left out."""
    classes = tuple(task.classes) or tuple(sorted({label for labels in given for label in labels}))
    index = {_key(name): i for i, words in enumerate(classes) for name in (words, *task.classes.get(words, ()))}
    fallback = None if rest is None else index[_key(rest)]
    left_out: Counter[str] = Counter()
    truth: list[tuple[int, ...] | None] = []
    for labels in given:
        found = []
        for label in labels:
            i = index.get(_key(label), fallback)
            if i is None:
                left_out[label] += 1
            else:
                found.append(i)
        single = not task.multi_label
        truth.append(None if single and len(found) != 1 else tuple(dict.fromkeys(found)))
    total = sum(map(len, given))
    if sum(left_out.values()) * 2 > total or all(not row for row in truth):
        raise DataSourceError(
            f"labels {list(left_out)[:5]} are not of {task.name}, expected such as {list(classes)[:5]}"
        )
    return classes, truth, dict(left_out)


def classified(
    task: Task, audio: Sequence[dict[str, Any]], given: dict[int, list[str]], rest: str | None = None
) -> TaskData:
    """Data of a classification task.

    Args:
        task: The task.
        audio: Encoded sounds of the whole location.
        given: Row -> its labels, as the data set names them.
        rest: Class of all labels that are none of the task's.

    Raises:
        DataSourceError: If most labels are none of the task's.
    """
    classes, truth, left_out = _truth(task, list(given.values()), rest)
    kept = {row: own for row, own in zip(given, truth, strict=True) if own is not None}
    return TaskData(audio, list(kept), classes, list(kept.values()), left_out=left_out)


# A folder with a CSV ------------------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows with `path` and `label` or `caption`, also by the names in `OTHER_NAMES`."""
    try:
        table = read_table(path)
    except ValueError as error:
        raise DataSourceError(str(error)) from error
    rows = [{OTHER_NAMES.get(name, name): str(value) for name, value in row.items()} for row in table]
    if "path" not in rows[0] or not rows[0].keys() & {"label", "caption"}:
        raise DataSourceError(f"{path} has columns {sorted(table[0])}, expected path and label, or path and caption")
    return rows


def values_by_path(rows: list[dict[str, str]], column: str) -> dict[str, list[str]]:
    """Labels or captions of every sound of a CSV; rows with the same path are one sound.

    Args:
        rows: What `read_csv` gave.
        column: `"label"`, of which a row may hold several, or `"caption"`.
    """
    by_path: dict[str, list[str]] = {}
    for row in rows:
        values = by_path.setdefault(row["path"], [])
        values += [value.strip() for value in row[column].split(SEPARATOR)] if column == "label" else [row[column]]
    return by_path


def from_rows(task: Task, rows: list[dict[str, str]], locate: Callable[[str], Path]) -> TaskData:
    """A task's data from rows of a CSV; rows with the same path are one clip.

    Args:
        task: The task.
        rows: What `read_csv` gave.
        locate: Gives the file of a path.

    Raises:
        DataSourceError: If they lack the task's column, or their labels are none of the task's.
    """
    column = "label" if task.kind == "classification" else "caption"
    if column not in rows[0]:
        raise DataSourceError(f"the CSV has columns {sorted(rows[0])}, expected {column} for {task.name}")
    by_path = values_by_path(rows, column)
    audio = [{"bytes": None, "path": str(locate(name))} for name in by_path]
    if column == "caption":
        return TaskData(audio, list(range(len(audio))), captions=list(by_path.values()))
    return classified(task, audio, dict(enumerate(by_path.values())))


# Hub data sets ------------------------------------------------------------------------------------------------------


def _dataset(location: DataLocation, config: str | None) -> datasets.Dataset:
    source = location.source
    assert source is not None
    files = location.files
    if config is not None and config != source.config:
        info = HfApi().dataset_info(source.repo, revision=location.revision)
        files = tuple(_split_files(info.siblings or [], source, config))
    if files:
        urls = [f"hf://datasets/{source.repo}@{location.revision}/{name}" for name in files]
        rows = datasets.load_dataset("parquet", data_files={source.split: urls}, split=source.split)
    else:
        rows = datasets.load_dataset(source.repo, config, split=source.split, revision=location.revision)
    return rows


def _audio_column(rows: datasets.Dataset) -> str | None:
    typed = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Audio)]
    return typed[0] if typed else ("audio" if "audio" in rows.column_names else None)


def _label_column(rows: datasets.Dataset, source: Source, location: DataLocation) -> str:
    for name in source.label:
        if name in rows.column_names:
            return name
    raise DataSourceError(f"{location.name} has columns {rows.column_names}, expected one of {list(source.label)}")


def _from_dataset(task: Task, location: DataLocation) -> TaskData:
    source = location.source
    assert source is not None
    rows = _dataset(location, source.config)
    audio = _audio_column(rows)
    if audio is None:
        raise DataSourceError(f"{location.name} has columns {rows.column_names}, none of them audio")
    column = _label_column(rows, source, location)
    if source.layout == "actions":
        return _from_actions(task, location, rows, audio, column)
    if task.kind == "classification":
        given = dict(enumerate(_label_names(rows, column, source)))
        return classified(task, AudioColumn(rows, audio), given, source.rest)
    captions = _captions(rows, column)
    first: dict[Any, int] = {}
    if source.group is not None and source.group in rows.column_names:
        groups: dict[Any, list[str]] = {}
        for i, (group, own) in enumerate(zip(rows[source.group][:], captions, strict=True)):
            first.setdefault(group, i)
            groups.setdefault(group, []).extend(own)
        captions = list(groups.values())
    return TaskData(AudioColumn(rows, audio), list(first.values() or range(len(rows))), captions=captions)


def _captions(rows: datasets.Dataset, column: str) -> list[list[str]]:
    """Captions of every row: a list, a text, or columns caption_1, caption_2 ..."""
    numbered = re.fullmatch(r"(.+_)1", column)
    if numbered:
        columns = [name for name in rows.column_names if re.fullmatch(re.escape(numbered[1]) + r"\d+", name)]
        return [list(own) for own in zip(*(rows[name][:] for name in columns), strict=True)]
    return [[value] if isinstance(value, str) else list(value) for value in rows[column][:]]


def _label_names(rows: datasets.Dataset, column: str, source: Source) -> list[list[str]]:
    """The labels of every row as names."""
    feature = rows.features[column]
    inner = feature.feature if isinstance(feature, datasets.List) else feature
    names = tuple(inner.names) if isinstance(inner, datasets.ClassLabel) else source.names

    def named(value: Any) -> str:
        return names[value] if isinstance(value, int) and names else str(value)

    values = rows[column][:]
    if source.multi_hot:
        if values and len(values[0]) != len(names):
            raise DataSourceError(f"{source.repo}: {column} has {len(values[0])} flags, expected {len(names)}")
        return [[name for name, flag in zip(names, row, strict=True) if flag] for row in values]
    return [[named(item) for item in value] if isinstance(value, list) else [named(value)] for value in values]


def _from_actions(task: Task, location: DataLocation, rows: datasets.Dataset, audio: str, column: str) -> TaskData:
    assert location.csv is not None
    with location.csv.open(newline="", encoding="utf-8-sig") as stream:
        counted = {row[column]: row for row in csv.DictReader(stream)}
    columns = {_key(name): name for name in next(iter(counted.values()), {})}
    missing = [action for action in task.classes if _key(action) not in columns]
    if missing:
        raise DataSourceError(f"{location.csv} misses the columns {missing}")
    actions = {
        i: [a for a in task.classes if float(counted[name][columns[_key(a)]] or 0) >= ACTIONS_COUNT]
        for i, name in enumerate(rows[column][:])
        if name in counted
    }
    return classified(task, AudioColumn(rows, audio), actions)


def _from_pairs(location: DataLocation) -> TaskData:
    """Queries, corpus and relevance judgements, as retrieval benchmarks store them."""
    sides = {config: _dataset(location, config) for config in ("queries", "corpus")}
    with_audio = next((config for config, rows in sides.items() if _audio_column(rows) is not None), None)
    if with_audio is None:
        raise DataSourceError(f"{location.name}: neither queries nor corpus has audio")
    with_text = "corpus" if with_audio == "queries" else "queries"
    ids = {config: "id" if "id" in rows.column_names else "_id" for config, rows in sides.items()}
    texts = dict(zip(sides[with_text][ids[with_text]][:], sides[with_text]["text"][:], strict=True))
    clips = {clip: i for i, clip in enumerate(sides[with_audio][ids[with_audio]][:])}
    captions: list[list[str]] = [[] for _ in clips]
    singular = {"queries": "query-id", "corpus": "corpus-id"}
    for row in _dataset(location, "qrels"):
        if row["score"] > 0:
            captions[clips[row[singular[with_audio]]]].append(texts[row[singular[with_text]]])
    kept = [i for i, own in enumerate(captions) if own]
    audio = _audio_column(sides[with_audio])
    assert audio is not None
    return TaskData(AudioColumn(sides[with_audio], audio), kept, captions=[captions[i] for i in kept])


def _from_files(task: Task, location: DataLocation, cache_dir: Path) -> TaskData:
    """Audio files, loose or in zip archives, and CSVs that name them."""
    source = location.source
    assert source is not None
    wanted = source.split.split("+")
    patterns = [*_AUDIO_FILES, *(f"*{name}" for name in wanted)]
    root = Path(
        snapshot_download(source.repo, repo_type="dataset", revision=location.revision, allow_patterns=patterns)
    )
    rows: list[dict[str, str]] = []
    for name in wanted:
        tables = sorted(root.rglob(name))
        if not tables:
            raise DataSourceError(f"{source.repo} has no {name}")
        rows += read_csv(tables[0])
    folders = [root, *(_unpacked(archive, cache_dir, location) for archive in sorted(root.rglob("*.zip")))]
    files: dict[str, list[Path]] = {}
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            files.setdefault(file.name, []).append(file)

    def locate(name: str) -> Path:
        parts = Path(name.replace("\\", "/")).parts
        matches = files.get(parts[-1], [])
        matches = sorted(matches, key=lambda file: -_common_tail(file.parts, parts))
        if not matches:
            raise DataSourceError(f"{source.repo}: {name} of its CSV is not among its files")
        return matches[0]

    return from_rows(task, rows, locate)


def _common_tail(a: Sequence[str], b: Sequence[str]) -> int:
    same = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        same += 1
    return same


def _unpacked(archive: Path, cache_dir: Path, location: DataLocation) -> Path:
    digest = hashlib.sha256(f"{location.identity}/{archive.name}".encode()).hexdigest()[:16]
    folder = cache_dir / "archives" / digest
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)

        def extract(fresh: Path) -> None:
            with zipfile.ZipFile(archive) as content:
                check_ratio(archive, sum(member.file_size for member in content.infolist()))
                content.extractall(fresh)

        replace_folder(folder, extract)
    return folder
