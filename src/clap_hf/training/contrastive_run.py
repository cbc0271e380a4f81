"""From a recipe to a contrastive run: model, data, evaluation, loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState

from ..atomic_io import write_text
from ..cards import EARLIER
from ..data.registry import source_of
from ..hub import BackgroundPush
from ..model.modeling_msclap import MSClapModel
from .contrastive_stage import ContrastiveStage, PairBatches
from .factory import build_model, resolve
from .inputs import LOG_MELS, CorpusDraws, corpus_batches, streamed_batches
from .loop import make_accelerator, train
from .recipe import ContrastiveRecipe
from .records import RECORD
from .teacher import load_features
from .validation import CorpusValidation, PairValidation, PaperTaskValidation

EVALUATION = "evaluation"


def train_contrastive(
    recipe: ContrastiveRecipe,
    output_dir: Path,
    *,
    resume: bool = False,
    num_workers: int = 1,
    trackers: Sequence[str] = (),
    cache_dir: Path | None = None,
    data_dir: Path | None = None,
    push: BackgroundPush | None = None,
) -> dict[str, Any]:
    """Train CLAP by a recipe; see `clap_hf.training.loop.train` for the folder, resuming, trackers and errors.

    Args:
        recipe: What to train.
        output_dir: The run's folder.
        resume: Continue the run that is there.
        num_workers: Loader processes.
        trackers: Trackers, by the names that Accelerate knows.
        cache_dir: Where the log-mels of a corpus' clips are kept, for several runs to share; `log-mels/` of the run's
            folder when None.
        data_dir: Folder of CSVs and sounds for the paper's tasks, where the recipe evaluates by these.
        push: Uploads epochs while training goes on.

    Returns:
        The record of the best epoch.
    """
    make_accelerator(recipe)  # starts the process group, before anything asks how many processes there are
    model, processor = build_model(recipe)
    if recipe.weights is not None and PartialState().is_main_process and not (output_dir / RECORD).exists():
        _keep_history(Path(resolve(recipe.weights)).parent, output_dir)
    model = model.to(memory_format=torch.channels_last)  # CNN14's convolutions are a third faster so
    data: PairBatches
    judge: PairValidation | CorpusValidation
    teacher = None
    if recipe.sources:
        data = streamed_batches(recipe, processor, num_workers)
        judge = PairValidation(source_of(recipe.validation, "validation"), processor, recipe)
    else:
        rows = datasets.load_dataset(recipe.dataset, split=recipe.split)
        held_out = datasets.load_dataset(recipe.dataset, split="validation")
        data = corpus_batches(
            rows,
            processor,
            recipe,
            CorpusDraws(recipe.balance, recipe.category_weights, recipe.source_balance, recipe.template_probability),
            num_workers,
            cache_dir or output_dir / LOG_MELS,
        )
        judge = CorpusValidation(held_out, processor, recipe)
        if recipe.teacher is not None:
            teacher = load_features(recipe.teacher.features, rows["id"][:])
    tasks = None
    if recipe.evaluation_tasks is not None:
        tasks = PaperTaskValidation(recipe.evaluation_tasks, processor, data_dir, output_dir / EVALUATION)

    def evaluate(trained: MSClapModel) -> dict[str, Any]:
        results = judge(trained) if PartialState().is_main_process else {}
        return results if tasks is None else results | tasks(trained)

    task = ContrastiveStage(model, processor, recipe, data, evaluate, teacher)
    return train(task, recipe, output_dir, resume=resume, trackers=trackers, push=push)


def _keep_history(run: Path, output_dir: Path) -> None:
    """Put the records of the run that a run goes on from, and of those before it, into its folder, for its card."""
    files = [run / name for name in (EARLIER, RECORD) if (run / name).is_file()]
    if files:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_text(output_dir / EARLIER, "".join(file.read_text(encoding="utf-8") for file in files))
