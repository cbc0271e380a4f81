"""A collection of sounds on disk: embedded once, stopped and resumed at will, asked in words or by another sound.

The folder holds parquet parts with the columns `file` and `embedding`: `datasets.load_dataset(folder)` opens it, too,
and can index it by FAISS. A search reads part by part; memory stays flat however many sounds there are.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from .atomic_io import write_parquet
from .audio import Audio
from .embedding import ClapEncoder, embed_files
from .model.modeling_msclap import MSClapModel
from .model.processing_msclap import MSClapProcessor

FILES_PER_PART = 256  # what a killed run loses at most


@dataclass(frozen=True)
class SearchHit:
    """A sound that a search found.

    Attributes:
        file: The sound file, as an absolute path.
        similarity: Cosine of its embedding and the query's, -1 to 1.
    """

    file: Path
    similarity: float


@dataclass(frozen=True)
class CollectionUpdate:
    """What became of files that a collection was given.

    Attributes:
        embedded: How many were embedded now.
        known: How many the collection had already.
        skipped: Why the others were not embedded; they are tried again the next time.
    """

    embedded: int
    known: int
    skipped: dict[Path, str]


class SoundCollection:
    """Embeddings of sound files in a folder.

    Args:
        folder: Where they are kept; made when the first are added. One process at a time may add.
        model: The model, in evaluation mode, on its device.
        processor: Its processor.
        name: Folder or Hub id of the model, kept for the record.

    Raises:
        ValueError: The folder holds embeddings of another model or front end.
    """

    def __init__(self, folder: str | os.PathLike[str], model: MSClapModel, processor: MSClapProcessor, name: str = ""):
        self.folder, self.model, self.processor, self.name = Path(folder), model, processor, name
        self._encoder = ClapEncoder(model, processor, name)
        key = self._encoder.key
        parts = _parts(self.folder)
        found = _about(parts[0]) if parts else None
        if found is not None and found["key"] != key:
            raise ValueError(
                f"{folder}: holds embeddings of the model {found['name']!r} with fingerprint {found['key'][:16]}, "
                f"expected those of {name!r} with {key[:16]}. Use that model, or another folder."
            )

    def __len__(self) -> int:
        return sum(pq.read_metadata(part).num_rows for part in _parts(self.folder))

    def add(self, files: Iterable[str | os.PathLike[str]]) -> CollectionUpdate:
        """Embed files that the collection does not have; a stopped run goes on where it was.

        A file is known by its path: to embed changed files anew, delete the folder.

        Args:
            files: Sound files; for folders, see `audio_files`.

        Returns:
            How many were embedded and known, and what was skipped.
        """
        known = {
            file for part in _parts(self.folder) for file in pq.read_table(part, columns=["file"])["file"].to_pylist()
        }
        wanted = list(dict.fromkeys(os.path.abspath(file) for file in files))
        missing = [file for file in wanted if file not in known]
        skipped: dict[Path, str] = {}
        embedded = 0
        starts = range(0, len(missing), FILES_PER_PART)
        for start in track(starts, "Embedding", console=Console(stderr=True), transient=True):
            found = embed_files(self.model, self.processor, missing[start : start + FILES_PER_PART])
            skipped |= found.skipped
            embedded += len(found.files)
            if found.files:
                self._write(found.files, found.vectors.numpy())
        return CollectionUpdate(embedded, len(wanted) - len(missing), skipped)

    def search(self, query: str | Audio, top_k: int = 10) -> list[SearchHit]:
        """Find the sounds that a text or another sound is closest to.

        Args:
            query: Words, or a sound as `load_audio` gives it.
            top_k: Hits at most.

        Returns:
            Hits, the best first.

        Raises:
            ValueError: The collection is empty.
        """
        parts = _parts(self.folder)
        if not parts:
            raise ValueError(f"{self.folder}: no sounds in this collection, expected some. Add files first.")
        encoder = self._encoder
        if isinstance(query, str):
            vectors = encoder.embed_texts([query])
        else:
            vectors = encoder.embed_audio([encoder.prepare(query)])
        vector = vectors[0].numpy()
        best: list[tuple[float, str]] = []
        for part in parts:
            table = pq.read_table(part)
            similarity = _vectors(table) @ vector
            # Of one part only the best can be among the best of all.
            rows = np.argsort(-similarity, kind="stable")[:top_k]
            candidates = [(float(similarity[row]), table["file"][int(row)].as_py()) for row in rows]
            best = heapq.nsmallest(top_k, best + candidates, key=lambda found: (-found[0], found[1]))
        return [SearchHit(Path(file), value) for value, file in best]

    def _write(self, files: list[Path], vectors: np.ndarray) -> None:
        embedding = pa.list_(pa.float32(), vectors.shape[1])
        about = {"clap_hf": json.dumps({"key": self._encoder.key, "name": self.name})}
        write_parquet(
            self.folder / f"part-{len(_parts(self.folder)):06d}.parquet",
            pa.schema({"file": pa.string(), "embedding": embedding}, about),
            ({"file": str(file), "embedding": vector} for file, vector in zip(files, vectors, strict=True)),
        )


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def model_of(folder: str | os.PathLike[str]) -> str:
    """Name of the model that a collection was made with.

    Args:
        folder: The collection.

    Raises:
        ValueError: There is no collection.
    """
    parts = _parts(Path(folder))
    if not parts:
        raise ValueError(f"{folder}: no collection of sounds here, expected one that `clap-hf embed` made.")
    return _about(parts[0])["name"]


def _about(part: Path) -> dict[str, str]:
    metadata = pq.read_schema(part).metadata or {}
    if b"clap_hf" not in metadata:
        raise ValueError(f"{part}: not a part of a collection of sounds, expected one that `clap-hf embed` made.")
    return json.loads(metadata[b"clap_hf"])


def _vectors(table: pa.Table) -> np.ndarray:
    """The embeddings of a part `[files, projection_dim]`."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
