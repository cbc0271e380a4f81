"""Adapters and quantisers of other libraries on the towers: they find plain layers and keep what a model computes."""

from __future__ import annotations

import clap_hf  # noqa: F401  # first: the others import torchaudio, working or not

# isort: split

import copy

import pytest
import setuptools  # noqa: F401  # before any test: quanto needs it, and it fails where the old distutils came first
import torch
import torch.nn.functional as F

from clap_hf.model.configuration_msclap import MSClapAudioConfig
from clap_hf.model.modeling_msclap_cnn14 import MSClapCnn14Model
from clap_hf.model.modeling_msclap_htsat import MSClapHtsatModel
from conftest import TINY_CNN14, make_model

FEATURES = torch.randn(3, 1, 201, 32, generator=torch.Generator().manual_seed(0)) * 10 - 40
LARGE = torch.randn(2, 1, 965, 64, generator=torch.Generator().manual_seed(0)) * 10 - 40
TARGETS = [["qkv"], ["proj"], ["fc1"], ["fc2"], ["reduction"], ["qkv", "proj", "fc1", "fc2"], "all-linear"]


def tower(architecture: str) -> MSClapHtsatModel | MSClapCnn14Model:
    """A small audio tower with weights of ordinary size."""
    return make_model(audio=TINY_CNN14 if architecture == "cnn14" else None).audio_model


@torch.no_grad()
def pooled(model: torch.nn.Module, features: torch.Tensor = FEATURES) -> torch.Tensor:
    """Unit vectors."""
    return F.normalize(model(features).pooler_output, dim=-1)


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        *(("htsat", targets) for targets in TARGETS),
        ("cnn14", ["fc"]),
        ("cnn14", ["conv1", "conv2"]),
        ("cnn14", "all-linear"),
    ],
)
def test_lora_is_the_same_before_and_after_merging(architecture, targets):
    peft = pytest.importorskip("peft")
    model = tower(architecture)
    plain = pooled(model)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config).eval()
    before = pooled(adapted)
    assert F.cosine_similarity(before, plain).min() < 0.9999, "the adapter does something"
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(pooled(merged), before, atol=1e-5, rtol=1e-5)
    fast = clap_hf.optimize_for_cpu(merged)
    torch.testing.assert_close(pooled(fast), before, atol=1e-5, rtol=1e-5)


def test_lora_trains_every_target():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tower("htsat"), peft.LoraConfig(r=2, target_modules="all-linear")).train()
    adapted(FEATURES).pooler_output.square().sum().backward()
    missing = [name for name, weight in adapted.named_parameters() if "lora_B" in name and weight.grad is None]
    assert missing == []


@pytest.fixture(scope="module")
def released() -> MSClapHtsatModel:
    """A tower of the released sizes, from fixed random weights."""
    torch.manual_seed(0)
    return MSClapHtsatModel(MSClapAudioConfig()).eval()


def linear_layers(model: torch.nn.Module) -> int:
    return sum(type(module) is torch.nn.Linear for module in model.modules())


def test_all_of_htsats_linear_layers_are_plain(released):
    assert linear_layers(released) == sum(isinstance(m, torch.nn.Linear) for m in released.modules()) == 4 * 12 + 3


def lowest_cosine(model: torch.nn.Module, other: torch.nn.Module) -> float:
    return float(F.cosine_similarity(pooled(model, LARGE), pooled(other, LARGE)).min())


def test_quanto_int8(released):
    quanto = pytest.importorskip("optimum.quanto")
    model = copy.deepcopy(released)
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    assert linear_layers(model) == 0
    assert lowest_cosine(model, released) >= 0.999


def test_torchao_int8_weights(released):
    quantization = pytest.importorskip("torchao.quantization")
    model = copy.deepcopy(released)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert lowest_cosine(model, released) >= 0.999


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning")
@pytest.mark.parametrize(("architecture", "cosine"), [("htsat", 0.999), ("cnn14", 0.99)])
def test_dynamic_quantisation(architecture, cosine, released):
    torch.manual_seed(0)
    model = released if architecture == "htsat" else MSClapCnn14Model(MSClapAudioConfig(architecture="cnn14")).eval()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    assert linear_layers(quantised) == 0
    assert lowest_cosine(quantised, model) >= cosine
