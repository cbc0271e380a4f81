"""Sound files: decode them to float32 samples and their sampling rate, find them in folders, encode them as FLAC.

Nothing is resampled or mixed here: the feature extractor does that, in one place.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from .audio_reader import AudioDecodeError, AudioReader, Source, printable

__all__ = [
    "AUDIO_EXTENSIONS",
    "Audio",
    "AudioDecodeError",
    "AudioReader",
    "audio_files",
    "encode_flac",
    "load_audio",
    "load_stored_audio",
    "open_audio",
]

SOUNDFILE_EXTENSIONS = (
    ".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .snd .w64 .wav .wave"  # what libsndfile reads
)
FFMPEG_EXTENSIONS = ".3gp .aac .ac3 .amr .ape .m4a .m4b .mka .mkv .mov .mp4 .webm .wma .wv"
AUDIO_EXTENSIONS = frozenset(f"{SOUNDFILE_EXTENSIONS} {FFMPEG_EXTENSIONS}".split())


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
        try:
            samples = _joined(reader)
        except MemoryError as error:
            length = "of unstated length" if reader.duration_s is None else f"{reader.duration_s:.0f} s long"
            raise AudioDecodeError(
                reader.path,
                f"{length}, more than memory holds",
                "a shorter sound",
                "read it in blocks with open_audio",
            ) from error
    audio = Audio(samples, reader.sampling_rate, reader.path, bool(reader.damage), tuple(reader.damage))
    if audio.truncated:
        warnings.warn(
            f"{printable(audio.path)}: truncated or damaged: {audio.duration_s:.3f} s decoded; "
            + "; ".join(audio.damage),
            stacklevel=2,
        )
    return audio


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
        inside = sorted(_sounds_below(path)) if path.is_dir() else [path]
        if not inside:
            raise ValueError(
                f"{printable(str(path))}: no sound file in this folder; "
                f"expected files named {' '.join(sorted(AUDIO_EXTENSIONS))}"
            )
        found.update(dict.fromkeys(inside))
    return list(found)


def _sounds_below(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        warnings.warn(f"{printable(str(error.filename))}: {error.strerror}: this folder is left out", stacklevel=2)

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS:
                yield Path(parent, name)
