"""Feature distillation: the audio tower predicts another audio network's features of every clip.

After Romero et al., "FitNets", ICLR 2015; here with a cosine, and of pooled states. The linear head belongs to the
loss and is thrown away after training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn


@dataclass(frozen=True)
class Teacher:
    """A teacher in a recipe.

    Args:
        features: File that `python -m tools.teachers` wrote for the training set.
        weight: Factor on the teacher's part of the loss, 1 - mean cosine.
    """

    features: str
    weight: float = 1.0


def load_features(path: str | Path, ids: Sequence[str]) -> torch.Tensor:
    """Read a teacher's features in the order of a training set's clips.

    Args:
        path: Safetensors file of `python -m tools.teachers`.
        ids: The clips.

    Returns:
        `[clips, dim]`, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or misses clips.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file, expected teacher features; python -m tools.teachers makes it.")
    try:
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            features = file.get_tensor("features").float() if names == ["features"] else torch.zeros(0, 0)
        found = json.loads(metadata.get("ids", "null"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}), expected features: make it with tools.teachers.") from error
    if names != ["features"]:
        raise ValueError(f"{path} holds {names}, expected features: make it with tools.teachers.")
    if not isinstance(found, list) or features.ndim != 2 or len(found) != len(features):
        raise ValueError(
            f"{path} holds features {list(features.shape)} without an id for each row, expected [clips, dim] and as "
            "many ids: make it with tools.teachers."
        )
    if not torch.isfinite(features).all():
        raise ValueError(f"{path} holds NaN or infinity, expected finite features: make it with tools.teachers.")
    rows = {name: row for row, name in enumerate(found)}
    missing = [name for name in ids if name not in rows]
    if missing:
        raise ValueError(
            f"{path} misses {len(missing)} of {len(ids)} clips, the first {missing[0]!r}. Make it again from the "
            "training set: python -m tools.teachers."
        )
    return features[[rows[name] for name in ids]]


class TeacherHead(nn.Module):
    """Predicts the teacher's features from the audio tower's pooled state.

    Args:
        hidden_size: Size of the tower's pooled state.
        features: The teacher's features of all clips `[clips, dim]`, float32.
    """

    def __init__(self, hidden_size: int, features: torch.Tensor):
        super().__init__()
        self.linear = nn.Linear(hidden_size, features.shape[1])
        self.register_buffer("features", features, persistent=False)

    def forward(self, pooled: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Mean cosine of predicted and true features.

        Args:
            pooled: The tower's states `[batch, hidden_size]`.
            rows: The clips' rows in the training set `[batch]`.

        Returns:
            A scalar, float32, at most 1.
        """
        targets = self.get_buffer("features")[rows]
        return F.cosine_similarity(self.linear(pooled.float()), targets, dim=-1).mean()
