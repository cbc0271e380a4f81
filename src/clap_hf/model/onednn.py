# Copyright 2026 The clap_hf authors. MIT License.
"""Linear layers on a CPU by oneDNN: with their activation in one go, and by weights in oneDNN's own order."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

# What oneDNN can multiply on this CPU.
ONEDNN_DTYPES = [torch.float32] if torch.backends.mkldnn.is_available() else []
if ONEDNN_DTYPES and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    ONEDNN_DTYPES.append(torch.bfloat16)


def product(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    gelu: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a linear layer makes of `[..., in]` by a weight, packed or not: `[..., out]`.

    Followed by a GELU, or added to a residual `[..., out]`, if asked for.
    """
    if residual is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(hidden_states, residual, weight, bias, "add")
    if gelu:  # by the error function, not by tanh
        return torch.ops.mkldnn._linear_pointwise(hidden_states, weight, bias, "gelu", [], "none")
    return torch.ops.mkldnn._linear_pointwise(hidden_states, weight, bias, "none", [], "")


class MSClapFusedLinear(nn.Linear):
    """A linear layer with an activation; on a CPU, without gradient, oneDNN computes both in one go.

    PyTorch leaves float32 matrix products to MKL, copies the bias to every row before a product, and reads and writes
    the widest states of the model once more for their GELU; oneDNN, which is what `torch.compile` calls, does all that
    while it stores the product. Equal to the last bits.

    Attributes:
        packed: The weight in oneDNN's order, while `packed_weights` lasts.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str | None = None):
        super().__init__(in_features, out_features, bias)
        self.activation = nn.Identity() if activation is None else ACT2FN[activation]
        self.fused = activation == "gelu"
        self.packed: torch.Tensor | None = None

    def by_onednn(self, hidden_states: torch.Tensor) -> bool:
        """Whether oneDNN multiplies these."""
        return not (
            torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or hidden_states.device.type != "cpu"
            or hidden_states.dtype != self.weight.dtype
            or hidden_states.dtype not in ONEDNN_DTYPES
        )

    def multiply(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's product by oneDNN, before an activation that is not fused."""
        packed = self.packed  # once: another thread's batch may end and take it away
        return product(hidden_states, self.weight if packed is None else packed, self.bias, self.fused, residual)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.by_onednn(hidden_states):
            return self.activation(super().forward(hidden_states))
        made = self.multiply(hidden_states)
        return made if self.fused else self.activation(made)


def add_linear(residual: torch.Tensor, layer: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """`residual + layer(hidden_states)`; by oneDNN in one go, which spares the sum's reading and writing.

    Args:
        residual: `[..., out]`.
        layer: An `MSClapFusedLinear`, or what quantises or adapts one.
        hidden_states: `[..., in]`.

    Returns:
        `[..., out]`.
    """
    if (
        type(layer) is MSClapFusedLinear
        and isinstance(layer.activation, nn.Identity)  # the sum stands where an activation would
        and "forward" not in vars(layer)  # nor is it called where hooks want to hear of it
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and layer.by_onednn(hidden_states)
    ):
        return layer.multiply(hidden_states, residual)
    return residual + layer(hidden_states)


@contextmanager
def packed_weights(model: nn.Module, rows: int, dtype: torch.dtype) -> Iterator[None]:
    """Pack the weights of a model's linear layers on a CPU, without gradient; of other models and layers, none.

    Nor of a compiled one: what `torch.compile` makes multiplies by its own.

    oneDNN multiplies by blocks of a weight, and PyTorch has it cut every weight into these again for every product.
    Where the same weights take one small part of the work after another, that is done once here. Nothing is kept, so
    that weights may change between any two of these.

    Args:
        model: The model, such as GPT-2 or a stage of HTSAT.
        rows: How many rows most products will have, such as clips times beams.
        dtype: Of the weights to pack: float32 where there are many rows, bfloat16 where there are few. The other way
            round, packing takes longer than it saves.
    """
    layers: list[nn.Linear | Conv1D] = []
    if not (
        torch.compiler.is_compiling()
        or model._compiled_call_impl is not None
        or dtype not in ONEDNN_DTYPES
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
    ):
        # Exact types: not what quantises or adapts a layer, nor a layer with a hook.
        layers = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear | Conv1D)
            and type(module) in (nn.Linear, Conv1D, MSClapFusedLinear)
            and "forward" not in vars(module)
            and module.weight.device.type == "cpu"
            and module.weight.dtype == dtype
        ]
    try:
        for layer in layers:
            weight = layer.weight.detach()
            weight = weight.t().contiguous() if isinstance(layer, Conv1D) else weight
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            if isinstance(layer, MSClapFusedLinear):
                layer.packed = packed
            else:  # before the class's own
                vars(layer)["forward"] = partial(product, weight=packed, bias=layer.bias)
        yield
    finally:
        for layer in layers:
            if isinstance(layer, MSClapFusedLinear):
                layer.packed = None
            else:
                vars(layer).pop("forward", None)
