"""Faster inference on a CPU, applied to a loaded model from outside, and taken off again.

The model files are plain PyTorch. `optimize_for_cpu` gives the modules of HTSAT and CNN14 the classes below, which
compute the same from the same parameters, and fall back to the plain code wherever that alone is right: with gradient,
in training, under autocast or `torch.compile`, on another device, and beside a hook or another layer.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.activations import GELUActivation
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .model.modeling_msclap_captioning import MSClapGenerativeModel
from .model.modeling_msclap_cnn14 import MSClapCnn14Block, MSClapCnn14Model
from .model.modeling_msclap_htsat import (
    MSClapHtsatAttention,
    MSClapHtsatBlock,
    MSClapHtsatMLP,
    MSClapHtsatModel,
    MSClapHtsatPatchMerging,
    MSClapHtsatStage,
)

Model = TypeVar("Model", bound=nn.Module)

# Of a larger batch each clip takes longer, since the states between two layers no longer fit the cache.
STAGE_BYTES = 4 * 4096 * 96 * 4  # of the states that go into a stage at once: 4 clips, then 8, 16 and 32, in float32
CNN14_WINDOWS = 4

# What oneDNN can multiply on this CPU.
ONEDNN_DTYPES = [torch.float32] if torch.backends.mkldnn.is_available() else []
if ONEDNN_DTYPES and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    ONEDNN_DTYPES.append(torch.bfloat16)

# transformers leaves such hooks on blocks once hidden states were asked for; they look at outputs only.
CAPTURING = "transformers.utils.output_capturing"
FOREIGN = ("peft", "optimum", "torchao", "bitsandbytes", "torch.ao", "transformers.integrations")

_LOCK = threading.RLock()
# Weights in oneDNN's own order, and who needs them; shared by all threads that run a model.
_PACKED: WeakKeyDictionary[nn.Module, torch.Tensor] = WeakKeyDictionary()
_SOURCES: WeakKeyDictionary[nn.Module, tuple[int, int]] = WeakKeyDictionary()
_USERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def _hooked(module: nn.Module) -> bool:
    """Whether something else wants to see or change what a module computes."""
    hooks = chain(module._forward_hooks.values(), module._forward_pre_hooks.values())
    return "forward" in vars(module) or any(getattr(hook, "__module__", None) != CAPTURING for hook in hooks)


def _plain_only(states: torch.Tensor) -> bool:
    """Whether the plain code has to run, whatever the layers are."""
    return (
        torch.compiler.is_compiling()  # first: sizes may be symbols
        or torch.jit.is_tracing()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or states.device.type != "cpu"
    )


def _multiplies(layer: nn.Module, states: torch.Tensor) -> bool:
    """Whether oneDNN multiplies these states by a layer's weight, and nobody misses the layer's own call."""
    return (
        type(layer) in (nn.Linear, _PackedLinear, _PackedConv1D)
        and type(layer.weight) in (nn.Parameter, torch.Tensor)
        and layer.weight.dtype == states.dtype
        and states.dtype in ONEDNN_DTYPES
        and not _hooked(layer)
    )


def _product(layer: nn.Module, states: torch.Tensor, kind: str = "none", algorithm: str = "") -> torch.Tensor:
    """`layer(states)` by oneDNN, with an activation while it stores."""
    weight = _PACKED.get(layer, layer.weight)
    return torch.ops.mkldnn._linear_pointwise(states, weight, layer.bias, kind, [], algorithm)


def linear(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """`layer(states)`; PyTorch leaves it to MKL and copies the bias to every row before the product."""
    return _product(layer, states) if _multiplies(layer, states) else layer(states)


def linear_gelu(layer: nn.Module, activation: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """`activation(layer(states))`; a GELU (by the error function) is computed while the product is stored."""
    exact = type(activation) is GELUActivation and activation.act is nn.functional.gelu and not _hooked(activation)
    if exact and _multiplies(layer, states):
        return _product(layer, states, "gelu", "none")
    return activation(linear(layer, states))


def add_linear(residual: torch.Tensor, layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """`residual + layer(states)`, added while the product is stored; `[..., out]` and `[..., in]`."""
    if not _multiplies(layer, states):
        return residual + layer(states)
    weight = _PACKED.get(layer, layer.weight)
    return torch.ops.mkldnn._linear_pointwise.binary(states, residual, weight, layer.bias, "add")


def _source(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """Changes with a layer's weight."""
    return layer.weight.data_ptr(), 0 if layer.weight.is_inference() else layer.weight._version


