"""Files and folders written whole or not at all, and the one store for what is written in parts and resumed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROWS_PER_GROUP = 100  # what a streaming reader fetches at once
LEFTOVER = re.compile(r"\.[0-9a-f]{12}\.new$")  # the ending of a file that is being written
NUMBER = re.compile(r"part-(\d+)")
UNPACKED_BYTES, UNPACKED_RATIO = 1 << 28, 200  # what packed files from elsewhere may unpack to
LEFTOVER_S = 3600  # without a write for that long, nobody writes it any more
_threads = threading.Lock()  # where there is no fcntl


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside the old one, then swap: a kill or an error leaves the old one, or none, and never a half.

    What killed writers left in the folder is removed when it is older than an hour.

    Args:
        path: The file to replace or make; its folder is made if need be.

    Yields:
        Where to write: a name ending in `.new`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.new")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    for entry in os.scandir(folder):
        if LEFTOVER.search(entry.name):
            with suppress(OSError):  # removed by another process meanwhile
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_S
                if old and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder alone, among all processes and threads that lock it; the others wait.

    The system releases the lock of a killed process. Where there are no such locks, as on Windows and some network
    drives, no process waits.

    Args:
        folder: Made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        with _threads:
            yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(f"{folder}: waiting for another writer.", markup=False, soft_wrap=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a drive that locks no folders
            pass
        yield
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; its folder is made if need be.

    Args:
        path: The file.
        text: Its content.
    """
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically; its folder is made if need be.

    Args:
        path: The file.
        content: What to write.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside the old one, then swap: a kill leaves one of the two whole.

    Args:
        folder: The folder to replace or make.
        write: Called with where to write; makes that folder itself.
    """
    restore_folder(folder)
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        write(fresh)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if "No space left on device" in str(error) and not isinstance(error, OSError):  # safetensors has its own
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        raise
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(fresh, folder)
    except OSError:
        restore_folder(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Undo a `replace_folder` that was stopped between its two renames, when the old folder is the only whole one.

    Args:
        folder: What was to be replaced; it stays as it is if it is there.
    """
    old = folder.with_name(folder.name + ".old")
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)


