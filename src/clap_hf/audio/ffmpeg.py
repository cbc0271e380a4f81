"""Decoding by the `ffmpeg` program, for what libsndfile does not read."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Containers of sound only: no playlists, devices or text, which can name other files or "decode" as anything.
_FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpegts,ogg,tta,voc,w64,wav,wv"
_ESTIMATED = {"aac", "ac3", "amr", "dts", "eac3", "mp3"}  # formats without a header for the whole
_GUARD = ["-protocol_whitelist", "file,subfile", "-format_whitelist", _FORMATS]
_CONVERT = "convert the file to WAV or FLAC, or leave it out"
_STALLED_S = 60.0  # without a block; decoding a block takes milliseconds
_MESSAGES = 20  # lines of FFmpeg's complaints that are kept
_HARMLESS = re.compile(
    "Could not update timestamps for (skipped|discarded) samples"  # Opus and MP3 in Matroska: not about the sound
    "|Could not find codec parameters for stream \\d+ \\((Video|Subtitle|Attachment|Data)"
    "|Late SEI"
)


class FFmpegError(Exception):
    """FFmpeg cannot decode the file; the message completes the sentence "not a known format, and ..."."""

    def __init__(self, message: str, remedy: str = _CONVERT) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Stream:
    """A file's first audio stream: sampling rate in Hz, number of channels, length in seconds where it is stated.

    `estimated` lengths are FFmpeg's guesses from the bitrate.
    """

    sampling_rate: int
    channels: int
    duration_s: float | None
    estimated: bool


def url(path: str, start: int, end: int | None) -> str:
    """FFmpeg's name for bytes `start` to `end` of a file; all of them when `end` is None."""
    return f"file:{path}" if end is None else f"subfile,,start,{start},end,{end},,:file:{path}"


def probe(source: str) -> Stream:
    """Read the header of a file's first audio stream.

    Args:
        source: as `url` gives it.

    Raises:
        FFmpegError: FFmpeg is not installed, or finds no audio in the file.
    """
    for program in ("ffmpeg", "ffprobe"):
        if shutil.which(program) is None:
            raise FFmpegError(f"{program} is not installed", f"put FFmpeg on the PATH, or {_CONVERT}")
    entries = "stream=sample_rate,channels,duration:format=duration,format_name"
    wanted = ["-select_streams", "a:0", "-show_entries", entries, "-of", "json"]
    command = ["ffprobe", "-v", "warning", *_GUARD, *wanted, source]  # a guessed length is a warning
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_STALLED_S)
    except subprocess.TimeoutExpired as error:
        raise FFmpegError(f"ffprobe did not finish within {_STALLED_S:.0f} s") from error
    try:
        found = json.loads(done.stdout.decode(errors="replace"))
        stream = found["streams"][0]
        rate, channels = int(stream["sample_rate"]), int(stream["channels"])
        if rate <= 0 or channels <= 0:
            raise ValueError
    except (ValueError, LookupError) as error:  # a JSONDecodeError is a ValueError
        lines = done.stderr.decode(errors="replace").strip().splitlines() if done.returncode else []
        reason = f"FFmpeg cannot read it ({lines[-1]})" if lines else "FFmpeg finds no audio stream with a rate in it"
        raise FFmpegError(reason) from error
    try:
        duration = float(stream.get("duration", found.get("format", {}).get("duration", "nan")))
    except ValueError:
        duration = math.nan
    estimated = found.get("format", {}).get("format_name") in _ESTIMATED or b"Estimating duration" in done.stderr
    return Stream(rate, channels, duration if 0 < duration < math.inf else None, estimated)


class Decoding:
    """The samples of a file's first audio stream, decoded by a process of its own.

    Args:
        source: as `url` gives it.
        stream: what `probe` found.
        start_s: start of the window, seconds.
        duration_s: length of the window, seconds; None for the rest of the file.

    Attributes:
        complaints: FFmpeg's error messages, complete when the blocks are.
    """

    def __init__(self, source: str, stream: Stream, start_s: float, duration_s: float | None) -> None:
        self.complaints: deque[str] = deque(maxlen=_MESSAGES)
        self._channels = stream.channels
        window = ["-ss", f"{start_s:.6f}"] if start_s else []
        window += [] if duration_s is None else ["-t", f"{duration_s:.6f}"]
        pcm = ["-map", "0:a:0", "-c:a", "pcm_f32le", "-ar", str(stream.sampling_rate), "-ac", str(stream.channels)]
        command = ["ffmpeg", "-nostdin", "-v", "error", *_GUARD, *window, "-i", source, *pcm, "-f", "f32le", "pipe:1"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._drain = threading.Thread(target=self._keep_complaints, name="ffmpeg-stderr", daemon=True)
        self._drain.start()

    def _keep_complaints(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            message = re.sub(r" @ 0x[0-9a-f]+", "", line[:500].decode(errors="replace").strip())
            if message and not _HARMLESS.search(message):
                self.complaints.append(message)

    def blocks(self, frames: int) -> Iterator[np.ndarray]:
        """Float32 blocks `[frames, channels]`, the last one shorter, at the stream's own sampling rate."""
        assert self._process.stdout is not None
        frame = 4 * self._channels
        while True:
            watch = threading.Timer(_STALLED_S, self._stop_stalled)
            watch.start()
            try:
                raw = self._process.stdout.read(frames * frame)
            finally:
                watch.cancel()
            if len(raw) >= frame:
                yield np.frombuffer(raw, "<f4", len(raw) // 4 // self._channels * self._channels).reshape(
                    -1, self._channels
                )
            if len(raw) < frames * frame:
                break
        self._drain.join(_STALLED_S)
        if self._process.wait() and not self.complaints:
            self.complaints.append(f"FFmpeg ended with exit status {self._process.returncode}")

    def _stop_stalled(self) -> None:
        self.complaints.append(f"FFmpeg gave nothing for {_STALLED_S:.0f} s")
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._drain.join(_STALLED_S)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
