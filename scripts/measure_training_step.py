#!/usr/bin/env python
"""Measure clips a second of a recipe's step with its data, against the same step on a batch that is there already.

    python scripts/measure_training_step.py configs/table2.yaml --steps 50 --num-workers 16
    python scripts/measure_training_step.py configs/small_table1.yaml --combination HTSAT+GPT2 --source sound-corpus

The first step of each is left out. Measure on a quiet machine.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable

import torch

from clap_hf.training.contrastive_stage import ContrastiveStage
from clap_hf.training.distributed import average_gradients
from clap_hf.training.factory import build_model
from clap_hf.training.inputs import streamed_batches
from clap_hf.training.loop import batch_on_device, make_accelerator
from clap_hf.training.optimization import build_optimizer
from clap_hf.training.recipe import ContrastiveRecipe, load_recipe
from clap_hf.training.stage import Batch, Position


def measure(stage: ContrastiveStage, batches: Iterable[Batch], steps: int) -> dict[str, float]:
    """Clips a second over all ranks, and the share of time spent waiting for data."""
    recipe, accelerator = stage.recipe, make_accelerator(stage.recipe)
    optimizer = build_optimizer([stage.model, stage.criterion], recipe)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    stage.train_mode()
    iterator, waited, started = iter(batches), 0.0, 0.0
    for step in range(steps + 1):
        if step == 1:
            waited, started = 0.0, _now()
        before = time.perf_counter()
        batch = dict(next(iterator))
        waited += time.perf_counter() - before
        batch.pop("skipped", None)
        position = Position(recipe.seed, step, 0, accelerator.process_index, accelerator.num_processes)
        batch = batch_on_device(batch, stage.processor.feature_extractor, accelerator.device)
        stage.backward(accelerator, stage.prepare_batch(batch, position), position)
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
    seconds = _now() - started
    return {"clips_per_s": round(steps * recipe.batch_size / seconds, 2), "waiting": round(waited / seconds, 3)}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML recipe")
    parser.add_argument("--combination", help="which pair of encoders, where the recipe lists several")
    parser.add_argument("--source", help="a dataset of pairs, instead of the recipe's data")
    parser.add_argument("--text", default="text", help="that dataset's column of texts")
    parser.add_argument("--batch-size", type=int, help="pairs per step, instead of the recipe's")
    parser.add_argument("--steps", type=int, default=20, help="steps to measure")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes")
    args = parser.parse_args()
    overrides: dict = {"batch_size": args.batch_size, "audio_tower": ""}  # the weights do not matter here
    if args.source:
        source = {"dataset": args.source, "text": args.text}
        overrides |= {"sources": [source], "validation": source}
    recipe = load_recipe(args.recipe, args.combination, **overrides)
    if not isinstance(recipe, ContrastiveRecipe):
        parser.error(f"{args.recipe}: stage is {recipe.stage!r}, expected 'contrastive'.")
    accelerator = make_accelerator(recipe)
    model, processor = build_model(recipe)
    data = streamed_batches(recipe, processor, args.num_workers)
    stage = ContrastiveStage(model.to(accelerator.device), processor, recipe, data, lambda model: {})
    stage.setup(accelerator)
    share = (accelerator.process_index, accelerator.num_processes)
    one = next(iter(data.batches(0, 0, *share)))
    bound = measure(stage, itertools.repeat(one), args.steps)
    loaded = measure(stage, data.batches(0, 0, *share), args.steps)
    if accelerator.is_main_process:
        print(json.dumps({"recipe": recipe.name, "batch_size": recipe.batch_size, "chunk_size": stage.chunk_size}))
        print(json.dumps({"no data": bound, "with data": loaded}))


if __name__ == "__main__":
    main()
