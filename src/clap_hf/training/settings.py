"""What every training stage's recipe says about its optimisation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..data.augment import Augmentation

T = TypeVar("T")

CHOICES = {
    "optimizer": ("adam", "adamw"),
    "schedule": ("constant", "cosine", "plateau"),
    "plateau_mode": ("min", "max"),
    "best_mode": ("min", "max"),
    "precision": ("no", "bf16"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything that the loop itself needs to know; recipes of stages add their own.

    Args:
        name: Name of the run.
        seed: Source of every random choice.
        batch_size: Examples per optimiser step, over all processes.
        steps: Optimiser steps; the last epoch is finished.
        epochs: Length in epochs, instead of `steps`.
        steps_per_epoch: Steps between evaluations; the data's own epoch when None.
        optimizer: `"adam"` (paper) or `"adamw"`, which decays matrices only.
        learning_rate: Peak rate.
        rate_factors: Factors on the rate by the start of a parameter's name, for example `{text_model: 0.1}`.
        betas: Of Adam's two running means.
        weight_decay: Decoupled weight decay of AdamW.
        schedule: `"cosine"` (to zero at the last step), `"plateau"` (paper) or `"constant"`.
        warmup_steps: Steps of linear warm-up; not with `"plateau"`.
        plateau_metric: What the plateau watches, a number that the evaluation of every epoch returns.
        plateau_mode: Whether that number should fall (`"min"`) or rise (`"max"`).
        plateau_factor: What the rate is multiplied by at a plateau.
        plateau_patience: Epochs without improvement before that.
        best_metric: What the best epoch is chosen by; apart from the plateau's, as in the paper. `"step"` keeps the
            last epoch.
        best_mode: Whether that number should rise (`"max"`) or fall (`"min"`).
        max_grad_norm: Gradient norm is clipped here; None (paper) does not clip.
        ema_decay: Decay of the averaged weights that are evaluated and kept; 0 keeps the weights themselves.
        precision: `"no"` (float32) or `"bf16"` (autocast of the towers; log-mel, BatchNorm, normalisation and loss
            stay in float32).
        gradient_checkpointing: Recompute every block's activations in the backward pass.
        checkpoint_steps: Steps between checkpoints within an epoch; None saves at its end only.
        max_skipped: Unreadable rows that a run may skip before it stops.
    """

    name: str
    seed: int = 0
    batch_size: int = 64
    steps: int | None = 1000
    epochs: int | None = None
    steps_per_epoch: int | None = 100
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    rate_factors: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup_steps: int = 50
    plateau_metric: str = "validation_loss"
    plateau_mode: str = "min"
    plateau_factor: float = 0.1
    plateau_patience: int = 15
    best_metric: str = "zero_shot_score"
    best_mode: str = "max"
    max_grad_norm: float | None = 1.0
    ema_decay: float = 0.995
    precision: str = "no"
    gradient_checkpointing: bool = False
    checkpoint_steps: int | None = None
    max_skipped: int = 1000

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}.")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"steps is {self.steps} and epochs is {self.epochs}, expected exactly one of the two. "
                "Set the other to null."
            )

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Epochs of the run, each of `steps_per_epoch` steps."""
        return self.epochs if self.epochs is not None else math.ceil((self.steps or 0) / steps_per_epoch)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, for run records."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class StreamedSettings(TrainingSettings):
    """What stages say that stream pairs from parquet datasets.

    Args:
        sources: Datasets of pairs in parquet files; settings of `StreamSource` each, or `source`, the name of one of
            the paper's training sets, beside settings that differ from its own.
        validation: Held-out pairs, in the same form, of the split `validation` unless it says otherwise.
        streaming: `"exact"` (shuffled by a plan, resumed at once) or `"simple"` (one source, any format, a shuffle
            buffer, resumed by reading again).
        lanes: Of the plan, see `clap_hf.data.plan.Plan`.
        window: Row groups that a lane mixes.
        augmentation: Random changes of training clips; None leaves them as they are, but for the crop.
    """

    sources: list[dict[str, Any]] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    streaming: str = "exact"
    lanes: int | None = None
    window: int = 2
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming not in ("exact", "simple") or (self.streaming == "simple" and len(self.sources) != 1):
            raise ValueError(
                f"streaming is {self.streaming!r} with {len(self.sources)} sources, expected 'exact', or 'simple' "
                "with one source."
            )


Settings = TypeVar("Settings", bound=TrainingSettings)


def read_settings(
    kind: type[Settings], path: str | Path, values: dict[str, Any], parts: dict[str, type], overrides: dict[str, Any]
) -> Settings:
    """Make a stage's settings of what its recipe file holds.

    Args:
        kind: The stage's settings.
        path: The file, for errors.
        values: Its content.
        parts: Settings that are classes of their own, by name.
        overrides: Settings that replace the file's; None values are ignored. `steps` replaces `epochs` too.

    Raises:
        ValueError: If a setting is unknown, missing or wrong.
    """
    values = values | {name: value for name, value in overrides.items() if value is not None}
    if overrides.get("steps") is not None:
        values["epochs"] = None
    if values.get("epochs") is not None:
        values.setdefault("steps", None)
    for name, part in parts.items():
        if values.get(name) is not None:
            values[name] = _build(part, values[name], f"{path}: {name}")
    return _build(kind, values, str(path))


def _build(kind: type[T], values: dict[str, Any], where: str) -> T:
    known = [setting.name for setting in fields(kind)]  # type: ignore[arg-type]  # all are dataclasses
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown settings {unknown}, expected some of {known}.")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
