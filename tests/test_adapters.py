"""Other families in the tools: the vectors of their own interfaces, deterministic, through every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, PeAudioFrameLevelModel
from typer.testing import CliRunner

from clap_hf import embed_files
from clap_hf.adapters import AdaptedModel, load_model
from clap_hf.cli import app
from clap_hf.embedding import ClapEncoder
from clap_hf.pretrained import model_type
from conftest import EXAMPLES, sound
from families import NAMES, RATE, save_family

SECONDS = (0.7, 1.0, 0.35)  # of the windows of LAION's tiny CLAP: shorter, and one whole
VARIANTS = ("laion-fused", "pe-frames")  # of families that are tested without them, too
TEXTS = ["a dog barks", "rain on a tin roof", "rain"]


PARAMETERS = [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in NAMES]


@pytest.fixture(scope="module", params=PARAMETERS)
def family(request, tmp_path_factory) -> tuple[str, Path]:
    """Name and folder of a tiny model."""
    return request.param, save_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def loaded(family):
    """Its model and processor."""
    return load_model(str(family[1]))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> list[Path]:
    """Files of `SECONDS`, and one of 2.6 s."""
    parent = tmp_path_factory.mktemp("sounds")
    for i, seconds in enumerate((*SECONDS, 2.6)):
        soundfile.write(parent / f"{i}.wav", sound(seconds, RATE, seed=i), RATE, subtype="FLOAT")
    (parent / "labels.csv").write_text("file,label\n" + "".join(f"{i}.wav,{'ab'[i % 2]} sound\n" for i in range(4)))
    return sorted(parent.glob("*.wav"))


@torch.no_grad()
def own_vectors(name: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What a family's own interface makes of the sounds of `SECONDS`, one by one, and of `TEXTS`; unit vectors."""
    clips = [sound(seconds, RATE, seed=i) for i, seconds in enumerate(SECONDS)]
    if name == "sentence-transformers":
        model = SentenceTransformer(str(folder), device="cpu")
        audio = [model.encode({"array": clip, "sampling_rate": RATE}, convert_to_tensor=True) for clip in clips]
        texts = model.encode(TEXTS, convert_to_tensor=True)
        return F.normalize(torch.stack(audio), dim=-1), F.normalize(texts, dim=-1)
    cls = PeAudioFrameLevelModel if name == "pe-frames" else AutoModel
    model, processor = cls.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = [processor.feature_extractor(clip, sampling_rate=RATE, return_tensors="pt") for clip in clips]
    tokens = processor.tokenizer(TEXTS, padding=True, return_tensors="pt")
    if name.startswith("laion"):
        audio = [model.get_audio_features(**features).pooler_output for features in inputs]
        texts = model.get_text_features(**tokens).pooler_output
    else:
        outputs = [model(**tokens, **features) for features in inputs]
        audio = [out.audio_embeds for out in outputs]
        audio = [F.normalize(frames, dim=-1).mean(dim=1) for frames in audio] if name == "pe-frames" else audio
        texts = outputs[0].text_audio_embeds
    return F.normalize(torch.cat(audio), dim=-1), F.normalize(texts, dim=-1)


def test_vectors_are_the_familys_own(family, loaded, sounds):
    name, folder = family
    model, processor = loaded
    audio, texts = own_vectors(name, folder)
    found = embed_files(model, processor, sounds[:3], windows_per_batch=2)
    assert found.files == sounds[:3] and not found.skipped
    torch.testing.assert_close(found.vectors, audio, atol=1e-5, rtol=0)
    encoder = ClapEncoder(model, processor, name)
    torch.testing.assert_close(encoder.embed_texts(TEXTS), texts, atol=1e-5, rtol=0)
    assert float((audio @ audio.T).min()) < 0.99999 and float((texts @ texts.T).min()) < 0.999, "inputs matter"


