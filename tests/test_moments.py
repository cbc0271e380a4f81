"""Scores over time, smoothing, segments, spans, their files, and the commands timeline and moments."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner

from clap_hf.audio import open_audio
from clap_hf.calibration import Calibration
from clap_hf.cli import app
from clap_hf.embedding import embed_texts
from clap_hf.moments import (
    Spectrogram,
    audacity_labels,
    false_alarm_thresholds,
    ranked_spans,
    score_timeline,
    segments,
    smooth,
    web_vtt,
)
from clap_hf.moments.segments import Segment
from clap_hf.moments.timeline import COLUMNS
from clap_hf.streaming import map_windows
from conftest import TINY_CNN14, make_model, sound

RATE = 16_000


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "it.wav"
    soundfile.write(path, sound(7.3), RATE)
    return path


@pytest.mark.parametrize("audio", [None, TINY_CNN14], ids=["htsat", "cnn14"])
@pytest.mark.parametrize("frames", [False, True])
def test_a_step_has_the_mean_of_the_pieces_that_cover_it(processor, recording, audio, frames):
    model, labels = make_model(audio=audio), ["a dog", "rain"]
    found = score_timeline(model, processor, recording, labels, step_s=0.05, hop_s=0.5, frames=frames)
    texts = embed_texts(model, processor.tokenizer, labels)
    function = (
        model.get_audio_frame_features if frames else lambda x: model.get_audio_features(x).pooler_output[:, None]
    )
    [group] = map_windows(model, processor, recording, function, hop_s=0.5)
    middle = 0.05 * (np.arange(len(found.scores)) + 0.5)
    pieces = group.values.shape[1]
    sums, counts = np.zeros((len(middle), 2)), np.zeros((len(middle), 1))
    for start_s, vectors in zip(group.starts_s.tolist(), group.values, strict=True):
        for piece, vector in enumerate(vectors):
            # 201 frames of 5 ms: a second, and a frame that belongs to the last position.
            piece_s = 201 * 0.005 / pieces if audio is None and frames else 1.0 / pieces
            first, end = (round((start_s + piece_s * edge) / 0.05) for edge in (piece, piece + 1))
            end = max(end, round((start_s + 1.0) / 0.05)) if piece == pieces - 1 else end
            sums[first:end] += (vector @ texts.T).numpy()
            counts[first:end] += 1
    assert found.duration_s == pytest.approx(7.3) and len(middle) == 146
    np.testing.assert_allclose(found.scores, sums / counts, atol=1e-5)
    with pytest.raises(ValueError, match="hop_s is 1.5"):
        score_timeline(model, processor, recording, labels, hop_s=1.5)


def test_a_louder_second_scores_at_its_second(processor, tmp_path):
    """The steps of a recording's one different second differ from all others."""
    samples = 0.001 * np.random.default_rng(0).normal(size=9 * RATE)
    samples[4 * RATE : 5 * RATE] = sound(1.0)
    soundfile.write(tmp_path / "it.wav", samples, RATE)
    found = score_timeline(make_model(), processor, tmp_path / "it.wav", ["a", "b", "c"], step_s=0.25)
    change = np.abs(found.scores - np.median(found.scores, axis=0)).sum(axis=1)
    assert 4.0 <= 0.25 * change.argmax() + 0.125 <= 5.0


@pytest.mark.parametrize("frames", [False, True])
def test_silence_has_no_score_and_no_segment(processor, tmp_path, frames):
    samples = np.concatenate([sound(3.0), np.zeros(5 * RATE), sound(2.0)])
    samples += np.random.default_rng(0).choice([-1, 0, 1], len(samples)) / 2**16  # dither
    soundfile.write(tmp_path / "it.wav", samples, RATE)
    found = score_timeline(make_model(), processor, tmp_path / "it.wav", ["a", "b"], hop_s=0.5, frames=frames)
    silent = (found.scores == -1).all(axis=1)
    # Windows of a second reach into the silence; positions are shorter.
    assert silent[17:27].all() and not silent[:11].any() and not silent[33:].any() and silent.sum() <= 20
    both = segments(found.scores, ["a", "b"], 0.25, [-0.99, -0.99], release=0.0)
    assert len(both) == 4
    assert (
        ranked_spans(found.scores[:, 0], "a", 0.25)[0].end_s - ranked_spans(found.scores[:, 0], "a", 0.25)[0].start_s
        < 4
    )
    soundfile.write(tmp_path / "silence.wav", np.zeros(3 * RATE), RATE)
    found = score_timeline(make_model(), processor, tmp_path / "silence.wav", ["a"], frames=frames)
    assert (found.scores == -1).all() and len(ranked_spans(found.scores[:, 0], "a", 0.25)) == 1


