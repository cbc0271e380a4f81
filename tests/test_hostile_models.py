"""Damaged and hostile model folders: each is refused in one line that names it, and none runs code."""

import json
import os
import pickle
import re
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline
from typer.testing import CliRunner

import clap_hf
from clap_hf import MSClapModel, MSClapProcessor, SoundCollection
from clap_hf.cli import app
from clap_hf.pretrained import check_weights, load_checked
from conftest import EXAMPLES

DOG = EXAMPLES / "dog.ogg"


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def header(folder, size):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + data[8:])


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def make_pickle(folder, name):
    (folder / "model.safetensors").unlink()
    with (folder / name).open("wb") as file:
        pickle.dump(Bomb(folder / "ran"), file)


def make_directory(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def fill(key, value):
    def change(folder):
        change_weights(folder, lambda weights: weights[key].view(-1)[:1].fill_(value))

    return change


def drop(*keys):
    return lambda folder: change_weights(folder, lambda weights: [weights.pop(key) for key in keys])


def reshape(folder):
    change_weights(folder, lambda weights: weights.update({PROJECTION: torch.zeros(24, 5)}))


def config(**settings):
    return lambda folder: change_json(folder / "config.json", lambda content: content.update(settings))


def text_config(**settings):
    return lambda folder: change_json(folder / "config.json", lambda content: content["text_config"].update(settings))


def audio_config(**settings):
    return lambda folder: change_json(folder / "config.json", lambda content: content["audio_config"].update(settings))


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


PROJECTION = "audio_projection.linear1.weight"
HOSTILE = {
    "truncated safetensors": (truncate, "model.safetensors is no whole safetensors file"),
    "empty safetensors": (write("model.safetensors", b""), "model.safetensors is no whole safetensors file"),
    "short header": (lambda folder: header(folder, 3), "model.safetensors is no whole safetensors file"),
    "long header": (lambda folder: header(folder, 2**62), "model.safetensors is no whole safetensors file"),
    "text as safetensors": (write("model.safetensors", b"not weights at all"), "is no whole safetensors file"),
    "directory as weights": (make_directory, "model.safetensors: is a folder, expected weights in safetensors"),
    "no weights": (remove("model.safetensors"), "model.safetensors: no such file, expected weights in safetensors"),
    "pickle as safetensors": (lambda folder: make_pickle(folder, "model.safetensors"), "no whole safetensors file"),
    "pickle beside": (lambda folder: make_pickle(folder, "pytorch_model.bin"), "pytorch_model.bin, which is never"),
    "broken index": (
        lambda folder: (remove("model.safetensors")(folder), write("model.safetensors.index.json", b"[]")(folder)),
        "model.safetensors.index.json is damaged",
    ),
    "index of nothing": (
        lambda folder: (
            remove("model.safetensors")(folder),
            write("model.safetensors.index.json", b'{"weight_map": {"a": "a.safetensors"}}')(folder),
        ),
        "a.safetensors: no such file",
    ),
    "index outside": (
        lambda folder: (
            remove("model.safetensors")(folder),
            write("model.safetensors.index.json", b'{"weight_map": {"a": "../model.safetensors"}}')(folder),
        ),
        "model.safetensors.index.json is damaged (it names ../model.safetensors, expected files of the folder)",
    ),
    "NaN": (fill(PROJECTION, float("nan")), f"holds NaN or infinity in 1 weights ({PROJECTION})"),
    "infinity": (fill(PROJECTION, float("inf")), f"holds NaN or infinity in 1 weights ({PROJECTION})"),
    "NaN in statistics": (fill("audio_model.batch_norm.running_mean", float("nan")), "batch_norm.running_mean"),
    "missing weight": (drop(PROJECTION), PROJECTION),
    "missing scale": (drop("logit_scale"), "logit_scale"),
    "other shape": (reshape, PROJECTION),
    "config not JSON": (write("config.json", b'{"model_type": "msclap"'), "config.json: not JSON"),
    "config not UTF-8": (write("config.json", b"\xff\xfe{}"), "config.json is not UTF-8 text"),
    "config a list": (write("config.json", b"[1]"), "config.json: a list, expected a JSON object"),
    "deep config": (write("config.json", b'{"a":' * 100_000), "config.json: not JSON"),
    "no config": (remove("config.json"), "config.json: no such file"),
    "unknown type": (config(model_type="malware"), "config.json cannot be used"),
    "code of its own": (
        config(model_type="malware", auto_map={"AutoConfig": "evil.Config"}),
        "config.json cannot be used",
    ),
    "a million layers": (text_config(n_layer=1_000_000), "n_layer is 1,000,000, expected at most 1,000"),
    "a million layers by another name": (text_config(num_hidden_layers=10**6), "num_hidden_layers is 1,000,000"),
    "a million blocks": (audio_config(depths=[10**6, 2]), "depths is 1,000,002, expected at most 1,000"),
    "huge vocabulary": (text_config(vocab_size=10**12), "expected 32,"),
    "huge projection": (config(projection_dim=10**9), "parameters by its config.json"),
    "more layers than weights": (text_config(n_layer=9), "parameters by its config.json (missing: text_model.h.2"),
    "sizes of wrong types": (config(projection_dim="x"), "config.json cannot be used"),
    "unknown architecture": (config(architectures=["Other"]), "the architecture is 'Other'"),
    "no front end": (remove("processor_config.json"), "the processor cannot be loaded"),
    "broken front end": (write("processor_config.json", b"{"), "the processor cannot be loaded"),
    "no tokenizer": (remove("tokenizer.json"), "the processor cannot be loaded"),
    "tokenizer garbage": (write("tokenizer.json", os.urandom(64)), "the processor cannot be loaded"),
    "tokenizer of nothing": (write("tokenizer.json", b"{}"), "the processor cannot be loaded"),
    "tokenizer config garbage": (write("tokenizer_config.json", b"["), "the processor cannot be loaded"),
}


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def one_error(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and result.stdout == "" and isinstance(result.exception, SystemExit), result.output
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("Error: ") and "Traceback" not in line and "--traceback" not in line, line
    return line


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_refused_in_one_line_and_run_nothing(folder, case):
    change, message = HOSTILE[case]
    change(folder)
    line = one_error("classify", DOG, "--labels", "dog,cat", "--model", folder, "--device", "cpu")
    assert message in line and str(folder) in line, line
    assert "weights_only" not in line and not (folder / "ran").exists()


@pytest.mark.parametrize("case", ["NaN", "missing scale", "truncated safetensors"])
def test_every_command_that_loads_a_model_refuses_it(folder, tmp_path, case):
    change, message = HOSTILE[case]
    change(folder)
    assert message in one_error("embed", DOG, "--output", tmp_path / "index", "--model", folder, "--device", "cpu")
    assert message in one_error("export", folder, tmp_path / "onnx")
    assert not (tmp_path / "index").exists() and not (tmp_path / "onnx").exists()


def test_captioners_are_checked_too(captioner, tmp_path):
    folder = shutil.copytree(captioner, tmp_path / "captioner")
    fill("mapper.prefix_const", float("nan"))(folder)
    line = one_error("caption", DOG, "--model", folder, "--device", "cpu")
    assert "holds NaN or infinity in 1 weights (mapper.prefix_const)" in line
    with pytest.raises(ValueError, match="mapper.prefix_const"):
        pipeline("audio-captioning", model=str(folder), device="cpu")


@pytest.mark.parametrize(("case", "message"), [("NaN", "NaN or infinity"), ("missing scale", r"misses 1 weights")])
def test_pipelines_and_collections_refuse_such_weights(folder, tmp_path, case, message):
    HOSTILE[case][0](folder)
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))} .*{message}"):
        pipeline(
            "zero-shot-audio-classification",
            model=str(folder),
            pipeline_class=clap_hf.MSClapZeroShotAudioClassificationPipeline,
            device="cpu",
        )
    model = MSClapModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        SoundCollection(tmp_path / "index", model, MSClapProcessor.from_pretrained(folder), "mine")


