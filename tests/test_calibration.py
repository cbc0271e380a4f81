"""Calibration: what it states holds on other sounds; damaged files; classify, the pipeline and search by it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline
from typer.testing import CliRunner

import clap_hf
from clap_hf import SoundCollection, load_audio
from clap_hf.calibration import FILE, RATES, Calibration
from clap_hf.cli import app
from clap_hf.cli.models import load_dual_encoder
from clap_hf.embedding import ClapEncoder, front_end, model_identity
from clap_hf.pretrained import load_checked
from conftest import EXAMPLES, make_feature_extractor, make_model, sound

DIM, CLASSES = 32, 24


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def made_up(seed, sounds=600):
    """Sounds and texts of classes: texts are close to all sounds to different extents, as those of a model are."""
    random = np.random.default_rng(seed)
    shared = np.random.default_rng(0)
    classes = shared.normal(size=(CLASSES, DIM))
    texts = unit(classes + 2 * shared.uniform(size=(CLASSES, 1)) * shared.normal(size=DIM))
    of_sound = random.integers(CLASSES, size=sounds)
    audio = unit(
        classes[of_sound] + 1.5 * random.normal(size=(sounds, DIM)) + 0.5 * np.random.default_rng(1).normal(size=DIM)
    )
    return audio.astype(np.float32), texts.astype(np.float32), of_sound[:, None] == np.arange(CLASSES)


@pytest.fixture(scope="module")
def calibration():
    audio, text, present = made_up(seed=1)
    return Calibration.fit(audio, text, present, ~present, [str(i % 6) for i in range(len(audio))], {"model": "none"})


def test_what_is_stated_holds_on_other_sounds(calibration):
    audio, text, present = made_up(seed=2)
    probability = calibration.probabilities(audio, text)
    for rate in (0.01, 0.05, 0.2):
        assert (probability[~present] >= calibration.threshold(rate)).mean() == pytest.approx(rate, rel=0.35)
    odds = np.where(present, 0.5 / present.sum(), 0.5 / (~present).sum())
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (probability >= low) & (probability < low + 0.25)
        stated, share = ((odds * value)[inside].sum() / odds[inside].sum() for value in (probability, present))
        assert stated == pytest.approx(share, abs=0.1)
    assert probability[present].mean() > probability[~present].mean() + 0.4


def test_rates_that_hold_in_more_sources_have_higher_thresholds():
    audio, text, present = made_up(seed=1)
    audio = unit(audio + np.repeat(np.random.default_rng(5).normal(size=(6, DIM)), 100, axis=0) / 6).astype(np.float32)
    sources = np.repeat(list("abcdef"), 100)
    low, high = (
        Calibration.fit(audio, text, present, ~present, list(sources), {}, sources_held=share) for share in (0.5, 1.0)
    )
    assert (high.thresholds > low.thresholds).all() and (high.weights == low.weights).all()
    logits = high.logits(audio, text)
    for source in "abcdef":
        own = sources == source
        assert (logits[own][~present[own]] >= high.thresholds[0]).mean() <= RATES[0] + 0.05


def test_a_threshold_of_many_pairs_is_of_any_of_them(calibration):
    audio, text, present = made_up(seed=3)
    probability = np.where(present, 0, calibration.probabilities(audio, text))
    named = (probability.max(axis=1) >= calibration.threshold(0.2, count=CLASSES - 1)).mean()
    assert 0.1 < named < 0.3
    thresholds = [calibration.threshold(rate) for rate in (0.5, 0.1, RATES[-1], RATES[-1] / 10, RATES[-1] / 1000)]
    assert thresholds == sorted(thresholds) and thresholds[-1] > thresholds[-2]
    prior = calibration.probabilities(audio[:5], text, prior=0.1)
    assert (prior < calibration.probabilities(audio[:5], text)).all()
    for wrong in ({"rate": 0.0}, {"rate": 1.0}, {"rate": 0.1, "count": 0}):
        with pytest.raises(ValueError, match="expected more than 0"):
            calibration.threshold(**wrong)


def identity_of(model, processor):
    return model_identity(model, front_end(processor.feature_extractor), processor.tokenizer)


def beside(checkpoint, model, processor):
    parts = {"extractor": processor.feature_extractor, "tokenizer": processor.tokenizer}
    return Calibration.beside(str(checkpoint), model, **parts)


def test_files(calibration, tmp_path, processor):
    model = make_model()
    facts = {"model": "none", "identity": {"float32": identity_of(model, processor)}}
    replace(calibration, facts=facts).save(tmp_path / FILE)
    found = beside(tmp_path, model, processor)
    audio, text, _ = made_up(seed=4)
    np.testing.assert_allclose(found.logits(audio, text), calibration.logits(audio, text), atol=0.05)
    assert found.facts == facts and beside(tmp_path / "nowhere", model, processor) is None
    content = (tmp_path / FILE).read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"text"):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="no calibration .*Make it again"):
            beside(tmp_path, model, processor)
    with pytest.raises(ValueError, match="0 do not, expected some of both"):
        Calibration.fit(audio, text, np.ones((600, 24), bool), np.zeros((600, 24), bool), [""] * 600, {})


def test_a_calibration_belongs_to_its_weights(calibration, processor, tmp_path):
    """Beside other weights, another front end or another text tower it is refused, in one line."""
    model, folder = make_model(), tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    replace(calibration, facts={"identity": {"float32": identity_of(model, processor)}}).save(folder / FILE)
    arguments = ["classify", str(EXAMPLES / "dog.ogg"), "--labels", "dog", "--model", str(folder), "--device", "cpu"]
    saved_again = clap_hf.MSClapModel.from_pretrained(folder)
    assert beside(folder, saved_again, processor) is not None
    extractor = make_feature_extractor(fmax=7_000.0)
    for other, parts in (
        (make_model(seed=1), processor),
        (model, clap_hf.MSClapProcessor(extractor, processor.tokenizer)),
        (make_model().to(torch.bfloat16), processor),
    ):
        with pytest.raises(ValueError, match="made for a model with the fingerprint .*Make it again"):
            beside(folder, other, parts)
    with torch.no_grad():
        model.text_projection.linear2.weight[0, 0] += 1e-3
    model.save_pretrained(folder)
    for refused in (arguments, ["timeline", *arguments[1:]]):
        result = CliRunner().invoke(app, refused)
        assert result.exit_code == 2 and "was made for a model" in result.output and result.output.count("\n") == 1
    assert CliRunner().invoke(app, [*arguments, "--raw"]).exit_code == 0
    assert CliRunner().invoke(app, ["timeline", *arguments[1:], "--threshold", "0.3"]).exit_code == 0


def test_a_calibration_is_fetched_with_the_checkpoint_that_is_named(hub, calibration, processor, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    hub.seed("models", "acme/uncalibrated", tmp_path)
    replace(calibration, facts={"identity": {"float32": identity_of(model, processor)}}).save(tmp_path / FILE)
    hub.seed("models", "acme/calibrated", tmp_path)
    for name in ("acme/calibrated", "acme/uncalibrated"):
        classify = pipeline(
            "zero-shot-audio-classification",
            model=name,
            pipeline_class=clap_hf.MSClapZeroShotAudioClassificationPipeline,
        )
        assert (classify.calibration is not None) == (name == "acme/calibrated")
        _, _, _, found = load_dual_encoder(name, "cpu")
        assert (found is not None) == (name == "acme/calibrated")


def test_the_embedded_checkpoint_is_calibrated():
    model, processor = load_checked(clap_hf.MSClapModel, str(clap_hf.embedded_checkpoint()), dtype=torch.float32)
    calibration = beside(clap_hf.embedded_checkpoint(), model, processor)
    half, _ = load_checked(clap_hf.MSClapModel, str(clap_hf.embedded_checkpoint()), dtype=torch.float16)
    assert beside(clap_hf.embedded_checkpoint(), half, processor) is not None
    held_out = {"openttd-opensfx", "lugaru-data", "minetest-data", "sonic-pi-samples", "pocketsphinx-testdata"}
    assert not held_out & set(calibration.facts["sources"]), "the sounds of examples/"
    encoder = ClapEncoder(model, processor)
    names = {
        "dog.ogg": "a dog",
        "sheep.wav": "sheep",
        "glass_break.ogg": "glass breaking",
        "snare_drum.flac": "a snare drum",
    }
    audio = encoder.embed_audio([encoder.prepare(EXAMPLES / name) for name in names]).numpy()
    text = encoder.embed_texts(list(names.values())).numpy()
    probability = calibration.probabilities(audio, text)
    present = np.eye(len(names), dtype=bool)
    assert probability[present].min() > 0.9 and probability[~present].max() < 0.6


def test_classify_answers_none_of_these():
    def run(*options):
        arguments = [
            "classify",
            str(EXAMPLES / "dog.ogg"),
            "--labels",
            "violin,rain,speech",
            "--format",
            "json",
            *options,
        ]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["results"][0]

    found = run()
    threshold = Calibration.load(clap_hf.embedded_checkpoint() / "calibration.safetensors").threshold(0.2, count=3)
    assert found["none_of_these"] and found["scores"][0]["probability"] < threshold < 0.95
    raw = run("--raw")
    assert "none_of_these" not in raw and {key for score in raw["scores"] for key in score} == {"score", "label"}
    assert [(s["label"], s["score"]) for s in raw["scores"]] == [(s["label"], s["score"]) for s in found["scores"]]
    options = ["classify", str(EXAMPLES / "dog.ogg"), "--labels", "violin,rain,speech"]
    result = CliRunner().invoke(app, options, env={"COLUMNS": "200"})
    assert "none of these" in " ".join(result.stdout.split())


def test_the_pipeline_scores_every_label_by_itself():
    classify = clap_hf.MSClapZeroShotAudioClassificationPipeline
    model, processor = load_checked(clap_hf.MSClapModel, str(clap_hf.embedded_checkpoint()))
    parts = {"model": model, "tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    scoring = classify(**parts)
    labels = {"candidate_labels": ["a dog", "an animal", "violin"]}
    found = scoring(EXAMPLES / "dog.ogg", multi_label=True, **labels)
    scores = {entry["label"]: entry["score"] for entry in found}
    assert scores["a dog"] > 0.9 and scores["violin"] < 0.3
    assert all(entry["score"] == entry["probability"] for entry in found)
    relative = scoring(EXAMPLES / "dog.ogg", **labels)
    assert sum(entry["score"] for entry in relative) == pytest.approx(1)
    assert {entry["label"]: entry["probability"] for entry in relative} == pytest.approx(scores)
    with pytest.raises(ValueError, match="this one has no calibration"):
        classify(**parts, calibration=False)(EXAMPLES / "dog.ogg", multi_label=True, **labels)


def test_search_states_that_nothing_matches(tmp_path):
    index, arguments = tmp_path / "index", ["--format", "json"]
    files = [str(EXAMPLES / name) for name in ("dog.ogg", "fire.ogg", "snare_drum.flac")]
    assert CliRunner().invoke(app, ["embed", *files, "--output", str(index)]).exit_code == 0
    found, missing, raw = (
        json.loads(CliRunner().invoke(app, ["search", str(index), *words, *arguments]).stdout)
        for words in (["a dog barking"], ["a violin"], ["a violin", "--raw"])
    )
    assert found["matches"] is True and found["hits"][0]["file"].endswith("dog.ogg")
    assert found["hits"][0]["probability"] > 0.9
    assert missing["matches"] is False and len(missing["hits"]) == 3
    assert raw["matches"] is None and raw["hits"][0]["probability"] is None
    table = CliRunner().invoke(app, ["search", str(index), "a violin"]).stdout
    assert "Nothing in this collection matches 'a violin'. The closest:" in table
    model, processor = load_checked(clap_hf.MSClapModel, str(clap_hf.embedded_checkpoint()))
    calibration = beside(clap_hf.embedded_checkpoint(), model, processor)
    collection = SoundCollection(index, model, processor, "embedded", calibration=calibration)
    assert [hit.file.name for hit in collection.search("a dog barking", false_alarm_rate=0.2)] == ["dog.ogg"]
    assert collection.search("a violin", false_alarm_rate=0.2) == []
    thresholds = [collection.match_threshold(), calibration.threshold(0.2, count=3), calibration.threshold(0.2)]
    assert thresholds[0] == thresholds[1] > thresholds[2], "the more sounds, the likelier one is above it by chance"
    with pytest.raises(ValueError, match="no words and a calibration of the model, expected words"):
        collection.search(load_audio(EXAMPLES / "dog.ogg"), false_alarm_rate=0.01)


@pytest.mark.slow
def test_any_checkpoint_can_be_calibrated(processor, tmp_path):
    from test_scripts import run

    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "source"])
        for i in range(24):
            soundfile.write(tmp_path / f"{i}.wav", sound(0.5, seed=i), 16_000)
            rows.writerow([f"{i}.wav", ("dog", "rain", "bell")[i % 3], str(i % 8)])
    options = ["--output", tmp_path / "model" / FILE, "--held-out", "7", "--record", tmp_path / "record.json"]
    result = run("calibrate", tmp_path / "model", tmp_path, *options, "--draws", 2)
    assert result.exit_code == 0, result.output
    calibration = beside(tmp_path / "model", *load_checked(clap_hf.MSClapModel, str(tmp_path / "model")))
    assert calibration.sounds.shape == (21, 24) and calibration.facts["sources"] == list("0123456")
    record = json.loads((tmp_path / "record.json").read_text())
    assert set(record["left_out"]["false_alarms"]) == {"0.01", "0.05", "0.1", "0.2"}
    assert record["held_out"]["sounds"] == 3 and 0 <= record["held_out"]["with"]["auroc"] <= 1
