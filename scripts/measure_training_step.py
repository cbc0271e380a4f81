#!/usr/bin/env python
"""Measure clips a second of a recipe's step with its data, against the same step on a batch that is there already.

    python scripts/measure_training_step.py configs/table2.yaml --steps 50 --num-workers 16
    python scripts/measure_training_step.py configs/small_table1.yaml --combination HTSAT+GPT2 --source sound-corpus

The first step of each is left out. Measure on a quiet machine.
"""

import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from clap_hf.training.contrastive_stage import ContrastiveStage
from clap_hf.training.distributed import average_gradients
from clap_hf.training.factory import build_model
from clap_hf.training.inputs import open_pairs, pair_batches
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


def main(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML recipe, see configs/.")],
    combination: Annotated[str | None, typer.Option(help="Pair of encoders, where the recipe lists several.")] = None,
    source: Annotated[str | None, typer.Option(help="A dataset of pairs, instead of the recipe's data.")] = None,
    text: Annotated[str, typer.Option(help="That dataset's column of texts.")] = "text",
    batch_size: Annotated[int | None, typer.Option(help="Pairs per step, instead of the recipe's.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure.")] = 20,
    num_workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 1,
) -> None:
    """Print clips a second, and the share of time spent waiting, without and with the recipe's data."""
    overrides: dict[str, Any] = {"batch_size": batch_size, "audio_tower": ""}  # the weights do not matter here
    if source is not None:
        pairs = {"dataset": source, "text": text}
        overrides |= {"sources": [pairs], "validation": pairs}
    recipe = load_recipe(path, combination, **overrides)
    if not isinstance(recipe, ContrastiveRecipe):
        raise typer.BadParameter(f"{path}: stage is {recipe.stage!r}, expected 'contrastive'.")
    accelerator = make_accelerator(recipe)
    model, processor = build_model(recipe)
    data = pair_batches(recipe, open_pairs(recipe), processor, num_workers)
    stage = ContrastiveStage(model.to(accelerator.device), processor, recipe, data, lambda model: {})
    stage.setup(accelerator)
    share = (accelerator.process_index, accelerator.num_processes)
    one = next(iter(data.batches(0, 0, *share)))
    bound = measure(stage, itertools.repeat(one), steps)
    loaded = measure(stage, data.batches(0, 0, *share), steps)
    if accelerator.is_main_process:
        print(json.dumps({"recipe": recipe.name, "batch_size": recipe.batch_size, "chunk_size": stage.chunk_size}))
        print(json.dumps({"no data": bound, "with data": loaded}))


if __name__ == "__main__":
    typer.run(main)
