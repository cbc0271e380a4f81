"""Recordings with sounds at known seconds: held-out sounds planted into held-out backgrounds, all drawn from a seed.

The sounds are a split of the sound corpus, or a folder of sounds with a labels.csv (columns file,label). Writes FLAC
files and moments.jsonl in the layout of QVHighlights, with a query's signal-to-noise ratio beside it:

    python -m tools.mixtures CORPUS MIXTURES --background rain --background stream --seed 0
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import typer

from clap_hf.audio import encode_flac, load_audio
from clap_hf.model.feature_extraction_msclap import resample, to_mono

RATE = 44_100
SNRS_DB = (-5, 0, 5, 10, 15, 20)
BACKGROUND_PEAK, PEAK = 0.05, 0.98
CROSSFADE_S = 0.25
SILENCE = 0.01  # of the peak (-40 dB): what is below at both ends of a sound is cut off
SHORTEST_BACKGROUND_S, SHORTEST_EVENT_S, LONGEST_EVENT_S = 3.0, 0.2, 10.0
SECONDS_PER_QUERY, MOST_QUERIES, MOST_EVENTS = 10.0, 8, 3
GAP_S = 0.5  # between two events, at least

# Labels of the corpus that are no events by which a moment is found: vague, or a texture.
NO_EVENT = {"ambience", "music", "other"}
Sound = np.ndarray  # float32 `[samples]` at `RATE`


@dataclass(frozen=True)
class Query:
    """A query in the layout of QVHighlights, and what is known of its sounds: the label and the ratio, dB."""

    qid: int
    query: str
    vid: str
    duration: float
    relevant_windows: list[list[float]]
    label: str
    snr_db: float
    background: str


def read_sound(source: Path | bytes) -> Sound:
    """A sound as mono at `RATE`, without silence at its ends."""
    audio = load_audio(source)
    samples = resample(to_mono(audio.samples, "the sound"), audio.sampling_rate, RATE).numpy()
    loud = np.flatnonzero(np.abs(samples) > SILENCE * max(np.abs(samples).max(), 1e-9))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def read_folder(folder: Path) -> dict[str, list[Sound]]:
    """Sounds by label of a folder with a labels.csv."""
    sounds: dict[str, list[Sound]] = defaultdict(list)
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            sounds[row["label"]].append(read_sound(folder / row["file"]))
    return dict(sounds)


def read_corpus(folder: Path, split: str) -> dict[str, list[Sound]]:
    """Sounds by label of a split of the corpus; none whose label is doubtful, speech, music or a single note."""
    sounds: dict[str, list[Sound]] = defaultdict(list)
    for part in sorted(folder.glob(f"**/{split}-*.parquet")):
        for row in pq.read_table(part, columns=["audio", "label", "category", "quality"]).to_pylist():
            doubtful = row["quality"] == "weak" or row["label"] in NO_EVENT
            if not doubtful and row["category"] not in ("speech", "music", "drum", "instrument", "ui", "electronic"):
                sounds[row["label"]].append(read_sound(row["audio"]["bytes"]))
    if not sounds:
        raise ValueError(
            f"{folder} has no {split}-*.parquet with sounds, expected a corpus that tools.sound_corpus made"
        )
    return dict(sounds)


def make_background(sounds: Sequence[Sound], samples: int, generator: np.random.Generator) -> Sound:
    """A background of given length: sounds in random order, cross-faded, at `BACKGROUND_PEAK` times their peak."""
    fade = round(CROSSFADE_S * RATE)
    ramp = np.linspace(0, np.pi / 2, fade, dtype=np.float32)
    background = np.zeros(samples + fade, np.float32)
    start = 0
    while start < samples:
        sound = sounds[int(generator.integers(len(sounds)))]
        level = float(np.sqrt(np.mean(sound**2)))
        sound = sound * (BACKGROUND_PEAK / level)  # clips that follow each other are equally loud
        sound[:fade] *= np.sin(ramp)
        sound[-fade:] *= np.cos(ramp)
        end = min(start + len(sound), len(background))
        background[start:end] += sound[: end - start]
        start += len(sound) - fade
    return background[:samples]


def make_mixture(
    number: int,
    events: dict[str, list[Sound]],
    backgrounds: dict[str, list[Sound]],
    seconds: tuple[float, float],
    seed: int,
    snrs_db: Sequence[float] = SNRS_DB,
) -> tuple[Sound, list[Query]]:
    """One recording, and the queries for it.

    Args:
        number: Of the recording; with the seed it decides all that is drawn.
        events: Sounds to plant, by label.
        backgrounds: Sounds of backgrounds, by label.
        seconds: Shortest and longest recording, s; lengths are spread evenly over their logarithm.
        seed: Seed.
        snrs_db: Ratios of a query's sounds to the background where they are planted, dB, to draw from.
    """
    generator = np.random.default_rng([seed, number])
    duration = float(np.exp(generator.uniform(*np.log(seconds))))
    total = round(duration * RATE)
    background = str(generator.choice(sorted(backgrounds)))
    mixture = make_background(backgrounds[background], total, generator)
    free = np.ones(total, bool)
    queries: list[Query] = []
    labels = sorted(set(events) - {background})
    count = min(max(1, int(duration / SECONDS_PER_QUERY)), MOST_QUERIES, len(labels))
    for label in generator.choice(labels, count, replace=False):
        snr_db, windows = float(generator.choice(np.array(snrs_db))), []
        for _ in range(generator.integers(1, MOST_EVENTS + 1)):
            sound = events[label][int(generator.integers(len(events[label])))]
            start = _free_place(free, len(sound), generator)
            if start is None:
                continue
            end = start + len(sound)
            noise = float(np.mean(mixture[start:end] ** 2))
            gain = np.sqrt(noise * 10 ** (snr_db / 10) / float(np.mean(sound**2)))
            mixture[start:end] += gain * sound
            free[max(start - round(GAP_S * RATE), 0) : end + round(GAP_S * RATE)] = False
            windows.append([round(start / RATE, 3), round(end / RATE, 3)])
        if windows:
            name = f"mixture_{number:04d}"
            queries.append(
                Query(
                    qid=number * MOST_QUERIES + len(queries),
                    query=f"the sound of {label}",
                    vid=name,
                    duration=total / RATE,
                    relevant_windows=sorted(windows),
                    label=str(label),
                    snr_db=snr_db,
                    background=background,
                )
            )
    return mixture * min(1.0, PEAK / float(np.abs(mixture).max())), queries


def _free_place(free: np.ndarray, length: int, generator: np.random.Generator) -> int | None:
    """First sample of a place with nothing planted, of 20 tries; None if none was free."""
    for _ in range(20 if length < len(free) else 0):
        start = int(generator.integers(len(free) - length))
        if free[start : start + length].all():
            return start
    return None


def main(
    sounds: Annotated[Path, typer.Argument(help="The sound corpus, or a folder with a labels.csv.")],
    output: Annotated[Path, typer.Argument(help="New folder of the mixtures.")],
    background: Annotated[list[str], typer.Option(help="Label whose sounds are backgrounds; may be repeated.")],
    count: Annotated[int, typer.Option(min=1, help="Recordings to make.")] = 100,
    split: Annotated[str, typer.Option(help="Split of the corpus.")] = "test",
    shortest_s: Annotated[float, typer.Option(help="Shortest recording, s.")] = 20.0,
    longest_s: Annotated[float, typer.Option(help="Longest recording, s.")] = 600.0,
    snr_db: Annotated[list[float] | None, typer.Option(help=f"Ratio to draw, dB; {SNRS_DB} by default.")] = None,
    seed: Annotated[int, typer.Option(help="Decides all that is drawn.")] = 0,
) -> None:
    """Plant held-out sounds into held-out backgrounds at known seconds."""
    by_label = read_folder(sounds) if (sounds / "labels.csv").is_file() else read_corpus(sounds, split)
    backgrounds = {
        label: [sound for sound in by_label.get(label, []) if len(sound) >= SHORTEST_BACKGROUND_S * RATE]
        for label in background
    }
    if missing := [label for label, found in backgrounds.items() if not found]:
        raise typer.BadParameter(f"no sound of {SHORTEST_BACKGROUND_S} s or more has the labels {missing}")
    low, high = SHORTEST_EVENT_S * RATE, LONGEST_EVENT_S * RATE
    events = {
        label: usable
        for label, own in by_label.items()
        if label not in backgrounds and (usable := [sound for sound in own if low <= len(sound) <= high])
    }
    output.mkdir(parents=True)
    with (output / "moments.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(count):
            samples, queries = make_mixture(
                number, events, backgrounds, (shortest_s, longest_s), seed, snr_db or SNRS_DB
            )
            (output / f"mixture_{number:04d}.flac").write_bytes(encode_flac(samples, RATE))
            lines.writelines(json.dumps(asdict(query)) + "\n" for query in queries)


if __name__ == "__main__":
    typer.run(main)
