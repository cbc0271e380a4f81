"""Sound files: decoding in blocks, damage, streams of windows, and sounds of every other kind."""

from .load import (
    AHEAD,
    AUDIO_EXTENSIONS,
    THREADS,
    Audio,
    audio_files,
    encode_flac,
    is_one_sound,
    load_audio,
    load_stored_audio,
    open_audio,
    pipeline_inputs,
    read_ahead,
    read_sound,
    read_whole,
)
from .reader import AudioDecodeError, AudioReader

__all__ = [
    "AHEAD",
    "AUDIO_EXTENSIONS",
    "THREADS",
    "Audio",
    "AudioDecodeError",
    "AudioReader",
    "audio_files",
    "encode_flac",
    "is_one_sound",
    "load_audio",
    "load_stored_audio",
    "open_audio",
    "pipeline_inputs",
    "read_ahead",
    "read_sound",
    "read_whole",
]
