"""Decode sound files: path, bytes or file object to float32 samples and their sampling rate.

libsndfile, through soundfile, reads WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, AU, CAF, W64 and RF64; the `ffmpeg`
program, where it is installed, reads what libsndfile does not know (M4A, WMA, WebM ...). The format is told from the
content, never from the name. Nothing is resampled or mixed here: the feature extractor does that, in one place.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile

from . import _ffmpeg

SOUNDFILE_EXTENSIONS = (
    ".aif .aifc .aiff .au .caf .flac .mp3 .oga .ogg .opus .rf64 .snd .w64 .wav .wave"  # what libsndfile reads
)
FFMPEG_EXTENSIONS = ".3gp .aac .ac3 .amr .ape .m4a .m4b .mka .mkv .mov .mp4 .webm .wma .wv"
AUDIO_EXTENSIONS = frozenset(f"{SOUNDFILE_EXTENSIONS} {FFMPEG_EXTENSIONS}".split())

# libsndfile's error numbers (sndfile.h) for content that another decoder may know.
_UNRECOGNISED, _UNSUPPORTED_ENCODING = 1, 4
# Frames a read: a decoder that fails in mid-file costs the block it fails in, and a lying header costs no memory.
_BLOCK_FRAMES = 16_384
# Sizes that programs write into a header when they cannot seek back to it: 0xFFFFFFFF, 0x7FFFFFFF and nearby.
_UNKNOWN_SIZE = 0x7FF0_0000
_LARGEST_OGG_PAGE = 65_307  # bytes


class AudioDecodeError(ValueError):
    """A sound that cannot be decoded; the message names the file, what was found, what is expected and the remedy."""

    def __init__(self, name: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(name, found, expected, remedy)
        self.name, self.found, self.expected, self.remedy = name, found, expected, remedy

    def __str__(self) -> str:
        return f"{self.name}: {self.found}; expected {self.expected}; {self.remedy}"


@runtime_checkable
class BinaryReader(Protocol):
    """A binary file object."""

    def read(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class Audio:
    """Decoded sound.

    Attributes:
        samples: float32, shape `[channels, samples]`; integer formats are scaled to [-1, 1).
        sampling_rate: Hz.
        path: where it came from: the file's path, a file object's name, or "<bytes>".
        truncated: the file ended before its header says, inside the part that was asked for.
    """

    samples: np.ndarray
    sampling_rate: int
    path: str
    truncated: bool

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples.shape[1] / self.sampling_rate


def load_audio(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryReader,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    max_duration_s: float | None = None,
) -> Audio:
    """Decode a sound, or a window of it.

    The header is read first, and with `duration_s` only that window is decoded, so that a small file that unpacks to
    hours costs nothing.

    Args:
        source: path, encoded bytes, or a binary file object, which is read to its end.
        start_s: start of the window, seconds.
        duration_s: length of the window, seconds; to the end of the file by default. A window that reaches beyond
            the end is cut there.
        max_duration_s: refuse to decode more than this, seconds.

    Returns:
        float32 samples `[channels, samples]`, at the file's own sampling rate.

    Raises:
        ValueError: an argument is out of range.
        TypeError: a file object is open in text mode.
        AudioDecodeError: the file is missing, empty, of an unknown format, damaged beyond decoding, longer than
            `max_duration_s`, ends before `start_s`, or holds values that are not finite.
    """
    if not (np.isfinite(start_s) and start_s >= 0):
        raise ValueError(f"start_s is {start_s}; expected seconds, 0 or more")
    for argument, value in (("duration_s", duration_s), ("max_duration_s", max_duration_s)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"{argument} is {value}; expected seconds, more than 0, or None")
    encoded, name = _encoded(source)
    with _opened(encoded, name) as file:
        ogg_is_cut = _ogg_is_cut(file)
        try:
            # By number: soundfile and libsndfile would tell the format of a file from its name.
            sound = soundfile.SoundFile(file if isinstance(file, io.BytesIO) else file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            if error.code not in (_UNRECOGNISED, _UNSUPPORTED_ENCODING):
                raise _damaged(name, error.error_string) from error
            reason = error.error_string
        else:
            with sound:
                return _read(sound, ogg_is_cut, name, start_s, duration_s, max_duration_s)
    return _read_with_ffmpeg(encoded, name, start_s, duration_s, max_duration_s, reason)


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
    return load_audio(source)


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
            raise FileNotFoundError(f"{path}: no such file or folder; expected a sound file or a folder of them")
        inside = sorted(_sounds_below(path)) if path.is_dir() else [path]
        if not inside:
            raise ValueError(
                f"{path}: no sound file in this folder; expected files named {' '.join(sorted(AUDIO_EXTENSIONS))}"
            )
        found.update(dict.fromkeys(inside))
    return list(found)


def _sounds_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS:
                yield Path(parent, name)


def _encoded(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryReader,
) -> tuple[str | bytes, str]:
    """Give a path as a string or the encoded bytes, and a name for messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source), os.fspath(source)
    name = str(getattr(source, "name", "<file object>"))  # only real files have a name
    encoded = source.read()
    if not isinstance(encoded, bytes):
        raise TypeError(f"{name} gives {type(encoded).__name__}, expected bytes. Open the file in binary mode: 'rb'.")
    return encoded, name


