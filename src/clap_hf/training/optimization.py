"""Optimiser, learning rate and averaged weights."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import nn

from .settings import TrainingSettings


def build_optimizer(modules: list[nn.Module], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Adam as in the paper, or AdamW that decays matrices only: biases, norms, tables of position bias and the logit
    scale stay free.

    Args:
        modules: What is trained.
        settings: The optimiser and its rates.

    Raises:
        ValueError: If a rate factor's prefix fits no parameter.
    """
    named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    for prefix in settings.rate_factors:
        if not any(name.startswith(prefix) for name, _ in named):
            raise ValueError(f"rate_factors names {prefix!r}, which no trained parameter's name starts with.")
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named:
        decays = settings.optimizer == "adamw" and parameter.ndim > 1 and "bias_table" not in name
        factors = [factor for prefix, factor in settings.rate_factors.items() if name.startswith(prefix)]
        groups[settings.weight_decay if decays else 0.0, math.prod(factors)].append(parameter)
    options = [
        {"params": parameters, "weight_decay": decay, "lr": settings.learning_rate * factor}
        for (decay, factor), parameters in groups.items()
    ]
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(options, lr=settings.learning_rate, betas=settings.betas)


def learning_rate_factor(step: int, settings: TrainingSettings, total_steps: int) -> float:
    """Linear warm-up, then constant or a cosine to zero at the last step."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    progress = (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Schedule:
    """The learning rate: by step (`constant`, `cosine`) or by epoch (`plateau`).

    Args:
        optimizer: Its rates are set.
        settings: The schedule.
        total_steps: Length of the run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainingSettings, total_steps: int):
        self.settings = settings
        self.scheduler: torch.optim.lr_scheduler.LRScheduler
        if settings.schedule == "plateau":
            self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer,
                mode=settings.plateau_mode,  # type: ignore[arg-type]  # checked by the settings
                factor=settings.plateau_factor,
                patience=settings.plateau_patience,
            )
        else:
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: learning_rate_factor(step, settings, total_steps)
            )

    def after_step(self) -> None:
        """Called after every optimiser step."""
        if self.settings.schedule != "plateau":
            self.scheduler.step()

    def after_epoch(self, watched: float | None) -> None:
        """Called after every evaluation, on every rank, with the value of the plateau's metric."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if watched is None:
                raise ValueError(
                    f"The evaluation returned no {self.settings.plateau_metric!r}, which plateau_metric names."
                )
            self.scheduler.step(watched)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's; the decay ramps up so that early weights are forgotten."""
    decay = min(decay, (1 + step) / (10 + step))
    for target, source in zip(average.parameters(), model.parameters(), strict=True):
        if source.requires_grad:
            target.lerp_(source, 1 - decay)
    for kept, current in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(current)
