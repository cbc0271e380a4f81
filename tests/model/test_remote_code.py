"""Saved folders in a process that cannot import clap_hf, with `trust_remote_code=True`."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import clap_hf
from clap_hf import MSClapForAudioClassification, MSClapModel
from conftest import TINY_CNN14, make_config, make_model

# None in sys.modules is "not installed" to every later import: clap_hf must be out of reach, and torchaudio may be a
# build that does not match torch, which clap_hf's guard deals with where it is there.
WITHOUT_PACKAGE = """
import sys
sys.modules["clap_hf"] = sys.modules["torchaudio"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoProcessor, AutoTokenizer,
    pipeline,
)
torch.set_num_threads(1)
folder, classifier_folder, inputs, outputs = sys.argv[1:]
inputs = load_file(inputs)
clip = inputs.pop("clip").numpy()
trust = {"trust_remote_code": True}

model = AutoModel.from_pretrained(folder, **trust)
classifier = AutoModelForAudioClassification.from_pretrained(classifier_folder, **trust)
other = AutoModelForAudioClassification.from_pretrained(folder, **trust)  # the dual encoder's folder
assert all(torch.equal(a, b) for a, b in zip(other.audio_model.parameters(), model.audio_model.parameters()))
for loaded in (model, classifier):
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
assert AutoConfig.from_pretrained(folder, **trust).model_type == "msclap"
processor = AutoProcessor.from_pretrained(folder, **trust)
made = processor(text=["a dog barks", "rain!"], audio=clip, sampling_rate=44_100)
extracted = AutoFeatureExtractor.from_pretrained(folder, **trust)(clip, 44_100)
assert torch.equal(made["input_features"], extracted["input_features"])
tokens = AutoTokenizer.from_pretrained(folder, **trust)("a dog barks")["input_ids"]
assert tokens[-2:] == [220, 50256], tokens
classify = pipeline("zero-shot-audio-classification", model=folder, device="cpu", **trust)
scores = {score["label"]: score["score"] for score in classify(clip[:20_000], candidate_labels=["dog", "rain"])}
results = {"scores": torch.tensor([scores["dog"], scores["rain"]])}
with torch.no_grad():
    results["logits"] = model(**inputs).logits_per_audio
    results["made_logits"] = model(**made).logits_per_audio
    results["classifier_logits"] = classifier(inputs["input_features"], inputs["num_windows"]).logits
save_file({name: value.contiguous() for name, value in results.items()}, outputs)
"""


def test_folders_load_without_the_package(tmp_path, checkpoint, batch, processor):
    """Dual encoder, processor, stock pipeline and classifier, in one process: importing transformers takes seconds."""
    torch.manual_seed(0)
    classifier = MSClapForAudioClassification(make_config(audio=TINY_CNN14, num_labels=4)).eval()
    classifier.save_pretrained(tmp_path / "classifier")
    clip = torch.randn(90_000) * 0.1
    save_file({**batch, "clip": clip}, tmp_path / "in.safetensors")
    result = subprocess.run(
        [
            *(sys.executable, "-I", "-c", WITHOUT_PACKAGE),
            *(str(checkpoint), str(tmp_path / "classifier")),
            *(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    out = load_file(tmp_path / "out.safetensors")

    model = MSClapModel.from_pretrained(checkpoint)
    made = processor(text=["a dog barks", "rain!"], audio=clip, sampling_rate=44_100)
    # The stock pipeline believes that an array is at the model's rate.
    stock = processor(
        text=["This is a sound of dog.", "This is a sound of rain."], audio=clip[:20_000], sampling_rate=16_000
    )
    with torch.no_grad():
        assert torch.equal(out["logits"], model(**batch).logits_per_audio)
        assert torch.equal(out["made_logits"], model(**made).logits_per_audio)
        torch.testing.assert_close(out["scores"], model(**stock).logits_per_audio.softmax(dim=1)[0])
        logits = classifier(batch["input_features"], batch["num_windows"]).logits
        assert torch.equal(out["classifier_logits"], logits)


def test_the_package_wins_where_it_is_installed(checkpoint):
    auto_map = json.loads((checkpoint / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForAudioClassification"}
    assert "custom_pipelines" not in json.loads((checkpoint / "config.json").read_text())
    for trust in (False, True):
        assert type(AutoModel.from_pretrained(checkpoint, trust_remote_code=trust)) is MSClapModel


def test_saved_code_is_the_package_code(tmp_path):
    make_model(audio=TINY_CNN14).save_pretrained(tmp_path)
    source = Path(clap_hf.__file__).parent / "model"
    saved = sorted(path.name for path in tmp_path.glob("*.py"))
    assert "modeling_msclap.py" in saved and "modeling_msclap_cnn14.py" in saved
    for name in saved:
        assert (tmp_path / name).read_text() == (source / name).read_text()


def test_model_folder_imports_siblings_torch_and_transformers_only():
    allowed = {"torch", "transformers", "huggingface_hub", "numpy", "soundfile"} | sys.stdlib_module_names
    for path in (Path(clap_hf.__file__).parent / "model").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, path
            elif isinstance(node, ast.ImportFrom):
                # Only this form is copied and loaded by remote code.
                assert node.level == 1 and (path.parent / f"{node.module}.py").is_file(), path