def test_a_long_clip_is_the_mean_of_its_windows(family, loaded, sounds):
    """Also twice the same, whatever it is embedded beside, and from two channels."""
    name, (model, processor) = family[0], loaded
    vectors = embed_files(model, processor, [sounds[3], *sounds]).vectors
    torch.testing.assert_close(vectors[0], vectors[4], atol=1e-5, rtol=0)
    encoder = ClapEncoder(model, processor, name)
    prepared = encoder.prepare(sounds[3])
    windows = 3 if "pe" not in name else 1  # of 1 s, or of 10
    assert prepared["input_features"].shape[1] == windows
    torch.testing.assert_close(encoder.embed_audio([prepared])[0], vectors[0], atol=1e-5, rtol=0)
    if windows == 3:
        whole = sound(2.6, RATE, seed=3)
        cuts = [whole[start : start + RATE] for start in (0, 12_800, 25_600)]
        alone = [encoder.embed_audio([encoder.prepare(cut, RATE)])[0] for cut in cuts]
        mean = F.normalize(torch.stack(alone).mean(dim=0), dim=-1)
        torch.testing.assert_close(mean, vectors[0], atol=1e-5, rtol=0)
    stereo = {"array": np.repeat(sound(0.7, RATE)[None], 2, axis=0), "sampling_rate": RATE}
    torch.testing.assert_close(encoder.embed_audio([encoder.prepare(stereo)])[0], vectors[1], atol=1e-5, rtol=0)


def test_identity_is_that_of_the_weights_and_the_front_end(family, loaded):
    name, folder = family
    model, processor = loaded
    encoder = ClapEncoder(model, processor, name)
    again = ClapEncoder(*load_model(str(folder)), "elsewhere")
    assert again.key == encoder.key and again.settings()["fingerprint"] == encoder.settings()["fingerprint"]
    assert encoder.settings()["sampling_rate"] == RATE
    weight = next(parameter for parameter in model.parameters() if parameter.ndim > 1).data.view(-1)
    weight[0] += 1
    assert ClapEncoder(model, processor).key != encoder.key
    weight[0] -= 1


def test_commands(family, sounds, tmp_path, monkeypatch):
    """classify, embed, search, timeline and evaluate."""
    folder = family[1]
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, (result.output, result.stderr, result.exception)
        return result.stdout

    data = sounds[0].parent
    output = json.loads(run("classify", data, "--model", folder, "--format", "json", "--device", "cpu"))
    assert [len(result["scores"]) for result in output["results"]] == [2] * 4
    assert sum(score["score"] for score in output["results"][0]["scores"]) == pytest.approx(1.0)
    shown = run(
        "timeline", sounds[3], "--labels", "a dog,rain", "--model", folder, "--format", "json", "--threshold", -1
    )
    assert json.loads(shown)
    collection = tmp_path / "collection"
    run("embed", data, "--output", collection, "--model", folder, "--device", "cpu")
    hits = json.loads(run("search", collection, "--like", sounds[1], "--format", "json", "--device", "cpu"))["hits"]
    assert (
        len(hits) == 4 and hits[0]["file"] == str(sounds[1]) and hits[0]["similarity"] == pytest.approx(1.0, abs=1e-5)
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = "".join(f"{file},{'ab'[i % 2]} sound\n" for i, file in enumerate(sounds))
    (tasks / "mine.csv").write_text("path,label\n" + rows)
    options = ("--data-dir", tasks, "--output-dir", tmp_path / "results", "--cache-dir", tmp_path / "cache")
    run("evaluate", folder, "--suite", "own", *options, "--no-plots", "--device", "cpu")
    result = json.loads((tmp_path / "results" / "results.json").read_text())
    assert result["tasks"][0]["status"] == "done" and result["settings"]["model"]["sampling_rate"] == RATE


def test_collections_of_two_families_do_not_mix(tmp_path, sounds):
    folders = [save_family(name, tmp_path / name) for name in ("laion", "pe-audio")]
    for folder, code in zip(folders, (0, 2), strict=True):
        words = ["embed", str(sounds[0]), "--output", str(tmp_path / "both"), "--model", str(folder)]
        assert CliRunner().invoke(app, words).exit_code == code


def test_types(checkpoint, tmp_path):
    assert model_type(str(checkpoint)) == "msclap"
    assert not isinstance(load_model(str(checkpoint))[0], AdaptedModel)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is of the type 'bert', expected one of"):
        load_model(str(tmp_path))
    result = CliRunner().invoke(app, ["classify", str(EXAMPLES), "--model", str(tmp_path)])
    assert result.exit_code != 0 and "'bert'" in result.stderr
