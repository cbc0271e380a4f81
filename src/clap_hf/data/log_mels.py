"""Log-mels of every clip of a split at several speeds, computed once, so that training decodes nothing.

A small tower on a CPU spends more time on decoding and Fourier transforms than its batches can hide; a few hours of
sound are a few hundred megabytes of float16 log-mels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import soxr
import torch
from rich.progress import track

from ..atomic_io import PartStore
from ..audio import load_stored_audio
from ..model.feature_extraction_msclap import MSClapFeatureExtractor

CLIPS_PER_PART = 1000
SCHEMA = pa.schema({"log_mel": pa.large_list(pa.float16())})  # one row a clip and speed, [frames, mel] laid flat
# Shorter clips are repeated up to this before the transform, so that the seams are those of inference.
MIN_SECONDS = 0.5


def clip_log_mels(
    samples: np.ndarray, feature_extractor: MSClapFeatureExtractor, speeds: Sequence[float]
) -> list[np.ndarray]:
    """Log-mel of a whole clip at every speed.

    Args:
        samples: Mono `[samples]`, float32, at the extractor's rate.
        feature_extractor: Makes the log-mels.
        speeds: Factors of speed and pitch, 1.0 for none.

    Returns:
        One `[frames, mel]`, float16 dB, a speed.
    """
    rate = feature_extractor.sampling_rate
    shortest = max(feature_extractor.n_fft, round(MIN_SECONDS * rate))
    log_mels = []
    for speed in speeds:
        changed = samples if speed == 1.0 else soxr.resample(samples, rate * speed, rate, quality="MQ")
        if 0 < len(changed) < shortest:
            changed = np.tile(changed, math.ceil(shortest / len(changed)))
        with torch.inference_mode():
            log_mels.append(feature_extractor.log_mel(torch.from_numpy(changed)).numpy().astype(np.float16))
    return log_mels


def _write_part(
    feature_extractor: MSClapFeatureExtractor,
    speeds: tuple[float, ...],
    store: PartStore,
    part: tuple[str, datasets.Dataset],
) -> None:
    """Write the part of a name and its rows."""
    name, rows = part
    rate = feature_extractor.sampling_rate

    def log_mels() -> Iterator[dict[str, np.ndarray]]:
        for row in rows:
            audio = load_stored_audio(row["audio"])
            samples = audio.samples.mean(axis=0)
            if audio.sampling_rate != rate:
                samples = soxr.resample(samples, audio.sampling_rate, rate)
            for log_mel in clip_log_mels(samples.astype(np.float32), feature_extractor, speeds):
                yield {"log_mel": log_mel.ravel()}

    store.write(log_mels(), name)


class LogMelStore:
    """Random access to the log-mels of a split; the parts stay on disk, mapped into memory.

    Parts that an earlier, perhaps interrupted, run wrote whole are kept.

    Args:
        rows: Rows whose `audio` holds encoded bytes (`Audio(decode=False)`).
        feature_extractor: Makes the log-mels.
        speeds: Factors of speed and pitch, 1.0 for none.
        folder: Where the parts go; one folder serves every split and setting.
        processes: Worker processes; with 1, or for one part alone, this process works.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        feature_extractor: MSClapFeatureExtractor,
        speeds: Sequence[float],
        folder: Path,
        processes: int = 2,
    ):
        self.speeds = tuple(speeds)
        settings: dict[str, Any] = json.loads(feature_extractor.to_json_string())
        for name in ("long_audio", "short_audio", "duration_s", "processor_class", "auto_map"):
            settings.pop(name, None)  # they do not change a whole clip's log-mel
        ids = hashlib.sha256("\n".join(rows["id"][:]).encode()).hexdigest()
        key = json.dumps([settings, self.speeds, ids, rows.num_rows, CLIPS_PER_PART], sort_keys=True)
        identity = hashlib.sha256(key.encode()).hexdigest()
        self.num_mel_bins: int = feature_extractor.feature_size
        store = PartStore(folder / identity[:16], identity, SCHEMA, suffix=".arrow")
        self.folder = store.folder
        names = [f"part-{first:08d}" for first in range(0, rows.num_rows, CLIPS_PER_PART)]
        sounds = rows.select_columns(["audio"])
        missing = [
            (name, sounds.select(range(k * CLIPS_PER_PART, min((k + 1) * CLIPS_PER_PART, len(rows)))))
            for k, name in enumerate(names)
            if not store.has(name)
        ]
        write = partial(_write_part, feature_extractor, self.speeds, store)
        if processes == 1 or len(missing) == 1:  # a process takes seconds to start
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                for part in track(missing, "Computing log-mels"):
                    write(part)
            finally:
                torch.set_num_threads(threads)
        elif missing:
            context = get_context("spawn")
            with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(track(pool.map(write, missing), "Computing log-mels", total=len(missing)))
        self._parts = [store.read(store.path(name))["log_mel"] for name in names]

    def __call__(self, row: int, speed: int) -> np.ndarray:
        """Log-mel of a whole clip.

        Args:
            row: Row of the split.
            speed: Index into `speeds`.

        Returns:
            `[frames, mel]`, float32 dB.
        """
        part, offset = divmod(row, CLIPS_PER_PART)
        flat = self._parts[part][offset * len(self.speeds) + speed].values.to_numpy()
        return flat.reshape(-1, self.num_mel_bins).astype(np.float32)
