"""Texts as trees of tokens, so that a causal tower computes a shared beginning once and pads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PrefixTree:
    """Texts as a tree of tokens, in which texts that begin alike share that path.

    Attributes:
        texts: Which texts, `[texts]`.
        tokens: Token id of every node `[nodes]`.
        depths: Position of every node in its texts `[nodes]`.
        visible: Whether a node is another one or after it, `[nodes, nodes]`.
        ends: Node of every text's last token `[texts]`.
    """

    texts: list[int]
    tokens: torch.Tensor
    depths: torch.Tensor
    visible: torch.Tensor
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
    visible = torch.eye(len(tree), dtype=torch.bool)
    for node, parent in enumerate(parents.tolist()):
        if parent >= 0:
            visible[node] |= visible[parent]
    return PrefixTree(texts, tokens, depths, visible, torch.tensor(ends))
