"""Cache of a collection's parts: metadata in SQLite, vectors as one matrix in memory, exact and approximate search.

The parts alone are the truth. The database beside them, `.index.sqlite`, states which parts it was made from; it is
brought up to date in one transaction before every use, and made anew where it is damaged. Where the folder cannot be
written to, it is in memory.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import pyarrow as pa

from ..atomic_io import PartError, PartStore
from .approximate import Approximate, approximate_index

DATABASE = ".index.sqlite"  # a hidden file: `datasets` leaves it alone
BUSY_S = 60  # that a process waits for another one that writes the database
MOST_READS = 5  # of a collection from which another process removes parts meanwhile
EXACT_VECTORS = 100_000  # more are searched by FAISS, where it is installed
VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS parts (name TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER);
CREATE TABLE IF NOT EXISTS sounds (
    part TEXT, row INTEGER, file TEXT, size INTEGER, mtime_ns INTEGER, sha256 TEXT, damage TEXT, duration_s REAL,
    tags TEXT, windows INTEGER, PRIMARY KEY (part, row)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files ON sounds (file);
"""
METADATA = ["file", "size", "mtime_ns", "sha256", "damage", "duration_s", "tags", "starts"]
# The newest row of every file; SQLite takes the other columns from the row of the maximum.
NEWEST = "SELECT *, MAX(part || printf('/%09d', row)) FROM sounds"


@dataclass(frozen=True)
class Filter:
    """Which sounds of a collection take part in a search.

    Args:
        folder: Sounds below this folder; all when None.
        min_s: Sounds of at least this length, s.
        max_s: Sounds of at most this length, s; sounds of unknown length are left out where a length is asked for.
        tags: Sounds that have all of these tags.
    """

    folder: Path | None = None
    min_s: float = 0.0
    max_s: float = float("inf")
    tags: tuple[str, ...] = ()

    def condition(self, folder: str | None, relative: bool) -> tuple[str, list[Any]]:
        """The filter in SQL, and its values.

        Args:
            folder: `folder` as the collection stores paths, without a slash at its end.
            relative: Whether all paths that the collection stores as relative ones are below it.
        """
        clauses: list[str] = []
        values: list[Any] = []
        if folder is not None:
            clauses.append("(substr(file, 1, ?) = ?" + (" OR substr(file, 1, 1) != '/')" if relative else ")"))
            values += [len(folder) + 1, folder + "/"]
        if self.min_s > 0 or self.max_s < float("inf"):
            clauses.append("duration_s BETWEEN ? AND ?")
            values += [self.min_s, self.max_s]
        for tag in self.tags:
            clauses.append("instr(tags, ?)")
            values.append(f"\n{tag}\n")
        return " AND ".join(clauses) or "1", values


