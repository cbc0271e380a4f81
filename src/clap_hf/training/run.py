"""Runs of the looped stages: from a recipe to its model, data and evaluation, and into the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..atomic_io import write_json, write_text
from ..cards import BASE, EARLIER, base_facts
from ..data.own import Given, is_parquet
from ..data.prompts import PromptCollator, PromptDataset
from ..data.registry import source_of
from ..data.simple_stream import stream_rows
from ..data.source import StreamSource
from ..data.splits import load_split
from ..hub import BackgroundPush
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor
from ..pretrained import checkpoint_path
from .captioning_stage import CaptioningStage, CaptionValidation
from .contrastive_stage import ContrastiveStage
from .factory import build_captioner, build_model, build_prompt_model, resolve
from .inputs import OpenPairs, balanced_batches, corpus_batches, open_pairs, pair_batches
from .loop import make_accelerator, train
from .prompt_stage import PromptStage, PromptValidation, load_streams
from .recipe import CaptioningRecipe, ContrastiveRecipe, PromptRecipe
from .records import RECORD
from .settings import PairSettings
from .stage import Batches, TrainingStage
from .teacher import load_features
from .validation import CorpusValidation, PairValidation, PaperTaskValidation

LOG_MELS = "log-mels"  # folder of a run that keeps them


def train_recipe(
    recipe: ContrastiveRecipe | CaptioningRecipe | PromptRecipe,
    output_dir: Path,
    *,
    resume: bool = False,
    num_workers: int = 1,
    trackers: Sequence[str] = (),
    cache_dir: Path | None = None,
    data_dir: Path | None = None,
    push: BackgroundPush | None = None,
    given: Given | None = None,
    opened: OpenPairs | None = None,
) -> dict[str, Any]:
    """Train by a recipe; see `clap_hf.training.loop.train` for the folder, resuming, trackers and errors.

    The audio tower of a prompt run's `best/` goes into the contrastive stage by its recipe's `audio_tower`.

    Args:
        recipe: What to train.
        output_dir: The run's folder.
        resume: Continue the run that is there.
        num_workers: Loader processes.
        trackers: Trackers, by the names that Accelerate knows.
        cache_dir: Where the log-mels of a corpus' clips are kept, for several runs to share; `log-mels/` of the run's
            folder when None. For recipes with `dataset`.
        data_dir: Folder of CSVs and sounds for the paper's tasks, for recipes with `evaluation_tasks`.
        push: Uploads epochs while training goes on.
        given: Datasets in Python, `{name: Dataset or DatasetDict}`, for sources whose `dataset` is that name.
        opened: The recipe's sources, where `open_pairs` has found them already.

    Returns:
        The record of the best epoch.

    Raises:
        ValueError: If the recipe or an option is wrong or without effect.
    """
    recipe.validate()
    if cache_dir is not None and not (isinstance(recipe, PairSettings) and recipe.dataset):
        raise ValueError(
            "cache_dir has no effect: log-mels are stored for contrastive and captioning runs on 'dataset'."
        )
    if data_dir is not None and not (isinstance(recipe, ContrastiveRecipe) and recipe.evaluation_tasks):
        raise ValueError("data_dir has no effect without 'evaluation_tasks' in a contrastive recipe. Leave it out.")
    make_accelerator(recipe)  # starts the process group, before anything asks for the world size
    stage: TrainingStage
    facts: dict[str, Any] = {}
    if isinstance(recipe, PromptRecipe):
        stage = _prompt_stage(recipe, num_workers)
    else:
        if recipe.sources:
            opened = opened or open_pairs(recipe, given)
            facts = opened.facts
        make = partial(_pair_batches, recipe, opened, output_dir, num_workers, cache_dir, given)
        if isinstance(recipe, ContrastiveRecipe):
            stage = _contrastive_stage(recipe, opened, make, output_dir, data_dir)
        else:
            model, processor = build_captioner(recipe)
            if PartialState().is_main_process and not (output_dir / RECORD).exists():
                write_json(output_dir / BASE, base_facts(recipe.clap, checkpoint_path(recipe.clap)))
            held_out = opened.held_out if opened else [stream_rows(source_of(recipe.validation, "validation"), given)]
            validation = CaptionValidation(held_out, processor, recipe.validation_clips)
            stage = CaptioningStage(model, processor, make(processor), validation, validation.metrics)
    first = isinstance(recipe, ContrastiveRecipe) and recipe.weights is not None
    return train(
        stage,
        recipe,
        output_dir,
        resume=resume,
        trackers=trackers,
        push=push,
        facts=facts,
        evaluate_first=first,
    )


def _contrastive_stage(
    recipe: ContrastiveRecipe,
    opened: OpenPairs | None,
    make: Callable[[MSClapProcessor], Batches],
    output_dir: Path,
    data_dir: Path | None,
) -> ContrastiveStage:
    model, processor = build_model(recipe)
    if recipe.weights is not None and PartialState().is_main_process and not (output_dir / RECORD).exists():
        folder = resolve(recipe.weights)
        _keep_history(Path(folder).parent, output_dir)
        temperature = float(torch.exp(-model.logit_scale.detach()))
        write_json(output_dir / BASE, base_facts(recipe.weights, folder, temperature))
    model = model.to(memory_format=torch.channels_last)  # CNN14's convolutions are a third faster so
    data = make(processor)
    held_out: PairValidation | CorpusValidation
    if opened is not None:
        held_out = PairValidation(opened.held_out, processor, recipe, opened.labels)
    else:
        held_out = CorpusValidation(load_split(recipe.dataset, "validation"), processor, recipe)
    teacher = None
    if recipe.teacher is not None:
        ids = load_split(recipe.dataset, recipe.split)["id"][:]
        teacher = load_features(recipe.teacher.features, ids)
    tasks = None
    if recipe.evaluation_tasks is not None:
        tasks = PaperTaskValidation(recipe.evaluation_tasks, processor, data_dir, output_dir / "evaluation")

    def evaluate(trained: MSClapModel) -> dict[str, Any]:
        results = held_out(trained) if PartialState().is_main_process else {}
        return results if tasks is None else results | tasks(trained)

    metrics = (*held_out.metrics, *(tasks.metrics if tasks else ()))
    return ContrastiveStage(model, processor, recipe, data, evaluate, teacher, metrics)


def _prompt_stage(recipe: PromptRecipe, num_workers: int) -> PromptStage:
    model, processor = build_prompt_model(recipe)
    train_rows, held_out = (
        PromptDataset(load_streams(recipe, split), processor.feature_extractor, recipe.seed)
        for split in ("train", "validation")
    )
    collate = PromptCollator(processor.tokenizer)
    data = balanced_batches(train_rows, train_rows.weights(recipe.balance), collate, recipe, num_workers)
    validation = PromptValidation(held_out, processor, recipe.validation_clips)
    return PromptStage(model, processor, data, validation, validation.metrics)


def _pair_batches(
    recipe: ContrastiveRecipe | CaptioningRecipe,
    opened: OpenPairs | None,
    output_dir: Path,
    num_workers: int,
    cache_dir: Path | None,
    given: Given | None,
    processor: MSClapProcessor,
) -> Batches:
    """Batches of the recipe's `dataset` or `sources`."""
    if opened is not None:
        return pair_batches(recipe, opened, processor, num_workers, given)
    is_corpus = is_parquet(StreamSource(recipe.dataset))
    rows = load_split(recipe.dataset, recipe.split) if is_corpus else None
    columns = {"audio", "captions", "label", "category", "source"}
    if rows is None or columns - set(rows.column_names):
        raise ValueError(
            f"dataset is {recipe.dataset!r}, expected a sound corpus: parquet files with the columns "
            f"{sorted(columns)}. Name pairs of your own under 'sources' (--sources), or pass them to clap-hf finetune."
        )
    return corpus_batches(
        rows,
        processor,
        recipe,
        template=recipe.template if isinstance(recipe, ContrastiveRecipe) else "{}",
        template_probability=recipe.template_probability if isinstance(recipe, ContrastiveRecipe) else 0.0,
        num_workers=num_workers,
        cache_dir=cache_dir or output_dir / LOG_MELS,
    )


def _keep_history(run: Path, output_dir: Path) -> None:
    """Copy the records of the run that a run goes on from, and of those before it, into its folder, for its card."""
    files = [run / name for name in (EARLIER, RECORD) if (run / name).is_file()]
    if files:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_text(output_dir / EARLIER, "".join(file.read_text(encoding="utf-8") for file in files))
