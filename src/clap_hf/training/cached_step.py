"""A contrastive step whose batch is larger than what fits in memory at once: gradient caching (Gao et al., 2021).

Every chunk is encoded without a graph, the loss is taken once over all embeddings of all processes, and every chunk
is encoded again, with the same random numbers, to pass its embeddings' gradient on. The result is the gradient of the
whole batch; only activations of one chunk are held. The last chunk keeps its graph from the start, so that a batch of
one chunk costs what a plain step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn

from .batch_norm import unmoved_running_statistics
from .distributed import gather, world_size

Numbers = dict[str, torch.Tensor]


def cached_backward(
    encode: Callable[[int], tuple[torch.Tensor, ...]],
    seeds: Sequence[int],
    loss: Callable[..., tuple[torch.Tensor, Numbers]],
    model: nn.Module,
) -> Numbers:
    """Leave in `.grad` what the mean over processes makes the gradient of the loss over the global batch.

    Every process computes the loss over all processes' embeddings. That costs each of them a similarity matrix, and
    saves the exchange of embedding gradients that a differentiable gather would need: a process already holds the
    whole gradient of its own embeddings. Parameters of the loss itself (the logit scale) get their gradient here,
    once, and the same on every process; those of the towers get this process's share, times the number of processes,
    so that a mean over processes is right for both.

    Args:
        encode: Gives the embeddings of a chunk by its number, each `[chunk, dim]`, float32. Enters autocast itself if
            it wants it: a context around several chunks would hand the weights that were cast without a graph to the
            passes with one.
        seeds: Seed of torch's random generators for every chunk.
        loss: Takes the embeddings of the global batch, rows in the order of processes and chunks; gives the scalar
            loss and numbers to log.
        model: Holds what `encode` runs.

    Returns:
        `loss` and the numbers to log.
    """
    last = len(seeds) - 1
    chunks: list[tuple[torch.Tensor, ...]] = []
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        with torch.set_grad_enabled(i == last), nullcontext() if i == last else unmoved_running_statistics(model):
            chunks.append(encode(i))
    leaves = [gather(torch.cat(parts).detach()).requires_grad_() for parts in zip(*chunks, strict=True)]
    value, numbers = loss(*leaves)
    value.backward()

    rows = [len(chunk[0]) for chunk in chunks]
    start = sum(rows) * (dist.get_rank() if world_size() > 1 else 0)
    gradients = []
    for leaf in leaves:
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        gradients.append((gradient[start : start + sum(rows)] * world_size()).split(rows))
    for i in [last, *range(last)]:
        if i != last:
            torch.manual_seed(seeds[i])
            chunks[i] = encode(i)
        pairs = [(part, gradient[i]) for part, gradient in zip(chunks[i], gradients, strict=True)]
        pairs = [(part, gradient) for part, gradient in pairs if part.requires_grad]  # a frozen tower has none
        if pairs:
            torch.autograd.backward([part for part, _ in pairs], [gradient for _, gradient in pairs])
        chunks[i] = ()  # frees the graph
    return {"loss": value.detach()} | numbers
