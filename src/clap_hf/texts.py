"""Embedding of many texts: each different one once; in causal towers, each different beginning once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .model.modeling_msclap import MSClapModel

TEXTS_PER_BATCH = 64
LONGEST_IN_BATCH = 1.5  # tokens over those of the batch's shortest text
NODES_PER_TREE = 512  # attention over a tree costs its square: a tenth of the layers' products at this size


@torch.no_grad()
def embed_texts(model: MSClapModel, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Embed texts; prompts of many labels and templates repeat themselves, begin alike, and differ in length.

    Args:
        model: The model, on its device.
        tokenizer: Its tokenizer; longer texts than it allows are cut.
        texts: At least one text.

    Returns:
        Unit vectors `[texts, projection_dim]`, float32, on the model's device.
    """
    different = list(dict.fromkeys(texts))
    ids = tokenizer(different, truncation=True)["input_ids"]
    places: list[int] = []
    vectors: list[torch.Tensor] = []
    for chosen, embedded in _in_trees(model, ids) if _is_causal(model) else _padded(model, tokenizer, ids):
        places += chosen
        vectors.append(embedded)
    rank = {different[i]: place for place, i in enumerate(places)}
    return torch.cat(vectors)[[rank[text] for text in texts]]


def _is_causal(model: MSClapModel) -> bool:
    """Whether a token's state depends on what stands before it alone, and attention takes any mask."""
    tower = model.text_model.config
    causal = model.config.text_pooling == "last_token" and tower.model_type == "gpt2"
    return causal and tower._attn_implementation in ("sdpa", "eager")


def _padded(model: MSClapModel, tokenizer: Any, ids: list[list[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Texts beside others of their length, so that little is padded."""
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    start = 0
    while start < len(ids):
        longest = LONGEST_IN_BATCH * len(ids[by_length[start]])
        chosen = [i for i in by_length[start : start + TEXTS_PER_BATCH] if len(ids[i]) <= longest]
        start += len(chosen)
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt").to(model.device)
        yield chosen, model.get_text_features(**batch).pooler_output


def _in_trees(model: MSClapModel, ids: list[list[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Texts as trees of tokens; nothing is padded, and a beginning goes through the tower once."""
    for tree in prefix_trees(ids, NODES_PER_TREE):
        hidden = torch.where(tree.sees, 0.0, torch.finfo(model.dtype).min).to(model.device, model.dtype)
        states = model.text_model(
            input_ids=tree.tokens[None].to(model.device),
            position_ids=tree.depths[None].to(model.device),
            attention_mask=hidden[None, None],
            use_cache=False,
        ).last_hidden_state[0]
        yield tree.texts, model.project_text(states[tree.ends.to(states.device)])


@dataclass(frozen=True)
class PrefixTree:
    """Texts as a tree of tokens, in which texts that begin alike share that path.

    Attributes:
        texts: Which texts, `[texts]`.
        tokens: Token id of every node `[nodes]`.
        depths: Position of every node in its texts `[nodes]`.
        sees: Whether a node is another one or after it, `[nodes, nodes]`.
        ends: Node of every text's last token `[texts]`.
    """

    texts: list[int]
    tokens: torch.Tensor
    depths: torch.Tensor
    sees: torch.Tensor
    ends: torch.Tensor


def prefix_trees(ids: list[list[int]], nodes: int) -> Iterator[PrefixTree]:
    """Trees of texts.

    Args:
        ids: Token ids of every text, no two texts alike.
        nodes: Nodes of a tree at most, but for a text that is longer by itself.

    Returns:
        Trees that hold every text once between them.
    """
    tree: list[tuple[int, int, int]] = []  # token, depth, parent
    texts: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # nodes of the text before: in order, no other shares a longer beginning with the next
    for i in sorted(range(len(ids)), key=ids.__getitem__):
        shared = 0
        while shared < min(len(path), len(ids[i])) and tree[path[shared]][0] == ids[i][shared]:
            shared += 1
        if tree and len(tree) + len(ids[i]) - shared > nodes:
            yield _tree(tree, texts, ends)
            tree, texts, ends, path, shared = [], [], [], [], 0
        path = path[:shared]
        for depth in range(shared, len(ids[i])):
            tree.append((ids[i][depth], depth, path[-1] if path else -1))
            path.append(len(tree) - 1)
        texts.append(i)
        ends.append(path[-1])
    if tree:
        yield _tree(tree, texts, ends)


def _tree(tree: list[tuple[int, int, int]], texts: list[int], ends: list[int]) -> PrefixTree:
    tokens, depths, parents = torch.tensor(tree).T
    sees = torch.eye(len(tree), dtype=torch.bool)
    for node, parent in enumerate(parents.tolist()):
        if parent >= 0:
            sees[node] |= sees[parent]
    return PrefixTree(texts, tokens, depths, sees, torch.tensor(ends))
