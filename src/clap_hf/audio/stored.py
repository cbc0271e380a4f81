"""Sounds inside of other files: rows of parquet and Arrow files, and members of tar archives.

Such a sound is named like a file: `set.parquet#12` for a row, `set.tar#dogs/1.flac` for a member.
"""

from __future__ import annotations

import bisect
import io
import os
import re
import tarfile
import threading
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

AUDIO_COLUMNS = ("audio", "file_name", "path", "file", "filename")
CONTAINERS = (".parquet", ".arrow", ".tar")
INSIDE = re.compile(r"(.+\.(?:parquet|arrow|tar))#(.+)", re.DOTALL)
_reading = threading.Lock()  # so that the threads that decode rows of one group read it once


def inside(name: str) -> tuple[str, str] | None:
    """The file that holds a sound and the sound's row or member; None where the name is that of a file itself."""
    found = INSIDE.fullmatch(name)
    return (found[1], found[2]) if found and not os.path.lexists(name) else None


def state_of(name: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns of a sound's file, or of the file that holds it.

    Raises:
        OSError: There is no such file.
    """
    found = os.stat((inside(name) or (name,))[0])
    return found.st_size, found.st_mtime_ns


def is_there(name: str | os.PathLike[str]) -> bool:
    """Whether a sound's file, or the file that holds it, is there."""
    return os.path.exists((inside(str(name)) or (name,))[0])


def read_inside(file: str, entry: str) -> str | bytes:
    """Bytes of a sound, or the path that its row states.

    Args:
        file: The file that holds it.
        entry: Its row or member.

    Raises:
        ValueError: There is no such row or member, or it holds no sound.
        OSError: The file cannot be read.
    """
    changed = os.stat(file).st_mtime_ns
    try:
        with _reading:
            if file.endswith(".tar"):
                offset, size = _members(file, changed)[entry]
                with open(file, "rb") as archive:
                    archive.seek(offset)
                    return archive.read(size)
            row = int(entry)
            if file.endswith(".parquet"):
                starts = _starts(file, changed)
                group = bisect.bisect_right(starts, row) - 1
                table, row = _row_group(file, changed, group), row - starts[group]
            else:
                table = _arrow(file, changed)
            column = sound_column(table.schema)
            if column is None:
                raise KeyError(f"columns {table.schema.names}")
            sound = table[column][row].as_py()
    except (KeyError, IndexError, ValueError, pa.ArrowException, tarfile.TarError) as error:
        raise ValueError(f"{file}#{entry}: no such sound ({error}); expected one; list the file again") from error
    return stored_sound(sound, Path(file).parent)


def stored_sound(audio: Any, folder: Path) -> str | bytes:
    """Path of a sound file, or its bytes, of what a column of a dataset holds.

    Args:
        audio: `{bytes, path}` as `datasets.Audio` stores it, `{path, offset, size}` for a part of a file,
            `{array, sampling_rate}`, bytes, or a path.
        folder: What paths may be relative to.

    Raises:
        ValueError: If it has neither.
    """
    if isinstance(audio, bytes) and audio:
        return audio
    stored: Mapping[str, Any] = audio if isinstance(audio, Mapping) else {"path": audio}
    if stored.get("bytes"):
        return bytes(stored["bytes"])
    if stored.get("array") is not None:
        buffer = io.BytesIO()
        samples = np.asarray(stored["array"], dtype=np.float32)
        soundfile.write(buffer, samples, int(stored["sampling_rate"]), format="WAV", subtype="FLOAT")
        return buffer.getvalue()
    if not isinstance(stored.get("path"), str) or not stored["path"]:
        raise ValueError("no audio bytes and no path of a file")
    path = Path(stored["path"])
    if not path.is_absolute() and not path.exists():
        path = folder / path  # as written beside the dataset
    if not path.is_file():
        raise ValueError(f"no audio bytes, and {path} is no file here")
    if stored.get("offset") is None:
        return str(path)
    with path.open("rb") as file:
        file.seek(stored["offset"])
        return file.read(stored["size"])


def sounds_inside(file: Path, endings: frozenset[str]) -> list[str]:
    """Names of the sounds of a parquet or Arrow file or a tar archive; none where it has no column of sounds.

    Args:
        file: The file. What a collection of embeddings is made of holds none.
        endings: Of members of an archive that are sounds.

    Raises:
        ValueError: It is none of these.
    """
    try:
        changed = file.stat().st_mtime_ns
        if file.suffix == ".tar":
            return [f"{file}#{name}" for name in _members(str(file), changed) if Path(name).suffix.lower() in endings]
        if file.suffix == ".parquet":
            metadata = pq.read_metadata(file)
            if b"clap_hf" in (metadata.metadata or {}):
                return []
            schema, count = metadata.schema.to_arrow_schema(), metadata.num_rows
        else:
            schema, count = (table := _arrow(str(file), changed)).schema, len(table)
        column = sound_column(schema)
        if column is None:
            return []
        if not pa.types.is_string(schema.field(column).type):
            return [f"{file}#{row}" for row in range(count)]
        table = pq.read_table(file, columns=[column]) if file.suffix == ".parquet" else table
        paths = [path for path in table[column].to_pylist() if path]
        return [path if os.path.isabs(path) or os.path.exists(path) else str(file.parent / path) for path in paths]
    except (pa.ArrowException, tarfile.TarError) as error:
        kind = "an uncompressed tar archive" if file.suffix == ".tar" else f"a {file.suffix[1:]} file"
        raise ValueError(f"{file}: {str(error).splitlines()[0]}; expected {kind}; restore it") from error


def sound_column(schema: pa.Schema) -> str | None:
    """Column of sounds: the first of `AUDIO_COLUMNS`, or else one that holds bytes and a path."""
    known = next((name for name in AUDIO_COLUMNS if name in schema.names), None)
    structs = (field for field in schema if pa.types.is_struct(field.type))
    return known or next(
        (field.name for field in structs if {"bytes", "path"} == {own.name for own in field.type}), None
    )


@lru_cache(maxsize=64)
def _starts(file: str, changed: int) -> list[int]:
    """First row of every row group of a parquet file, and the number of its rows."""
    metadata = pq.read_metadata(file)
    groups = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    return list(accumulate(groups, initial=0))


@lru_cache(maxsize=2)
def _row_group(file: str, changed: int, group: int) -> pa.Table:
    """The column of sounds of a row group."""
    with pq.ParquetFile(file) as parquet:
        column = sound_column(parquet.schema_arrow)
        return parquet.read_row_group(group, columns=[column] if column else None)


@lru_cache(maxsize=64)
def _arrow(file: str, changed: int) -> pa.Table:
    """All rows of an Arrow file as `datasets` saves it, mapped into memory."""
    return pa.ipc.open_stream(pa.memory_map(file)).read_all()


@lru_cache(maxsize=8)
def _members(file: str, changed: int) -> dict[str, tuple[int, int]]:
    """Offset and size of every regular member of an archive, bytes."""
    with tarfile.open(file, "r:") as archive:
        return {member.name: (member.offset_data, member.size) for member in archive if member.isfile()}
