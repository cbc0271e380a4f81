"""The contrastive loop: Accelerate, evaluation every epoch, last and best checkpoint, exact resume by epoch."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from ..data.augment import augment_log_mel
from ..data.log_mels import LogMelStore
from ..data.pairs import BalancedSampler, PairCollator, PairDataset
from ..evaluation.sound_tasks import TEMPLATES
from ..evaluation.zero_shot import evaluate, load_clips, zero_shot_score
from ..files import replace_folder
from ..model.modeling_msclap import MSClapModel, contrastive_loss
from .build import build_model
from .losses import multi_positive_contrastive_loss
from .recipe import Recipe
from .text_bank import TextBank

LOG_STEPS = 20  # where the progress bar has no terminal to live on
RECORD, LAST, BEST, LOG_MELS = "run.jsonl", "last", "best", "log-mels"


def train(
    recipe: Recipe, output_dir: Path, *, resume: bool = False, num_workers: int = 1, cache_dir: Path | None = None
) -> dict[str, Any]:
    """Train a model by a recipe.

    Every random choice comes from (seed, epoch), so a run that was stopped and resumed at an epoch's end continues as
    if it had never stopped. The best epoch is chosen by the zero-shot score on the validation split.

    Args:
        recipe: What to train.
        output_dir: Gets `run.jsonl` (a line per start and per epoch), `last/` (to resume from) and `best/` (for
            `from_pretrained`).
        resume: Continue from `last/`.
        num_workers: Loader processes.
        cache_dir: Where the clips' log-mels are kept, for several runs to share; `log-mels/` of the run if None.

    Returns:
        The record of the best epoch.

    Raises:
        FileExistsError: If the folder holds another run and `resume` is not given.
    """
    accelerator = Accelerator(mixed_precision=recipe.precision)
    if (output_dir / RECORD).exists() and not resume:
        raise FileExistsError(f"{output_dir} holds a run already. Pass --resume to continue it, or another folder.")
    output_dir.mkdir(parents=True, exist_ok=True)
    model, processor = build_model(recipe)
    model = model.to(memory_format=torch.channels_last)  # CNN14's convolutions are a third faster so
    average = copy.deepcopy(model).eval()  # exponential moving average of the weights
    splits = datasets.load_dataset(recipe.dataset)
    extractor = processor.feature_extractor
    dataset = PairDataset(
        splits["train"],
        LogMelStore(
            splits["train"].cast_column("audio", datasets.Audio(decode=False)),
            extractor,
            recipe.augmentation.speeds,
            cache_dir or output_dir / LOG_MELS,
        ),
        1 + extractor.window_samples // extractor.hop_length,
        recipe.augmentation,
        TEMPLATES[0],
        recipe.template_probability,
        recipe.seed,
    )
    weights = dataset.weights(recipe.balance, recipe.category_weights)
    sampler = BalancedSampler(
        weights, recipe.steps_per_epoch * recipe.batch_size * accelerator.num_processes, recipe.seed
    )
    loader = DataLoader(
        dataset,
        recipe.batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=PairCollator(processor.tokenizer, dataset.texts),
        drop_last=True,
    )
    optimizer = build_optimizer(model, recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
    state: dict[str, Any] = {"epoch": 0, "best": -math.inf}
    parts = {"model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler}  # what `last/` holds
    if resume:
        state = _load_last(output_dir / LAST, parts)
    average = average.to(accelerator.device)
    if recipe.text_bank and accelerator.num_processes > 1:
        raise ValueError("text_bank runs on one process; leave it out of the recipe for several.")
    bank = TextBank(model, processor, dataset) if recipe.text_bank else None
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    clips = load_clips(splits["validation"], processor)

    if accelerator.is_main_process:
        start = {"recipe": recipe.to_dict(), "from_step": state["epoch"] * recipe.steps_per_epoch}
        _append(output_dir / RECORD, start | {"versions": _versions()})
    epochs = math.ceil(recipe.steps / recipe.steps_per_epoch)
    best_record: dict[str, Any] = {}
    for epoch in range(state["epoch"], epochs):
        sampler.epoch = epoch
        record = _train_epoch(accelerator, model, average, loader, optimizer, scheduler, bank, recipe, epoch)
        if accelerator.is_main_process:
            results = evaluate(average, processor, clips)
            record |= {
                "zero_shot_score": zero_shot_score(results),
                "validation": {name: result["value"] for name, result in results.items()},
            }
            state["epoch"] = epoch + 1
            if record["zero_shot_score"] > state["best"]:
                state["best"] = record["zero_shot_score"]
                record["best"] = True
                best_record = record
                replace_folder(output_dir / BEST, partial(_save_pretrained, model=average, processor=processor))
            _append(output_dir / RECORD, record)
            replace_folder(output_dir / LAST, partial(_save_last, parts=parts, state=state))
            print(json.dumps(record), flush=True)
        accelerator.wait_for_everyone()
    return best_record


def build_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices only: biases, norms, tables of position bias and the logit scale stay free."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim > 1 and "bias_table" not in name]
    free = [p for name, p in named if p.ndim <= 1 or "bias_table" in name]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _train_epoch(
    accelerator: Accelerator,
    model: torch.nn.Module,
    average: MSClapModel,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    bank: TextBank | None,
    recipe: Recipe,
    epoch: int,
) -> dict[str, Any]:
    """One epoch of optimiser steps; returns its means."""
    torch.manual_seed((recipe.seed + 1) * 100_003 + epoch * accelerator.num_processes + accelerator.process_index)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    model.train()
    if recipe.text.freeze:
        accelerator.unwrap_model(model).text_model.eval()
    totals = {"loss": 0.0, "recall_at_1": 0.0, "gradient_norm": 0.0, "waiting_s": 0.0}
    started = waiting = time.perf_counter()
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[loss]}"), transient=True) as progress:
        task = progress.add_task("", total=len(loader), epoch=epoch + 1, loss="")
        for step, batch in enumerate(loader):
            totals["waiting_s"] += time.perf_counter() - waiting
            features = augment_log_mel(batch["input_features"].cpu(), generator, recipe.augmentation)
            features = features.to(accelerator.device)
            if bank is not None:
                plain = accelerator.unwrap_model(model)
                with accelerator.autocast():  # which Accelerate gives to forward alone
                    audio = plain.get_audio_features(features).pooler_output
                loss, logits = bank.loss(plain, audio, batch)
            else:
                logits = model(batch["input_ids"], batch["attention_mask"], features).logits_per_text
                if recipe.loss == "multi_positive":
                    loss = multi_positive_contrastive_loss(logits, batch["groups"])
                else:
                    loss = contrastive_loss(logits)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            update_average(average, accelerator.unwrap_model(model), recipe, epoch * recipe.steps_per_epoch + step)
            found = batch["groups"][logits.argmax(dim=1)] == batch["groups"]
            totals["loss"] += loss.item()
            totals["recall_at_1"] += found.float().mean().item()
            totals["gradient_norm"] += float(norm)
            if not progress.console.is_terminal and (step + 1) % LOG_STEPS == 0:
                so_far = totals["loss"] / (step + 1)
                rate = (step + 1) * recipe.batch_size / (time.perf_counter() - started)
                print(f"epoch {epoch + 1} step {step + 1}: loss {so_far:.3f}, {rate:.1f} clips/s", flush=True)
            progress.update(task, advance=1, loss=f"loss {totals['loss'] / (step + 1):.3f}")
            waiting = time.perf_counter()
    elapsed = time.perf_counter() - started
    steps = len(loader)
    return {
        "epoch": epoch + 1,
        "step": (epoch + 1) * recipe.steps_per_epoch,
        "loss": totals["loss"] / steps,
        "recall_at_1": totals["recall_at_1"] / steps,
        "gradient_norm": totals["gradient_norm"] / steps,
        "logit_scale": accelerator.unwrap_model(model).logit_scale.exp().item(),
        "learning_rate": scheduler.get_last_lr()[0],
        "clips_per_s": steps * recipe.batch_size * accelerator.num_processes / elapsed,
        "waiting": totals["waiting_s"] / elapsed,
        "seconds": elapsed,
    }


@torch.no_grad()
def update_average(average: MSClapModel, model: MSClapModel, recipe: Recipe, step: int) -> None:
    """Move the averaged weights towards the model's; the decay ramps up so that early weights are forgotten."""
    decay = min(recipe.ema_decay, (1 + step) / (10 + step))
    for target, source in zip(average.parameters(), model.parameters(), strict=True):
        if source.requires_grad:
            target.lerp_(source, 1 - decay)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)


def _save_pretrained(folder: Path, model: MSClapModel, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _save_last(folder: Path, parts: dict[str, Any], state: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "state.pt")
    (folder / "state.json").write_text(json.dumps(state))


def _load_last(folder: Path, parts: dict[str, Any]) -> dict[str, Any]:
    if not (folder / "state.json").is_file():
        raise FileNotFoundError(f"Nothing to resume: {folder} has no state.json. Run without --resume.")
    saved = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return json.loads((folder / "state.json").read_text())


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "datasets": datasets.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
