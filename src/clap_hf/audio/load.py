"""Sounds of every kind: decode them to float32 samples and their rate, read ahead, find files, encode FLAC.

Nothing is resampled or mixed here: the feature extractor does that, in one place.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import torch

from .reader import AudioDecodeError, AudioReader, BinaryReader, Source, printable

SOUNDFILE_EXTENSIONS = (
    ".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .snd .w64 .wav .wave"  # what libsndfile reads
)
FFMPEG_EXTENSIONS = ".3gp .aac .ac3 .amr .ape .m4a .m4b .mka .mkv .mov .mp4 .webm .wma .wv"
AUDIO_EXTENSIONS = frozenset(f"{SOUNDFILE_EXTENSIONS} {FFMPEG_EXTENSIONS}".split())
THREADS = 2  # decoders release Python's lock; more of them than this wait for the model on any CPU
AHEAD = 16  # sounds that are ready or under way, or four a thread, so that memory stays flat

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Audio:
    """Decoded sound.

    Attributes:
        samples: float32, shape `[channels, samples]`; integer formats are scaled to [-1, 1).
        sampling_rate: Hz.
        path: where it came from: the file's path, a file object's name, or "<bytes>".
        truncated: sound is missing or damaged in the part that was asked for.
        damage: why `truncated` is true, a sentence each.
    """

    samples: np.ndarray
    sampling_rate: int
    path: str
    truncated: bool
    damage: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples.shape[1] / self.sampling_rate


def open_audio(
    source: Source,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    max_duration_s: float | None = None,
    name: str | None = None,
) -> AudioReader:
    """Open a sound, or a window of it, to be decoded in blocks.

    Args:
        source: path of a regular file, encoded bytes, or a binary file object (a pipe too), which is read to its end
            and, where it is large, copied to a temporary file.
        start_s: start of the window, seconds.
        duration_s: length of the window, seconds; to the end of the file by default. A window that reaches beyond
            the end is cut there.
        max_duration_s: refuse to decode more than this, seconds.
        name: what messages call the sound; by default its path, the file object's name, or "<bytes>".

    Returns:
        A reader, to be closed, best by `with`.

    Raises:
        ValueError: an argument is out of range.
        AudioDecodeError: the file is missing, not a regular file, empty, of an unknown format, longer than
            `max_duration_s`, or ends before `start_s`.
    """
    return AudioReader(source, start_s=start_s, duration_s=duration_s, max_duration_s=max_duration_s, name=name)


def load_audio(
    source: Source,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    max_duration_s: float | None = None,
    name: str | None = None,
) -> Audio:
    """Decode a sound, or a window of it, into memory.

    The header is read first, and with `duration_s` only that window is decoded, so that a small file that unpacks to
    hours costs nothing. Damage is warned of.

    Args:
        source: as for `open_audio`, and so are the others.
        start_s: start of the window, seconds.
        duration_s: length of the window, seconds.
        max_duration_s: refuse to decode more than this, seconds.
        name: what messages call the sound.

    Returns:
        float32 samples `[channels, samples]`, at the file's own sampling rate.

    Raises:
        ValueError: an argument is out of range.
        AudioDecodeError: as for `open_audio`; nothing can be decoded; values are not finite; memory is too small.
    """
    with AudioReader(
        source, start_s=start_s, duration_s=duration_s, max_duration_s=max_duration_s, name=name
    ) as reader:
        audio = read_whole(reader)
    if audio.truncated:
        warnings.warn(
            f"{printable(audio.path)}: truncated or damaged: {audio.duration_s:.3f} s decoded; "
            + "; ".join(audio.damage),
            stacklevel=2,
        )
    return audio


def read_whole(reader: AudioReader) -> Audio:
    """Decode all that a reader reads into memory; unlike `load_audio`, without a warning of damage.

    Args:
        reader: as `open_audio` gave it, not iterated yet.

    Returns:
        float32 samples `[channels, samples]`, at the file's own sampling rate.

    Raises:
        AudioDecodeError: nothing can be decoded; values are not finite; memory is too small.
    """
    try:
        samples = _joined(reader)
    except MemoryError as error:
        length = "of unstated length" if reader.duration_s is None else f"{reader.duration_s:.0f} s long"
        raise AudioDecodeError(
            reader.path, f"{length}, more than memory holds", "a shorter sound", "read it in blocks with open_audio"
        ) from error
    return Audio(samples, reader.sampling_rate, reader.path, bool(reader.damage), tuple(reader.damage))


def _joined(reader: AudioReader) -> np.ndarray:
    """All blocks of a reader, `[channels, samples]`.

    Room for the stated length is reserved first: memory is taken as it fills, so that a false length costs nothing.
    """
    room = np.empty((reader.channels, 0), np.float32)
    if reader.frames is not None:
        with contextlib.suppress(MemoryError, ValueError):
            room = np.empty((reader.channels, reader.frames), np.float32)
    filled = 0
    later: list[np.ndarray] = []
    for block in reader:
        count = block.shape[1]
        if not later and filled + count <= room.shape[1]:
            room[:, filled : filled + count] = block
            filled += count
        else:
            later.append(block)
    if not later and filled == room.shape[1]:
        return room
    return np.concatenate([room[:, :filled], *later], axis=1)


def load_stored_audio(stored: Mapping[str, Any]) -> Audio:
    """Decode a sound as a column of `datasets.Audio(decode=False)` holds it.

    Args:
        stored: `bytes` of the sound file, or else its `path`.

    Raises:
        AudioDecodeError: If it has neither, or cannot be decoded.
    """
    source = stored.get("bytes") or stored.get("path")
    if source is None:
        raise AudioDecodeError("the row", "neither bytes nor a path", "one of the two", "store the sound again")
    return load_audio(source, name=stored.get("path"))


def encode_flac(samples: np.ndarray, sampling_rate: int) -> bytes:
    """Encode samples as a 16-bit FLAC file.

    Args:
        samples: float32 `[samples]`; clipped to [-1, 1].
        sampling_rate: Hz.

    Returns:
        The file's bytes, equal for equal samples.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1.0, 1.0), sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def audio_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List sound files, looking into folders.

    Args:
        paths: files, taken as they are, and folders, searched to the bottom for `AUDIO_EXTENSIONS`. Hidden files and
            folders are left out, and links to folders are not followed.

    Returns:
        Each file once: the arguments in the order given, each folder's files sorted.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no sound file.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(
                f"{printable(str(path))}: no such file or folder; expected a sound file or a folder of them"
            )
        inside = sorted(files_below(path)) if path.is_dir() else [path]
        if not inside:
            raise ValueError(
                f"{printable(str(path))}: no sound file in this folder; "
                f"expected files named {' '.join(sorted(AUDIO_EXTENSIONS))}"
            )
        found.update(dict.fromkeys(inside))
    return list(found)


