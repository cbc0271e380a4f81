"""Embedding of many texts: each different one once, beside others of its length, so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .model.modeling_msclap import MSClapModel

TEXTS_PER_BATCH = 64
LONGEST_IN_BATCH = 1.5  # tokens over those of the batch's shortest text


@torch.no_grad()
def embed_texts(model: MSClapModel, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Embed texts; prompts of many labels and templates repeat themselves, and differ in length.

    Args:
        model: The model, on its device.
        tokenizer: Its tokenizer; longer texts than it allows are cut.
        texts: At least one text.

    Returns:
        Unit vectors `[texts, projection_dim]`, float32, on the model's device.
    """
    different = list(dict.fromkeys(texts))
    tokens = tokenizer(different, truncation=True)
    lengths = [len(ids) for ids in tokens["input_ids"]]
    by_length = sorted(range(len(different)), key=lengths.__getitem__)
    vectors, start = [], 0
    while start < len(different):
        longest = LONGEST_IN_BATCH * lengths[by_length[start]]
        chosen = [i for i in by_length[start : start + TEXTS_PER_BATCH] if lengths[i] <= longest]
        start += len(chosen)
        rows = {name: [values[i] for i in chosen] for name, values in tokens.items()}
        batch = tokenizer.pad(rows, return_tensors="pt").to(model.device)
        vectors.append(model.get_text_features(**batch).pooler_output)
    rank = {different[i]: place for place, i in enumerate(by_length)}
    return torch.cat(vectors)[[rank[text] for text in texts]]