@contextlib.contextmanager
def _opened(encoded: str | bytes, name: str) -> Iterator[io.FileIO | io.BytesIO]:
    """Give the encoded sound as an unbuffered file, at its beginning and not empty."""
    if isinstance(encoded, bytes):
        file: io.FileIO | io.BytesIO = io.BytesIO(encoded)
    else:
        try:
            file = open(encoded, "rb", buffering=0)
        except OSError as error:
            raise AudioDecodeError(name, error.strerror or str(error), "a readable file", "check the path") from error
    with file:
        if file.seek(0, os.SEEK_END) == 0:
            raise AudioDecodeError(name, "0 bytes", "an encoded sound", "restore the file or leave it out")
        file.seek(0)
        yield file


def _read(
    sound: soundfile.SoundFile,
    ogg_is_cut: bool,
    name: str,
    start_s: float,
    duration_s: float | None,
    max_duration_s: float | None,
) -> Audio:
    rate, declared = sound.samplerate, sound.frames
    start = round(start_s * rate)
    wanted = max(declared - start, 0)
    reaches_end = duration_s is None or round(duration_s * rate) > wanted
    if duration_s is not None:
        wanted = min(wanted, max(round(duration_s * rate), 1))
    if declared == 0:
        raise _no_samples(name)
    if start >= declared:
        raise _past_end(name, start_s, declared / rate)
    _refuse_longer(name, wanted / rate, max_duration_s)
    blocks: list[np.ndarray] = []
    trouble = None
    try:
        sound.seek(start)
        while wanted:
            block = sound.read(min(wanted, _BLOCK_FRAMES), dtype="float32", always_2d=True)
            if not len(block):
                break
            blocks.append(block)
            wanted -= len(block)
    except soundfile.LibsndfileError as error:
        trouble = error.error_string
    if not blocks:
        raise _damaged(name, "no samples where the header declares some" if trouble is None else trouble)
    samples = np.ascontiguousarray(np.concatenate(blocks).T)
    # Short of libsndfile's count, or of what the file stated before libsndfile took that count down to what is there.
    # A hundredth of a second is let pass: Ogg files cut out of longer ones state a few frames that were never theirs.
    short = trouble is not None or wanted > rate // 100
    truncated = short or (reaches_end and (ogg_is_cut or _states_more(sound.extra_info)))
    return _checked(Audio(samples, rate, name, truncated), trouble)


def _states_more(log: str) -> bool:
    """Tell from libsndfile's log whether a WAV, AIFF, AU, W64 or RF64 header states more bytes than the file has."""
    sizes = re.findall(r": (\d+) \(should be (\d+)\)", log)
    return any(int(there) < int(stated) < _UNKNOWN_SIZE for stated, there in sizes)


