"""Text and JSON of files from elsewhere: regular files of a bounded size, and errors that name the file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 30
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
_PIPES = ("/dev/", "/proc/")  # where shells put pipes that have a writer: `--labels-file <(command)`


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, without a byte order mark.

    Args:
        path: A regular file of at most `MAX_BYTES`, or a pipe of the shell.

    Raises:
        OSError: It cannot be read, or is no such file.
        ValueError: It is too large, or not UTF-8.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) and not os.fspath(path).startswith(_PIPES):
            # Opening a FIFO would wait for someone to write to it.
            kind = _KINDS.get(stat.S_IFMT(about.st_mode), "a device")
            raise OSError(f"{path} is {kind}, expected a text file.")
        if about.st_size > MAX_BYTES:
            raise ValueError(f"{path} has {about.st_size:,} bytes, expected at most {MAX_BYTES:,} in a text file.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}), expected a text file in UTF-8. Save it as UTF-8."
        ) from error
    except OSError as error:
        if error.errno is None:
            raise
        kept = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kept(f"{path}: {error.strerror}; expected a readable text file.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: As for `read_text`.

    Raises:
        OSError: As for `read_text`.
        ValueError: It is not JSON, or of another kind.
    """
    return parse_json(read_text(path), str(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file; empty lines are left out.

    Args:
        path: As for `read_text`.

    Raises:
        OSError: As for `read_text`.
        ValueError: A line is not JSON, or of another kind.
    """
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [parse_json(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def parse_json(text: str, name: str) -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
        text: The text.
        name: What messages call it.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or is of another kind.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON ({str(error)[:200]}), expected a JSON object.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name}: a {type(found).__name__}, expected a JSON object.")
    return found
