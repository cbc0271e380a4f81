"""Decoding by the `ffmpeg` program, for what libsndfile does not read."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np

# Containers of sound only: no playlists, devices or text, which can name other files or "decode" as anything.
_FORMATS = "aac,ac3,aiff,amr,ape,asf,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpegts,ogg,tta,w64,wav,wv"
_GUARD = ["-v", "error", "-protocol_whitelist", "file", "-format_whitelist", _FORMATS]
_CONVERT = "convert the file to WAV or FLAC, or leave it out"


class FFmpegError(Exception):
    """FFmpeg cannot decode the file; the message completes the sentence "not a known format, and ..."."""

    def __init__(self, message: str, remedy: str = _CONVERT) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Stream:
    """A file's first audio stream: sampling rate in Hz, number of channels, length in seconds where it is stated."""

    sampling_rate: int
    channels: int
    duration_s: float | None


def probe(path: str) -> Stream:
    """Read the header of a file's first audio stream.

    Raises:
        FFmpegError: FFmpeg is not installed, or finds no audio in the file.
    """
    for program in ("ffmpeg", "ffprobe"):
        if shutil.which(program) is None:
            raise FFmpegError(f"{program} is not installed", f"put FFmpeg on the PATH, or {_CONVERT}")
    entries = "stream=sample_rate,channels,duration:format=duration"
    command = ["ffprobe", *_GUARD, "-select_streams", "a:0", "-show_entries", entries, "-of", "json", f"file:{path}"]
    found = json.loads(_run(command, timeout_s=60) or "{}")
    if not found.get("streams"):
        raise FFmpegError("FFmpeg finds no audio stream in it")
    stream = found["streams"][0]
    if "sample_rate" not in stream or not stream.get("channels"):
        raise FFmpegError("FFmpeg finds an audio stream without a sampling rate or channels in it")
    duration = stream.get("duration", found.get("format", {}).get("duration"))
    return Stream(int(stream["sample_rate"]), int(stream["channels"]), None if duration is None else float(duration))


def decode(path: str, stream: Stream, start_s: float, duration_s: float | None) -> np.ndarray:
    """Decode a window of a file's first audio stream.

    Args:
        path: the file.
        stream: what `probe` said about it.
        start_s: start of the window, seconds.
        duration_s: length of the window, seconds; None for the rest of the file.

    Returns:
        float32 samples `[channels, samples]`, at the stream's own sampling rate.

    Raises:
        FFmpegError: nothing could be decoded.
    """
    window = ["-ss", f"{start_s:.6f}"] + ([] if duration_s is None else ["-t", f"{duration_s:.6f}"])
    pcm = ["-map", "0:a:0", "-c:a", "pcm_f32le", "-ar", str(stream.sampling_rate), "-ac", str(stream.channels)]
    command = ["ffmpeg", "-nostdin", *_GUARD, *window, "-i", f"file:{path}", *pcm, "-f", "f32le", "pipe:1"]
    # Decoding runs many times faster than playing; an hour covers what states no length.
    raw = _run(command, timeout_s=60 + (duration_s or 3600))
    frame = 4 * stream.channels
    flat = np.frombuffer(raw[: len(raw) // frame * frame], dtype="<f4")
    return np.ascontiguousarray(flat.reshape(-1, stream.channels).T)


def _run(command: list[str], timeout_s: float) -> bytes:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise FFmpegError(f"{command[0]} did not finish within {timeout_s:.0f} s") from error
    if done.returncode and not done.stdout.strip(b"{} \n"):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise FFmpegError(f"FFmpeg cannot read it ({said[-1] if said else f'exit status {done.returncode}'})")
    return done.stdout
