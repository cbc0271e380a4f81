"""Collation of what the feature extractor, the processor or `Dataset.map` made of clips, for transformers' Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..model.feature_extraction_msclap import pad_windows

LABELS = ("labels", "label", "label_ids")


@dataclass
class MSClapDataCollator:
    """Makes a batch of rows of one clip each, whose numbers of windows differ.

    A row holds `input_features` of one clip, `[windows, 1, frames, mel]` as arrays, tensors or nested lists; it may
    hold `input_ids` of one text, which are padded, and a label under `labels`, `label` or `label_ids`.

    Args:
        tokenizer: Tokenizer that pads `input_ids`; needed where rows have any.
        return_loss: Whether the batch asks `MSClapModel` for its contrastive loss, without which Trainer cannot train
            a dual encoder.
    """

    tokenizer: Any = None
    return_loss: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows of one clip each.

        Returns:
            `input_features` `[clips, windows, 1, frames, mel]` and `num_windows` `[clips]`; `input_ids` and
            `attention_mask` `[clips, tokens]` if there are texts; `labels` `[clips]` or `[clips, classes]`;
            `return_loss` if set.

        Raises:
            ValueError: If rows have texts, but the collator has no tokenizer.
        """
        batch: dict[str, Any] = {}
        if "input_features" in rows[0]:
            clips = [torch.as_tensor(np.asarray(row["input_features"], dtype=np.float32)) for row in rows]
            clips = [clip.reshape(-1, 1, *clip.shape[-2:]) for clip in clips]  # a batch of one, too
            batch["input_features"] = pad_windows(clips)
            batch["num_windows"] = torch.tensor([len(clip) for clip in clips])
        if "input_ids" in rows[0]:
            if self.tokenizer is None:
                raise ValueError("The rows hold input_ids: pass MSClapDataCollator(tokenizer=processor.tokenizer).")
            texts = [{"input_ids": np.ravel(row["input_ids"]).tolist()} for row in rows]
            batch.update(self.tokenizer.pad(texts, return_tensors="pt"))
        for name in LABELS:
            if name in rows[0]:
                labels = torch.as_tensor(np.asarray([row[name] for row in rows]))
                batch["labels"] = labels.float() if labels.is_floating_point() else labels
        if self.return_loss:
            batch["return_loss"] = True
        return batch
