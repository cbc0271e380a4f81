"""A training recipe: everything that decides a run, in one YAML file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..data.augment import Augmentation


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


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a contrastive run.

    Args:
        name: Name of the run.
        dataset: Folder or Hub id with `train` and `validation` splits in the layout of the sound corpus.
        audio: Settings of `MSClapAudioConfig`.
        features: Settings of `MSClapFeatureExtractor`.
        text: The text tower.
        model: Settings of `MSClapConfig` itself (projection, logit scale).
        loss: `"multi_positive"` or `"contrastive"` (paper Eq. 4).
        text_bank: Whether clips are compared with all texts of the training set instead of the batch's; needs a frozen
            text tower.
        batch_size: Pairs per step and process.
        steps: Optimiser steps.
        steps_per_epoch: Steps between evaluations.
        learning_rate: Peak rate.
        weight_decay: Decoupled weight decay of matrices.
        warmup_steps: Steps of linear warm-up; a cosine to zero follows.
        max_grad_norm: Gradient norm is clipped here.
        ema_decay: Decay of the averaged weights that are evaluated and kept; 0 keeps the last weights.
        template_probability: How often a clip's label in the zero-shot template replaces its caption.
        balance: Exponent of class balancing: a clip's weight is (clips of its group) ** -balance.
        category_weights: Factors on the sampling weight by category.
        augmentation: Random changes of training clips.
        precision: Accelerate's mixed precision, `"no"` or `"bf16"`.
        seed: Source of every random choice.
    """

    name: str
    dataset: str
    audio: dict[str, Any]
    features: dict[str, Any]
    text: TextTower
    model: dict[str, Any] = field(default_factory=dict)
    loss: str = "multi_positive"
    text_bank: bool = False
    batch_size: int = 64
    steps: int = 1000
    steps_per_epoch: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    max_grad_norm: float = 1.0
    ema_decay: float = 0.995
    template_probability: float = 0.3
    balance: float = 0.5
    category_weights: dict[str, float] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: str = "no"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, for run records."""
        return asdict(self)


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
    values["augmentation"] = _build(Augmentation, values.get("augmentation", {}), f"{path}: augmentation")
    recipe = _build(Recipe, values, str(path))
    if (recipe.text.pretrained is None) == (recipe.text.config is None):
        raise ValueError(f"{path}: text needs exactly one of 'pretrained' and 'config'.")
    if recipe.loss not in ("multi_positive", "contrastive"):
        raise ValueError(f"{path}: loss is {recipe.loss!r}, expected 'multi_positive' or 'contrastive'.")
    if recipe.text_bank and not recipe.text.freeze:
        raise ValueError(f"{path}: text_bank needs text.freeze: the texts are encoded once.")
    return recipe
