"""Parquet files of pairs, cut from the recordings in examples/."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from clap_hf import load_audio

EXAMPLES = Path(__file__).parent.parent / "examples"


def encoded(number: int, format: str = "FLAC") -> bytes:
    """1.2 s of a recording, other ones for every number."""
    path = sorted(EXAMPLES.glob("*.flac"))[number % 3]
    audio = load_audio(path)
    mono = np.tile(audio.samples.mean(axis=0), 3)[number * 500 :][: int(1.2 * audio.sampling_rate)]
    buffer = io.BytesIO()
    soundfile.write(buffer, mono, audio.sampling_rate, format=format)
    return buffer.getvalue()


def write_pairs(folder: Path, rows: int = 60, bad: tuple[int, ...] = (), files: int = 3, split: str = "train") -> Path:
    """Parquet files of small row groups; rows in `bad` cannot be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(files):
        numbers = range(file * rows // files, (file + 1) * rows // files)
        table = pa.table(
            {
                "id": [f"clip-{i}" for i in numbers],
                "audio": [{"bytes": b"no sound" if i in bad else encoded(i), "path": None} for i in numbers],
                "text": [[f"sound number {i}", f"take {i}"] for i in numbers],
                "duration": [1.2] * len(numbers),
            }
        )
        pq.write_table(table, folder / f"{split}-{file:05d}-of-{files:05d}.parquet", row_group_size=7)
    return folder