def _ogg_is_cut(file: io.FileIO | io.BytesIO) -> bool:
    """Tell whether an Ogg file ends in the middle of a page (RFC 3533, section 6)."""
    try:
        if file.read(4) != b"OggS":
            return False
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _LARGEST_OGG_PAGE, 0))
        tail = file.read()
    finally:
        file.seek(0)
    page = tail.rfind(b"OggS")
    header = tail[page : page + 27]  # flags in byte 5, number of segments in byte 26, then the size of each
    if page < 0 or len(header) < 27:
        return True
    segments = tail[page + 27 : page + 27 + header[26]]
    end = page + 27 + header[26] + sum(segments)
    # Bytes after the page that ends the stream are somebody's tag; after another, the start of a lost page.
    return end > len(tail) or (end < len(tail) and not header[5] & 4)


def _read_with_ffmpeg(
    encoded: str | bytes,
    name: str,
    start_s: float,
    duration_s: float | None,
    max_duration_s: float | None,
    reason: str,
) -> Audio:
    with contextlib.ExitStack() as stack:
        if isinstance(encoded, bytes):  # on disk, since many of these formats keep their index at the end
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory()), "sound")
            copy.write_bytes(encoded)
            encoded = str(copy)
        try:
            stream = _ffmpeg.probe(encoded)
            wanted_s = duration_s
            if stream.duration_s is not None:
                if start_s >= stream.duration_s:
                    raise _past_end(name, start_s, stream.duration_s)
                left_s = stream.duration_s - start_s
                wanted_s = left_s if duration_s is None else min(duration_s, left_s)
            if wanted_s is not None:
                _refuse_longer(name, wanted_s, max_duration_s)
            elif max_duration_s is not None:
                wanted_s = max_duration_s + 1  # enough to see that it is longer
            samples = _ffmpeg.decode(encoded, stream, start_s, wanted_s)
        except _ffmpeg.FFmpegError as error:
            raise AudioDecodeError(
                name,
                f"not a sound that libsndfile reads ({_sentence(reason)}), and {error}",
                "WAV, FLAC, Ogg, Opus, MP3, AIFF, AU or CAF, or with FFmpeg M4A, WMA, WebM and the like",
                error.remedy,
            ) from error
    if not samples.size:
        raise _no_samples(name)
    decoded_s = samples.shape[1] / stream.sampling_rate
    if stream.duration_s is None:
        _refuse_longer(name, decoded_s, max_duration_s)
    # Encoders pad their first and last packets, so that containers state up to a tenth of a second too much.
    truncated = stream.duration_s is not None and wanted_s is not None and decoded_s < wanted_s - 0.1
    return _checked(Audio(samples, stream.sampling_rate, name, truncated), None)


def _checked(audio: Audio, trouble: str | None) -> Audio:
    finite = np.isfinite(audio.samples)
    if not finite.all():
        raise AudioDecodeError(
            audio.path,
            f"{finite.size - int(finite.sum())} of {finite.size} values are NaN or infinite",
            "finite samples",
            "write the file again from its source or leave it out",
        )
    if audio.truncated:
        warnings.warn(
            f"{audio.path}: truncated: {audio.duration_s:.3f} s decoded, less than the header declares"
            + ("" if trouble is None else f" ({_sentence(trouble)})"),
            stacklevel=4,
        )
    return audio


def _sentence(reason: str) -> str:
    return reason.strip().rstrip(".") or "the decoder gives no reason"


def _damaged(name: str, reason: str) -> AudioDecodeError:
    return AudioDecodeError(
        name,
        f"damaged ({_sentence(reason)})",
        "a complete sound file",
        "restore the file or leave it out",
    )


def _no_samples(name: str) -> AudioDecodeError:
    return AudioDecodeError(name, "0 samples", "at least one sample", "leave the file out")


def _past_end(name: str, start_s: float, total_s: float) -> AudioDecodeError:
    return AudioDecodeError(
        name, f"start_s is {start_s} s", f"less than the file's length, {total_s:.3f} s", "start earlier"
    )


def _refuse_longer(name: str, seconds: float, max_duration_s: float | None) -> None:
    if max_duration_s is not None and seconds > max_duration_s:
        raise AudioDecodeError(
            name,
            f"{seconds:.3f} s to decode",
            f"max_duration_s={max_duration_s} s at most",
            "raise the limit or ask for a window with start_s and duration_s",
        )
