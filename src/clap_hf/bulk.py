"""Many sounds: threads decode and make log-mels while the model computes; order is kept, what is broken is told."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from .audio import AudioDecodeError, load_audio
from .model.modeling_msclap import MSClapModel
from .model.processing_msclap import MSClapProcessor

THREADS = 2  # decoders release Python's lock; more of them than this wait for the model on any CPU
AHEAD = 16  # sounds that are ready or under way, so that memory stays flat
WINDOWS_PER_BATCH = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_ahead(
    items: Iterable[Item], work: Callable[[Item], Result], threads: int = THREADS, ahead: int = AHEAD
) -> Iterator[tuple[Item, Future[Result]]]:
    """Do work for the items to come in other threads.

    Args:
        items: Taken one by one in the caller's thread, up to `ahead` of them before their turn.
        work: What threads do with an item.
        threads: How many.
        ahead: Items that are done or under way at most, this one counted in.

    Returns:
        Every item in order, with the future of its result, which holds what `work` returned or raised.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="clap-hf") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) >= ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:  # a caller that stops early waits for no more than what runs
            for _, future in waiting:
                future.cancel()


@dataclass(frozen=True)
class EmbeddedFiles:
    """Embeddings of files.

    Attributes:
        files: The files that were read, in the order given.
        vectors: Their unit vectors `[files, projection_dim]`, float32 on the CPU.
        skipped: Why the others were not.
    """

    files: list[Path]
    vectors: torch.Tensor
    skipped: dict[Path, str]


def embed_files(
    model: MSClapModel,
    processor: MSClapProcessor,
    files: Iterable[str | os.PathLike[str]],
    *,
    windows_per_batch: int = WINDOWS_PER_BATCH,
    threads: int = THREADS,
) -> EmbeddedFiles:
    """Embed sound files, however many: decoding overlaps with the model; memory holds the vectors and a few batches.

    Args:
        model: The model, in evaluation mode, on its device.
        processor: Its processor.
        files: Sound files; for folders, see `audio_files`.
        windows_per_batch: Windows that go through the model together.
        threads: Threads that decode, resample and make log-mels.

    Returns:
        A vector for every file that can be read, and the reason for every other.
    """
    extractor = processor.feature_extractor

    def prepare(file: Path) -> torch.Tensor:
        sound = load_audio(file)
        return extractor(sound.samples, sound.sampling_rate)["input_features"]

    kept: list[Path] = []
    skipped: dict[Path, str] = {}
    vectors = bytearray()  # grows in place; a list of tensors to be joined would take the memory twice
    batch: list[torch.Tensor] = []

    @torch.inference_mode()
    def flush() -> None:
        counts = torch.tensor([len(windows) for windows in batch]).to(model.device)
        features = torch.cat(batch).to(model.device, non_blocking=True)
        embedded = model.get_audio_features(features, counts).pooler_output.float().cpu()
        vectors.extend(embedded.numpy().tobytes())
        batch.clear()

    for file, prepared in work_ahead(map(Path, files), prepare, threads):
        try:
            windows = prepared.result()
        except (AudioDecodeError, ValueError, OSError) as error:
            skipped[file] = str(error)
            continue
        if batch and sum(map(len, batch)) + len(windows) > windows_per_batch:
            flush()
        kept.append(file)
        batch.append(windows)
    if batch:
        flush()
    # An empty buffer is the one thing that `frombuffer` refuses.
    flat = torch.frombuffer(vectors, dtype=torch.float32) if vectors else torch.empty(0)
    return EmbeddedFiles(kept, flat.view(-1, model.config.projection_dim), skipped)


def results(items: Iterable[Any], work: Callable[[Any], Any]) -> Iterator[Any]:
    """What `work` makes of every item, in order, with the next ones under way; what it raises is raised here."""
    for _, future in work_ahead(items, work):
        yield future.result()