def files_below(folder: Path, endings: Collection[str] = AUDIO_EXTENSIONS) -> Iterator[Path]:
    """Files with some endings below a folder, without hidden ones; links to folders are not followed."""

    def unreadable(error: OSError) -> None:
        warnings.warn(f"{printable(str(error.filename))}: {error.strerror}: this folder is left out", stacklevel=2)

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in endings:
                yield Path(parent, name)


def read_sound(sound: Any) -> Any:
    """Decode a sound of any kind that is not samples yet; the kinds are listed in `docs/inputs.md`.

    Args:
        sound: A path, encoded bytes (`bytes`, `bytearray`, `memoryview`), a binary file object, an `Audio`, a dict
            with `"path"` or `"bytes"`, a dataset's row with `"audio"`; or samples, which stay as they are.

    Returns:
        What the feature extractor takes: samples, with their rate wherever it is known.

    Raises:
        TypeError: If a file is open in text mode.
        ValueError: If it is a URL.
        AudioDecodeError: If it cannot be decoded.
    """
    if isinstance(sound, dict):
        if "audio" in sound and not sound.keys() & {"array", "raw", "bytes", "path"}:
            return read_sound(sound["audio"])
        if "array" not in sound and "raw" not in sound:
            # A row of datasets' Audio(decode=False): either may be None.
            encoded = [sound[key] for key in ("bytes", "path") if sound.get(key) is not None]
            sound = encoded[0] if encoded else sound
    if isinstance(sound, str) and "://" in sound:
        raise ValueError(f"{sound} is a URL, expected a file. Download it first: nothing is fetched here.")
    if isinstance(sound, (str, os.PathLike, bytes, bytearray, memoryview, BinaryReader)):
        sound = load_audio(sound)
    if isinstance(sound, Audio):
        sound = {"array": sound.samples, "sampling_rate": sound.sampling_rate}
    return sound


def is_one_sound(sounds: Any) -> bool:
    """Whether a value is one sound, and not a sequence of sounds."""
    if isinstance(sounds, (str, bytes, bytearray, memoryview)) or not isinstance(sounds, Sequence):
        return True
    # A list whose first item is a number is samples. Other sequences may decode what they are asked for.
    return isinstance(sounds, (list, tuple)) and len(sounds) > 0 and isinstance(sounds[0], Real)


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Result],
    skipped: dict[Item, str] | None = None,
    *,
    threads: int = THREADS,
    ahead: int = AHEAD,
) -> Iterator[tuple[Item, Result]]:
    """Read the items to come in other threads.

    Args:
        items: Taken one by one in the caller's thread, up to `ahead` of them before their turn.
        read: Decodes an item, or makes its log-mels; called in threads.
        skipped: Gets the reason for every item that `read` raised `ValueError` or `OSError` for; these errors are
            raised when None.
        threads: Threads that read.
        ahead: Items that are read or under way at most, this one counted in.

    Returns:
        Every item that can be read, in order, with what `read` returned.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()

    def finished() -> Iterator[tuple[Item, Result]]:
        item, future = waiting.popleft()
        try:
            result = future.result()
        except (ValueError, OSError) as error:
            if skipped is None:
                raise
            skipped[item] = str(error)
        else:
            yield item, result

    with ThreadPoolExecutor(threads, thread_name_prefix="clap-hf") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) >= ahead:
                    yield from finished()
            while waiting:
                yield from finished()
        finally:  # a caller that stops early waits for no more than what runs
            for _, future in waiting:
                future.cancel()


class Sounds(torch.utils.data.Dataset):
    """A sequence in the form that pipelines read item by item, so that a `datasets` column decodes one at a time."""

    def __init__(self, sounds: Sequence[Any]):
        self.sounds = sounds

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, index: int) -> Any:
        return self.sounds[index]


def pipeline_inputs(sounds: Any, num_workers: int | None) -> tuple[Any, bool]:
    """What transformers' `Pipeline.__call__` takes for one sound or many.

    Args:
        sounds: A sound of any kind that `read_sound` takes, or several; generators and torch datasets stay as they
            are.
        num_workers: Processes of the pipeline that decode; threads of this one if there are none.

    Returns:
        The input, and whether a list is expected of it.
    """
    if is_one_sound(sounds):
        # A pipeline takes every list for several inputs.
        return (np.asarray(sounds) if isinstance(sounds, (list, tuple)) else sounds), False
    if num_workers:
        return Sounds(sounds), True

    def decoded() -> Iterator[Any]:
        for _, sound in read_ahead(sounds, read_sound):
            yield sound

    return decoded(), True
