"""Tasks of the sound corpus whose clips are decoded once and scored after every epoch of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from rich.progress import track
from transformers import BatchFeature

from ..audio import load_stored_audio, read_ahead
from ..cards.results import rows_of
from ..embedding import embed_clips
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor
from .loading import AudioColumn
from .sound_tasks import corpus_tasks
from .task_scores import EmbedTexts, class_texts, score_classification, score_retrieval


class CorpusClips:
    """The scored tasks of a split with the log-mels of their clips, decoded once, to be measured after every epoch.

    Args:
        split: A split of the sound corpus.
        processor: Its feature extractor's inference policies apply.

    Attributes:
        rows: Corpus rows of the clips, without audio.
        skipped: Ids of clips that could not be decoded, with the reason.
    """

    def __init__(self, split: datasets.Dataset, processor: MSClapProcessor):
        rows, audio = split.remove_columns("audio").to_list(), AudioColumn(split, "audio")
        tasks = [(task, data) for task, data in corpus_tasks(rows, audio) if task.scored and data.rows]
        needed = sorted({i for _, data in tasks for i in data.rows})
        skipped: dict[int, str] = {}

        def read(i: int) -> BatchFeature:
            sound = load_stored_audio(audio[i])
            return processor.feature_extractor([sound.samples], sound.sampling_rate)

        inputs = dict(read_ahead(track(needed, description="Decoding clips"), read, skipped))
        if not inputs:
            raise ValueError(f"None of {len(needed)} clips of the corpus' tasks can be read, expected one at least.")
        position = {i: clip for clip, i in enumerate(inputs)}  # row of the split -> clip
        self.skipped = {rows[i]["id"]: reason for i, reason in skipped.items()}
        self.rows = [rows[i] for i in position]
        self._features = [own["input_features"][0] for own in inputs.values()]
        self._tasks = [
            (task, data.select([k for k, i in enumerate(data.rows) if i in position])) for task, data in tasks
        ]
        self._clips = [[position[i] for i in data.rows] for _, data in self._tasks]

    def embed(self, model: MSClapModel) -> torch.Tensor:
        """Unit vectors of all clips, `[clips, projection_dim]`, float32 on the CPU."""
        return embed_clips(model, self._features)

    def results(self, audio: torch.Tensor, embed_texts: EmbedTexts) -> dict[str, dict[str, Any]]:
        """Results by task; retrieval gives one for R@1 and one for R@10 of each direction.

        Args:
            audio: Unit vectors of all clips, see `embed`.
            embed_texts: Embeds texts.
        """
        results: dict[str, dict[str, Any]] = {}
        for (task, data), clips in zip(self._tasks, self._clips, strict=True):
            vectors = audio[clips].numpy()
            if task.kind == "classification":
                found, _ = score_classification(task, data, vectors, class_texts(task, data.classes), embed_texts)
            else:
                found, _ = score_retrieval(task, data, vectors, embed_texts)
            results |= {row["task"]: row for row in rows_of({"task": task.name} | found)}
        return results


def zero_shot_score(results: Mapping[str, Mapping[str, Any]]) -> float:
    """Mean of the tasks' values: the paper's zero-shot score, over the tasks at hand."""
    return float(np.mean([result["value"] for result in results.values()]))
