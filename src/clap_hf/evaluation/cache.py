"""What a model made of sounds, on disk as it is made: what was embedded or captioned once is never done again.

A folder per (sounds, model, window policy) holds parts, each a safetensors file of some positions. Parts of several
processes and of runs with other limits add up; a killed run loses the part it was in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from ..atomic_io import replacing
from ..audio import AudioDecodeError, load_stored_audio
from ..embedding import Encoder
from .captioner import Captioner

CLIPS_PER_PART = 64


@dataclass
class Embedded:
    """What a folder of parts holds.

    Attributes:
        vectors: Position -> unit vector `[dim]`.
        texts: Position -> caption, where the model writes some.
        skipped: Position -> why the sound could not be read.
    """

    vectors: dict[int, torch.Tensor] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    def select(self, positions: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """Vectors `[clips, dim]` of those positions that have one, and these positions' places in the list."""
        kept = [i for i, position in enumerate(positions) if position in self.vectors]
        if not kept:
            return np.zeros((0, 0), dtype=np.float32), kept
        return torch.stack([self.vectors[positions[i]] for i in kept]).numpy(), kept


class EmbeddingCache:
    """The parts of one (sounds, model, window policy).

    Args:
        root: Folder of all caches.
        identity: Of the sounds, see `DataLocation.identity`.
        key: Of the model and its front end, see `Encoder.key`.
    """

    def __init__(self, root: Path, identity: str, key: str):
        self.folder = root / hashlib.sha256(f"{identity}\0{key}".encode()).hexdigest()[:32]

    def read(self) -> Embedded:
        """All finished parts; a damaged one is made anew."""
        found = Embedded()
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as part:
                    positions = part.get_tensor("positions").tolist()
                    vectors = part.get_tensor("vectors")
                    texts, skipped = json.loads(part.metadata()["texts"]), json.loads(part.metadata()["skipped"])
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)
                continue
            found.vectors.update(zip(positions, vectors, strict=True))
            found.texts.update(zip(positions, texts, strict=False))
            found.skipped.update({int(position): reason for position, reason in skipped.items()})
        return found

    def write(
        self, positions: Sequence[int], vectors: torch.Tensor, texts: Sequence[str], skipped: dict[int, str]
    ) -> None:
        """Write a part whole or not at all."""
        name = hashlib.sha256(f"{list(positions)}{sorted(skipped)}".encode()).hexdigest()[:24]
        tensors = {"positions": torch.tensor(list(positions), dtype=torch.long), "vectors": vectors.contiguous()}
        notes = {"texts": json.dumps(list(texts)), "skipped": json.dumps(skipped)}
        with replacing(self.folder / f"{name}.safetensors") as fresh:
            save_file(tensors, fresh, notes)


class _Sounds(Dataset):
    """Prepared sounds by position; a sound that cannot be read is its reason."""

    def __init__(self, audio: Sequence[dict[str, Any]], positions: Sequence[int], model: Encoder | Captioner):
        self.audio, self.positions, self.model = audio, positions, model

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.model.prepare(load_stored_audio(self.audio[self.positions[index]]))
        except (AudioDecodeError, ValueError, OSError) as error:
            return str(error)


def listen(
    audio: Sequence[dict[str, Any]],
    positions: Sequence[int],
    model: Encoder | Captioner,
    hear: Callable[[list[Any]], tuple[torch.Tensor, list[str]]],
    cache: EmbeddingCache,
    *,
    name: str = "",
    num_workers: int = 0,
) -> Embedded:
    """Embeddings or captions of sounds, each made once; on several processes each makes its share.

    Args:
        audio: Encoded sounds, see `TaskData.audio`.
        positions: Which of them are needed.
        model: Prepares sounds.
        hear: What the model makes of prepared sounds: vectors `[clips, dim]`, and captions if it writes some.
        cache: Where they are kept.
        name: Shown beside the progress bar.
        num_workers: Loader processes that decode and make log-mels.

    Raises:
        RuntimeError: If it failed on any process; all processes raise it.
    """
    state = PartialState()
    there = cache.read()
    missing = [p for p in positions if p not in there.vectors and p not in there.skipped]
    if not missing and state.num_processes == 1:
        return there
    # The main process' list for all: another may have read the cache when parts of this round were there already.
    [missing] = broadcast_object_list([missing])
    mine = missing[state.process_index :: state.num_processes]
    problem = ""
    try:
        _make_parts(audio, mine, model, hear, cache, name, num_workers)
    except Exception as error:  # told to the other processes, which would wait for this one forever
        if state.num_processes == 1:
            raise
        problem = f"process {state.process_index}: {type(error).__name__}: {error}"
    problems = [text for text in gather_object([problem]) if text]
    if problems:
        raise RuntimeError("; ".join(problems))
    return cache.read()


def _make_parts(
    audio: Sequence[dict[str, Any]],
    positions: Sequence[int],
    model: Encoder | Captioner,
    hear: Callable[[list[Any]], tuple[torch.Tensor, list[str]]],
    cache: EmbeddingCache,
    name: str,
    num_workers: int,
) -> None:
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # batch_size=None: sounds come one at a time, in their order.
    loader = iter(DataLoader(_Sounds(audio, positions, model), batch_size=None, num_workers=num_workers))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(positions))
        for start in range(0, len(positions), CLIPS_PER_PART):
            part = positions[start : start + CLIPS_PER_PART]
            prepared, kept, skipped = [], [], {}
            for position in part:
                sound = next(loader)
                if isinstance(sound, str):
                    skipped[position] = sound
                else:
                    prepared.append(sound)
                    kept.append(position)
            vectors, texts = hear(prepared) if kept else (torch.zeros(0, 1), [])
            cache.write(kept, vectors, texts, skipped)
            progress.update(bar, advance=len(part))
