"""Collective operations of training.

The model is not wrapped in DistributedDataParallel: a cached-gradient step runs many backward passes before its one
exchange, the logit scale's gradient is made outside the towers' forward, and stages freeze whole towers. One explicit
exchange of all gradients at the end of the step is exact for each of these, and there is nothing to forget.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

BUCKET_BYTES = 64 * 2**20
# Set by torchrun and accelerate launch, and by mpirun's kinds.
WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launched_world_size() -> int:
    """Number of processes that a launcher started, by its environment variables; 1 without a launcher.

    Raises:
        RuntimeError: If `accelerate launch` was asked for several processes and started one, as it does on CPUs.
    """
    sizes = [int(os.environ[name]) for name in WORLD_SIZES if name in os.environ]
    # For several processes it sets an address, and starts them itself for accelerators only.
    if not sizes and "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
        raise RuntimeError(
            "accelerate launch was asked for several processes and started one: on CPUs it leaves starting them to "
            "mpirun. Start them with torchrun instead: torchrun --nproc_per_node 2 SCRIPT ..."
        )
    return max(sizes, default=1)


def world_size() -> int:
    """Number of processes; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the ranks, a parameter without one counting as zero."""
    if world_size() == 1:
        return
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
        if size >= BUCKET_BYTES:
            _average_bucket(bucket)
            bucket, size = [], 0
    if bucket:
        _average_bucket(bucket)


def _average_bucket(bucket: list[nn.Parameter]) -> None:
    gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def copy_from_main(module: nn.Module) -> None:
    """Copy to every rank the main rank's parameters and buffers."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)


@torch.no_grad()
def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks in their order, `[world_size * rows, ...]`; all have the same shape, no gradient passes."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def gather_objects(value: object) -> list:
    """One picklable value of every rank, in their order."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(value: bool, device: torch.device) -> bool:
    """Whether a value is true on at least one rank."""
    if world_size() == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())
