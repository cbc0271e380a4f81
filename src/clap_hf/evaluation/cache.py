"""Embeddings and captions of sounds, kept in a `PartStore`: each is made once, and a stopped run goes on.

Parts of several processes and of runs with other limits add up; a killed run loses the part it was in.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..atomic_io import PartError, PartStore, part_facts, read_part
from ..audio import AHEAD, THREADS, load_stored_audio, read_ahead
from ..embedding import GPU_THREADS, Encoder, is_accelerator
from .captioner import Captioner

CLIPS_PER_PART = 64
SCHEMA = pa.schema(
    {"position": pa.int64(), "vector": pa.list_(pa.float32()), "caption": pa.string(), "skipped": pa.string()}
)

EncodeBatch = Callable[[list[Any]], list[dict[str, Any]]]  # prepared sounds -> `vector` or `caption` of each


@dataclass
class CachedClips:
    """Content of a cache.

    Attributes:
        vectors: Position -> unit vector `[dim]`.
        captions: Position -> caption, where the model writes captions.
        skipped: Position -> why the sound could not be read.
    """

    vectors: dict[int, np.ndarray] = field(default_factory=dict)
    captions: dict[int, str] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    def __contains__(self, position: int) -> bool:
        return position in self.vectors or position in self.captions


class EmbeddingCache:
    """The parts of one set of sounds, model and window policy.

    Args:
        root: Folder of all caches.
        identity: Of the sounds, see `DataLocation.identity`.
        key: Of the model and its front end, see `Encoder.key`.
    """

    def __init__(self, root: Path, identity: str, key: str):
        digest = hashlib.sha256(f"{identity}\0{key}".encode()).hexdigest()
        self.store = PartStore(root / digest[:32], digest, SCHEMA)

    def read(self) -> CachedClips:
        """Content of all finished parts; a damaged one is removed, and what it held is made anew."""
        found = CachedClips()
        for path in self.store.paths():
            try:
                table = self.store.read(path)
            except PartError:
                path.unlink(missing_ok=True)
                continue
            columns = {name: table[name].to_pylist() for name in ("position", "caption", "skipped")}
            vectors = table["vector"].combine_chunks()
            embedded = [
                p for p, there in zip(columns["position"], vectors.is_valid().to_pylist(), strict=True) if there
            ]
            if embedded:
                found.vectors.update(
                    zip(embedded, vectors.flatten().to_numpy().reshape(len(embedded), -1), strict=True)
                )
            for position, caption, reason in zip(*columns.values(), strict=True):
                if caption is not None:
                    found.captions[position] = caption
                if reason is not None:
                    found.skipped[position] = reason
        found.skipped = {position: reason for position, reason in found.skipped.items() if position not in found}
        return found


def take_from_collection(
    folder: Path, key: str, audio: Sequence[dict[str, Any]], positions: Sequence[int], cache: EmbeddingCache
) -> int:
    """Put into a cache what a collection holds of its sounds, found by their content; nothing is decoded or embedded.

    Args:
        folder: What `clap-hf embed` made, by any engine.
        key: Of the model and its window policy, see `Encoder.key`.
        audio: Encoded sounds, see `TaskData.audio`.
        positions: Which of them are needed.
        cache: Gets the vectors.

    Returns:
        How many sounds were found.

    Raises:
        ValueError: No part of the folder is of that model and window policy.
    """
    known = cache.read()
    wanted: dict[str, list[int]] = defaultdict(list)
    for position in positions:
        if position not in known:
            with suppress(OSError):  # the sound is reported when it is read
                wanted[_digest(audio[position])].append(position)
    parts = [part for part in sorted(folder.glob("*.parquet")) if part_facts(part)["identity"] == key]
    if not parts:
        raise ValueError(
            f"{folder} holds no embeddings with the fingerprint {key[:16]} of this model and its window policy, "
            "expected a collection that `clap-hf embed` made by the same model."
        )
    rows: list[dict[str, Any]] = []
    for part in parts:
        table = read_part(part, ["sha256", "embedding"])
        chosen = [row for row, digest in enumerate(table["sha256"].to_pylist()) if digest in wanted]
        for row in table.take(chosen).to_pylist():
            found = wanted.pop(row["sha256"], [])
            rows += [{"position": position, "vector": row["embedding"]} for position in found]
    if rows:
        cache.store.write(rows)
    return len(rows)


def _digest(stored: Mapping[str, Any]) -> str:
    """SHA-256 of a sound file, as `ClapEmbedder` gives it."""
    if stored.get("bytes") is not None:
        return hashlib.sha256(stored["bytes"]).hexdigest()
    with open(stored.get("path") or "", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode_clips(
    audio: Sequence[dict[str, Any]],
    positions: Sequence[int],
    model: Encoder | Captioner,
    encode_batch: EncodeBatch,
    cache: EmbeddingCache,
    *,
    name: str = "",
    retry_skipped: bool = False,
) -> CachedClips:
    """Embeddings or captions of sounds, each made once; on several processes each makes its share.

    Args:
        audio: Encoded sounds, see `TaskData.audio`.
        positions: Which of them are needed.
        model: Prepares sounds.
        encode_batch: Embeds or captions prepared sounds.
        cache: Where the results are kept.
        name: Shown beside the progress bar.
        retry_skipped: Whether sounds that could not be read before are tried again.

    Raises:
        RuntimeError: If it failed on any process; all processes raise it.
    """
    state = PartialState()
    known = cache.read()
    missing = [p for p in positions if p not in known and (retry_skipped or p not in known.skipped)]
    if not missing and state.num_processes == 1:
        return known
    # The main process' list for all: another may have read the cache when parts of this round were there already.
    [missing] = broadcast_object_list([missing])
    own = missing[state.process_index :: state.num_processes]
    problem = ""
    try:
        _write_parts(audio, own, model, encode_batch, cache, name)
    except Exception as error:  # sent to the other processes, which would wait for this one forever
        if state.num_processes == 1:
            raise
        problem = f"process {state.process_index}: {type(error).__name__}: {error}"
    problems = [text for text in gather_object([problem]) if text]
    if problems:
        raise RuntimeError("; ".join(problems))
    return cache.read()


def _write_parts(
    audio: Sequence[dict[str, Any]],
    positions: Sequence[int],
    model: Encoder | Captioner,
    encode_batch: EncodeBatch,
    cache: EmbeddingCache,
    name: str,
) -> None:
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    on_accelerator = is_accelerator(PartialState().device)
    threads = min(GPU_THREADS, os.cpu_count() or THREADS) if on_accelerator else THREADS
    skipped: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    sounds: list[Any] = []

    def read(position: int) -> Any:
        return model.prepare(load_stored_audio(audio[position]))

    def write() -> None:
        encoded = encode_batch(sounds) if sounds else []
        unread = [{"position": position, "skipped": reason} for position, reason in skipped.items()]
        cache.store.write([*(row | more for row, more in zip(rows, encoded, strict=True)), *unread])
        progress.update(bar, advance=len(rows) + len(skipped))
        for batch in (rows, sounds, skipped):
            batch.clear()

    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(positions))
        for position, sound in read_ahead(positions, read, skipped, threads=threads, ahead=max(AHEAD, 4 * threads)):
            rows.append({"position": position})
            sounds.append(sound)
            if len(sounds) == CLIPS_PER_PART:
                write()
        if rows or skipped:
            write()
