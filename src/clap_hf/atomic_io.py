"""Files and folders written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 100  # what a streaming reader fetches at once


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside the old one, then swap: a kill or an error leaves the old one, or none, and never a half.

    Args:
        path: The file to replace or make; its folder is made if need be.

    Yields:
        Where to write: a name ending in `.new`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


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
        write: Told where to write; makes that folder itself.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        write(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


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
