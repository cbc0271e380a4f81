"""`ClapEmbedder`: columns of sounds to columns of embeddings, for `datasets.map`, Ray Data and own processes."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from .adapters import load_model
from .audio import AudioDecodeError, AudioReader, open_audio
from .audio.reader import Source, open_regular, printable
from .embedding import ClapEncoder, embed_sounds
from .model.feature_extraction_msclap import AudioDecoderLike, MSClapFeatureExtractor
from .pretrained import checkpoint_path
from .streaming import embed_stream

ENCODED, SAMPLES, PATHS = ("bytes",), ("array", "raw"), ("path", "file")
SOUNDS = frozenset((*ENCODED, *SAMPLES, "audio"))  # columns that do not come back

_encoders: dict[tuple[int, ClapEmbedder], ClapEncoder] = {}  # by process: a fork does not share its parent's GPU
_loading = threading.Lock()


@dataclass(frozen=True)
class ClapEmbedder:
    """A callable that embeds batches of sounds; picklable, and every process loads the model at its first batch.

    Args:
        model: `"embedded"`, a folder, or a Hub id.
        max_windows: Windows of a sound at most, evenly spaced over it; the processor's own limit when None.
        hop_s: Also give a vector for every window of the model's length, this far apart, s; none when None.
        device: A device's name; the first accelerator of the process when None, or the CPU.
    """

    model: str = "embedded"
    max_windows: int | None = None
    hop_s: float | None = None
    device: str | None = None

    def encoder(self) -> ClapEncoder:
        """The model of this process, loaded at the first call."""
        with _loading:
            key = (os.getpid(), self)
            if key not in _encoders:
                from accelerate import PartialState

                model, processor = load_model(checkpoint_path(self.model))
                model = model.to(self.device or PartialState().device)
                _encoders[key] = ClapEncoder(model, processor, self.model, max_windows=self.max_windows)
            return _encoders[key]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Embed the rows of a batch. A row that cannot be embedded gets an error, and nothing is raised for it.

        Args:
            batch: Columns of equal length. The sound of a row is the first that is there: `audio`, as datasets gives
                it; `bytes` of a sound file; samples in `array` (or `raw`) with their `sampling_rate`, Hz; `path` (or
                `file`).

        Returns:
            The columns of the batch, but for the sounds; and, of the same types in every batch: `embedding`, float32
            `[rows, projection_dim]`, NaN where there is an `error`, which is one line, and else empty; `id`, a hash of
            the sound, the window policy and the model, and `sha256` of the file or the samples, both empty where they
            cannot be read; `duration_s`, NaN where the file does not state it; `damage`, what is missing or damaged;
            and with `hop_s`, `starts` and `ends` `[windows]`, s, and `windows` `[windows, projection_dim]`, of no
            windows where the sound has one.
        """
        encoder = self.encoder()
        count = len(next(iter(batch.values()), ()))
        hashes, durations = [""] * count, [float("nan")] * count

        def open_row(row: int) -> AudioReader:
            try:
                source, name, digest = _sound(batch, row)
            except (ValueError, OSError):
                raise
            except Exception as error:  # whatever a foreign value does where samples are expected
                raise ValueError(f"row {row}: {error}; expected a sound; see ClapEmbedder") from error
            hashes[row] = digest
            reader = open_audio(source, name=name)
            durations[row] = float("nan") if reader.duration_s is None else reader.duration_s
            return reader

        found = embed_sounds(encoder.model, encoder.processor, range(count), open_row, max_windows=encoder.max_windows)
        errors: dict[Any, str] = dict(found.skipped)
        vectors = np.full((count, found.vectors.shape[1]), np.nan, np.float32)
        embedded: list[Any] = list(found.files)
        vectors[embedded] = found.vectors.numpy()
        dim = vectors.shape[1]
        none = {
            "starts": np.empty(0, np.float32),
            "ends": np.empty(0, np.float32),
            "windows": np.empty((0, dim), np.float32),
        }
        places = [none] * count
        for row in embedded if self.hop_s is not None else ():
            try:
                with open_row(row) as reader:
                    places[row] = window_columns(encoder, reader, self.hop_s, durations[row]) or none
            except (ValueError, OSError) as error:  # written to since it was read
                errors[row], vectors[row] = str(error), np.nan
        damage: dict[Any, str] = dict(found.damaged)
        return {
            **{name: column for name, column in batch.items() if name not in SOUNDS},
            "id": [digest and row_id(digest, encoder.key, self.hop_s) for digest in hashes],
            "sha256": hashes,
            "duration_s": durations,
            "damage": [damage.get(row, "") for row in range(count)],
            "embedding": vectors,
            "error": [" ".join(errors.get(row, "").split()) for row in range(count)],
            **({name: [np.asarray(own[name]) for own in places] for name in none} if self.hop_s is not None else {}),
        }


