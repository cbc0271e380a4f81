"""The gradient of a global batch that is encoded in chunks and spread over ranks: cached step and BatchNorm.

Gradient caching (Gao et al., 2021): every chunk is encoded without a graph, the loss is taken once over all embeddings
of all ranks, and every chunk is encoded again, with the same random numbers, to pass its embeddings' gradient on. The
result is the gradient of the whole batch; only activations of one chunk are held. The last chunk keeps its graph from
the start, so that a batch of one chunk costs what a plain step does; where there is memory, all chunks do.

Both audio towers normalise their input log-mel by a BatchNorm. Its input needs no gradient, so the statistics of the
whole batch can be computed ahead, exactly (`whole_batch_statistics`). HTSAT has no other; CNN14 has one after each of
its convolutions, whose statistics depend on the layers before them. Those cannot be known before a chunk is encoded:
`prepare_batch_norm` refuses chunks there, unless the recipe sets another `batch_norm`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..model.modeling_msclap_base import MSClapBatchNorm
from .distributed import gather, world_size
from .recipe import BATCH_NORMS
from .stage import Metrics


def cached_backward(
    encode: Callable[[int], tuple[torch.Tensor, ...]],
    seeds: Sequence[int],
    loss: Callable[..., tuple[torch.Tensor, Metrics]],
    model: nn.Module,
    kept: int = 1,
) -> Metrics:
    """Accumulate in `.grad` this rank's part, the mean of which over ranks is the gradient over the global batch.

    Every rank computes the loss over all ranks' embeddings. That costs each of them a similarity matrix, and
    saves the exchange of embedding gradients that a differentiable gather would need: a rank already holds the
    whole gradient of its own embeddings. Parameters of the loss itself (the logit scale) get their gradient here,
    once, and the same on every rank; those of the towers get this rank's share, times the world size, so that a mean
    over ranks is right for both.

    Args:
        encode: Gives the embeddings of a chunk by its number, each `[chunk, dim]`, float32. Enters autocast itself if
            it wants it: a context around several chunks would hand the weights that were cast without a graph to the
            passes with one.
        seeds: Seed of torch's random generators for every chunk.
        loss: Takes the embeddings of the global batch, rows in the order of ranks and chunks; gives the scalar
            loss and metrics to log.
        model: Holds what `encode` runs.
        kept: Of how many chunks, the last ones, the graph is kept from the first pass; the others are encoded twice.

    Returns:
        `loss` and the metrics to log.
    """
    first_kept = max(0, len(seeds) - kept)
    chunks: list[tuple[torch.Tensor, ...]] = []
    for i, seed in enumerate(seeds):
        torch.manual_seed(seed)
        keep = i >= first_kept
        with torch.set_grad_enabled(keep), nullcontext() if keep else unmoved_running_statistics(model):
            chunks.append(encode(i))
    leaves = [gather(torch.cat(parts).detach()).requires_grad_() for parts in zip(*chunks, strict=True)]
    value, metrics = loss(*leaves)
    value.backward()

    rows = [len(chunk[0]) for chunk in chunks]
    start = sum(rows) * (dist.get_rank() if world_size() > 1 else 0)
    gradients = []
    for leaf in leaves:
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        gradients.append((gradient[start : start + sum(rows)] * world_size()).split(rows))
    for i in [*range(first_kept, len(seeds)), *range(first_kept)]:
        if i < first_kept:
            torch.manual_seed(seeds[i])
            chunks[i] = encode(i)
        pairs = [(part, gradient[i]) for part, gradient in zip(chunks[i], gradients, strict=True)]
        pairs = [(part, gradient) for part, gradient in pairs if part.requires_grad]  # a frozen tower has none
        if pairs:
            torch.autograd.backward([part for part, _ in pairs], [gradient for _, gradient in pairs])
        chunks[i] = ()  # frees the graph
    return {"loss": value.detach()} | metrics


class _SumOverRanks(torch.autograd.Function):
    """Sum of every rank's tensor; the gradient is the sum of every rank's gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks, on any backend (torch's own knows GPUs only).

    Keeps the parameters and buffers of the layer that it replaces, under the same names.
    """

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> SyncedBatchNorm2d:
        """A layer that shares another's parameters and buffers."""
        synced = cls(layer.num_features, layer.eps, layer.momentum)
        for name, parameter in layer.named_parameters():
            setattr(synced, name, parameter)
        for name, buffer in layer.named_buffers():
            setattr(synced, name, buffer)
        return synced.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        features = input.to(self.weight.dtype)  # float32 under autocast
        count = features.numel() // self.num_features * world_size()
        mean = _SumOverRanks.apply(features.sum(dim=(0, 2, 3))) / count
        centred = features - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().sum(dim=(0, 2, 3))) / count
        _advance(self, mean, variance, count)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


