"""`clap-hf convert`: small checkpoints in the official format, from a file and from the loopback Hub."""

import json

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from clap_hf import load_audio, load_msclap_checkpoint
from clap_hf.cli import app
from clap_hf.msclap_weights import mean_text_cosine
from msclap_reference import EXAMPLES, TOKENIZER, official_state, random_clap


@pytest.fixture(scope="module")
def states():
    return {
        version: official_state(random_clap(version, seed=7, small=True), version, "hub")
        for version in ("2022", "2023")
    }


@pytest.fixture
def save(states, tmp_path):
    """Writes an official file, with some keys changed."""

    def write(version="2023", **changes):
        path = tmp_path / f"CLAP_weights_{version}.pth"
        torch.save({"model": states[version] | changes}, path)
        return path

    return write


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "1000", "NO_COLOR": "1"})
    assert result.exit_code == code, (result.output, result.stderr)
    return result


@pytest.mark.parametrize("version", ["2022", "2023"])
@torch.no_grad()
def test_a_folder_that_loads(save, tmp_path, version):
    checkpoint, output = save(version), tmp_path / "converted"
    arguments = [version, "--checkpoint", checkpoint, "--output", output, "--tokenizer", TOKENIZER[version]]
    shown = run(*arguments).stdout
    report = json.loads((output / "conversion.json").read_text())
    assert report["reload_is_bit_equal"] and 0 < report["mean_text_cosine"] < 0.9
    assert report["sha256"] in shown and str(tmp_path) not in (output / "conversion.json").read_text()

    sound = load_audio(EXAMPLES / "sheep.wav")
    inputs = {"text": ["a sheep", "a train"], "audio": sound.samples, "sampling_rate": sound.sampling_rate}
    model, processor = load_msclap_checkpoint(checkpoint, version, TOKENIZER[version])
    loaded = AutoModel.from_pretrained(output)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    expected = model(**processor(**inputs)).logits_per_audio
    found = loaded(**AutoProcessor.from_pretrained(output)(**inputs)).logits_per_audio
    torch.testing.assert_close(found, expected)  # the last bit depends on where in memory the weights lie
    assert (output / "modeling_msclap.py").is_file()  # the code travels with the weights

    assert "exists, expected a new folder" in run(*arguments, code=1).stderr
    assert not output.with_name("converted.partial").exists()


def test_one_step_from_the_official_repository_to_an_own(hub, save, tmp_path, monkeypatch):
    """Weights and tokenizer from the Hub, the converted model back to it, and its card."""
    api = HfApi()
    monkeypatch.chdir(tmp_path)
    # Nobody may write to somebody else's name space, here as there: the official repositories are put in place.
    for repo_id, file in {"microsoft/msclap": save(), "gpt2": TOKENIZER["2023"]}.items():
        hub.seed("models", repo_id, file)
    run("2023", "--push-to-hub", "acme/msclap-2023", "--private")
    assert [commit.title for commit in api.list_repo_commits("acme/msclap-2023")] == [
        "CLAP 2023, converted",
        "initial commit",
    ]
    assert api.model_info("acme/msclap-2023").private
    files = set(api.list_repo_files("acme/msclap-2023"))
    assert {"README.md", "conversion.json", "model.safetensors", "modeling_msclap.py", "tokenizer.json"} <= files
    card = ModelCard.load("acme/msclap-2023")
    assert (card.data.license, card.data.base_model) == ("mit", "microsoft/msclap")
    for word in ("elizalde2024natural", "released under the MIT license (© Microsoft", 'model="acme/msclap-2023"'):
        assert word in card.text
    converted = AutoModel.from_pretrained("acme/msclap-2023").state_dict()
    expected = load_msclap_checkpoint(tmp_path / "CLAP_weights_2023.pth", "2023", TOKENIZER["2023"])[0].state_dict()
    assert all(torch.equal(value, converted[name]) for name, value in expected.items())
    assert hub.unhandled == []


def test_a_push_that_fails_keeps_what_was_converted(hub, save, tmp_path):
    arguments = ["--checkpoint", save(), "--output", tmp_path / "converted", "--tokenizer", TOKENIZER["2023"]]
    denied = run("2023", *arguments, "--push-to-hub", "acme/denied", "--token", hub.tokens["read"], code=1)
    assert "Converted, but not pushed" in denied.stderr and "may read but not write" in denied.stderr
    assert f"clap-hf push {tmp_path / 'converted'} acme/denied" in denied.stderr
    assert AutoModel.from_pretrained(tmp_path / "converted").logit_scale.item() == 3.5


@torch.no_grad()
def test_a_collapsed_text_tower_is_told_and_not_pushed(hub, save, tmp_path):
    checkpoint = save(**{"caption_encoder.projection.linear1.weight": torch.zeros(96, 128)})
    model, processor = load_msclap_checkpoint(checkpoint, "2023", TOKENIZER["2023"])
    assert mean_text_cosine(model, processor) == pytest.approx(1.0, abs=1e-5)
    arguments = ["--checkpoint", checkpoint, "--output", tmp_path / "converted", "--tokenizer", TOKENIZER["2023"]]
    result = run("2023", *arguments, "--push-to-hub", "acme/collapsed", code=1)
    assert "mean cosine of 1.000, expected below 0.9" in result.stderr
    assert not (tmp_path / "converted").exists() and not HfApi().repo_exists("acme/collapsed")


def test_what_is_wrong_is_said_in_one_line(hub, tmp_path):
    assert "expected one of" in run("2021", "--output", tmp_path / "converted", code=1).stderr
    gone = run("2023", "--checkpoint", tmp_path / "gone.pth", "--output", tmp_path / "converted", code=1)
    assert "gone.pth is not a file" in gone.stderr
    missing = run("2022", "--output", tmp_path / "converted", code=1)  # nobody put the official file here
    assert "microsoft/msclap" in missing.stderr
    assert not list(tmp_path.iterdir())