def row_id(sha256: str, key: str, hop_s: float | None) -> str:
    """Identity of an embedded sound, 32 hexadecimal digits.

    Args:
        sha256: Of the sound.
        key: Of the model and its window policy, see `ClapEncoder`.
        hop_s: As for `ClapEmbedder`.
    """
    return hashlib.sha256(f"{sha256}\0{key}\0{hop_s}".encode()).hexdigest()[:32]


def window_columns(
    encoder: ClapEncoder, source: Source | AudioReader, hop_s: float | None, duration_s: float
) -> dict[str, Any]:
    """Arrays `starts` and `ends`, s, and a list `windows`, float32; nothing where one window is the whole sound.

    Args:
        encoder: The model.
        source: The sound, as for `open_audio`, or an open reader.
        hop_s: From the start of a window to that of the next, s; no windows when None.
        duration_s: Length of the sound, s; NaN where it is not known.
    """
    if hop_s is None or duration_s <= encoder.processor.feature_extractor.duration_s:
        return {}
    found = embed_stream(encoder.model, encoder.processor, source, hop_s=hop_s)
    if len(found.vectors) < 2:
        return {}
    return {
        "starts": found.starts_s.float().numpy(),
        "ends": found.ends_s.float().numpy(),
        "windows": list(found.vectors.numpy()),  # pyarrow takes no matrix
    }


def _sound(batch: Mapping[str, Any], row: int) -> tuple[str | bytes, str | None, str]:
    """What `open_audio` takes for a row, its name in messages, and its hash."""
    values = {name: batch[name][row] for name in (*SOUNDS, *PATHS, "sampling_rate") if name in batch}
    audio = values.pop("audio", None)
    if isinstance(audio, Mapping):
        values |= audio
    elif isinstance(audio, (bytes, bytearray, memoryview)):
        values["bytes"] = audio
    elif isinstance(audio, (str, os.PathLike)):
        values["path"] = audio
    elif audio is not None:
        values["array"] = audio
    path = next((os.fspath(values[name]) for name in PATHS if values.get(name) is not None), None)
    name = None if path is None else printable(str(path))
    if values.get("bytes") is not None:
        encoded = bytes(values["bytes"])
        return encoded, name, hashlib.sha256(encoded).hexdigest()
    samples = next((values[name] for name in SAMPLES if values.get(name) is not None), None)
    if samples is not None:
        rate = values.get("sampling_rate")
        if not isinstance(samples, AudioDecoderLike):
            samples = {"array": np.asarray(samples), "sampling_rate": rate}
        mono, rate = MSClapFeatureExtractor.read_clip(samples, None, f"row {row}")
        # Through a file in memory, so that samples and files take one way; float32 samples come back bit by bit.
        buffer = io.BytesIO()
        soundfile.write(buffer, mono.numpy(), rate, format="WAV", subtype="FLOAT")
        # Not of the file, which has the time of writing in it.
        digest = hashlib.sha256(f"{rate}\0".encode() + mono.numpy().tobytes()).hexdigest()
        return buffer.getvalue(), name or f"row {row}", digest
    if path is None:
        raise AudioDecodeError(f"row {row}", "has no sound", "audio, bytes, an array, or a path", "see ClapEmbedder")
    with open_regular(str(path), str(name)) as content:
        return str(path), name, hashlib.file_digest(content, "sha256").hexdigest()
