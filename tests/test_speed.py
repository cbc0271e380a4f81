"""What is computed and copied, counted: work that creeps back in fails here, on any machine, without a clock."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest
import torch
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer
from transformers.activations import ACT2FN

import clap_hf.embedding
from clap_hf import fast_cpu, optimize_for_cpu
from clap_hf.embedding import embed_texts, prefix_trees
from clap_hf.fast_cpu import CNN14_WINDOWS, ONEDNN_DTYPES, add_linear, linear, linear_gelu
from clap_hf.model.configuration_msclap import MSClapAudioConfig
from clap_hf.model.modeling_msclap_htsat import MSClapHtsatModel
from conftest import GPT2_TOKENIZER, TINY_CNN14, make_model

# Operators that move values and compute none; `repeat` gives every clip its masks, the rest permutes tokens.
MOVING = {"clone", "copy_", "_to_copy", "cat", "roll", "repeat", "index", "index_select", "gather"}


class Moves(TorchDispatchMode):
    """Values written by operators that only move them, and calls of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        self.calls[f"{name}.{func._overloadname}"] += 1
        if name in MOVING:
            self.values[name] += result.numel()
        return result


@pytest.fixture(scope="module")
def tower() -> MSClapHtsatModel:
    """The released audio tower's sizes, with its class map, which an embedding does not need; optimised."""
    torch.manual_seed(0)
    return optimize_for_cpu(MSClapHtsatModel(MSClapAudioConfig(num_labels_frame_map=527)).eval())


def test_audio_tower_computes_its_matrix_products_and_no_more(tower):
    """By hand, per clip: blocks, attention, patch embedding and merging; not the class map."""
    config, expected = tower.config, 0
    for stage, depth in enumerate(config.depths):
        tokens, channels = 4096 >> 2 * stage, config.embed_dim << stage
        expected += depth * tokens * (12 * channels**2 + 2 * config.window_size**2 * channels)
        if stage < 3:
            expected += tokens // 4 * 4 * channels * 2 * channels
    expected += 4096 * 16 * config.embed_dim
    # With gradient: oneDNN's linear layers are not counted.
    with FlopCounterMode(display=False) as counter:
        tower(torch.randn(2, 1, 965, 64) * 10 - 40)
    assert counter.get_total_flops() == pytest.approx(2 * 2 * expected, rel=1e-3)