def test_templates_are_averaged_and_readers_and_bytes_are_files(processor, recording):
    model = make_model()
    found = score_timeline(model, processor, recording, ["dog"], templates=["{}", "the sound of {}"])
    alone = [score_timeline(model, processor, recording, [text]).scores for text in ("dog", "the sound of dog")]
    cosine = float(np.prod(embed_texts(model, processor.tokenizer, ["dog", "the sound of dog"]).numpy(), axis=0).sum())
    np.testing.assert_allclose(found.scores, sum(alone) / np.sqrt(2 + 2 * cosine), atol=1e-5)
    again = score_timeline(model, processor, io.BytesIO(recording.read_bytes()), ["dog"])
    with open_audio(recording) as reader:
        for other in (again, score_timeline(model, processor, reader, ["dog"])):
            assert np.array_equal(score_timeline(model, processor, recording, ["dog"]).scores, other.scores)


def test_a_spectrogram_keeps_its_size():
    spectrogram, mel = Spectrogram(np.arange(4.0), 0.01), np.random.default_rng(0).normal(size=(3 * COLUMNS, 4))
    for start in range(0, len(mel) - 100, 50):  # halves overlap
        spectrogram.add(0.01 * start, mel[start : start + 100])
    image = spectrogram.image
    assert spectrogram.column_s == 0.04 and len(image) == -(-(start + 100) // 4) <= COLUMNS
    np.testing.assert_allclose(image[13], mel[52:56].mean(axis=0))


def test_smoothing():
    scores = np.array([[0, 1], [9, 1], [0, 1], [0, 4], [3, 4]], np.float32)
    assert smooth(scores, 3).tolist() == [[0, 1], [0, 1], [0, 1], [0, 4], [3, 4]]
    assert smooth(scores, 2, "mean")[:, 0].tolist() == [3, 3, 3, 1, 2]
    assert smooth(scores, 1) is scores
    with pytest.raises(ValueError, match="method is 'max'"):
        smooth(scores, 3, "max")


def test_segments_need_the_upper_threshold_and_end_at_the_lower():
    dog = [0.0, 0.36, 0.5, 0.36, 0.2, 0.36, 0.37, 0.1, 0.4]
    rain = [0.4] * 9
    scores = np.array([dog, rain]).T
    found = segments(scores, ["dog", "rain"], 0.5, [0.4, 0.45], release=0.126, duration_s=4.3)  # to 0.3496
    assert found == [Segment("dog", 0.5, 2.0, 0.5), Segment("dog", 4.0, 4.3, 0.4)]
    assert segments(scores, ["dog", "rain"], 0.5, [0.9, 0.4])[0] == Segment("rain", 0.0, 4.5, 0.4)


def test_spans_are_ranked_and_do_not_overlap():
    scores = np.array([0, 0, 0.5, 1.0, 0.6, 0.2, 0, 0.3, 0.4, 0, 0, 0.1], np.float32)
    found = ranked_spans(scores, "it", 2.0)
    # The median is 0.15: down to 0.66 and 0.3. Of 0.6 and 0.5 the way to 1.0 does not go down; 0.2 is on the slope.
    assert [(span.start_s, span.end_s, round(span.score, 3)) for span in found] == [(6, 8, 1.0), (14, 18, 0.4)]
    [wide] = ranked_spans(scores, "it", 2.0, top_k=1, share=0.3)
    assert (wide.start_s, wide.end_s) == (4.0, 10.0)  # down to 0.405
    valley = np.array([0, 0, 0, 0, 0.8, 0.4, 1.0, 0, 0], np.float32)
    assert [span.start_s for span in ranked_spans(valley, "it", 1.0)] == [6, 4]  # 0.4 is below 0.48
    assert [span.start_s for span in ranked_spans(valley, "it", 1.0, share=0.4)] == [4]
    flat = ranked_spans(np.full(4, 0.3, np.float32), "it", 2.0, duration_s=7.5)
    assert [(span.start_s, span.end_s) for span in flat] == [(0.0, 7.5)] and flat[0].score == pytest.approx(0.3)


def test_thresholds_are_exceeded_by_a_share_of_the_background():
    sounds = np.stack([np.cos(np.linspace(0, np.pi, 101)), np.sin(np.linspace(0, np.pi, 101))], axis=1)
    calibration = Calibration(sounds, sounds, np.zeros(3), np.zeros(64), {})
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = false_alarm_thresholds(calibration, vectors, 0.1)
    assert ((sounds @ vectors.T) > found).mean(axis=0) == pytest.approx([0.1, 0.1], abs=0.011)
    with pytest.raises(ValueError, match="rate of false alarms is 1"):
        false_alarm_thresholds(calibration, vectors, 1.0)


def test_files_of_other_programs():
    found = [Segment("a < b\n& c", 1.25, 3661.5, 0.4567)]
    assert audacity_labels(found) == "1.250000\t3661.500000\ta < b & c (0.46)\n"
    assert web_vtt(found) == "WEBVTT\n\n00:00:01.250 --> 01:01:01.500\na &lt; b &amp; c (0.46)\n"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_timeline_command(checkpoint, recording, tmp_path):
    options = ("--model", checkpoint, "--labels", "dog,rain", "--device", "cpu", "--threshold", "-1")
    picture, report, every_step = (tmp_path / f"it.{kind}" for kind in ("png", "json", "csv"))
    result = invoke(
        "timeline", recording, *options, "--plot", picture, "--json", report, "--scores", every_step, "--format", "csv"
    )
    assert result.exit_code == 0, result.output
    [dog, rain] = csv.DictReader(io.StringIO(result.stdout))
    assert {dog["label"], rain["label"]} == {"dog", "rain"}
    assert (float(dog["start_s"]), float(dog["end_s"])) == (0.0, pytest.approx(7.3))
    found = json.loads(report.read_text())
    assert found["thresholds"] == {"dog": -1.0, "rain": -1.0} and found["damage"] == [] and len(found["segments"]) == 2
    times, *scores = zip(*csv.reader(io.StringIO(every_step.read_text())), strict=True)
    assert times[:2] == ("start_s", "0.000") and times[-1] == "7.250" and [own[0] for own in scores] == ["dog", "rain"]
    assert max(map(float, scores[0][1:])) == pytest.approx(float(dog["score"]), abs=1e-4)
    with Image.open(picture) as image:
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    for name, beginning in (
        ("audacity", "0.000000\t7.300000\t"),
        ("webvtt", "WEBVTT\n\n00:00:00.000 --> 00:00:07.300"),
    ):
        assert invoke("timeline", recording, *options, "--format", name).stdout.startswith(beginning)
    result = invoke(
        "timeline", recording, *options, "--threshold", "rain=2", "--smooth", 1, "--windows", "--format", "csv"
    )
    assert "dog" in result.stdout and "rain" not in result.stdout
    for wrong in ("cat=0.3", "many"):
        result = invoke("timeline", recording, *options, "--threshold", wrong)
        assert result.exit_code and wrong in result.output and result.output.count("\n") == 1


def test_a_picture_without_matplotlib_is_refused_before_any_work(recording, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *own: None if name == "matplotlib" else find(name, *own)
    )
    result = invoke("timeline", recording, "--plot", "it.png")
    assert result.exit_code and "pip install 'clap-hf[plots]'" in result.output and result.output.count("\n") == 1


def test_the_timeline_of_stdin(checkpoint, recording):
    options = ("--model", checkpoint, "--labels", "dog", "--device", "cpu", "--format", "json")
    result = CliRunner().invoke(app, ["timeline", "-", *map(str, options)], input=recording.read_bytes())
    piped, file = json.loads(result.stdout), json.loads(invoke("timeline", recording, *options).stdout)
    assert piped.pop("file") == "-" and file.pop("file") == str(recording)
    assert piped == file


def test_the_moments_command(checkpoint, recording, tmp_path):
    options = ("--model", checkpoint, "--device", "cpu", "--top-k", 2)
    result = invoke("moments", recording, "a dog barks", "rain", *options, "--format", "jsonl")
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["qid"], first["query"], first["vid"], second["qid"]) == (0, "a dog barks", "it", 1)
    spans = first["pred_relevant_windows"]
    assert 1 <= len(spans) <= 2 and all(0 <= start < end <= 7.3 for start, end, _ in spans)
    assert spans[0][2] == max(score for _, _, score in spans)
    # The same queries, of a file, for a folder.
    shutil.copy(recording, tmp_path / "it.wav")
    rows = [
        {"qid": "x7", "query": "a dog barks", "vid": "it", "duration": 7.3},
        {"qid": "x8", "query": "rain", "vid": "it"},
    ]
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = invoke("moments", tmp_path, "--queries", queries, *options, "--format", "jsonl")
    assert result.exit_code == 0, result.output
    assert list(map(json.loads, result.stdout.splitlines())) == [first | {"qid": "x7"}, second | {"qid": "x8"}]
    assert "00:00:" in invoke("moments", recording, "rain", *options).stdout
    queries.write_text('{"qid": 1, "query": "rain", "vid": "other"}\n')
    assert "line 1" in invoke("moments", tmp_path, "--queries", queries, *options).output
    assert "expected one of them" in invoke("moments", recording, *options).output


def test_frame_features_need_no_gradient(processor, recording):
    model = make_model().train()
    score_timeline(model, processor, recording, ["dog"])
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
