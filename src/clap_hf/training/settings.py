"""Settings that the recipes of several training stages share, and the check that each of them takes effect."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from ..data.augment import Augmentation

CHOICES = {
    "optimizer": ("adam", "adamw"),
    "schedule": ("constant", "cosine", "plateau"),
    "plateau_mode": ("min", "max"),
    "best_mode": ("min", "max"),
    "precision": ("no", "bf16"),
}
# Smallest and largest value of a setting that is a number, in any recipe; None is allowed where its type allows it.
INFINITY = math.inf
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("batch_size", "steps_per_epoch", "checkpoint_steps", "lanes", "shuffle_block"), (1, INFINITY)),
    **dict.fromkeys(("steps", "max_length", "validation_clips"), (1, INFINITY)),
    **dict.fromkeys(("validation_pairs", "folds"), (2, INFINITY)),
    **dict.fromkeys(("epochs", "seed", "learning_rate", "weight_decay", "warmup_steps"), (0, INFINITY)),
    **dict.fromkeys(("plateau_patience", "max_skipped", "max_grad_norm", "logit_adjustment"), (0, INFINITY)),
    **dict.fromkeys(("ema_decay", "plateau_factor", "template_probability", "held_out"), (0, 1)),
}
DATASET_ONLY = ("split", "balance", "source_balance", "category_weights")
SOURCES_ONLY = ("streaming", "lanes", "shuffle_block", "held_out")
# Of an augmentation: what streams, which hold no stored log-mels, do not apply.
LOG_MELS_ONLY = ("blend_probability", "blend_db", "stretch_probability", "time_stretch", "mel_stretch", "mel_shift")


def refuse_unused(settings: Any, names: Iterable[str], cause: str, where: str = "") -> None:
    """Refuse settings that differ from their defaults although another setting makes them void.

    Args:
        settings: A dataclass.
        names: The void settings.
        cause: What makes them void, for the message.
        where: What comes before their names in the message.

    Raises:
        ValueError: If one of them was set.
    """
    for setting in fields(settings):
        if setting.name not in names:
            continue
        default = setting.default if setting.default_factory is MISSING else setting.default_factory()
        value = getattr(settings, setting.name)
        if (tuple(value) if isinstance(value, list) else value) != (
            tuple(default) if isinstance(default, list) else default
        ):
            raise ValueError(
                f"{where}{setting.name} is {value!r}, which has no effect with {cause}. Leave one of the two out."
            )


def check_limits(settings: Any) -> None:
    """Refuse numbers outside `LIMITS`.

    Args:
        settings: A dataclass.

    Raises:
        ValueError: With the first of them.
    """
    for name in (setting.name for setting in fields(settings) if setting.name in LIMITS):
        value, (low, high) = getattr(settings, name), LIMITS[name]
        if value is None or (isinstance(value, (int, float)) and low <= value <= high and value != INFINITY):
            continue
        expected = f"{low} or more" if high == INFINITY else f"{low} to {high}"
        raise ValueError(f"{name} is {value!r}, expected a number, {expected}.")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of the loop; recipes of stages add their own.

    Args:
        name: Name of the run.
        seed: Source of every random choice.
        batch_size: Examples per optimiser step, over all ranks.
        steps: Optimiser steps; the last epoch is finished.
        epochs: Length in epochs, instead of `steps`.
        steps_per_epoch: Steps between evaluations; the data's own epoch when None.
        optimizer: `"adam"` (paper) or `"adamw"`, which decays matrices only.
        learning_rate: Peak rate.
        rate_factors: Factors on the rate by the start of a parameter's name, for example `{text_model: 0.1}`.
        betas: Of Adam's two running means.
        weight_decay: Decoupled weight decay of AdamW; must be 0 with `"adam"`.
        schedule: `"cosine"` (to zero at the last step), `"plateau"` (paper) or `"constant"`.
        warmup_steps: Steps of linear warm-up; must be 0 with `"plateau"`.
        plateau_metric: Metric of the evaluation that the plateau schedule watches.
        plateau_mode: Whether that metric should fall (`"min"`) or rise (`"max"`).
        plateau_factor: What the rate is multiplied by at a plateau.
        plateau_patience: Epochs without improvement before that.
        best_metric: Metric of the evaluation that the best epoch is chosen by; apart from the plateau's, as in the
            paper. `"step"` keeps the last epoch.
        best_mode: Whether that metric should rise (`"max"`) or fall (`"min"`).
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
        check_limits(self)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}.")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"steps is {self.steps} and epochs is {self.epochs}, expected exactly one of the two. "
                "Set the other to null."
            )

    def validate(self) -> None:
        """Check that the settings of a whole run go together and that each of them takes effect.

        Raises:
            ValueError: If a needed setting is missing, or one has no effect beside another.
        """
        if self.optimizer == "adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay is {self.weight_decay}, which has no effect with optimizer: adam. Set weight_decay to "
                "0.0, or optimizer to adamw."
            )
        if self.schedule == "plateau" and self.warmup_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, which has no effect with schedule: plateau. Set warmup_steps "
                "to 0, or another schedule."
            )
        if self.schedule != "plateau":
            names = ("plateau_metric", "plateau_mode", "plateau_factor", "plateau_patience")
            refuse_unused(self, names, f"schedule: {self.schedule}")

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Epochs of the run, each of `steps_per_epoch` steps."""
        return self.epochs if self.epochs is not None else math.ceil((self.steps or 0) / steps_per_epoch)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, for run records."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class PairSettings(TrainingSettings):
    """Settings of stages that train on pairs of a sound and a text, from `dataset` or from `sources`.

    Args:
        dataset: Folder or Hub id with `train` and `validation` splits in the layout of the sound corpus, drawn by
            class. Empty where `sources` names others.
        split: Split of `dataset` that is trained on; `train+validation` for a last run, whose settings were chosen
            without the latter and whose `best_metric` is `step`.
        balance: Exponent of class balancing of `dataset`: a clip's weight is (clips of its label) ** -balance.
        source_balance: The same among the sources of a label; see `PairDataset.weights`.
        category_weights: Factors on the sampling weight by category of `dataset`.
        sources: Datasets of pairs in any form of `clap_hf.data.own`; settings of `StreamSource` each, or `source`, the
            name of one of the paper's training sets, beside settings that differ from its own.
        validation: Held-out pairs, in the same form, of the split `validation` unless another is named.
        held_out: Share of the pairs of `sources` that is held out, by the seed, instead of `validation`; rows of equal
            sound stay together.
        streaming: `"exact"` (shuffled by a plan, resumed at once) or `"simple"` (one source, any format, a shuffle
            buffer, resumed by reading again); for `sources`, as are the next two.
        lanes: Of the plan, see `clap_hf.data.plan.Plan`.
        shuffle_block: Row groups that a lane of the plan mixes.
        augmentation: Random changes of training clips; None leaves them as they are, but for the crop.
    """

    dataset: str = ""
    split: str = "train"
    balance: float = 0.5
    source_balance: float = 0.0
    category_weights: dict[str, float] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    held_out: float = 0.0
    streaming: str = "exact"
    lanes: int | None = None
    shuffle_block: int = 2
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming not in ("exact", "simple") or (self.streaming == "simple" and len(self.sources) != 1):
            raise ValueError(
                f"streaming is {self.streaming!r} with {len(self.sources)} sources, expected 'exact', or 'simple' "
                "with one source."
            )

    def validate(self) -> None:
        super().validate()
        if bool(self.dataset) == bool(self.sources):
            raise ValueError("expected exactly one of 'dataset' and 'sources'.")
        if self.held_out and self.validation:
            raise ValueError("expected at most one of 'validation' and 'held_out', which takes its place.")
        if self.held_out and self.streaming == "simple":
            raise ValueError("held_out divides rows by their number, which streaming: simple does not know.")
        if self.dataset:  # log-mels of all clips are stored ahead: an unreadable one stops the run
            refuse_unused(self, ("max_skipped", "held_out"), "dataset")
        else:
            refuse_unused(self, DATASET_ONLY, "sources")
            self.refuse_in_augmentation(LOG_MELS_ONLY, "sources")
        if self.dataset or self.streaming == "simple":
            cause = "dataset" if self.dataset else "streaming: simple"
            refuse_unused(self, ("lanes", "shuffle_block"), cause)
        if self.augmentation is not None:
            for cause, names in (
                ("blend_probability", ("blend_db",)),
                ("mix_probability", ("mix_snr_db",)),
                ("stretch_probability", ("time_stretch", "mel_stretch", "mel_shift")),
            ):
                if not getattr(self.augmentation, cause):
                    self.refuse_in_augmentation(names, f"augmentation.{cause}: 0")

    def refuse_in_augmentation(self, names: Iterable[str], cause: str) -> None:
        """Refuse settings of the augmentation that something makes void; see `refuse_unused`."""
        if self.augmentation is not None:
            refuse_unused(self.augmentation, names, cause, "augmentation.")
