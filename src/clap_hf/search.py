"""A collection of sounds on disk: embedded once, stopped and resumed, searched by words or by another sound.

The folder holds parquet parts with the columns `file` and `embedding`: `datasets.load_dataset(folder)` opens it, too,
and can index it by FAISS. A search reads part by part: memory holds one part, and a number for every sound.

Several processes may add at once: one after the other where the system can lock a folder. Where it cannot, a file may
get two rows, of which the newest, in the last part, counts.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track

from .atomic_io import PartError, PartStore, locked, part_facts, read_part
from .audio import AUDIO_EXTENSIONS, audio_files, read_ahead
from .audio.reader import open_regular, printable
from .embedding import ClapEncoder, embed_files
from .model.modeling_msclap import MSClapModel
from .model.processing_msclap import MSClapProcessor
from .pretrained import check_weights

FILES_PER_PART = 256  # what a killed run loses at most
COLUMNS = {"file", "embedding", "size", "mtime_ns", "sha256"}


@dataclass(frozen=True)
class SearchHit:
    """A sound that a search found.

    Attributes:
        file: The sound file, as an absolute path.
        similarity: Cosine of its embedding and the query's, -1 to 1.
        changed: Whether the file is another one than was embedded, by its size and time.
        damage: What was missing or damaged in the file when it was embedded; empty where it was read whole.
    """

    file: Path
    similarity: float
    changed: bool = False
    damage: str = ""


@dataclass(frozen=True)
class CollectionUpdate:
    """What was done with the files that a collection was given.

    Attributes:
        embedded: How many were embedded now, new and changed ones.
        known: How many the collection had already.
        recognised: How many it had by their content: moved, copied or merely touched files.
        skipped: Why the others were not embedded; they are tried again the next time.
        damaged: What is missing or damaged in those that were embedded now.
    """

    embedded: int = 0
    known: int = 0
    recognised: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CollectionCheck:
    """What `check_collection` found.

    Attributes:
        sounds: How many files have a row that can be used.
        parts: How many parts are whole and of the collection's model.
        damaged: What is wrong with the damaged parts.
        foreign: What is wrong with the parts of another model, or of something else.
        repeated: Files with more than one row, of which the newest counts.
        missing: Files that are not there.
        mended: Whether the damaged and foreign parts were moved aside and the repeated rows removed.
    """

    sounds: int
    parts: int
    damaged: dict[Path, str]
    foreign: dict[Path, str]
    repeated: list[Path]
    missing: list[Path]
    mended: bool = False

    @property
    def whole(self) -> bool:
        """Whether there is nothing to mend, or it is mended; missing files are no damage."""
        return self.mended or not (self.damaged or self.foreign or self.repeated)


@dataclass(frozen=True)
class _State:
    """What identifies the content of a file: size in bytes and time of change in ns, or else its hash."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class _Known:
    """The parts that hold a file, the newest last, and the file's state in the newest."""

    parts: tuple[Path, ...]
    state: _State