@dataclass(frozen=True)
class Vectors:
    """Every vector of a collection in memory, file after file in the order of their names.

    Attributes:
        matrix: Of every file its whole vector, then those of its windows `[vectors, dim]`.
        first: Row of the whole vector of every file `[files]`.
        starts: Start of a window, s; NaN for a whole file `[vectors]`.
        ends: End of it, s `[vectors]`.
        files: Paths as stored.
        sizes: Size of every file when it was embedded, bytes.
        times: Its time of change, ns.
        damage: What was damaged in it.
        signature: The parts that they were read from.
    """

    matrix: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    files: list[str]
    sizes: list[int]
    times: list[int]
    damage: list[str]
    signature: frozenset[tuple[str, int, int]]

    def best(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Highest dot product of every file and the row that has it, each `[files]`."""
        scores = self.matrix @ query
        if len(self.matrix) == len(self.files):
            return scores, self.first
        best = np.maximum.reduceat(scores, self.first)
        owner = np.repeat(np.arange(len(self.files)), np.diff(self.first, append=len(scores)))
        rows = np.flatnonzero(scores == best[owner])
        _, chosen = np.unique(owner[rows], return_index=True)
        return best, rows[chosen]


class Index:
    """Metadata and vectors of a collection's parts; threads may share it.

    Args:
        store: The parts.
    """

    def __init__(self, store: PartStore):
        self._store = store
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._vectors: Vectors | None = None
        self._approximate: tuple[Vectors, Approximate | None] | None = None

    def sounds(self) -> list[dict[str, Any]]:
        """Metadata of every row of every part, in the order of the parts."""
        with self._lock:
            self._refresh()
            return [dict(row) for row in self._execute("SELECT * FROM sounds ORDER BY part, row")]

    def count(self) -> int:
        """Files that have a row."""
        with self._lock:
            self._refresh()
            return int(self._execute("SELECT COUNT(DISTINCT file) FROM sounds")[0][0])

    def chosen(self, where: Filter, folder: str | None, relative: bool) -> set[str]:
        """Stored paths of the files that a filter leaves, see `Filter.condition`."""
        condition, values = where.condition(folder, relative)
        with self._lock:
            self._refresh()
            found = self._execute(f"SELECT file FROM ({NEWEST} GROUP BY file) WHERE {condition}", values)
        return {row["file"] for row in found}

    def vectors(self) -> Vectors:
        """Vectors of all files; read again where the parts have changed."""
        with self._lock:
            for attempt in range(MOST_READS):
                try:
                    signature = self._refresh()
                    if self._vectors is None or self._vectors.signature != signature:
                        self._vectors = self._read(signature)
                    return self._vectors
                except FileNotFoundError:  # another process prunes
                    if attempt + 1 == MOST_READS:
                        raise
            raise AssertionError("unreachable")

    def approximate(self, vectors: Vectors, queries: np.ndarray | None) -> Approximate | None:
        """FAISS over the vectors, where there are more than `EXACT_VECTORS` and it is installed; else None."""
        if len(vectors.matrix) <= EXACT_VECTORS:
            return None
        with self._lock:
            if self._approximate is None or self._approximate[0] is not vectors:
                self._approximate = (vectors, approximate_index(vectors.matrix, queries))
            return self._approximate[1]

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        assert self._database is not None
        return self._database.execute(statement, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        path = self._store.folder / DATABASE
        for name in (str(path), str(path), ":memory:"):
            with suppress(sqlite3.Error):  # in a folder that cannot be written to
                database = sqlite3.connect(name, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
                finalize(self, database.close)
                try:
                    database.row_factory = sqlite3.Row
                    if database.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
                        raise sqlite3.DatabaseError("of another version")
                    database.executescript(TABLES)
                    database.execute(f"PRAGMA user_version = {VERSION}")
                    return database
                except sqlite3.Error:  # damaged
                    database.close()
                    with suppress(OSError):
                        path.unlink()
        raise AssertionError("SQLite opens no database in memory")

    def _refresh(self) -> frozenset[tuple[str, int, int]]:
        """Make the database state what the parts hold; the parts' names, sizes and times."""
        found: dict[str, tuple[int, int]] = {}
        for path in self._store.paths():
            with suppress(FileNotFoundError):
                state = path.stat()
                found[path.name] = (state.st_size, state.st_mtime_ns)
        if self._database is None:
            self._database = self._open()
        try:
            self._bring_up_to_date(found)
        except sqlite3.DatabaseError:  # damaged meanwhile, or removed
            self._database.close()
            with suppress(OSError):
                (self._store.folder / DATABASE).unlink()
            self._database = self._open()
            self._bring_up_to_date(found)
        return frozenset((name, *state) for name, state in found.items())

    def _bring_up_to_date(self, found: dict[str, tuple[int, int]]) -> None:
        recorded = {row["name"]: (row["size"], row["mtime_ns"]) for row in self._execute("SELECT * FROM parts")}
        if recorded == found:
            return
        rows: list[tuple[Any, ...]] = []
        changed = [name for name in found if recorded.get(name) != found[name]]
        for name in changed:
            try:
                table = self._store.read(self._store.folder / name, METADATA)
            except PartError:
                if (self._store.folder / name).exists():
                    raise
                raise FileNotFoundError(name) from None
            rows += [(name, number, *_metadata(row)) for number, row in enumerate(table.to_pylist())]
        stale = [(name,) for name in {*changed, *(recorded.keys() - found.keys())}]
        assert self._database is not None
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("DELETE FROM sounds WHERE part = ?", stale)
            self._database.executemany("DELETE FROM parts WHERE name = ?", stale)
            # Two processes may read a part at once.
            self._database.executemany(f"INSERT OR REPLACE INTO sounds VALUES ({','.join('?' * 10)})", rows)
            states = [(name, *found[name]) for name in changed]
            self._database.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", states)
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def _read(self, signature: frozenset[tuple[str, int, int]]) -> Vectors:
        newest = self._execute(f"{NEWEST} GROUP BY file ORDER BY file")
        counts = np.array([1 + row["windows"] for row in newest], dtype=np.int64)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64) if len(counts) else counts
        matrix = np.empty((0, 0), dtype=np.float32)
        times = np.full((2, int(counts.sum())), np.nan, dtype=np.float32)
        of_part: dict[str, list[tuple[int, int]]] = {}
        for number, row in enumerate(newest):
            of_part.setdefault(row["part"], []).append((row["row"], number))
        for name, rows in of_part.items():
            try:
                table = self._store.read(self._store.folder / name)
            except PartError:
                if (self._store.folder / name).exists():
                    raise
                raise FileNotFoundError(name) from None
            inside, numbers = (np.array(column) for column in zip(*rows, strict=True))
            own = embeddings(table)
            if not matrix.size:
                matrix = np.empty((times.shape[1], own.shape[1]), dtype=np.float32)
            matrix[first[numbers]] = own[inside]
            if "windows" in table.column_names:
                for line, number in rows:
                    place = slice(first[number] + 1, first[number] + counts[number])
                    if place.stop > place.start:
                        values = table["windows"][line].values
                        matrix[place] = values.flatten().to_numpy().reshape(-1, own.shape[1])
                        times[:, place] = [table[name][line].values.to_numpy() for name in ("starts", "ends")]
        files, sizes, mtimes, damage = (
            [row[name] for row in newest] for name in ("file", "size", "mtime_ns", "damage")
        )
        return Vectors(matrix, first, times[0], times[1], files, sizes, mtimes, damage, signature)


def _metadata(row: dict[str, Any]) -> tuple[Any, ...]:
    """Columns of the database of a part's row; parts of before lack some of them."""
    tags = row.get("tags") or []
    return (
        *(row[name] for name in ("file", "size", "mtime_ns", "sha256")),
        row.get("damage") or "",
        row.get("duration_s"),
        "".join(f"\n{tag}\n" for tag in tags),
        len(row.get("starts") or []),
    )


def embeddings(table: pa.Table) -> np.ndarray:
    """The embeddings of a part `[files, projection_dim]`."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
