# Copyright 2026 The clap_hf authors. MIT License.
"""Weights in oneDNN's own order, for as long as a text is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .modeling_msclap_htsat import ONEDNN_DTYPES


def product(hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What a linear layer makes of `[..., in]`, by a packed weight: `[..., out]`."""
    return torch.ops.mkldnn._linear_pointwise(hidden_states, weight, bias, "none", [], "")


@contextmanager
def packed_weights(model: nn.Module, rows: int) -> Iterator[None]:
    """Pack the weights of a model's linear layers in bfloat16 on a CPU; of other models and layers, none.

    A token of a few beams takes every weight for a few rows. oneDNN multiplies bfloat16 by blocks of a weight, and
    PyTorch has it cut every weight into these again for every token, which takes longer than the product: here that is
    done once. Nothing is kept, so that weights may change between any two texts.

    Args:
        model: The model that writes, such as GPT-2.
        rows: How many rows most products will have, clips times beams.
    """
    layers: list[nn.Linear | Conv1D] = []
    if torch.bfloat16 in ONEDNN_DTYPES and not torch.is_autocast_enabled("cpu"):
        # Exact types: not what quantises or adapts a layer, nor a layer with a hook.
        layers = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear | Conv1D)
            and type(module) in (nn.Linear, Conv1D)
            and "forward" not in vars(module)
            and module.weight.device.type == "cpu"
            and module.weight.dtype == torch.bfloat16
        ]
    try:
        for layer in layers:
            weight = layer.weight.detach()
            weight = weight.t().contiguous() if isinstance(layer, Conv1D) else weight
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            vars(layer)["forward"] = partial(product, weight=packed, bias=layer.bias)  # before the class's own
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