class SoundCollection:
    """Embeddings of sound files in a folder.

    Files are known by path, size and time of change, and in doubt by their content. Paths below the folder that the
    collection lies in are stored relative to it, so that both may move together.

    Args:
        folder: Where they are kept; made when the first are added. Threads and processes may share it.
        model: The model, on its device; in evaluation mode whenever it embeds.
        processor: Its processor.
        name: Folder or Hub id of the model, kept for the record.
        max_windows: Windows of a file at most, evenly spaced over it; the processor's own limit when None.

    Raises:
        ValueError: The folder holds embeddings of another model or front end, or a damaged part; or weights of the
            model are missing or not finite.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: MSClapModel,
        processor: MSClapProcessor,
        name: str = "",
        max_windows: int | None = None,
    ):
        check_weights(model, name)
        self.folder, self.model, self.processor, self.name = Path(folder), model, processor, name
        self._root = _root(folder)
        self._encoder = ClapEncoder(model, processor, name, max_windows=max_windows)
        schema = pa.schema(
            {
                "file": pa.string(),
                "embedding": pa.list_(pa.float32(), model.config.projection_dim),
                "size": pa.int64(),
                "mtime_ns": pa.int64(),
                "sha256": pa.string(),
                "damage": pa.string(),
            }
        )
        facts = {"name": name, "max_windows": max_windows}
        self._parts = PartStore(self.folder, self._encoder.key, schema, about=facts)
        for part in self._parts.paths():
            found = part_facts(part)
            if found["identity"] != self._encoder.key:
                raise ValueError(
                    f"{part}: holds embeddings of the model {found.get('name')!r} with fingerprint "
                    f"{found['identity'][:16]}, expected those of {name!r} with {self._encoder.key[:16]}. Use that "
                    "model and its settings, or another folder; `clap-hf check --mend` moves stray parts aside."
                )

    def __len__(self) -> int:
        return len(
            {name for part in self._parts.paths() for name in self._parts.read(part, ["file"])["file"].to_pylist()}
        )

    def add(self, files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> CollectionUpdate:
        """Embed the files that the collection does not have, or has in another state; a stopped run can go on.

        Args:
            files: Sound files and folders of them; one or several.

        Returns:
            How many were embedded, known and recognised, and what was skipped.
        """
        paths = [files] if isinstance(files, (str, os.PathLike)) else files
        found = (file for path in paths for file in (audio_files([path]) if os.path.isdir(path) else [path]))
        wanted = list(dict.fromkeys(os.path.abspath(file) for file in found))
        with locked(self.folder):
            known = self._known()
            missing = [file for file in wanted if not self._is_known(file, known)]
            by_content = {entry.state.sha256: stored for stored, entry in known.items()}
            skipped: dict[Path, str] = {}
            damaged: dict[Path, str] = {}
            embedded = recognised = 0
            starts = range(0, len(missing), FILES_PER_PART)
            for start in track(starts, "Embedding", console=Console(stderr=True), transient=True):
                failed: dict[str, str] = {}
                states = dict(read_ahead(missing[start : start + FILES_PER_PART], _state_of, failed))
                skipped |= {Path(file): reason for file, reason in failed.items()}
                equal = {
                    file: by_content[state.sha256]
                    for file, state in states.items()
                    if by_content.get(state.sha256) in known
                }
                vectors = self._vectors(equal.values(), known)
                # Before a changed file is embedded: a run that stops here embeds it the next time.
                self._drop({self._stored(file) for file in states} & known.keys(), known)
                new = embed_files(
                    self.model,
                    self.processor,
                    [file for file in states if file not in equal],
                    max_windows=self._encoder.max_windows,
                )
                skipped |= new.skipped
                damaged |= new.damaged
                rows = {file: vectors[stored] for file, stored in equal.items()}
                rows |= {
                    str(file): (vector, new.damaged.get(file, ""))
                    for file, vector in zip(new.files, new.vectors.numpy(), strict=True)
                }
                self._write(rows, states)
                gone = {stored for stored in equal.values() if not self._path(stored).exists()}
                self._drop(gone & known.keys(), known)
                embedded += len(new.files)
                recognised += len(equal)
        return CollectionUpdate(embedded, len(wanted) - len(missing), recognised, skipped, damaged)

    def prune(self) -> int:
        """Drop the embeddings of files that are no longer there.

        Returns:
            How many were dropped.

        Raises:
            ValueError: None of the files is there, as where a drive is not mounted.
        """
        with locked(self.folder):
            known = self._known()
            gone = {stored for stored in known if not self._path(stored).exists()}
            if known and len(gone) == len(known):
                raise self._all_missing(min(gone))
            self._drop(gone, known)
        return len(gone)

    def search(self, query: Any, top_k: int = 10, *, sampling_rate: int | None = None) -> list[SearchHit]:
        """Find the sounds that a text or another sound is closest to. Deleted files are left out.

        Args:
            query: Words as a `str`, or a sound: a `Path`, or whatever else `docs/inputs.md` lists.
            top_k: Hits at most.
            sampling_rate: Rate of samples that do not carry their own, Hz.

        Returns:
            Hits, the best first.

        Raises:
            ValueError: The collection is empty, the words are, or they name a file; none of the files is there.
        """
        if isinstance(query, str) and not query.strip():
            raise ValueError(f"The query is {query!r}, expected words, or a sound.")
        if isinstance(query, str) and Path(query).suffix.lower() in AUDIO_EXTENSIONS and os.path.isfile(query):
            raise ValueError(
                f"The query {query!r} is the name of a file, expected words. For sounds like that one, pass a Path, "
                "or --like on the command line."
            )
        parts = self._parts.paths()
        if not parts:
            raise ValueError(f"{self.folder}: no sounds in this collection, expected some. Add files first.")
        encoder = self._encoder
        if isinstance(query, str):
            vectors = encoder.embed_texts([query])
        else:
            vectors = encoder.embed_audio([encoder.prepare(query, sampling_rate)])
        vector = vectors[0].numpy()
        best: list[SearchHit] = []
        first = ""
        seen: set[int] = set()  # hashes of the files of newer parts
        for part in reversed(parts):
            try:
                table = self._parts.read(part)
            except PartError:
                if not part.exists():  # another process prunes
                    continue
                raise
            similarity = _embeddings(table) @ vector
            hits: list[SearchHit] = []
            names = table["file"].to_pylist()
            newest, damage = _newest(names, seen), _damage(table)
            # Of one part only the best can be among the best of all.
            for row in np.argsort(-similarity, kind="stable").tolist():
                if len(hits) == top_k or (len(best) == top_k and similarity[row] < best[-1].similarity):
                    break
                if not newest[row]:
                    continue
                stored = names[row]
                size, mtime_ns = (table[name][row].as_py() for name in ("size", "mtime_ns"))
                first = first or stored
                try:
                    found = os.stat(self._path(stored))
                except OSError:
                    continue
                changed = (found.st_size, found.st_mtime_ns) != (size, mtime_ns)
                hits.append(SearchHit(self._path(stored), float(similarity[row]), changed, damage[row]))
            best = heapq.nsmallest(top_k, best + hits, key=lambda hit: (-hit.similarity, str(hit.file)))
        if not best and first:
            raise self._all_missing(first)
        return best

    def _stored(self, file: str) -> str:
        """An absolute path as the collection stores it."""
        path = Path(file)
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else file

    def _path(self, stored: str) -> Path:
        return self._root / stored

    def _known(self) -> dict[str, _Known]:
        """Parts and state of every file, by its stored path."""
        known: dict[str, _Known] = {}
        for part in self._parts.paths():
            table = self._parts.read(part, ["file", "size", "mtime_ns", "sha256"])
            for row in table.to_pylist():
                stored = row.pop("file")
                earlier = known[stored].parts if stored in known else ()
                known[stored] = _Known((*earlier, part), _State(**row))
        return known

    def _is_known(self, file: str, known: dict[str, _Known]) -> bool:
        """Whether a file's embedding is here, by path, size and time."""
        entry = known.get(self._stored(file))
        if entry is None:
            return False
        try:
            found = os.stat(file)
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (entry.state.size, entry.state.mtime_ns)

    def _vectors(self, stored: Iterable[str], known: dict[str, _Known]) -> dict[str, tuple[np.ndarray, str]]:
        """Embeddings and damage of known files."""
        wanted = set(stored)
        vectors: dict[str, tuple[np.ndarray, str]] = {}
        for part in sorted({known[name].parts[-1] for name in wanted}):
            table = self._parts.read(part)
            rows = zip(table["file"].to_pylist(), _embeddings(table), _damage(table), strict=True)
            vectors |= {name: (vector, damage) for name, vector, damage in rows if name in wanted}
        return vectors

    def _drop(self, stored: set[str], known: dict[str, _Known]) -> None:
        """Take known files out of their parts."""
        for part in {part for name in stored for part in known[name].parts}:
            table = self._parts.read(part)
            _keep(self._parts, part, table, [name not in stored for name in table["file"].to_pylist()])
        for name in stored:
            del known[name]

    def _write(self, vectors: dict[str, tuple[np.ndarray, str]], states: dict[str, _State]) -> None:
        if vectors:
            self._parts.write(
                {"file": self._stored(file), "embedding": vector, "damage": damage, **vars(states[file])}
                for file, (vector, damage) in vectors.items()
            )

    def _all_missing(self, stored: str) -> ValueError:
        return ValueError(
            f"{self.folder}: none of its sounds is there, such as {self._path(stored)}. Mount or restore their "
            "folder, or embed them again where they are now."
        )


