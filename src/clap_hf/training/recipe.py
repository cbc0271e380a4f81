"""A training recipe: everything that decides a run, in one YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..data.augment import Augmentation
from .settings import TrainingSettings


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
class Recipe(TrainingSettings):
    """Everything that decides a contrastive run; see `TrainingSettings` for what all stages share.

    Args:
        dataset: Folder or Hub id with `train` and `validation` splits in the layout of the sound corpus. Empty where
            `sources` names others.
        split: What of it is trained on; `train+validation` for a last run, whose settings were chosen without the
            latter and whose `best_metric` is `step`.
        sources: Datasets of pairs in parquet files, streamed; settings of `StreamSource` each, or `source`, the name
            of one of the paper's training sets, beside settings that differ from its own.
        validation: Held-out pairs for streamed training, in the same form, of the split `validation` unless it says
            otherwise; the corpus has its own.
        validation_pairs: How many of these are used.
        streaming: `"exact"` (shuffled by a plan, resumed at once) or `"simple"` (one source, any format, a shuffle
            buffer, resumed by reading again).
        lanes: Of the plan, see `clap_hf.data.plan.Plan`.
        window: Row groups that a lane mixes.
        audio: Settings of `MSClapAudioConfig`.
        features: Settings of `MSClapFeatureExtractor`.
        text: The text tower.
        model: Settings of `MSClapConfig` itself (projection, logit scale).
        loss: `"contrastive"` (paper Eq. 4), `"multi_positive"` or `"sigmoid"`.
        mask_shared: Whether pairs that share a clip or a text are taken out of the negatives.
        text_bank: Whether clips are compared with all texts of the training set instead of the batch's; needs a frozen
            text tower.
        chunk_size: Pairs that go through the towers at once, with the loss still over the whole batch (gradient
            caching); `"auto"` chooses by the free memory, None takes this process's share of the batch whole.
        batch_norm: What CNN14's BatchNorm layers do where a batch is seen in chunks; see `prepare_batch_norm`.
        template_probability: How often a clip's label in the zero-shot template replaces its caption.
        balance: Exponent of class balancing: a clip's weight is (clips of its group) ** -balance.
        category_weights: Factors on the sampling weight by category.
        augmentation: Random changes of training clips; None leaves them as they are.
    """

    audio: dict[str, Any]
    features: dict[str, Any]
    text: TextTower
    dataset: str = ""
    split: str = "train"
    sources: list[dict[str, Any]] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    validation_pairs: int = 1000
    streaming: str = "exact"
    lanes: int | None = None
    window: int = 2
    model: dict[str, Any] = field(default_factory=dict)
    loss: str = "multi_positive"
    mask_shared: bool = False
    text_bank: bool = False
    chunk_size: int | str | None = None
    batch_norm: str = "exact"
    template_probability: float = 0.3
    balance: float = 0.5
    category_weights: dict[str, float] = field(default_factory=dict)
    augmentation: Augmentation | None = field(default_factory=Augmentation)


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"{where} has unknown settings {unknown}, expected some of {[f.name for f in fields(cls)]}.")
    return cls(**values)


def load_recipe(path: str | Path, **overrides: Any) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: Top-level settings that replace the file's; None values are ignored.

    Raises:
        ValueError: If a setting is unknown or the text tower is given neither or both ways.
    """
    values = yaml.safe_load(Path(path).read_text())
    values |= {name: value for name, value in overrides.items() if value is not None}
    values["text"] = _build(TextTower, values.get("text", {}), f"{path}: text")
    augmentation = values.get("augmentation", {})
    values["augmentation"] = (
        None if augmentation is None else _build(Augmentation, augmentation, f"{path}: augmentation")
    )
    if "epochs" in values:
        values.setdefault("steps", None)
    recipe = _build(Recipe, values, str(path))
    if (recipe.text.pretrained is None) == (recipe.text.config is None):
        raise ValueError(f"{path}: text needs exactly one of 'pretrained' and 'config'.")
    if recipe.loss not in LOSSES:
        raise ValueError(f"{path}: loss is {recipe.loss!r}, expected one of {LOSSES}.")
    if bool(recipe.dataset) == bool(recipe.sources):
        raise ValueError(f"{path}: expected exactly one of 'dataset' and 'sources'.")
    if recipe.sources and not recipe.validation:
        raise ValueError(f"{path}: streamed training needs 'validation', a dataset of held-out pairs.")
    if recipe.streaming not in ("exact", "simple") or (recipe.streaming == "simple" and len(recipe.sources) != 1):
        raise ValueError(
            f"{path}: streaming is {recipe.streaming!r} with {len(recipe.sources)} sources, expected 'exact', or "
            "'simple' with one source."
        )
    if recipe.mask_shared and recipe.dataset:
        raise ValueError(f"{path}: mask_shared needs 'sources'; with 'dataset', use loss: multi_positive.")
    if recipe.text_bank and not recipe.text.freeze:
        raise ValueError(f"{path}: text_bank needs text.freeze: the texts are encoded once.")
    return recipe
