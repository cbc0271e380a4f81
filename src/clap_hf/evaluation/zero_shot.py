"""Zero-shot evaluation on the sound corpus (paper Section 2.3): embed once, compare, score with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track

from ..audio import AudioDecodeError, load_audio
from ..model.modeling_msclap import MSClapModel, mean_over_windows
from ..model.processing_msclap import MSClapProcessor
from .sound_tasks import CLASSIFICATION_TASKS, RETRIEVAL_SOURCE, select_clips

BOOTSTRAP_SAMPLES = 2000
BOOTSTRAP_SEED = 0
WINDOWS_PER_BATCH = 32


@dataclass(frozen=True)
class EvaluationClips:
    """Log-mel windows and metadata of the clips that the tasks of a split need.

    Args:
        rows: Corpus rows without audio, in the order of the clips.
        input_features: `[windows, 1, frames, mel]`, dB.
        num_windows: Windows of each clip `[clips]`.
        classes: Per classification task, the class of every clip that belongs to it, by index into `rows`.
        skipped: Ids of clips that could not be decoded, with the reason.
    """

    rows: list[dict[str, Any]]
    classes: dict[str, dict[int, str]]
    input_features: torch.Tensor
    num_windows: torch.Tensor
    skipped: dict[str, str]


def load_clips(
    split: datasets.Dataset, processor: MSClapProcessor, max_per_class: int | None = None
) -> EvaluationClips:
    """Decode the clips that any task needs and make their log-mels, once per run.

    Args:
        split: A split of the sound corpus.
        processor: Its feature extractor's inference policies apply.
        max_per_class: Take at most this many clips per class and task, for quick evaluations in training.
    """
    rows = split.remove_columns("audio").to_list()
    chosen = {task.name: select_clips(task, rows, max_per_class) for task in CLASSIFICATION_TASKS}
    needed = {i for i, row in enumerate(rows) if row["source"] == RETRIEVAL_SOURCE}.union(*chosen.values())
    encoded = split.cast_column("audio", datasets.Audio(decode=False))
    position: dict[int, int] = {}  # row of the split -> clip
    features, counts, skipped = [], [], {}
    for i in track(sorted(needed), description="Decoding clips"):
        try:
            audio = load_audio(encoded[i]["audio"]["bytes"])
            inputs = processor.feature_extractor(audio.samples, audio.sampling_rate)
        except (AudioDecodeError, ValueError) as error:
            skipped[rows[i]["id"]] = str(error)
            continue
        position[i] = len(position)
        features.append(inputs["input_features"])
        counts.append(inputs["num_windows"])
    classes = {
        task: {position[i]: name for i, name in members.items() if i in position} for task, members in chosen.items()
    }
    return EvaluationClips([rows[i] for i in position], classes, torch.cat(features), torch.cat(counts), skipped)


@torch.inference_mode()
def embed_clips(model: MSClapModel, clips: EvaluationClips) -> torch.Tensor:
    """Unit vectors of all clips, `[clips, projection_dim]`, float32 on the CPU."""
    windows = []
    for batch in clips.input_features.split(WINDOWS_PER_BATCH):
        windows.append(model.get_audio_features(batch.to(model.device)).pooler_output.float().cpu())
    return F.normalize(mean_over_windows(torch.cat(windows), clips.num_windows), dim=-1)


@torch.inference_mode()
def embed_texts(model: MSClapModel, processor: MSClapProcessor, texts: list[str]) -> torch.Tensor:
    """Unit vectors of texts, `[texts, projection_dim]`, float32 on the CPU."""
    vectors = []
    for start in range(0, len(texts), 64):
        tokens = processor(text=texts[start : start + 64]).to(model.device)
        vectors.append(model.get_text_features(**tokens).pooler_output.float().cpu())
    return torch.cat(vectors)


def bootstrap_interval(hits: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over clips, by resampling clips with a fixed seed."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means = hits[rng.integers(0, len(hits), (BOOTSTRAP_SAMPLES, len(hits)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _metric(hits: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap_interval(hits)
    return {"value": float(hits.mean()), "low": low, "high": high}


def classify(
    model: MSClapModel, processor: MSClapProcessor, clips: EvaluationClips, audio: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """Score every classification task that the clips cover.

    Returns:
        By task name: `metric` ("accuracy"), `value` with its 95 % interval `low` and `high`, `balanced` accuracy,
        `clips`, `classes`, `chance`, and the clips and accuracy of every class.
    """
    results: dict[str, dict[str, Any]] = {}
    for task in CLASSIFICATION_TASKS:
        chosen = clips.classes[task.name]
        if not chosen:
            continue
        names = sorted(set(chosen.values()))
        texts = [task.texts(name) for name in names]
        vectors = embed_texts(model, processor, [text for group in texts for text in group])
        prototypes = torch.stack([part.mean(dim=0) for part in vectors.split([len(group) for group in texts])])
        predicted = (audio[list(chosen)] @ F.normalize(prototypes, dim=-1).t()).argmax(dim=1)
        truth = np.array([names.index(name) for name in chosen.values()])
        hits = (predicted.numpy() == truth).astype(float)
        per_class = {
            name: {"clips": int((truth == k).sum()), "accuracy": float(hits[truth == k].mean())}
            for k, name in enumerate(names)
        }
        results[task.name] = {
            "metric": "accuracy",
            **_metric(hits),
            "balanced": float(np.mean([c["accuracy"] for c in per_class.values()])),
            "clips": len(hits),
            "classes": len(names),
            "chance": 1 / len(names),
            "per_class": per_class,
        }
    return results


def retrieve(
    model: MSClapModel, processor: MSClapProcessor, clips: EvaluationClips, audio: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """R@1 and R@10 in both directions on the clips with captions written by people; ties count against the model."""
    chosen = [i for i, row in enumerate(clips.rows) if row["source"] == RETRIEVAL_SOURCE]
    if not chosen:
        return {}
    captions = embed_texts(model, processor, [clips.rows[i]["captions"][0] for i in chosen])
    similarity = captions @ audio[chosen].t()
    results = {}
    for direction, matrix in (("text to audio", similarity), ("audio to text", similarity.t())):
        rank = (matrix >= matrix.diagonal()[:, None]).sum(dim=1) - 1
        for k in (1, 10):
            hits = (rank < k).numpy().astype(float)
            results[f"{direction} R@{k}"] = {
                "metric": f"R@{k}",
                **_metric(hits),
                "clips": len(chosen),
                "chance": min(1.0, k / len(chosen)),
            }
    return results


def evaluate(model: MSClapModel, processor: MSClapProcessor, clips: EvaluationClips) -> dict[str, dict[str, Any]]:
    """All tasks that the clips cover; see `classify` and `retrieve`."""
    was_training = model.training
    model.eval()
    audio = embed_clips(model, clips)
    results = classify(model, processor, clips, audio) | retrieve(model, processor, clips, audio)
    model.train(was_training)
    return results


def zero_shot_score(results: dict[str, dict[str, Any]]) -> float:
    """Mean of the tasks' values (the paper's Zero-Shot score, over the tasks at hand)."""
    return float(np.mean([result["value"] for result in results.values()]))
