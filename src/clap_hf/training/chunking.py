"""Automatic chunk size: the pairs that fit in memory at once, from counts of what autograd keeps."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..model.modeling_msclap import MSClapModel
from .distributed import gather_objects

MEMORY_SHARE = 0.6  # of the free memory; the rest is for gradients, optimiser state and kernels' work space
LARGEST_CHUNK = 512


def saved_bytes(model: MSClapModel, batch: dict[str, Any], pairs: int) -> int:
    """Bytes that autograd keeps for the backward pass of both towers on `pairs` pairs; parameters are not counted.

    Args:
        model: In the mode and on the device that it trains in.
        batch: With `input_features`, `input_ids` and `attention_mask` of at least that many pairs.
        pairs: How many.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()  # views of one storage are kept once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        audio = model.get_audio_features(batch["input_features"][:pairs]).pooler_output
        text = model.get_text_features(batch["input_ids"][:pairs], batch["attention_mask"][:pairs]).pooler_output
    del audio, text
    return sum(kept.values())


def automatic_chunk_size(model: MSClapModel, batch: dict[str, Any], share: int) -> int:
    """Pairs that fit in the free memory of the device, the same number on every rank.

    Args:
        model: In training mode; its buffers are left as they were.
        batch: A batch of `share` pairs.
        share: Pairs of a batch that one rank has.
    """
    if share < 4:
        return share
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fits = largest_chunk(bytes_per_pair(model, batch), free_bytes(model.device), share)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return min(gather_objects(fits))


def bytes_per_pair(model: MSClapModel, batch: dict[str, Any]) -> int:
    """Bytes kept per pair, as the difference of two small batches, which leaves out what is kept once per chunk."""
    return (saved_bytes(model, batch, 4) - saved_bytes(model, batch, 2)) // 2


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def largest_chunk(per_pair: int, free: int, share: int) -> int:
    """The largest power of two of pairs that fits, at least 1 and at most the share or 512.

    Args:
        per_pair: Bytes kept for the backward pass per pair.
        free: Free bytes.
        share: Pairs of a batch that one rank has.
    """
    fits = max(1, int(free * MEMORY_SHARE) // max(1, per_pair))
    return min(share, LARGEST_CHUNK, 2 ** (fits.bit_length() - 1))