@pytest.mark.parametrize("clips", [1, 3])
def test_audio_tower_copies_tokens_once_each_way(tower, clips):
    features = torch.randn(clips, 1, 965, 64) * 10 - 40
    with torch.inference_mode(), Moves() as moves:
        tower(features)
    config = tower.config
    sizes = [(4096 >> 2 * stage) * (config.embed_dim << stage) for stage in range(4)]
    blocks = clips * sum(size * depth for size, depth in zip(sizes, config.depths, strict=True))
    tables = sum(64**2 * heads * depth for heads, depth in zip(config.num_attention_heads, config.depths, strict=True))
    # Every second block's masks, of every window and head.
    windows = [64 >> 2 * stage for stage in range(3)]
    shifted = zip(windows, config.num_attention_heads[:3], config.depths[:3], strict=True)
    masks = clips * sum(64**2 * count * heads * (depth // 2) for count, heads, depth in shifted)
    assert moves.values["index_select"] == 2 * blocks
    assert moves.values["index"] == tables
    assert moves.values["repeat"] == masks
    assert moves.calls["roll"] == moves.calls["cat"] == 0
    # Folding the spectrogram, and patch merging.
    assert sum(moves.values.values()) <= 2 * blocks + 2 * tables + masks + clips * (sum(sizes[:3]) + 3 * 64 * 1024)
    if torch.backends.mkldnn.is_available():
        assert moves.calls["_linear_pointwise"] == 4 * sum(config.depths) + 3
        assert moves.calls["_linear_pointwise.binary"] == 2 * sum(config.depths)  # residuals are added as it stores
        assert moves.calls["addmm"] == moves.calls["mm"] == moves.calls["gelu"] == 0


@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_is_the_same_by_onednn(activation, bias):
    torch.manual_seed(0)
    layer, states = torch.nn.Linear(24, 40, bias=bias), torch.randn(3, 5, 24)
    follow = torch.nn.Identity() if activation is None else ACT2FN[activation]
    with torch.no_grad():
        expected = follow(layer(states))
        with Moves() as moves:
            ours = linear(layer, states) if activation is None else linear_gelu(layer, follow, states)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    assert moves.calls["_linear_pointwise"] == int(torch.float32 in ONEDNN_DTYPES)
    assert moves.calls["gelu"] == int(activation == "gelu" and torch.float32 not in ONEDNN_DTYPES)


def hooked(layer: torch.nn.Linear, _: pytest.MonkeyPatch) -> None:
    layer.register_forward_hook(lambda *_: None)


def hooked_before(layer: torch.nn.Linear, _: pytest.MonkeyPatch) -> None:
    layer.register_forward_pre_hook(lambda *_: None)


def forward_replaced(layer: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "forward", layer.forward)  # as accelerate's hooks do


def parametrized(layer: torch.nn.Linear, _: pytest.MonkeyPatch) -> None:
    torch.nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize("change", [None, hooked, hooked_before, forward_replaced, parametrized])
def test_a_residual_is_added_as_onednn_stores_unless_the_layer_is_to_be_called(change, monkeypatch):
    torch.manual_seed(0)
    layer, states, residual = torch.nn.Linear(24, 40), torch.randn(3, 5, 24), torch.randn(3, 5, 40)
    if change is not None:
        change(layer, monkeypatch)
    expected = residual + layer(states).detach()
    with torch.no_grad(), Moves() as moves:
        ours = add_linear(residual, layer, states)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    assert moves.calls["_linear_pointwise.binary"] == int(torch.float32 in ONEDNN_DTYPES and change is None)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"), reason="torch 2.6 cannot trace transformers' wrapper of forward"
)
def test_the_audio_tower_is_compiled_without_divisions():
    model = optimize_for_cpu(make_model())
    graphs: list[set[str]] = []

    def backend(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    features = torch.randn(3, 1, 201, 32) * 10 - 40
    with torch.no_grad():
        eager = model.get_audio_features(features).pooler_output
        model.audio_model.compile(backend=backend, dynamic=False)
        torch.testing.assert_close(model.get_audio_features(features).pooler_output, eager, atol=1e-6, rtol=1e-5)
    assert sum(any("scaled_dot_product" in name for name in names) for names in graphs) == 1
    assert not any("_linear_pointwise" in name for names in graphs for name in names)
    # Of integers they are not vectorised, and every value of a gathered row would do one.
    assert not any("div" in name or "remainder" in name or "mod" == name for names in graphs for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_stage_of_htsat_takes_twice_as_many_windows(dtype, monkeypatch):
    model = optimize_for_cpu(make_model().to(dtype))
    stages = model.audio_model.stages
    first = 4 if dtype is torch.float32 else 8
    monkeypatch.setattr(fast_cpu, "STAGE_BYTES", 4 * 512 * 16 * 4)  # four windows of float32
    features = torch.randn(4 * first + 1, 1, 201, 32) * 10 - 40
    seen: list[list[int]] = [[] for _ in stages]
    for stage, sizes in zip(stages, seen, strict=True):
        stage.blocks[0].norm1.register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))
    with torch.no_grad():
        parted = model.get_audio_features(features).pooler_output
    assert seen == [[len(part) for part in features.split(first << stage)] for stage in range(len(stages))]
    with torch.no_grad():
        alone = torch.cat([model.get_audio_features(clip[None]).pooler_output for clip in features])
    tolerance = 1e-6 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(parted, alone, atol=tolerance, rtol=1e-5)


def test_a_batch_is_whole_with_gradient_in_training_and_where_its_states_are_asked_for(monkeypatch):
    monkeypatch.setattr(fast_cpu, "STAGE_BYTES", 1)
    model = optimize_for_cpu(make_model())
    features = torch.randn(3, 1, 201, 32) * 10 - 40
    seen: list[int] = []
    norm = model.audio_model.stages[0].blocks[0].norm1
    norm.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        model.get_audio_features(features)
        assert seen == [1, 1, 1]
        states = model.audio_model(features, output_hidden_states=True).hidden_states
        assert len(states[0]) == 3
        with torch.autocast("cpu"):
            model.get_audio_features(features)
        model.train().get_audio_features(features)
        model.eval().get_audio_features(features)  # hooks for hidden states are there by now
    model.get_audio_features(features)
    assert seen == [1, 1, 1, 3, 3, 3, 1, 1, 1, 3]


def test_cnn14_takes_few_windows_at_once():
    model = make_model(audio=TINY_CNN14)
    features = torch.randn(2 * CNN14_WINDOWS + 1, 1, 201, 32) * 10 - 40
    with torch.no_grad():
        expected = model.get_audio_features(features).pooler_output
    optimize_for_cpu(model)
    seen: list[int] = []
    model.audio_model.blocks[1].conv1.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        found = model.get_audio_features(features).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert seen == [CNN14_WINDOWS, CNN14_WINDOWS, 1]


def test_the_weights_of_a_stage_are_packed_once_for_all_parts_of_a_batch(monkeypatch):
    monkeypatch.setattr(fast_cpu, "STAGE_BYTES", 4 * 512 * 16 * 4)
    model = optimize_for_cpu(make_model())
    stages = model.audio_model.stages
    layers = [sum(isinstance(layer, torch.nn.Linear) for layer in stage.modules()) for stage in stages]
    features = torch.randn(8, 1, 201, 32) * 10 - 40  # in two parts, from the second stage on in one
    packs = int(torch.float32 in ONEDNN_DTYPES)
    for _ in range(2):  # the second time with other weights, unseen by their version counters
        expected = torch.cat([model.get_audio_features(clip[None]).pooler_output for clip in features]).detach()
        with torch.no_grad(), Moves() as moves:
            found = model.get_audio_features(features).pooler_output
        assert moves.calls["_reorder_linear_weight"] == packs * layers[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        for parameter in stages.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    assert not fast_cpu._PACKED
    small = optimize_for_cpu(make_model().to(torch.bfloat16))
    with torch.no_grad(), Moves() as moves:
        small.get_audio_features(torch.cat([features] * 2))
    assert moves.calls["_reorder_linear_weight"] == 0  # of many rows, packing takes longer than it saves


def shapes_of(model) -> list[torch.Size]:
    """Shapes of the token ids that go into the text tower, filled as they do."""
    shapes: list[torch.Size] = []
    model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    return shapes


LABELS = ["dog", "a very long label of many words, far more than the others have, and then some", "cat", "dog"]
TEXTS = LABELS * 40 + [f"{word} {i}" for i in range(50) for word in ("bird", "rain and thunder over the hills")]


@torch.no_grad()
def alone(model, tokenizer, texts: list[str]) -> torch.Tensor:
    """Vectors of texts that are embedded one by one."""
    vectors = [model.get_text_features(**tokenizer([text], return_tensors="pt")).pooler_output for text in texts]
    return torch.cat(vectors)


def test_every_text_is_computed_once_beside_texts_of_its_length():
    tokenizer = AutoTokenizer.from_pretrained(GPT2_TOKENIZER.with_name("bert-base-uncased"))
    sizes = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = make_model({"model_type": "bert", "intermediate_size": 64, **sizes})
    shapes = shapes_of(model)
    vectors = embed_texts(model, tokenizer, TEXTS)
    different = list(dict.fromkeys(TEXTS))
    real = sum(len(tokenizer(text)["input_ids"]) for text in different)
    assert sum(shape[0] for shape in shapes) == len(different) < len(TEXTS)
    assert real <= sum(prod(shape) for shape in shapes) <= 1.3 * real
    torch.testing.assert_close(vectors[:4], alone(model, tokenizer, LABELS), atol=1e-5, rtol=0)
    assert torch.equal(vectors[0], vectors[3]) and torch.equal(vectors[:4], vectors[4:8])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("nodes", "again"), [(32, 41), (512, 0)])  # each tree starts anew
def test_a_causal_tower_computes_every_beginning_once(tokenizer, monkeypatch, attention, nodes, again):
    monkeypatch.setattr(clap_hf.embedding, "NODES_PER_TREE", nodes)
    model = make_model()
    model.set_attn_implementation(attention)
    shapes = shapes_of(model)
    vectors = embed_texts(model, tokenizer, TEXTS)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    beginnings = {tuple(tokens[:end]) for tokens in ids for end in range(1, len(tokens) + 1)}
    assert len(beginnings) < 0.5 * sum(map(len, {tuple(tokens) for tokens in ids}))
    assert sum(prod(shape) for shape in shapes) == len(beginnings) + again
    assert all(prod(shape) <= nodes for shape in shapes)
    torch.testing.assert_close(vectors, alone(model, tokenizer, TEXTS), atol=1e-5, rtol=0)
    assert torch.equal(vectors[0], vectors[3]) and torch.equal(vectors[:4], vectors[4:8])


def test_trees_take_a_text_longer_than_they_are_and_one_that_begins_another():
    ids = [[7, 1, 2, 3, 4, 5], [7, 1], [7, 1, 2], [9]]
    for nodes, sizes in ((100, [7]), (4, [3, 6, 1]), (1, [2, 3, 6, 1])):
        trees = list(prefix_trees(ids, nodes))
        assert [len(tree.tokens) for tree in trees] == sizes
        found = {}
        for tree in trees:
            for text, end in zip(tree.texts, tree.ends.tolist(), strict=True):
                path = tree.visible[end].nonzero()[:, 0]
                assert tree.depths[path].tolist() == list(range(len(path)))
                found[text] = tree.tokens[path].tolist()
        assert [found[i] for i in range(len(ids))] == ids