@torch.no_grad()
def _advance(layer: nn.BatchNorm2d, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
    """Move a layer's running statistics once, as BatchNorm does; it keeps the unbiased variance."""
    assert layer.running_mean is not None and layer.running_var is not None and layer.momentum is not None
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), layer.momentum)
    layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var.dtype), layer.momentum)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)


def trunk_batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """BatchNorm layers beyond the one that normalises the input."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return [layer for layer in layers if not isinstance(layer, MSClapBatchNorm)]


def prepare_batch_norm(model: nn.Module, mode: str, in_chunks: bool) -> None:
    """Make a model's BatchNorm layers see the whole batch, or refuse where they cannot.

    Args:
        model: With HTSAT nothing happens here. CNN14's layers are replaced by synchronised ones in `"exact"` mode
            where there are several ranks.
        mode: `"exact"`: the statistics of all clips of all ranks; chunks are refused for CNN14.
            `"frozen"`: the layers use and keep their running statistics, which is exact in chunks too, and only makes
            sense from a pretrained tower. `"per_chunk"`: every chunk is normalised by its own statistics, and the
            running ones advance once a chunk; a deviation, and what a plain multi-GPU run without synchronised
            BatchNorm does with its share of the batch.
        in_chunks: Whether this rank's share of a batch is encoded in more than one chunk.

    Raises:
        ValueError: If the mode is unknown, has no effect on the tower, or chunks cannot be exact.
    """
    if mode not in BATCH_NORMS:
        raise ValueError(f"batch_norm is {mode!r}, expected one of {BATCH_NORMS}.")
    layers = trunk_batch_norms(model)
    if not layers and mode != "exact":
        raise ValueError(
            f"batch_norm is {mode!r}, but the audio tower has no BatchNorm layers besides its first (HTSAT), expected "
            "'exact'. Leave it out."
        )
    if mode != "exact" or not layers:
        return
    if in_chunks:
        raise ValueError(
            f"chunk_size splits a batch, but the audio tower has {len(layers)} BatchNorm layers whose statistics need "
            "the whole batch at once (CNN14). Set chunk_size to null and use more processes (their statistics are "
            "synchronised), or set batch_norm to 'frozen' (running statistics) or 'per_chunk' (not the whole batch's)."
        )
    if world_size() > 1:
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.BatchNorm2d:
                    setattr(parent, name, SyncedBatchNorm2d.of(child))


@contextmanager
def whole_batch_statistics(model: nn.Module, features: torch.Tensor) -> Iterator[None]:
    """Within, the input BatchNorm normalises every chunk by the statistics of the whole global batch.

    Its running statistics advance once.

    Args:
        model: Holds one `MSClapBatchNorm`, in training mode.
        features: This rank's share of the batch, `[batch, 1, frames, mel]`, dB; of the same shape everywhere.
    """
    (layer,) = [module for module in model.modules() if isinstance(module, MSClapBatchNorm)]
    if not layer.training:
        yield
        return
    features = features.to(layer.weight.dtype)
    count = features.numel() // layer.num_features * world_size()
    # In float64: float32 sums over a batch of 1,536 clips would lose the last digits.
    mean = _sum(features.sum(dim=(0, 1, 2), dtype=torch.float64)) / count
    variance = _sum((features - mean.to(features.dtype)).square().sum(dim=(0, 1, 2), dtype=torch.float64)) / count
    _advance(layer, mean, variance, count)
    layer.statistics = (mean.to(features.dtype), variance.to(features.dtype))
    try:
        yield
    finally:
        layer.statistics = None


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def unmoved_running_statistics(model: nn.Module) -> Iterator[None]:
    """Within, a forward pass leaves running statistics alone: it will be repeated."""
    layers = trunk_batch_norms(model)
    momenta = [layer.momentum for layer in layers]
    counts = [layer.num_batches_tracked.clone() for layer in layers if layer.num_batches_tracked is not None]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in zip(layers, momenta, counts, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)  # type: ignore[union-attr]
