"""A map of a collection as one HTML file: a point for every sound, which it plays."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from ..atomic_io import PartStore, write_text
from ..audio import AudioReader, read_whole
from .check import collection_facts, root_of
from .index import Index

TEMPLATE = Path(__file__).parent / "map.html"
COLORS = 10  # groups that have one of their own; the smaller ones share grey
OTHERS = "others"
METHODS, GROUPS = ("pca", "umap"), ("folder", "tag")
CLIP_RATE = 32_000  # Hz, at most


def draw_map(
    folder: str | os.PathLike[str],
    output: Path,
    *,
    method: str | None = None,
    color: str = "folder",
    clips_s: float | None = None,
) -> int:
    """Write a map of a collection: sounds that are alike are close to each other. Needs no model.

    The file needs no other one but the sounds, which it names relative to itself; with `clips_s` not even these.

    Args:
        folder: The collection.
        output: HTML file to write.
        method: `"pca"`, or `"umap"` (package `umap-learn`); the latter where it is installed when None.
        color: What the color shows: `"folder"` or `"tag"`, the first of a sound.
        clips_s: Put the first seconds of every sound into the file, s; none when None.

    Returns:
        Sounds on the map; those whose files are gone are left out.

    Raises:
        ValueError: There is no collection, none of its files is there, or an argument has another value.
    """
    if method not in (None, *METHODS) or color not in GROUPS:
        raise ValueError(f"method is {method!r} and color {color!r}, expected one of {METHODS} and of {GROUPS}.")
    root, facts = root_of(folder), collection_facts(folder)
    index = Index(PartStore(Path(folder), facts["identity"], pa.schema([])))
    vectors = index.vectors()
    tags = {row["file"]: row["tags"].strip("\n").split("\n")[0] for row in index.sounds()}
    there = [number for number, name in enumerate(vectors.files) if (root / name).is_file()]
    if not there:
        raise ValueError(f"{folder}: none of its {len(vectors.files)} sounds is there. Mount or restore their folder.")
    places = project(vectors.matrix[vectors.first[there]], method)
    names = [vectors.files[number] for number in there]
    groups = [tags[name] if color == "tag" else os.path.dirname(name) for name in names]
    largest = [group for group, _ in Counter(groups).most_common(COLORS)]
    sounds: list[dict[str, Any]] = [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "name": name,
            "group": largest.index(group) if group in largest else COLORS,
            "source": _clip(root / name, clips_s) if clips_s else _relative(root / name, output),
        }
        for name, group, (x, y) in zip(names, groups, places, strict=True)
    ]
    legend = [group or f"no {color}" for group in largest] + ([OTHERS] if len(set(groups)) > COLORS else [])
    # Within a script, "</" would end it.
    data = json.dumps({"sounds": sounds, "groups": legend}, ensure_ascii=False).replace("<", "\\u003c")
    title = html.escape(f"{len(sounds):,} sounds of {Path(folder).resolve().name}")
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{ title }}", title).replace("{{ data }}", data)
    write_text(output, page)
    return len(sounds)


def project(vectors: np.ndarray, method: str | None = None) -> np.ndarray:
    """Places of unit vectors in two dimensions, by PCA or UMAP, each from 0 to 1 `[vectors, 2]`.

    Args:
        vectors: `[vectors, dim]`.
        method: See `draw_map`.

    Raises:
        ImportError: UMAP is asked for and not installed.
    """
    if method is None:
        method = "umap" if importlib.util.find_spec("umap") and len(vectors) > 15 else "pca"
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError("method 'umap' needs umap-learn: pip install umap-learn") from error
        places = np.asarray(UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(vectors))
    else:
        centred = vectors - vectors.mean(axis=0)
        _, axes = np.linalg.eigh(centred.T @ centred)
        places = centred @ axes[:, :-3:-1]
        # Eigenvectors have no sign of their own: the farthest sound is above, or right.
        places = places * np.where(places[np.abs(places).argmax(axis=0), [0, 1]] < 0, -1, 1)
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.maximum(high - low, 1e-12)


def _relative(file: Path, output: Path) -> str:
    """Address of a sound as the map names it."""
    return quote(Path(os.path.relpath(file, output.resolve().parent)).as_posix())


def _clip(file: Path, seconds: float) -> str:
    """The first seconds of a sound as Ogg Vorbis in an address; nothing where it cannot be decoded."""
    import soundfile
    import soxr

    try:
        with AudioReader(file, duration_s=seconds) as reader:
            sound = read_whole(reader)
    except (ValueError, OSError):
        return ""
    samples, rate = sound.samples.mean(axis=0), sound.sampling_rate
    if rate > CLIP_RATE:
        samples, rate = soxr.resample(samples, rate, CLIP_RATE), CLIP_RATE
    written = io.BytesIO()
    soundfile.write(written, np.clip(samples, -1, 1), rate, format="OGG", subtype="VORBIS")
    return f"data:audio/ogg;base64,{base64.b64encode(written.getvalue()).decode()}"
