"""Evaluations after an epoch: zero-shot tasks of the sound corpus or the paper, retrieval among held-out pairs."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from huggingface_hub.constants import HF_HOME
from rich.console import Console

from ..data.source import RowError
from ..data.stream import CROP_ONLY, make_example
from ..embedding import ClapEncoder, embed_texts
from ..evaluation import scoring
from ..evaluation.benchmarks import SUITES
from ..evaluation.corpus_clips import CorpusClips, zero_shot_score
from ..evaluation.loading import DataLocation
from ..evaluation.runner import EvaluationOptions, find_locations, paper_jobs, run
from ..model.modeling_msclap import MSClapModel, contrastive_loss
from ..model.processing_msclap import MSClapProcessor
from .inputs import HeldOut
from .recipe import ContrastiveRecipe

CLIPS_PER_BATCH = 32


def validation_loss(model: MSClapModel, audio: torch.Tensor, text: torch.Tensor, batch_size: int) -> float:
    """Mean symmetric contrastive loss over batches of held-out pairs, in their order.

    Args:
        model: Its logit scale applies.
        audio: Unit vectors `[pairs, dim]`.
        text: Unit vectors `[pairs, dim]`.
        batch_size: Pairs that are compared with each other; a smaller rest is left out if there is a whole batch.
    """
    size = min(batch_size, len(audio))
    whole = len(audio) // size * size
    with torch.inference_mode():
        losses = [
            contrastive_loss(model.compute_similarity(a.to(model.device), t.to(model.device)).t()).item()
            for a, t in zip(audio[:whole].split(size), text[:whole].split(size), strict=True)
        ]
    return float(np.mean(losses))


class CorpusValidation:
    """Zero-shot score on a split in the layout of the sound corpus, with every task's value, and the loss there.

    Args:
        split: The split.
        processor: The model's processor.
        recipe: Its batch size is the loss's.
    """

    def __init__(self, split: datasets.Dataset, processor: MSClapProcessor, recipe: ContrastiveRecipe):
        self.processor, self.recipe = processor, recipe
        self.metrics = ("zero_shot_score", "validation_loss")
        self.clips = CorpusClips(split, processor)

    def __call__(self, model: MSClapModel) -> dict[str, Any]:
        def embed(texts: list[str]) -> torch.Tensor:
            return embed_texts(model, self.processor.tokenizer, texts).cpu()

        audio = self.clips.embed(model)
        results = self.clips.results(audio, embed)
        text = embed([row["captions"][0] for row in self.clips.rows])
        # In an order that does not put the clips of a class side by side.
        order = np.random.default_rng(self.recipe.seed).permutation(len(audio))
        return {
            "zero_shot_score": zero_shot_score(results),
            "validation_loss": validation_loss(model, audio[order], text[order], self.recipe.batch_size),
            "validation": {name: result["value"] for name, result in results.items()},
        }


class PairValidation:
    """Retrieval among held-out pairs, in both directions, the loss there, and the accuracy of labels.

    Args:
        held_out: Sources with their rows; the first ones are decoded once, with a fixed choice of crop and text.
        processor: The model's processor.
        recipe: Its number of pairs, and its batch size, which is the loss's.
        labels: Texts of all labels, among which the held-out sounds are classified; none where texts are no labels.

    Attributes:
        metrics: Names of the results that a recipe may choose by.

    Raises:
        ValueError: If fewer than two pairs can be read.
    """

    def __init__(
        self,
        held_out: Sequence[HeldOut],
        processor: MSClapProcessor,
        recipe: ContrastiveRecipe,
        labels: Sequence[str] = (),
    ):
        self.processor, self.recipe, self.labels = processor, recipe, list(labels)
        self.metrics = ("recall_at_10", "validation_loss", *(("accuracy",) if labels else ()))
        extractor = processor.feature_extractor
        self.texts: list[str] = []
        self.answers: list[list[str]] = []
        features, reasons = [], []
        rows = ((source, row) for source, rows in held_out for row in rows)
        for number, (source, row) in enumerate(itertools.islice(rows, recipe.validation_pairs)):
            try:
                example = make_example(row, str(number), source, extractor, CROP_ONLY, np.random.default_rng(number))
            except RowError as error:
                reasons.append(f"{source.name_of(row, number)}: {error}")
                continue
            self.texts.append(example.text)
            self.answers.append(source.read_texts(row))
            features.append(extractor.log_mel(torch.from_numpy(example.waveform)))
        if len(features) < 2:
            names = ", ".join(f"{source.dataset}, {source.split}" for source, _ in held_out)
            first = f"; the first that cannot be read, {reasons[0]}" if reasons else ""
            raise ValueError(f"{names}: {len(features)} readable pairs, expected at least 2{first}")
        self.features = torch.stack(features)[:, None]

    def __call__(self, model: MSClapModel) -> dict[str, Any]:
        with torch.inference_mode():
            batches = self.features.split(CLIPS_PER_BATCH)
            audio = torch.cat([model.get_audio_features(b.to(model.device)).pooler_output.cpu() for b in batches])
        text = embed_texts(model, self.processor.tokenizer, self.texts).cpu()
        similarity = (F.normalize(text, dim=-1) @ audio.t()).numpy()
        relevant = scoring.answers([[text] for text in self.texts])
        found = {
            "text_to_audio": scoring.rank_all(lambda start, end: similarity[start:end], relevant.of_captions),
            "audio_to_text": scoring.rank_all(lambda start, end: similarity.T[start:end], relevant.of_clips),
        }
        recalls = {
            f"{name}_R@{k}": float(scoring.retrieval(ranks).recall[k].mean())
            for name, ranks in found.items()
            for k in (1, 10)
        }
        result = {
            "recall_at_10": (recalls["text_to_audio_R@10"] + recalls["audio_to_text_R@10"]) / 2,
            "validation_loss": validation_loss(model, audio, text, self.recipe.batch_size),
            "validation": recalls,
            "held_out_clips": len(self.texts),
        }
        if self.labels:
            classes = F.normalize(embed_texts(model, self.processor.tokenizer, self.labels).cpu(), dim=-1)
            chosen = (audio @ classes.t()).argmax(dim=1).tolist()
            right = [self.labels[i] in own for i, own in zip(chosen, self.answers, strict=True)]
            result["accuracy"] = recalls["accuracy"] = float(np.mean(right))
        return result


class PaperTaskValidation:
    """Zero-shot tasks of the paper; the score is the mean over the tasks whose clips are in reach.

    Runs on all ranks together.

    Args:
        suite: `"table1"` or `"paper"`.
        processor: The model's processor.
        data_dir: Folder of CSVs and sounds for tasks without a copy on the Hub, see the evaluation command.
        work_dir: Gets the last epoch's results.

    Raises:
        ValueError: If no task is in reach.
    """

    def __init__(self, suite: str, processor: MSClapProcessor, data_dir: Path | None, work_dir: Path):
        self.processor, self.work_dir = processor, work_dir
        self.metrics = ("zero_shot_score", "tasks_scored")
        tasks = [task for task in SUITES[suite] if task.kind != "captioning"]
        self.jobs = paper_jobs(tasks, data_dir, Path(HF_HOME) / "clap_hf")
        self.found = find_locations(self.jobs)
        if not any(isinstance(location, DataLocation) for found in self.found for location in found):
            raise ValueError(
                f"None of the {len(tasks)} tasks of {suite!r} is in reach. Pass a data folder, or leave "
                "evaluation_tasks out of the recipe."
            )

    def __call__(self, model: MSClapModel) -> dict[str, Any]:
        encoder = ClapEncoder(model, self.processor)
        options = EvaluationOptions(output_dir=self.work_dir, cache_dir=self.work_dir, plots=False, overwrite=True)
        outcomes = run(self.jobs, self.found, encoder, None, options, Console(quiet=True))
        if not PartialState().is_main_process:
            return {}
        # Of this epoch's weights: of no use to the next.
        shutil.rmtree(self.work_dir / "embeddings", ignore_errors=True)
        values = {o.task.name: o.result["value"] for o in outcomes if o.result and o.result["value"] is not None}
        if not values:
            reasons = "; ".join(f"{o.task.name}: {o.reason}" for o in outcomes)
            raise RuntimeError(f"No task could be scored ({reasons}).")
        return {
            "zero_shot_score": float(np.mean(list(values.values()))),
            "tasks_scored": len(values),
            "tasks": values,
        }
