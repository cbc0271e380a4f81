"""Decode a sound file block by block, in memory that does not grow with its length.

libsndfile, through soundfile, reads WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, AU, CAF, W64 and RF64; the `ffmpeg`
program, where it is installed, reads what libsndfile does not (M4A, WMA, WebM, FLAC in Ogg ...). The format is found
from the content, never from the name. Nothing is resampled or mixed here.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
import soundfile

from . import ffmpeg
from .containers import Damage, File, Part, PartFile, inspect
from .stored import inside, read_inside

Blocks = Generator[np.ndarray, None, None]  # float32 `[frames, channels]`


@runtime_checkable
class BinaryReader(Protocol):
    """A binary file object."""

    def read(self, size: int = -1, /) -> bytes: ...


Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryReader

BLOCK_FRAMES = 16_384  # a decoder that fails costs the block that it fails in
_UNKNOWN_FRAMES = 1 << 48  # libsndfile's count is larger where a header states none
_MP3_PADDING = 4608  # samples that encoders add at both ends, at most
_IN_MEMORY = 1 << 24  # bytes of a file object; a larger one is copied to disk
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


class AudioDecodeError(ValueError):
    """A sound that cannot be decoded; the message names the file, what was found, what is expected and the remedy."""

    def __init__(self, name: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(name, found, expected, remedy)
        self.name, self.found, self.expected, self.remedy = name, found, expected, remedy

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.found}; expected {self.expected}; {self.remedy}"


def printable(name: str) -> str:
    """A file's name with the bytes that are not UTF-8 written as escapes."""
    return name.encode(errors="backslashreplace").decode()


