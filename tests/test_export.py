"""ONNX graphs of both towers: equal to the model for any number of windows, texts and tokens."""

import json

import numpy as np
import pytest
import torch
from packaging.version import Version
from typer.testing import CliRunner

from clap_hf import MSClapProcessor
from clap_hf.cli import app
from clap_hf.export import export_onnx, export_web
from clap_hf.model.modeling_msclap import unpad_windows
from conftest import TINY_CNN14, make_feature_extractor, make_model, sound

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("audio", [None, TINY_CNN14], ids=["htsat", "cnn14"])
def test_graphs_equal_the_model(audio, tokenizer, tmp_path):
    model = make_model(audio=audio)
    processor = MSClapProcessor(make_feature_extractor(), tokenizer)
    report = export_onnx(model, processor, tmp_path / "onnx", int8=True)
    assert json.loads((tmp_path / "onnx" / "onnx.json").read_text()) == report
    assert report["logit_scale"] == pytest.approx(float(model.logit_scale.exp()))
    for name, graph in report["graphs"].items():
        assert graph["lowest_cosine"] > (0.97 if "int8" in name else 1 - 1e-5), name
    embedding = model.text_model.get_input_embeddings().weight  # nearly all of the text tower
    assert report["graphs"]["text_int8.onnx"]["bytes"] < 1.5 * embedding.numel()

    inputs = MSClapProcessor.from_pretrained(tmp_path / "onnx")(
        text=["rain", "a long train passes slowly", "!"] * 3, audio=[sound(0.7), sound(2.6)], sampling_rate=16_000
    )
    with torch.inference_mode():
        expected = model(**inputs)
    values = {**inputs, "input_features": unpad_windows(inputs["input_features"], inputs["num_windows"])}
    embeds = {}
    for tower in ("audio", "text"):
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{tower}.onnx")
        feed = {node.name: values[node.name].numpy() for node in session.get_inputs()}
        embeds[tower] = session.run(None, feed)[0]
    np.testing.assert_allclose(embeds["text"], expected.text_embeds, atol=1e-5)
    of_clip = np.split(embeds["audio"], np.cumsum(inputs["num_windows"].numpy())[:-1])
    means = np.stack([windows.mean(axis=0) for windows in of_clip])
    np.testing.assert_allclose(means / np.linalg.norm(means, axis=1, keepdims=True), expected.audio_embeds, atol=1e-5)


@pytest.mark.slow
def test_graphs_for_the_web_are_small_and_close_to_the_model(tokenizer, tmp_path):
    model = make_model()  # the embedded checkpoint, with CNN14, is exported for the test of the page
    processor = MSClapProcessor(make_feature_extractor(), tokenizer)
    report = export_web(model, processor, tmp_path / "web")
    assert json.loads((tmp_path / "web" / "model.json").read_text()) == report
    names = {"audio.onnx", "text.onnx", "model.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "web").iterdir()} >= names
    embedding = model.text_model.get_input_embeddings().weight  # nearly all of the text tower
    assert report["graphs"]["text.onnx"]["bytes"] < 1.5 * embedding.numel()
    assert report["graphs"]["text.onnx"]["lowest_cosine"] > 0.999
    assert report["graphs"]["audio.onnx"]["lowest_cosine"] > 0.999


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.7"), reason="the exporter of torch 2.6 does not fit today's onnxscript"
)
def test_an_export_that_differs_is_refused_and_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    from clap_hf import export

    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    processor = MSClapProcessor(make_feature_extractor(), tokenizer)
    with pytest.raises(RuntimeError, match="audio.onnx differs from the model"):
        export_onnx(make_model(audio=TINY_CNN14), processor, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_two_kinds_of_8_bits_are_refused(tmp_path):
    result = CliRunner().invoke(app, ["export", "embedded", str(tmp_path / "onnx"), "--web", "--int8"])
    assert result.exit_code == 2 and "--int8" in result.stderr and not list(tmp_path.iterdir())