def test_whole_folders_load_as_they_did(folder):
    model, processor = load_checked(MSClapModel, str(folder))
    expected = AutoModel.from_pretrained(folder)
    assert type(model) is type(expected) and not model.training and model.missing_weights == ()
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    assert processor.to_dict() == MSClapProcessor.from_pretrained(folder).to_dict()
    shards = MSClapModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    shards.save_pretrained(folder, max_shard_size="2MB")
    assert (folder / "model.safetensors.index.json").is_file()
    sharded, _ = load_checked(MSClapModel, str(folder))
    assert torch.equal(sharded.logit_scale, model.logit_scale)


def test_weights_whose_sum_overflows_are_finite(folder):
    model = MSClapModel.from_pretrained(folder)
    with torch.no_grad():
        model.audio_projection.linear1.weight.fill_(3e38)
    check_weights(model)
    with torch.no_grad():
        model.audio_projection.linear1.weight[0, 0], model.audio_projection.linear1.weight[0, 1] = (
            torch.inf,
            -torch.inf,
        )
    with pytest.raises(ValueError, match=PROJECTION):
        check_weights(model)


def test_missing_weights_are_remembered_and_given_to_who_asks(folder):
    drop("logit_scale", PROJECTION)(folder)
    model, info = MSClapModel.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"logit_scale", PROJECTION} == set(model.missing_weights)
    with pytest.raises(ValueError, match=f"mine misses 2 weights of MSClapModel \\({PROJECTION}, logit_scale\\)"):
        check_weights(model, "mine")
