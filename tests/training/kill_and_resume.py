"""Kills a short run at random moments, resumes it, and compares its end with that of a run that was left alone.

    python tests/training/kill_and_resume.py --dataset FOLDER --kills 20 --processes 1 2 --workers 0 2

Every attempt is a fork of this process, which has imported everything, so that a start takes as long as a step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import torch

from clap_hf.training.contrastive_stage import ContrastiveStage
from clap_hf.training.recipe import ContrastiveRecipe, TextTower
from clap_hf.training.resume import load_checkpoint, newest_checkpoint
from clap_hf.training.run import train_recipe

GPT2_TOKENIZER = Path(__file__).parent.parent / "tokenizers" / "gpt2"

AUDIO = {
    "num_mel_bins": 32, "num_frames": 128, "num_time_chunks": 2, "embed_dim": 16, "depths": [1, 1],
    "num_attention_heads": [2, 4], "window_size": 4, "spec_augment_time_width": 8, "spec_augment_freq_width": 4,
}  # fmt: skip
FEATURES = {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 0.5, "n_fft": 512, "hop_length": 64}
BATCH_SIZE = 8
TEXT = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 77}


def short_recipe(dataset: str, text: str | None, streamed: bool) -> ContrastiveRecipe:
    """Twelve steps with everything random switched on, in chunks, with averaged weights."""
    data = {
        "sources": [{"dataset": dataset, "text": text, "id": "id"}],
        "validation": {"dataset": dataset, "text": text, "id": "id"},
        "validation_pairs": 16,
        "best_metric": "recall_at_10",
        "lanes": 4,
    }
    return ContrastiveRecipe(
        name="short", audio=AUDIO, features=FEATURES, text=TextTower(config=TEXT, tokenizer=str(GPT2_TOKENIZER)),
        model={"projection_dim": 16}, batch_size=BATCH_SIZE, chunk_size=2, steps=12, steps_per_epoch=6,
        checkpoint_steps=2, warmup_steps=2, ema_decay=0.5, loss="contrastive",
        **(data if streamed else {"dataset": dataset}),
    )  # fmt: skip


def run(
    recipe: ContrastiveRecipe, folder: Path, workers: int, processes: int, kill_after: float | None = None
) -> bool:
    """Start or continue a run; True if it ended by itself, False if it was killed after so many seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_start(recipe, folder, workers, rank, processes, port) for rank in range(processes)]
    deadline = None if kill_after is None else time.monotonic() + kill_after
    codes: dict[int, int] = {}
    while len(codes) < processes:
        for child in set(children) - codes.keys():
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[child] = status
        if deadline is not None and time.monotonic() > deadline and len(codes) < processes:
            for child in set(children) - codes.keys():
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return False
        time.sleep(0.005)
    if any(codes.values()):
        raise RuntimeError(f"a training process failed, see {folder}.log")
    return True


def _start(recipe: ContrastiveRecipe, folder: Path, workers: int, rank: int, processes: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()  # its loaders die with it
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        _trace(Path(f"{folder}.seen"), rank, port)
        train_recipe(recipe, folder, resume=(folder / "run.jsonl").exists(), num_workers=workers)
        code = 0
    except BaseException as error:
        print(repr(error), flush=True)
    finally:
        os._exit(code)


def _trace(path: Path, rank: int, attempt: int) -> None:
    """Have every step write what it trains on."""
    real = ContrastiveStage.prepare_batch

    def traced(self, batch, position):
        with path.open("a") as file:
            names = batch["clips" if "clips" in batch else "texts"]
            texts = (batch["input_ids"] * batch["attention_mask"]).sum(dim=1)  # padding is the share's, not the pair's
            seen = torch.stack([names, texts], dim=1).tolist()
            file.write(json.dumps([attempt, rank, position.step, seen]) + "\n")
        return real(self, batch, position)

    ContrastiveStage.prepare_batch = traced


def examples_by_step(folder: Path) -> dict[int, list]:
    """The global batch of every step; steps that were run again must have seen the same."""
    shares: dict[tuple[int, int], dict[int, list]] = {}  # by attempt and step, then by rank
    for line in Path(f"{folder}.seen").read_text().splitlines():
        try:
            attempt, rank, step, examples = json.loads(line)
        except ValueError:
            continue  # the line that the kill cut
        shares.setdefault((attempt, step), {})[rank] = examples
    seen: dict[int, list] = {}
    for (_, step), by_rank in shares.items():
        batch = [example for rank in sorted(by_rank) for example in by_rank[rank]]
        if len(batch) == BATCH_SIZE:  # all ranks had come this far
            assert seen.setdefault(step, batch) == batch, f"step {step} saw other examples when run again"
    return seen


def largest_difference(folder: Path, reference: Path) -> float:
    """Largest difference of any trained or averaged weight at the end of two runs."""
    ours, _ = load_checkpoint(newest_checkpoint(folder / "last"))
    theirs, _ = load_checkpoint(newest_checkpoint(reference / "last"))
    return max(
        (ours[part][name].double() - value.double()).abs().max().item()
        for part in ("model", "average")
        for name, value in theirs[part].items()
    )


def check(
    recipe: ContrastiveRecipe,
    folder: Path,
    processes: int,
    workers: int,
    kills: int,
    seed: int,
    resume_processes: int | None,
) -> dict:
    """Kill a run at `kills` random moments, each in a run of its own, and resume it; what came of it."""
    resume_processes = resume_processes or processes
    reference = folder / "reference"
    started = time.monotonic()
    run(recipe, reference, workers, processes)
    length = time.monotonic() - started
    rng = random.Random(seed)
    differences, moments, steps = [], [], []
    for i in range(kills):
        killed = folder / f"killed-{i}"
        moment = rng.uniform(0.2, 1.0) * length  # a share of the run's own length; earlier there is nothing yet
        while run(recipe, killed, workers, processes, moment):  # the machine was faster than before: once more
            shutil.rmtree(killed)
            Path(f"{killed}.seen").unlink()
            moment *= 0.8
        steps.append(max(examples_by_step(killed), default=-1) + 1 if Path(f"{killed}.seen").exists() else 0)
        moments.append(round(moment / length, 3))
        run(recipe, killed, workers, resume_processes)
        assert examples_by_step(killed) == examples_by_step(reference), f"kill {i} changed what the run saw"
        differences.append(largest_difference(killed, reference))
        shutil.rmtree(killed)
    return {
        "processes": processes,
        "resumed_on": resume_processes,
        "workers": workers,
        "seed": seed,
        "kills": kills,
        "run_s": round(length, 2),
        "moments": moments,
        "steps_begun": steps,
        "largest_difference": max(differences),
        "bit_equal": sum(difference == 0 for difference in differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder of the sound corpus, or of pairs")
    parser.add_argument("--text", default="captions", help="its column of texts")
    parser.add_argument("--mapped", action="store_true", help="draw from the corpus instead of streaming it")
    parser.add_argument("--folder", type=Path, required=True, help="for the runs; emptied as they pass")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--resume-processes", type=int, help="go on with another number of processes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe = short_recipe(args.dataset, args.text, not args.mapped)
    for processes in args.processes:
        for workers in args.workers:
            folder = args.folder / f"{processes}-{workers}"
            folder.mkdir(parents=True)
            found = check(recipe, folder, processes, workers, args.kills, args.seed, args.resume_processes)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