@contextmanager
def packed_weights(module: nn.Module, rows: int, dtype: torch.dtype) -> Iterator[None]:
    """Hold the weights of a module's linear layers in oneDNN's order, which it else makes anew for every product.

    For as long as something runs that uses them many times. Nothing is kept after that: a weight may change then, even
    unseen by PyTorch's own counter, as by `weight.data`.

    Args:
        module: The module, such as a language model or a stage of HTSAT.
        rows: How many rows most products will have, such as clips times beams.
        dtype: Of the weights to pack: float32 where there are many rows, bfloat16 where there are few. The other way
            round, packing takes longer than it saves.
    """
    layers: list[nn.Linear | Conv1D] = []
    if dtype in ONEDNN_DTYPES and module._compiled_call_impl is None:
        layers = [
            layer
            for layer in module.modules()
            if isinstance(layer, nn.Linear | Conv1D)
            and layer.weight.device.type == "cpu"
            and _multiplies(layer, layer.weight)
            and layer.weight.dtype == dtype
        ]
    with _LOCK:
        _USERS[module] = _USERS.get(module, 0) + 1
        for layer in layers:
            source = _source(layer)
            if _SOURCES.get(layer) != source:
                weight = layer.weight.detach()
                weight = weight.t().contiguous() if isinstance(layer, Conv1D) else weight
                _PACKED[layer] = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
                _SOURCES[layer] = source
    try:
        yield
    finally:
        with _LOCK:
            _USERS[module] -= 1
            if not _USERS[module]:
                for layer in layers:
                    _PACKED.pop(layer, None)
                    _SOURCES.pop(layer, None)


class _FastAttention(MSClapHtsatAttention):
    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """With a residual `[batch, image tokens, channels]`: the sum, instead of what is to be added."""
        if residual is None:
            return super().forward(hidden_states, **kwargs)
        windows = hidden_states.index_select(1, self.window_tokens)
        context, weights = self.attend(linear(self.qkv, windows), **kwargs)
        return add_linear(residual, self.proj, context.index_select(1, self.image_tokens)), weights


class _FastMLP(MSClapHtsatMLP):
    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """With a residual `[batch, tokens, channels]`: the sum, instead of what is to be added."""
        if residual is None:
            return super().forward(hidden_states)
        return add_linear(residual, self.fc2, linear_gelu(self.fc1, self.activation_fn, hidden_states))


class _FastBlock(MSClapHtsatBlock):
    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attn, mlp, drop_path = self.attn, self.mlp, self.drop_path
        dropping = (self, attn, attn.dropout, mlp, mlp.dropout, drop_path)
        if (
            _plain_only(hidden_states)
            or type(attn) is not _FastAttention
            or type(mlp) is not _FastMLP
            or any(module.training or _hooked(module) for module in dropping)
        ):
            return super().forward(hidden_states, **kwargs)
        hidden_states, _ = attn(self.norm1(hidden_states), residual=hidden_states, **kwargs)
        return mlp(self.norm2(hidden_states), residual=hidden_states)


class _FastPatchMerging(MSClapHtsatPatchMerging):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if _plain_only(hidden_states):
            return super().forward(hidden_states)
        return linear(self.reduction, self.norm(self.merge(hidden_states)))


class _FastStage(MSClapHtsatStage):
    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The stage, a few clips at a time; every further stage takes twice as many, of half as many values."""
        if _plain_only(hidden_states) or self.training or self._recorded(**kwargs) or any(map(_hooked, self.blocks)):
            return super().forward(hidden_states, **kwargs)
        at_once = max(1, STAGE_BYTES // hidden_states[0].nbytes)
        if len(hidden_states) <= at_once:
            return super().forward(hidden_states, **kwargs)
        with packed_weights(self, at_once * hidden_states.shape[1], torch.float32):
            parts = [MSClapHtsatStage.forward(self, part, **kwargs) for part in hidden_states.split(at_once)]
        return torch.cat(parts)

    def _recorded(self, **kwargs: Any) -> bool:
        """Whether a block's output is asked for, which must be the whole batch's."""
        names = ("output_hidden_states", "output_attentions")
        return any(bool(kwargs.get(name, getattr(self.config, name))) for name in names)


class _FastCnn14Block(MSClapCnn14Block):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The block, a few windows at a time."""
        if _plain_only(hidden_states) or self.training or len(hidden_states) <= CNN14_WINDOWS:
            return super().forward(hidden_states)
        parts = hidden_states.split(CNN14_WINDOWS)
        return torch.cat([MSClapCnn14Block.forward(self, part) for part in parts])