class AudioReader:
    """A sound file, or a window of it, as blocks; use it in a `with` statement and iterate once.

    Every block is float32 `[channels, frames]`, C-contiguous, `BLOCK_FRAMES` frames long or shorter. Streams that
    follow each other in one file are read one after the other while their rate and channels stay the same.

    Attributes:
        path: the file's path, a file object's name, or "<bytes>".
        sampling_rate: Hz.
        channels: number of channels.
        frames: stated number of frames to read; None where the file does not state it.
        damage: what is missing or damaged in what was read, a sentence each; complete after the last block.

    Raises:
        ValueError: an argument is out of range.
        AudioDecodeError: the file is missing, not a regular file, empty, of an unknown format, longer than
            `max_duration_s`, or ends before `start_s`. From iterating: no sample can be decoded, some are not finite,
            or there are more than `max_duration_s`.
    """

    sampling_rate: int
    channels: int
    frames: int | None

    def __init__(
        self,
        source: Source,
        *,
        start_s: float = 0.0,
        duration_s: float | None = None,
        max_duration_s: float | None = None,
        name: str | None = None,
    ) -> None:
        if not (np.isfinite(start_s) and start_s >= 0):
            raise ValueError(f"start_s is {start_s}; expected seconds, 0 or more")
        for argument, value in (("duration_s", duration_s), ("max_duration_s", max_duration_s)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{argument} is {value}; expected seconds, more than 0, or None")
        self.damage: list[str] = []
        self._start_s, self._wanted_s, self._max_s = start_s, duration_s, max_duration_s
        self._reaches_end = duration_s is None
        self._stack = contextlib.ExitStack()
        try:
            self._encoded, self.path = _encoded(source, name, self._stack)
            self._file = self._stack.enter_context(_opened(self._encoded, self.path))
            structure = inspect(self._file, math.inf if duration_s is None else start_s + duration_s)
            self._size = structure.parts[-1].end
            self._parts: list[Part] = structure.parts
            self._found: list[Damage] = structure.damage
            try:
                blocks = self._open_with_libsndfile()
            except soundfile.SoundFileError as error:
                blocks = self._open_with_ffmpeg(error)
            self._blocks = self._stack.enter_context(contextlib.closing(blocks))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and end the decoder."""
        self._stack.close()

    @property
    def duration_s(self) -> float | None:
        """Stated length of what is read, seconds; None where the file does not state it."""
        return None if self.frames is None else self.frames / self.sampling_rate

    def __iter__(self) -> Iterator[np.ndarray]:
        decoded = 0
        for block in self._blocks:
            finite = np.isfinite(block)
            if not finite.all():
                raise AudioDecodeError(
                    self.path,
                    f"{finite.size - int(finite.sum())} of {finite.size} values are NaN or infinite "
                    f"in the block at {self._start_s + decoded / self.sampling_rate:.3f} s",
                    "finite samples",
                    "write the file again from its source or leave it out",
                )
            decoded += len(block)
            if self.frames is None:
                self._refuse_longer(decoded)
            yield np.ascontiguousarray(block.T)
        to_s = math.inf if self._reaches_end else self._start_s + decoded / self.sampling_rate
        inside = [found.reason for found in self._found if found.from_s <= to_s and found.to_s >= self._start_s]
        self.damage[:0] = dict.fromkeys(inside)
        if not decoded:
            if self.damage:
                raise damaged(self.path, self.damage[-1])
            raise self._no_samples()

    def _open_with_libsndfile(self) -> Blocks:
        first = self._sound(self._parts[0])
        self.sampling_rate, self.channels = first.samplerate, first.channels
        lengths: list[int | None] = []
        for number, part in enumerate(self._parts, start=1):
            try:
                sound = first if number == 1 else self._sound(part)
            except soundfile.SoundFileError as error:
                self._found.append(Damage(f"stream {number} cannot be read ({sentence(str(error))})", math.inf))
                continue
            if self._differs(number, sound.samplerate, sound.channels):
                break
            if part.coded is not None and sound.frames < part.coded - _MP3_PADDING:
                reason = f"the tag leaves {sound.frames} of {part.coded} samples"
                self._found.append(Damage(reason, sound.frames / sound.samplerate))
            lengths.append(part.frames or (sound.frames if sound.frames < _UNKNOWN_FRAMES else None))
            if number > 1:
                sound.close()
        self._plan(lengths)
        return self._libsndfile_blocks(first, lengths)

    def _sound(self, part: Part) -> soundfile.SoundFile:
        whole = (part.start, part.end, part.head) == (0, self._size, b"")
        if whole and not isinstance(self._file, io.BytesIO):
            # By number: soundfile and libsndfile would take the format of a file from its name.
            return soundfile.SoundFile(self._file.fileno(), closefd=False)
        self._file.seek(0)
        return soundfile.SoundFile(self._file if whole else PartFile(self._file, part))

    def _differs(self, number: int, rate: int, channels: int) -> bool:
        """Whether a stream cannot follow the first one; then it is damage."""
        if (rate, channels) == (self.sampling_rate, self.channels):
            return False
        reason = (
            f"stream {number} of {len(self._parts)} has {rate} Hz and {channels} channels after "
            f"{self.sampling_rate} Hz and {self.channels}: it is left out with all that follows"
        )
        self._found.append(Damage(reason, math.inf))
        return True

    def _plan(self, lengths: list[int | None]) -> None:
        """From the streams' stated lengths, find how many frames will be read and refuse what is out of range."""
        start = round(self._start_s * self.sampling_rate)
        wanted = None if self._wanted_s is None else max(round(self._wanted_s * self.sampling_rate), 1)
        known = [length for length in lengths if length is not None]
        self.frames = wanted
        if len(known) == len(lengths):
            total = sum(known)
            if total == 0:
                raise self._no_samples()
            if start >= total:
                stated = f"less than the file's length, {total / self.sampling_rate:.3f} s"
                raise AudioDecodeError(self.path, f"start_s is {self._start_s} s", stated, "start earlier")
            self._reaches_end |= wanted is not None and start + wanted > total
            self.frames = total - start if wanted is None else min(wanted, total - start)
        if self.frames is not None:
            self._refuse_longer(self.frames)

    def _libsndfile_blocks(self, first: soundfile.SoundFile, lengths: list[int | None]) -> Blocks:
        skip = round(self._start_s * self.sampling_rate)
        left = math.inf if self.frames is None else self.frames
        # Ogg streams cut out of longer ones state a few frames that were never theirs; MP3 decoders drop a frame.
        tolerance = {"OGG": self.sampling_rate // 100, "MP3": 1152, "MPEG": 1152}.get(first.format, 0)
        for number, (part, length) in enumerate(zip(self._parts, lengths, strict=False)):
            if length is not None and length <= skip:
                skip -= length
                continue
            if left <= 0:
                break
            expected, got = left if length is None else min(length - skip, left), 0
            try:
                with first if number == 0 else self._sound(part) as sound:
                    _skip(sound, skip)
                    while got < expected:
                        block = sound.read(int(min(expected - got, BLOCK_FRAMES)), dtype="float32", always_2d=True)
                        if not len(block):
                            break
                        got += len(block)
                        yield block
            except soundfile.SoundFileError as error:
                self.damage.append(f"decoding fails ({sentence(getattr(error, 'error_string', str(error)))})")
            left, skip = left - got, 0
            if math.isfinite(expected) and expected - got > tolerance:
                self.damage.append(f"{got} samples where the header states {int(expected)}")
                self._reaches_end = True

    def _open_with_ffmpeg(self, reason: soundfile.SoundFileError) -> Blocks:
        if isinstance(self._encoded, bytes):  # on disk, since many of these formats keep their index at the end
            self._encoded = _on_disk(io.BytesIO(self._encoded), self._stack)
        path = self._encoded
        if len(self._parts) == 1 or any(part.head for part in self._parts):
            sources = [ffmpeg.url(path, 0, None)]
        else:
            sources = [ffmpeg.url(path, part.start, part.end) for part in self._parts]
        try:
            streams = [ffmpeg.probe(sources[0])]
            self.sampling_rate, self.channels = streams[0].sampling_rate, streams[0].channels
            for number, source in enumerate(sources[1:], start=2):
                stream = ffmpeg.probe(source)
                if self._differs(number, stream.sampling_rate, stream.channels):
                    break
                streams.append(stream)
        except ffmpeg.FFmpegError as error:
            raise AudioDecodeError(
                self.path,
                f"not a sound that libsndfile reads ({sentence(getattr(reason, 'error_string', str(reason)))}), "
                f"and {error}",
                "WAV, FLAC, Ogg, Opus, MP3, AIFF, AU or CAF, or with FFmpeg M4A, WMA, WebM and the like",
                error.remedy,
            ) from error
        rate = self.sampling_rate
        self._plan([None if stream.duration_s is None else round(stream.duration_s * rate) for stream in streams])
        return self._ffmpeg_blocks(list(zip(sources, streams, strict=False)))

    def _ffmpeg_blocks(self, streams: list[tuple[str, ffmpeg.Stream]]) -> Blocks:
        start_s, got = self._start_s, 0
        wanted = None if self._wanted_s is None else max(round(self._wanted_s * self.sampling_rate), 1)
        for source, stream in streams:
            if stream.duration_s is not None and stream.duration_s <= start_s:
                start_s -= stream.duration_s
                continue
            left_s = None if wanted is None else (wanted - got) / self.sampling_rate
            with contextlib.closing(ffmpeg.Decoding(source, stream, start_s, left_s)) as decoding:
                for block in decoding.blocks(BLOCK_FRAMES):
                    got += len(block)
                    yield block
            self.damage += [f"FFmpeg: {complaint}" for complaint in dict.fromkeys(decoding.complaints)]
            start_s = 0.0
            if wanted is not None and got >= wanted:
                break
        # Encoders pad their first and last packets, so that containers state up to a tenth of a second too much.
        exact = not any(stream.estimated for _, stream in streams)
        if exact and self.frames is not None and got < self.frames - self.sampling_rate / 10:
            self.damage.append(f"{got} samples where the header states {self.frames}")

    def _refuse_longer(self, frames: int) -> None:
        if self._max_s is not None and frames / self.sampling_rate > self._max_s:
            raise AudioDecodeError(
                self.path,
                f"{frames / self.sampling_rate:.3f} s to decode",
                f"max_duration_s={self._max_s} s at most",
                "raise the limit or ask for a window with start_s and duration_s",
            )

    def _no_samples(self) -> AudioDecodeError:
        return AudioDecodeError(self.path, "0 samples", "at least one sample", "leave the file out")


def _encoded(source: Source, name: str | None, stack: contextlib.ExitStack) -> tuple[str | bytes, str]:
    """A path or the encoded bytes, and a name for messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), name or "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        found = inside(path)
        return (path if found is None else _read_inside(*found)), name or path
    name = name or str(getattr(source, "name", "<file object>"))  # only real files have a name
    beginning = source.read(_IN_MEMORY)
    if not isinstance(beginning, bytes):
        found = type(beginning).__name__
        raise TypeError(f"{name} gives {found}, expected bytes. Open the file in binary mode: 'rb'.")
    more = source.read(1)
    if not more:
        return beginning, name
    return _on_disk(source, stack, beginning + more), name


def _read_inside(file: str, entry: str) -> str | bytes:
    try:
        return read_inside(file, entry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AudioDecodeError(f"{file}#{entry}", reason, "a readable file", "check the path") from error


def _on_disk(file: BinaryReader, stack: contextlib.ExitStack, beginning: bytes = b"") -> str:
    """Copy a file object to a file that is deleted with the stack; gives its path."""
    path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "sound")
    with open(path, "wb") as copy:
        copy.write(beginning)
        shutil.copyfileobj(file, copy, 1 << 20)
    return path


def open_regular(path: str, name: str) -> io.FileIO | io.BytesIO:
    """Open a regular file, unbuffered, or a sound inside of another file.

    Args:
        path: The file, or the name of a sound, see `stored`.
        name: What messages call it.

    Raises:
        AudioDecodeError: It is missing, unreadable, or no regular file.
    """
    if (found := inside(path)) is not None:
        content = _read_inside(*found)
        if isinstance(content, bytes):
            return io.BytesIO(content)
        path = content
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO waits for someone to write to it
            kind = _KINDS.get(stat.S_IFMT(mode), "a device")
            raise AudioDecodeError(name, f"is {kind}", "a regular file", "pass an open file object to read a pipe")
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise AudioDecodeError(name, error.strerror or str(error), "a readable file", "check the path") from error
    except ValueError as error:
        if isinstance(error, AudioDecodeError):
            raise
        raise AudioDecodeError(name, str(error), "a path", "check the path") from error  # a null character


@contextlib.contextmanager
def _opened(encoded: str | bytes, name: str) -> Iterator[File]:
    """The encoded sound as an unbuffered file, not empty."""
    with io.BytesIO(encoded) if isinstance(encoded, bytes) else open_regular(encoded, name) as file:
        if file.seek(0, os.SEEK_END) == 0:
            raise AudioDecodeError(name, "0 bytes", "an encoded sound", "restore the file or leave it out")
        yield file


def _skip(sound: soundfile.SoundFile, frames: int) -> None:
    """Go forward from the start, by decoding where libsndfile cannot jump."""
    if frames == 0:
        return
    try:
        sound.seek(frames)
    except soundfile.SoundFileError:
        while frames > 0:
            passed = len(sound.read(min(frames, BLOCK_FRAMES), dtype="float32", always_2d=True))
            if passed == 0:
                return
            frames -= passed


def sentence(reason: str) -> str:
    """A decoder's reason without its full stop."""
    return reason.strip().rstrip(".") or "the decoder gives no reason"


def damaged(name: str, reason: str) -> AudioDecodeError:
    """The error for a file of which nothing can be decoded."""
    return AudioDecodeError(
        name, f"damaged ({sentence(reason)})", "a complete sound file", "restore the file or leave it out"
    )