def collection_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a collection was made with: `name` of the model, `max_windows`, and `identity`.

    Args:
        folder: The collection.

    Raises:
        ValueError: There is no collection.
    """
    parts = sorted(Path(folder).glob("*.parquet"))
    if not parts:
        raise _no_collection(folder)
    return part_facts(parts[0])


def check_collection(folder: str | os.PathLike[str], *, mend: bool = False) -> CollectionCheck:
    """Read every part of a collection, without its model: find what is damaged, foreign, repeated or missing.

    The collection's model is the one that most rows are of, or else the first part's.

    Args:
        folder: The collection.
        mend: Move damaged and foreign parts aside, to names ending in `.damaged`, and remove the older rows of
            repeated files. The files of parts that were moved are embedded again when they are added again.

    Raises:
        ValueError: There is no collection.
    """
    folder, root = Path(folder), _root(folder)
    if not any(folder.glob("*.parquet")):
        raise _no_collection(folder)
    with locked(folder) if mend else nullcontext():  # to read a collection, nobody waits
        damaged: dict[Path, str] = {}
        foreign: dict[Path, str] = {}
        identities: dict[Path, str] = {}
        rows: dict[str, int] = Counter()
        for part in sorted(folder.glob("*.parquet")):
            try:
                table = read_part(part)
            except PartError as error:
                if part.exists():  # and was not removed meanwhile
                    damaged[part] = str(error)
                continue
            try:
                facts = part_facts(part)
            except PartError as error:
                foreign[part] = str(error)
                continue
            if not COLUMNS <= set(table.column_names):
                foreign[part] = f"{part}: has the columns {table.column_names}, expected {sorted(COLUMNS)}."
                continue
            identities[part] = facts["identity"]
            rows[facts["identity"]] += len(table)
        main = max(rows, key=lambda identity: rows[identity], default="")
        for part, identity in identities.items():
            if identity != main:
                foreign[part] = f"{part}: made from {identity[:16]}, expected {main[:16]} as in most others."
        whole = [part for part in identities if part not in foreign]
        seen: set[int] = set()
        repeated: dict[str, None] = {}
        missing: list[Path] = []
        for part in reversed(whole):
            names = read_part(part, ["file"])["file"].to_pylist()
            newest = _newest(names, seen)
            for name, is_newest in zip(names, newest, strict=True):
                if not is_newest:
                    repeated[name] = None
                elif not (root / name).exists():
                    missing.append(root / name)
            if mend and not all(newest):
                table, facts = read_part(part), part_facts(part)
                schema = table.schema.remove_metadata()
                about = {name: fact for name, fact in facts.items() if name != "identity"}
                _keep(PartStore(folder, main, schema, about=about), part, table, newest)
        if mend:
            for part in (*damaged, *foreign):
                os.replace(part, _free(part.with_name(part.name + ".damaged")))
    return CollectionCheck(
        sounds=len(seen),
        parts=len(whole),
        damaged=damaged,
        foreign=foreign,
        repeated=sorted(root / name for name in repeated),
        missing=sorted(missing),
        mended=mend,
    )


def _root(folder: str | os.PathLike[str]) -> Path:
    """What stored paths are relative to: the folder that a collection lies in."""
    return Path(os.path.abspath(folder)).parent


def _newest(names: list[str], seen: set[int]) -> list[bool]:
    """Which rows of a part are the newest of their file; `seen` has the hashes of newer parts' files, and gets these.

    A hash of 64 bits takes less memory than a path; for a million files two are equal with a chance of 3e-8.
    """
    newest = [False] * len(names)
    for row in range(len(names) - 1, -1, -1):
        hashed = hash(names[row])
        newest[row] = hashed not in seen
        seen.add(hashed)
    return newest


def _keep(store: PartStore, part: Path, table: pa.Table, kept: list[bool]) -> None:
    """Write a part again with some of its rows, or remove it where none is left."""
    rest = table.filter(pa.array(kept, pa.bool_()))
    if len(rest):
        store.write(rest.to_pylist(), name=part.stem)
    else:
        part.unlink(missing_ok=True)


def _free(path: Path) -> Path:
    """A path, with a number behind it where it is taken."""
    taken = (path.with_name(f"{path.name}.{number}") for number in range(1, 1_000_000))
    return path if not path.exists() else next(other for other in taken if not other.exists())


def _no_collection(folder: str | os.PathLike[str]) -> ValueError:
    return ValueError(f"{folder}: no collection of sounds here, expected one that `clap-hf embed` made.")


def _state_of(file: str) -> _State:
    """State of a file, which is read whole."""
    if printable(file) != file:
        raise ValueError(f"{printable(file)}: its name is not UTF-8, expected one that parquet holds; rename the file")
    try:
        with open_regular(file, printable(file)) as content:
            found = os.fstat(content.fileno())
            digest = hashlib.file_digest(content, "sha256")
    except OSError as error:
        raise ValueError(
            f"{printable(file)}: {error.strerror or error}; expected a readable file; check the path"
        ) from error
    return _State(found.st_size, found.st_mtime_ns, digest.hexdigest())


def _embeddings(table: pa.Table) -> np.ndarray:
    """The embeddings of a part `[files, projection_dim]`."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def _damage(table: pa.Table) -> list[str]:
    """What was damaged in the files of a part; collections of before have no such column."""
    if "damage" not in table.column_names:
        return [""] * len(table)
    return [damage or "" for damage in table["damage"].to_pylist()]
