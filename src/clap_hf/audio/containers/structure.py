"""What a check of a file's structure finds, and reading parts of a file."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass, field

File = io.FileIO | io.BytesIO
TRAILING = 4096  # bytes after the sound that need no explanation: padding and tags of unknown kinds
_CHUNK = 1 << 18  # bytes read at a time in a search


@dataclass(frozen=True)
class Damage:
    """What is wrong, and between which seconds of the sound it lies; where that is unknown, anywhere."""

    reason: str
    from_s: float = 0.0
    to_s: float = math.inf


@dataclass(frozen=True)
class Part:
    """One stream of a file: the bytes `head`, then the file's bytes from `start` to `end`.

    `frames` is its number of samples a channel where its own header does not state it and a check has found it;
    `coded`, for MP3, that number before decoders cut off what the encoder added at both ends.
    """

    start: int
    end: int
    head: bytes = b""
    frames: int | None = None
    coded: int | None = None


@dataclass
class Structure:
    """The streams of a file in order, at least one, and what is wrong with them."""

    parts: list[Part]
    damage: list[Damage] = field(default_factory=list)


class PartFile:
    """A part of a file, read as a file of its own; for soundfile, which asks for these methods.

    Args:
        file: the whole file; its position changes.
        part: which bytes.
    """

    def __init__(self, file: File, part: Part) -> None:
        self._file, self._part, self._position = file, part, 0
        self.size = len(part.head) + part.end - part.start

    def tell(self) -> int:
        """Position in the part, bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in the part, bytes."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes; all that are left for -1."""
        left = max(self.size - self._position, 0)
        size = left if size < 0 else min(size, left)
        data = self._part.head[self._position : self._position + size]
        if len(data) < size:
            self._file.seek(self._part.start + self._position + len(data) - len(self._part.head))
            data += self._file.read(size - len(data)) or b""
        self._position += len(data)
        return data


class Reader:
    """Reads pieces of a file by their position, through a buffer that a walk from front to back fills rarely."""

    def __init__(self, file: File) -> None:
        self._file, self._start, self._buffer = file, 0, b""

    def at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from a position on."""
        offset = position - self._start
        if offset < 0 or offset + size > len(self._buffer):
            self._file.seek(position)
            self._start, offset = position, 0
            self._buffer = self._file.read(max(size, _CHUNK)) or b""
        return self._buffer[offset : offset + size]

    def find(self, pattern: bytes, position: int) -> int | None:
        """Where a pattern stands next, from a position on."""
        while True:
            block = self.at(position, _CHUNK)
            found = block.find(pattern)
            if found >= 0:
                return position + found
            if len(block) < max(len(pattern), _CHUNK):
                return None
            position += len(block) - len(pattern) + 1