def write_parquet(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as they come, so that memory holds one group of them.

    Args:
        path: The file; there is none, or the old one, if the rows raise an error. Its folder is made if need be.
        schema: Columns of the rows.
        rows: The rows.
    """
    iterator = iter(rows)
    # Without compression: sound files do not get smaller.
    with replacing(path) as fresh, pq.ParquetWriter(fresh, schema, compression="none") as writer:
        while group := list(islice(iterator, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


class PartError(ValueError):
    """A part that cannot be used; the message names the file, what is wrong with it, and the remedy."""


class ForeignPartError(PartError):
    """A part of another identity, or that something else wrote."""


class PartStore:
    """A table kept as files in a folder, each written whole: a stopped run goes on with the parts that are missing.

    Every part holds the identity of what it was made from, so that parts of other models or settings are never mixed
    in, and checksums of its pages. Several processes may write at once: no part ever replaces another.

    Args:
        folder: Where the parts are; made when the first is written.
        identity: What the parts were made from, as a short text such as a hash.
        schema: Columns of the rows.
        suffix: `".parquet"`, which datasets opens; or `".arrow"`, which is mapped into memory and has no checksums.
        about: Further facts kept in every part, such as a model's name.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        schema: pa.Schema,
        *,
        suffix: str = ".parquet",
        about: dict[str, Any] | None = None,
    ):
        self.folder, self.identity, self.schema, self.suffix = folder, identity, schema, suffix
        self.about = about or {}

    def path(self, name: str) -> Path:
        """File of a named part."""
        return self.folder / f"{name}{self.suffix}"

    def paths(self) -> list[Path]:
        """All parts, in the order of their names."""
        return sorted(self.folder.glob(f"*{self.suffix}"))

    def next_number(self) -> int:
        """Number of the part to come; a new part is the last one, also after parts that were moved aside."""
        numbers = [int(found[1]) for path in self.folder.glob("part-*") if (found := NUMBER.match(path.name))]
        return max(numbers, default=-1) + 1

    def has(self, name: str) -> bool:
        """Whether a named part is there, whole and of this identity; if not, it is to be written again."""
        if not self.path(name).is_file():
            return False
        try:
            return part_facts(self.path(name))["identity"] == self.identity
        except PartError:
            return False

    def write(
        self,
        rows: Iterable[dict[str, Any]],
        name: str | None = None,
        facts: Callable[[], dict[str, Any]] | None = None,
    ) -> Path:
        """Write a part as its rows come, so that memory holds one group of them.

        Args:
            rows: The rows.
            name: Name of the part, whose file is replaced if it is there; a new one of its own by default.
            facts: Called after the last row; what it returns is kept in the part.

        Returns:
            The file.
        """
        if name is None:
            name = f"part-{self.next_number():06d}-{uuid.uuid4().hex[:8]}"
        path, iterator = self.path(name), iter(rows)

        def groups() -> Iterator[pa.Table]:
            while group := list(islice(iterator, ROWS_PER_GROUP)):
                yield pa.Table.from_pylist(group, self.schema)

        def notes() -> dict[str, str]:
            found = {} if facts is None else facts()
            return {"clap_hf": json.dumps({"identity": self.identity, **self.about, **found})}

        with replacing(path) as fresh:
            if self.suffix == ".parquet":
                # Without compression: neither sound files nor vectors get smaller.
                options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
                with pq.ParquetWriter(fresh, self.schema, **options) as writer:
                    for table in groups():
                        writer.write_table(table)
                    writer.add_key_value_metadata(notes())
            else:
                with pa.OSFile(str(fresh), "wb") as sink, pa.ipc.new_file(sink, self.schema) as writer:
                    for table in groups():
                        writer.write_table(table)
                    # A file's own metadata comes before its rows, when the facts are not known yet.
                    writer.write_batch(pa.RecordBatch.from_pylist([], self.schema), custom_metadata=notes())
        return path

    def read(self, path: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a part.

        Args:
            path: One of `paths`.
            columns: Which columns; all by default.

        Raises:
            PartError: If the part is damaged, or of another identity.
        """
        found = part_facts(path)["identity"]
        if found != self.identity:
            raise ForeignPartError(
                f"{path}: made from {found[:16]}, expected {self.identity[:16]}. Use what it was made from, or move "
                "it out of the folder."
            )
        return read_part(path, columns)


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a part of a `PartStore`, whatever its identity.

    Args:
        path: The file.
        columns: Which columns; all by default.

    Raises:
        PartError: If the part is damaged.
    """
    try:
        _check_regular(path)
        if path.suffix == ".parquet":
            names = None if columns is None else list(columns)
            _check_plain(path)
            return pq.read_table(path, columns=names, page_checksum_verification=True, partitioning=None)
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return table if columns is None else table.select(list(columns))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():  # opening a FIFO would wait
        raise OSError("no regular file")


def _check_plain(path: Path) -> None:
    """Refuse a part that takes more memory than disk: one of a few kilobytes could unpack to any size.

    Raises:
        ForeignPartError: If a column is compressed or has a dictionary, or states more values than the file has bytes.
    """
    metadata, size = pq.read_metadata(path), path.stat().st_size
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            found = ""
            if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
                found = f"the column {column.path_in_schema} is packed ({column.compression})"
            elif column.num_values > size:
                found = f"the column {column.path_in_schema} states {column.num_values:,} values in {size:,} bytes"
            if found:
                raise ForeignPartError(
                    f"{path}: not a part that clap-hf wrote: {found}, expected plain values. Move it away."
                )


def check_unpacked(path: Path) -> None:
    """Refuse a parquet file that is damaged, or that would unpack to far more than its size.

    Args:
        path: The file, of any writer.

    Raises:
        ValueError: If it is no parquet file, or unpacks to more than `UNPACKED_BYTES` and to more than
            `UNPACKED_RATIO` times its size. Texts in a dictionary count once.
    """
    if not path.is_file():  # reading a FIFO would wait
        raise ValueError(f"{path}: no regular file, expected a parquet file.")
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: {str(error).strip().splitlines()[0]} Expected a parquet file.") from error
    widths = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(metadata.num_columns))
    unpacked = sum(
        max(column.total_uncompressed_size, column.num_values * widths.get(column.physical_type, 1))
        for column in columns
    )
    check_ratio(path, unpacked)


def check_ratio(path: Path, unpacked: int) -> None:
    """Refuse a file that unpacks to far more than its size.

    Args:
        path: The file.
        unpacked: Bytes that it unpacks to.

    Raises:
        ValueError: If these are more than `UNPACKED_BYTES` and more than `UNPACKED_RATIO` times its size.
    """
    limit = max(UNPACKED_BYTES, UNPACKED_RATIO * path.stat().st_size)
    if unpacked > limit:
        raise ValueError(
            f"{path}: unpacks from {path.stat().st_size:,} bytes to {unpacked:,}, expected at most {limit:,}. Leave "
            "it out, or unpack it yourself."
        )


def part_facts(path: Path) -> dict[str, Any]:
    """Facts kept in a part of a `PartStore`: `identity`, and what its writer added.

    Args:
        path: The file.

    Raises:
        PartError: If the part is damaged, or was written by something else.
    """
    try:
        _check_regular(path)
        if path.suffix == ".parquet":
            metadata = pq.read_metadata(path).metadata or {}
        else:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            metadata = _last_metadata(reader) if reader.num_record_batches else {}
        facts = json.loads(metadata.get(b"clap_hf", b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(facts, dict) or not isinstance(facts.get("identity"), str):
        raise ForeignPartError(f"{path}: not a part that clap-hf wrote, expected one. Move it out of the folder.")
    return facts


def _last_metadata(reader: pa.ipc.RecordBatchFileReader) -> Any:
    return reader.get_batch_with_custom_metadata(reader.num_record_batches - 1).custom_metadata or {}


def _damaged(path: Path, error: Exception) -> PartError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return PartError(
        f"{path}: a damaged part ({reason}), expected a whole one. Remove the file; the next run makes it again."
    )