class _PackedLinear(nn.Linear):
    """A linear layer of a language model, which multiplies by its packed weight while there is one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not _plain_only(input) and self in _PACKED and _multiplies(self, input):
            return _product(self, input)
        return super().forward(input)


class _PackedConv1D(Conv1D):
    """GPT-2's linear layer, alike."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = None if _plain_only(x) else _PACKED.get(self)
        if packed is None or not _multiplies(self, x):
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")


FAST: dict[type[nn.Module], type[nn.Module]] = {
    MSClapHtsatAttention: _FastAttention,
    MSClapHtsatMLP: _FastMLP,
    MSClapHtsatBlock: _FastBlock,
    MSClapHtsatPatchMerging: _FastPatchMerging,
    MSClapHtsatStage: _FastStage,
    MSClapCnn14Block: _FastCnn14Block,
}
PACKED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _PackedLinear, Conv1D: _PackedConv1D}
PLAIN = {fast: plain for plain, fast in chain(FAST.items(), PACKED.items())}


def _generate_packed(language_model: Any, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    """A language model's own `generate`, with its weights packed meanwhile."""
    first = next((x for x in (inputs, kwargs.get("inputs_embeds"), kwargs.get("input_ids")) if x is not None), None)
    config = kwargs.get("generation_config") or language_model.generation_config
    beams = kwargs.get("num_beams") or config.num_beams or 1
    rows = beams * (1 if first is None else len(first))
    with torch.no_grad(), packed_weights(language_model, rows, torch.bfloat16):
        return type(language_model).generate(language_model, inputs, *args, **kwargs)


def _obstacle(model: nn.Module) -> str | None:
    """Why a model has to stay as it is, naming the layer and a remedy; None if it need not."""
    if not any(type(module) in FAST or type(module) in PLAIN for module in model.modules()):
        return (
            f"{type(model).__name__} holds no audio tower of clap_hf, expected a model loaded with clap_hf imported "
            "and without trust_remote_code."
        )
    for name, module in model.named_modules():
        layer = f"{name or 'the model'} ({type(module).__name__})"
        if any(cls.__module__.startswith(FOREIGN) for cls in type(module).__mro__ if issubclass(cls, nn.Module)):
            return f"{layer} is quantised or adapted, expected plain layers. Merge the adapter, or run it as it is."
        if is_parametrized(module):
            return (
                f"{layer} is parametrised, expected plain weights. Call torch.nn.utils.parametrize."
                "remove_parametrizations on it first."
            )
        if _hooked(module):
            return f"{layer} has a hook or a forward of its own, which may not be called. Remove it first."
        for key, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            if type(tensor) not in (nn.Parameter, torch.Tensor):
                return f"{layer}: {key} is a {type(tensor).__name__}, expected a plain tensor. Run it as it is."
            if tensor.device.type != "cpu":
                return f"{layer}: {key} is on {tensor.device}, expected cpu. Call model.to('cpu') first."
    return None


def _swap(model: nn.Module) -> None:
    """Give a model's modules their fast classes."""
    for module in model.modules():
        if type(module) in FAST:
            module.__class__ = FAST[type(module)]
        if isinstance(module, MSClapGenerativeModel):
            for layer in module.language_model.modules():
                layer.__class__ = PACKED.get(type(layer), type(layer))
            vars(module.language_model)["generate"] = partial(_generate_packed, module.language_model)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model's weights as `from_pretrained(dtype=...)` does, which leaves some of them in float32."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    kept = {part for module in models for part in module._keep_in_fp32_modules_strict or ()}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and not kept.intersection(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    for module in models:
        module.config.dtype = dtype


@torch.inference_mode()
def _faster_dtype(model: nn.Module) -> torch.dtype:
    """Float32 or bfloat16, in which a copy of the audio tower takes less time for a batch of four windows."""
    if torch.bfloat16 not in ONEDNN_DTYPES:
        return torch.float32
    tower = next(module for module in model.modules() if isinstance(module, MSClapHtsatModel | MSClapCnn14Model))
    features = torch.linspace(-100, 0, 4 * tower.config.num_frames * tower.config.num_mel_bins)
    features = features.view(4, 1, tower.config.num_frames, tower.config.num_mel_bins)
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        candidate = copy.deepcopy(tower).eval()
        _cast(candidate, dtype)
        turns = []
        for _ in range(3):  # the first sets things up
            started = time.perf_counter()
            candidate(features)
            turns.append(time.perf_counter() - started)
        times[dtype] = min(turns)
    return min(times, key=times.__getitem__)


def optimize_for_cpu(model: Model, dtype: torch.dtype | str | None = None) -> Model:
    """Make a loaded model faster on a CPU, in place; `restore_from_cpu` takes it back.

    What changes, for calls without gradient, in evaluation mode, and outside of autocast and `torch.compile`; all
    others run the plain code:

    - Linear layers of HTSAT are multiplied by oneDNN, which computes the GELU and adds the residual while it stores
      the product. Equal to about 1e-6.
    - A large batch goes through HTSAT's stages and CNN14's blocks a few windows at a time. HTSAT's weights are then
      put into oneDNN's order once for all parts, which takes their memory (up to 57 MB) once more meanwhile.
    - A captioner's language model in bfloat16 does the same for the time of a `generate`.
    - glibc keeps up to 64 MB of freed memory instead of handing it back at each step. This holds for the whole
      process, and `restore_from_cpu` leaves it.

    Modules of this package get other classes, parameters stay the ones they are: `state_dict`, `save_pretrained`,
    training and moving to a GPU work as before. One model may serve many threads. Quantise or adapt a model first, or
    after `restore_from_cpu`.

    Large pages of memory are not within its reach: PyTorch decides on them at its first tensor, and importing
    torchaudio makes one. Start Python with `THP_MEM_ALLOC_ENABLE=1` where Linux gives them on request.

    Args:
        model: A model of this package, or one that holds it, on a CPU.
        dtype: What to cast the model to, which `restore_from_cpu` cannot take back. "auto" times a batch of the audio
            tower in float32 and in bfloat16 and takes the faster: bfloat16 pays on processors with AMX; on those that
            have `avx512_bf16` only it is slower on some and faster on others. None leaves the model's own.

    Returns:
        The model itself.

    Raises:
        ValueError: If the model is on another device, if a layer is quantised, adapted, hooked, parametrised or holds
            weights of another tensor class, or if the model has no audio tower of this package. Nothing has changed.
    """
    with _LOCK:
        obstacle = _obstacle(model)
        if obstacle is not None:
            raise ValueError(f"The model cannot be optimised: {obstacle}")
        if isinstance(dtype, str) and dtype != "auto":
            raise ValueError(f"dtype is {dtype!r}, expected a torch.dtype, 'auto' or None.")
        # glibc learns what to keep from the largest block that was ever freed, up to 32 MB: this is one.
        torch.empty(2**25 - 2**19, dtype=torch.uint8)
        _swap(model)
        if dtype is not None:
            _cast(model, _faster_dtype(model) if isinstance(dtype, str) else dtype)
    return model


def restore_from_cpu(model: Model) -> Model:
    """Take back what `optimize_for_cpu` did to a model, in place; of other models, nothing changes.

    Args:
        model: The model.

    Returns:
        The model itself, of the classes and with the parameters it had, but for a `dtype` that was asked for.
    """
    with _LOCK:
        for module in model.modules():
            if isinstance(module, MSClapGenerativeModel):
                vars(module.language_model).pop("generate", None)
            module.__class__ = PLAIN.get(type(module), type(module))
    return model


def optimize_if_possible(model: Model) -> Model:
    """`optimize_for_cpu` for the package's own use: a model that is training, or would be refused, stays as it is.

    Args:
        model: The model.

    Returns:
        The model itself.
    """
    with _LOCK:
        if not model.training and _obstacle(model) is None:
            optimize_for_cpu(model)
    return model
