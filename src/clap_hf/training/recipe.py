"""A training recipe: everything that decides a run, in one YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..data.augment import Augmentation
from .settings import StreamedSettings, read_settings
from .teacher import Teacher


@dataclass(frozen=True)
class TextTower:
    """The text tower of a recipe.

    Args:
        pretrained: Local folder, Hub id or `package:NAME/FOLDER` of a pretrained model, or None to train from scratch.
        config: Configuration (with `model_type`) of a text tower trained from scratch.
        tokenizer: Local folder or Hub id; the pretrained model's own when None.
        pooling: `MSClapConfig.text_pooling`; by model type when None.
        max_length: Longest text, tokens.
        freeze: Whether the tower's weights stay as they are.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    pooling: str | None = None
    max_length: int = 77
    freeze: bool = False


LOSSES = ("multi_positive", "contrastive", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(StreamedSettings):
    """Everything that decides a contrastive run; see `TrainingSettings` and `StreamedSettings` for what stages share.

    Args:
        dataset: Folder or Hub id with `train` and `validation` splits in the layout of the sound corpus. Empty where
            `sources` names others.
        split: What of it is trained on; `train+validation` for a last run, whose settings were chosen without the
            latter and whose `best_metric` is `step`.
        validation_pairs: How many of the held-out pairs are used; the corpus has its own split.
        evaluation_tasks: Zero-shot tasks of the paper that every epoch is judged by: `"table1"` (16, the paper's
            score), `"paper"` (26) or None.
        audio: Settings of `MSClapAudioConfig`.
        audio_tower: Folder or Hub id of a model whose trained audio tower is taken, such as one that multi-task
            pretraining left (HTSAT-22, paper Section 2.2); of the sizes in `audio`, and hearing what `features` says.
        weights: Folder, Hub id or `package:NAME/FOLDER` of a trained model to go on from: a longer run, or fine-tuning
            on other sounds. It brings its sizes and its processor, so that `audio`, `features` and `model` may be left
            out; of `text`, only `freeze` counts.
        features: Settings of `MSClapFeatureExtractor`.
        text: The text tower.
        model: Settings of `MSClapConfig` itself (projection, logit scale).
        loss: `"contrastive"` (paper Eq. 4), `"multi_positive"` or `"sigmoid"`.
        mask_shared: Whether pairs that share a clip or a text are taken out of the negatives.
        text_bank: Whether clips are compared with all texts of the training set instead of the batch's; needs a frozen
            text tower.
        teacher: Another audio network whose features of the clips the audio tower learns to predict besides; needs
            `text_bank`.
        chunk_size: Pairs that go through the towers at once, with the loss still over the whole batch (gradient
            caching); `"auto"` chooses by the free memory, None takes this process's share of the batch whole.
        batch_norm: What CNN14's BatchNorm layers do where a batch is seen in chunks; see `prepare_batch_norm`.
        template_probability: How often a clip's label in the zero-shot template replaces its caption.
        balance: Exponent of class balancing: a clip's weight is (clips of its label) ** -balance.
        source_balance: The same among the sources of a label; see `PairDataset.weights`.
        category_weights: Factors on the sampling weight by category.
    """

    audio: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    text: TextTower = field(default_factory=TextTower)
    audio_tower: str | None = None
    weights: str | None = None
    dataset: str = ""
    split: str = "train"
    validation_pairs: int = 1000
    evaluation_tasks: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    loss: str = "multi_positive"
    mask_shared: bool = False
    text_bank: bool = False
    teacher: Teacher | None = None
    chunk_size: int | str | None = None
    batch_norm: str = "exact"
    template_probability: float = 0.3
    balance: float = 0.5
    source_balance: float = 0.0
    category_weights: dict[str, float] = field(default_factory=dict)
    augmentation: Augmentation | None = field(default_factory=Augmentation)


def combinations_of(path: str | Path) -> list[str]:
    """Names of the combinations of encoders that a recipe lists; empty if it is a recipe of one."""
    return list(yaml.safe_load(Path(path).read_text()).get("combinations", {}))


def load_recipe(path: str | Path, combination: str | None = None, **overrides: Any) -> ContrastiveRecipe:
    """Read a recipe.

    Args:
        path: YAML file.
        combination: Where the file lists several under `combinations`, which of them: its settings replace the file's.
        overrides: Top-level settings that replace the file's; None values are ignored. An empty `audio_tower` trains
            it from scratch.

    Raises:
        ValueError: If a setting is unknown, the text tower is given neither or both ways, or the combination is
            missing or not there.
    """
    values = yaml.safe_load(Path(path).read_text())
    combinations = values.pop("combinations", {})
    if combinations or combination is not None:
        if combination is None or combination not in combinations:
            raise ValueError(f"{path}: combination is {combination!r}, expected one of {list(combinations)}.")
        values |= combinations[combination]
        values["name"] = f"{values['name']}-{combination.lower().replace('+', '-')}"
    values.setdefault("text", {})
    parts = {"text": TextTower, "augmentation": Augmentation, "teacher": Teacher}
    recipe = read_settings(ContrastiveRecipe, path, values, parts, overrides)
    try:
        _check(recipe)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return replace(recipe, audio_tower=recipe.audio_tower or None)


def _check(recipe: ContrastiveRecipe) -> None:
    """Settings that a run needs, and that must go together; a step alone can do without some."""
    if recipe.weights is None and (recipe.text.pretrained is None) == (recipe.text.config is None):
        raise ValueError("text needs exactly one of 'pretrained' and 'config'.")
    if recipe.audio_tower and recipe.weights:
        raise ValueError("expected at most one of 'audio_tower' and 'weights', which holds an audio tower too.")
    if recipe.loss not in LOSSES:
        raise ValueError(f"loss is {recipe.loss!r}, expected one of {LOSSES}.")
    if bool(recipe.dataset) == bool(recipe.sources):
        raise ValueError("expected exactly one of 'dataset' and 'sources'.")
    if recipe.sources and not recipe.validation:
        raise ValueError("streamed training needs 'validation', a dataset of held-out pairs.")
    if recipe.evaluation_tasks not in (None, "table1", "paper"):
        raise ValueError(f"evaluation_tasks is {recipe.evaluation_tasks!r}, expected 'table1' or 'paper'.")
    if recipe.mask_shared and recipe.dataset:
        raise ValueError("mask_shared needs 'sources'; with 'dataset', use loss: multi_positive.")
    if recipe.text_bank and not recipe.text.freeze:
        raise ValueError("text_bank needs text.freeze: the texts are encoded once.")
    if recipe.teacher is not None and not recipe.text_bank:
        raise ValueError("teacher needs text_bank, and with it one process and a dataset in the corpus' layout.")
