"""Find training clips that hold a recording of the sealed test: in another codec, at another level, in another cut.

    python -m tools.release.sealed_copies --sealed sound-corpus --training training-set --output copies.json

Every training clip is compared with the sealed clips of its label, and with those of any label that are near it by
their vectors; with `--nearest 14` every sealed clip with so many training clips alone, which takes minutes for a whole
set. Names, thumbnails and an overlap of half the shorter clip missed seven clips once: two projects cut one field
recording differently.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import torch
import typer
from rich.progress import track

from clap_hf.atomic_io import write_json
from clap_hf.audio import load_stored_audio
from clap_hf.evaluation.command import load_encoder
from clap_hf.evaluation.runner import EvaluationOptions
from clap_hf.search.duplicates import likeness, speech_band
from tools.release.hubs import embed_rows

OVERLAP = 0.25  # of the shorter clip, at least
NEAREST, COSINE = 12, 0.55  # sealed clips of other labels that a training clip is compared with
REPORTED = 0.4  # lowest correlation of two waveforms that is reported
CHUNK = 200  # training clips of a process's turn


@dataclass(frozen=True)
class _Turn:
    sealed: datasets.Dataset
    training: datasets.Dataset
    compared: list[np.ndarray]  # sealed rows, for every training clip


def _load(folder: Path, split: str) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split=split).cast_column("audio", datasets.Audio(decode=False))


def _embed(turn: tuple[str, datasets.Dataset]) -> np.ndarray:
    """Unit vectors of clips `[clips, dim]`."""
    torch.set_num_threads(1)
    weights, rows = turn
    encoder = load_encoder(EvaluationOptions(model=weights))
    return torch.cat(list(embed_rows(encoder, rows))).numpy()


def _compare(turn: _Turn) -> list[dict[str, Any]]:
    """Pairs whose waveforms correlate."""
    torch.set_num_threads(1)
    waves = lru_cache(64)(lambda row: speech_band(load_stored_audio(turn.sealed[row]["audio"])))
    names, sealed = turn.training["id"][:], turn.sealed["id"][:]
    found = []
    for number, rows in enumerate(turn.compared):
        if not len(rows):
            continue
        wave = speech_band(load_stored_audio(turn.training[number]["audio"]))
        for row in map(int, rows):
            correlation = likeness(wave, waves(row), OVERLAP)
            if correlation >= REPORTED:
                found.append({"training": names[number], "sealed": sealed[row], "correlation": round(correlation, 3)})
    return found


def proposed(cosines: np.ndarray, own: list[str], sealed: np.ndarray, nearest: int | None) -> list[np.ndarray]:
    """Sealed clips that every training clip is compared with.

    Args:
        cosines: Of training clips and sealed clips `[training, sealed]`.
        own: Label of every training clip.
        sealed: Label of every sealed clip `[sealed]`.
        nearest: How many training clips a sealed clip is compared with, the nearest by cosine whatever their labels;
            None compares with all of its label, and with near ones of others.

    Returns:
        Numbers of sealed clips, for every training clip.
    """
    if nearest is None:
        near = [np.argsort(-row)[:NEAREST] for row in cosines]
        return [
            np.union1d(np.flatnonzero(sealed == label), numbers[row[numbers] >= COSINE])
            for label, row, numbers in zip(own, cosines, near, strict=True)
        ]
    closest = np.argsort(-cosines, axis=0)[:nearest]  # [nearest, sealed], training clips
    compared: list[list[int]] = [[] for _ in own]
    for column in range(closest.shape[1]):
        for number in closest[:, column]:
            compared[number].append(column)
    return [np.array(columns, dtype=np.int64) for columns in compared]


def main(
    sealed: Annotated[Path, typer.Option(help="Folder of the sound corpus with the split sealed.")],
    training: Annotated[Path, typer.Option(help="Folder of the training set.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    split: Annotated[str, typer.Option(help="Split of the training set.")] = "train",
    weights: Annotated[str, typer.Option(help="Checkpoint whose vectors propose pairs of other labels.")] = "embedded",
    nearest: Annotated[
        int | None, typer.Option(min=1, help="Compare every sealed clip with so many of the nearest alone: minutes.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Worker processes.")] = 2,
) -> None:
    """Compare the clips and write the pairs that are alike, the most alike first."""
    test, rows = _load(sealed, "sealed"), _load(training, split)
    starts = range(0, len(rows), CHUNK)
    chunks = [rows.select(range(start, min(start + CHUNK, len(rows)))) for start in starts]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        turns = [(weights, part.select_columns("audio")) for part in (test, *chunks)]
        vectors = list(track(pool.map(_embed, turns), "Embedding", total=len(turns)))
        cosines = np.concatenate(vectors[1:]) @ vectors[0].T
        compared = proposed(cosines, rows["label"][:], np.array(test["label"][:]), nearest)
        comparisons = [
            _Turn(
                test.select_columns(["id", "audio"]),
                part.select_columns(["id", "audio"]),
                compared[start : start + CHUNK],
            )
            for start, part in zip(starts, chunks, strict=True)
        ]
        parts = list(track(pool.map(_compare, comparisons), "Comparing", total=len(comparisons)))
    pairs = sorted((pair for part in parts for pair in part), key=lambda pair: -pair["correlation"])
    total = sum(map(len, compared))
    write_json(
        output,
        {
            "sealed_clips": len(test),
            "training_clips": len(rows),
            "overlap": OVERLAP,
            "compared": total,
            "pairs": pairs,
        },
    )
    typer.echo(f"{total:,} pairs compared, {len(pairs)} of them correlate by {REPORTED} or more: {output}")


if __name__ == "__main__":
    typer.run(main)
