"""`optimize_for_cpu`: what stays equal, what is refused, and the way back."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

import clap_hf
from clap_hf import (
    MSClapCaptioningConfig,
    MSClapForAudioCaptioning,
    MSClapForAudioClassification,
    MSClapModel,
    fast_cpu,
    optimize_for_cpu,
    restore_from_cpu,
)
from clap_hf.embedding import ClapEncoder, embed_files
from clap_hf.fast_cpu import FAST, ONEDNN_DTYPES, optimize_if_possible
from conftest import EXAMPLES, TINY_AUDIO, TINY_CNN14, TINY_GPT2, make_config, make_model

FEATURES = torch.randn(9, 1, 201, 32, generator=torch.Generator().manual_seed(0)) * 10 - 40


def embed(model: MSClapModel) -> torch.Tensor:
    with torch.no_grad():
        return model.get_audio_features(FEATURES).pooler_output


def is_fast(model: torch.nn.Module) -> bool:
    return any(type(module) in FAST.values() for module in model.modules())


@pytest.mark.parametrize(("audio", "attention"), [(None, "sdpa"), (None, "eager"), (TINY_CNN14, "eager")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_the_same(audio, attention, dtype, monkeypatch):
    monkeypatch.setattr(fast_cpu, "STAGE_BYTES", 2 * 512 * 16 * 4)
    model = make_model(audio=audio).to(dtype)
    model.set_attn_implementation(attention)
    plain, fast = embed(model), embed(optimize_for_cpu(model))
    tolerance = 1e-6 if dtype is torch.float32 else 1e-4
    assert (1 - F.cosine_similarity(plain.double(), fast.double())).max() <= tolerance


def test_hidden_states_and_attentions_are_the_same():
    model = make_model()
    model.set_attn_implementation("eager")
    names = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        plain = model.audio_model(FEATURES, **names)
        fast = optimize_for_cpu(model).audio_model(FEATURES, **names)
    for ours, theirs in zip(fast.hidden_states + fast.attentions, plain.hidden_states + plain.attentions, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_are_the_plain_ones():
    gradients = []
    model = make_model().train()
    for optimise in (lambda model: model, optimize_for_cpu):
        optimise(model)
        model.zero_grad()
        torch.manual_seed(0)
        model.get_audio_features(FEATURES).pooler_output.sum().backward()
        gradients.append(model.audio_model.patch_embed.weight.grad.clone())
    assert torch.equal(*gradients)


def test_the_way_back_leaves_nothing(tmp_path):
    model = make_model()
    before, types, keys = embed(model), [type(module) for module in model.modules()], list(model.state_dict())
    fast = optimize_for_cpu(model)
    assert fast is model and is_fast(model)
    assert optimize_for_cpu(model) is model  # twice is once
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    loaded = MSClapModel.from_pretrained(tmp_path)
    assert torch.equal(embed(loaded), before) and loaded.config.architectures == ["MSClapModel"]
    assert is_fast(copy.deepcopy(model))
    assert restore_from_cpu(model) is model
    assert [type(module) for module in model.modules()] == types
    assert torch.equal(embed(model), before)
    assert restore_from_cpu(model) is model


def test_layers_that_change_later_are_called():
    model = optimize_for_cpu(make_model())
    mlp = model.audio_model.stages[0].blocks[0].mlp
    seen: list[torch.Tensor] = []
    before = embed(model)
    handle = mlp.fc2.register_forward_hook(lambda _, args, output: seen.append(output))
    torch.testing.assert_close(embed(model), before, atol=1e-6, rtol=1e-5)
    assert len(seen) == 1
    handle.remove()
    mlp.register_forward_hook(lambda _, args, output: 0 * output)
    changed = embed(model)
    assert not torch.allclose(changed, before)
    assert torch.equal(changed, embed(restore_from_cpu(model)))


def quantised(model):
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, inplace=True)


def hooked(model):
    model.audio_model.stages[1].blocks[0].mlp.fc1.register_forward_hook(lambda *_: None)


def parametrised(model):
    torch.nn.utils.parametrizations.weight_norm(model.audio_model.stages[0].blocks[0].attn.proj)


def adapted(model):
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["fc1"]), model)


class Subclass(torch.Tensor):
    pass


def subclassed(model):
    layer = model.audio_projection.linear1
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Subclass))


def moved(model):
    model.text_model.to("meta")


@pytest.mark.parametrize(
    ("change", "layer", "remedy"),
    [
        (quantised, r"c_attn|audio_model\.stages\.0\.blocks\.0\.attn\.qkv", "quantised or adapted"),
        (adapted, r"audio_model\.stages\.0\.blocks\.0\.mlp\.fc1", "Merge the adapter"),
        (hooked, r"audio_model\.stages\.1\.blocks\.0\.mlp\.fc1", "Remove it"),
        (parametrised, r"audio_model\.stages\.0\.blocks\.0\.attn\.proj", "remove_parametrizations"),
        (subclassed, r"audio_projection\.linear1", "expected a plain tensor"),
        (moved, r"text_model", r"Call model\.to\('cpu'\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning")
def test_what_is_refused_names_the_layer_and_the_remedy(change, layer, remedy):
    model = make_model()
    change(model)
    with pytest.raises(ValueError, match=layer) as error:
        optimize_for_cpu(model)
    assert remedy.replace("\\", "") in str(error.value)
    assert not is_fast(model)
    assert optimize_if_possible(model) is model and not is_fast(model)


def test_a_model_without_an_audio_tower_is_refused():
    with pytest.raises(ValueError, match="Linear holds no audio tower"):
        optimize_for_cpu(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'fast', expected a torch.dtype"):
        optimize_for_cpu(make_model(), dtype="fast")


def test_one_model_serves_many_threads(monkeypatch):
    monkeypatch.setattr(fast_cpu, "STAGE_BYTES", 2 * 512 * 16 * 4)
    model = make_model()
    expected = embed(model)
    optimize_for_cpu(model)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: embed(optimize_for_cpu(model)), range(64)))
    for vectors in found:
        torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=1e-5)
    assert not fast_cpu._PACKED


def test_dtype_is_cast_as_loading_does(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = MSClapModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    optimize_for_cpu(model, dtype=torch.bfloat16)
    for name, parameter in loaded.named_parameters():
        assert model.get_parameter(name).dtype == parameter.dtype, name
    assert model.audio_model.batch_norm.running_mean.dtype == torch.float32
    assert model.dtype == loaded.dtype and model.config.dtype == loaded.config.dtype == torch.bfloat16
    fastest = optimize_for_cpu(make_model(), dtype="auto")
    assert fastest.audio_model.patch_embed.weight.dtype in ONEDNN_DTYPES


def test_the_package_optimises_what_it_runs(processor):
    for run in (
        lambda model: embed_files(model, processor, [EXAMPLES / "dog.ogg"]),
        lambda model: ClapEncoder(model, processor),
    ):
        model = make_model()
        run(model)
        assert is_fast(model)
    model = make_model().train()
    embed_files(model, processor, [EXAMPLES / "dog.ogg"])
    assert not is_fast(model)


def test_a_classifier_and_a_bare_tower():
    classifier = MSClapForAudioClassification(make_config(num_labels=3)).eval()
    with torch.no_grad():
        expected = classifier(FEATURES).logits
        found = optimize_for_cpu(classifier)(FEATURES).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert is_fast(optimize_for_cpu(make_model().audio_model))
    assert clap_hf.optimize_for_cpu is optimize_for_cpu


@pytest.mark.skipif(torch.bfloat16 not in ONEDNN_DTYPES, reason="oneDNN does not multiply bfloat16 on this processor")
def test_a_captioners_weights_are_packed_while_it_generates_and_no_longer():
    settings = {"text_config": {**TINY_GPT2, "vocab_size": 300, "bos_token_id": 299, "eos_token_id": 299}}
    config = MSClapCaptioningConfig(audio_config=TINY_AUDIO, projection_dim=24, prefix_length=6, **settings)
    torch.manual_seed(0)
    model = MSClapForAudioCaptioning(config).eval().to(torch.bfloat16)
    layers = [layer for layer in model.language_model.modules() if isinstance(layer, (torch.nn.Linear, Conv1D))]
    options = {"max_new_tokens": 4, "num_beams": 2}
    plain = model.generate(FEATURES[:2], **options)
    types = [type(layer) for layer in layers]
    optimize_for_cpu(model)
    packed: list[int] = []
    norm = model.language_model.transformer.ln_f
    handle = norm.register_forward_hook(lambda *_: packed.append(len(fast_cpu._PACKED)))
    found = model.generate(FEATURES[:2], **options)
    assert set(packed) == {len(layers)} and not fast_cpu._PACKED
    assert found.shape[0] == plain.shape[0] and found.shape[1] <= 4
    handle.remove()
    states = torch.randn(5, layers[0].weight.shape[0]).bfloat16()
    with torch.no_grad():
        expected = layers[0](states)
        with fast_cpu.packed_weights(model.language_model, 5, torch.bfloat16):
            torch.testing.assert_close(layers[0](states), expected, atol=0.02, rtol=0.02)
    model.float()
    packed.clear()
    model.language_model.transformer.ln_f.register_forward_hook(lambda *_: packed.append(len(fast_cpu._PACKED)))
    model.generate(FEATURES[:2], **options)
    assert set(packed) == {0}  # of few rows in float32, packing takes longer than it saves
    restore_from_cpu(model)
    assert [type(layer) for layer in layers] == types and "generate" not in vars(model.language_model)
