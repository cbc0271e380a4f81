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
GPU_THREADS = 16  # beside a GPU, which waits for them, as far as there are cores
AHEAD = 16  # sounds that are ready or under way, or four a thread, so that memory stays flat
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


def is_gpu(device: torch.device) -> bool:
    """Whether a device works by itself while the processor goes on."""
    return device.type != "cpu"


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
    threads: int | None = None,
) -> EmbeddedFiles:
    """Embed sound files, however many: decoding overlaps with the model; memory holds the vectors and a few batches.

    Log-mels are made by the decoding threads, or on the model's GPU.

    Args:
        model: The model, in evaluation mode, on its device.
        processor: Its processor.
        files: Sound files; for folders, see `audio_files`.
        windows_per_batch: Windows that go through the model together.
        threads: Threads that decode and resample; 2 when None, and beside a GPU up to 16.

    Returns:
        A vector for every file that can be read, and the reason for every other.
    """
    extractor, device = processor.feature_extractor, model.device
    on_gpu = is_gpu(device)
    if threads is None:
        threads = min(GPU_THREADS, os.cpu_count() or THREADS) if on_gpu else THREADS

    def prepare(file: Path) -> torch.Tensor:
        """A file's log-mels; for a GPU, its samples, where the GPU can fetch them by itself."""
        sound = load_audio(file)
        (windows,) = extractor.windows(sound.samples, sound.sampling_rate)
        if not on_gpu:
            return extractor.log_mels(windows)
        stacked = torch.stack(windows)
        return stacked.pin_memory() if device.type == "cuda" else stacked

    kept: list[Path] = []
    skipped: dict[Path, str] = {}
    vectors = bytearray()  # grows in place; a list of tensors to be joined would take the memory twice
    batch: list[torch.Tensor] = []
    embedded: deque[torch.Tensor] = deque()  # a GPU works on the last of them while the next batch comes together

    @torch.inference_mode()
    def embed() -> None:
        counts = torch.tensor([len(windows) for windows in batch]).to(device)
        moved = [windows.to(device, non_blocking=True) for windows in batch]
        features = extractor.log_mels(row for windows in moved for row in windows) if on_gpu else torch.cat(moved)
        embedded.append(model.get_audio_features(features[:, None], counts).pooler_output)
        batch.clear()

    def fetch() -> None:
        vectors.extend(embedded.popleft().float().cpu().numpy().tobytes())

    for file, prepared in work_ahead(map(Path, files), prepare, threads, max(AHEAD, 4 * threads)):
        try:
            windows = prepared.result()
        except (AudioDecodeError, ValueError, OSError) as error:
            skipped[file] = str(error)
            continue
        if batch and sum(map(len, batch)) + len(windows) > windows_per_batch:
            embed()
            if not on_gpu or len(embedded) > 1:
                fetch()
        kept.append(file)
        batch.append(windows)
    if batch:
        embed()
    while embedded:
        fetch()
    # An empty buffer is the one thing that `frombuffer` refuses.
    flat = torch.frombuffer(vectors, dtype=torch.float32) if vectors else torch.empty(0)
    return EmbeddedFiles(kept, flat.view(-1, model.config.projection_dim), skipped)


def results(items: Iterable[Any], work: Callable[[Any], Any]) -> Iterator[Any]:
    """What `work` makes of every item, in order, with the next ones under way; what it raises is raised here."""
    for _, future in work_ahead(items, work):
        yield future.result()
