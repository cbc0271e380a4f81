"""Stock pipelines on our models, and our own zero-shot pipeline."""

import io
import warnings
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from clap_hf import (
    AudioDecodeError,
    MSClapForAudioClassification,
    MSClapModel,
    MSClapZeroShotAudioClassificationPipeline,
    load_audio,
)
from clap_hf.pipelines.zero_shot import DEFAULT_TEMPLATE, check_labels
from conftest import EXAMPLES, make_config, make_feature_extractor, sound

TASK = "zero-shot-audio-classification"
LABELS = ["a dog", "heavy rain", "a piano"]
RATE = 16_000


def make_pipeline(checkpoint, **options):
    return pipeline(
        TASK,
        model=str(checkpoint),
        pipeline_class=MSClapZeroShotAudioClassificationPipeline,
        device="cpu",
        **options,
    )


@pytest.fixture(scope="module")
def classify(checkpoint):
    return make_pipeline(checkpoint)


@pytest.fixture
def text_calls(classify):
    """Number of texts that each call of the text side encoded."""
    calls: list[int] = []
    hook = classify.model.text_projection.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    classify._label_embeds = {}
    yield calls
    hook.remove()


def as_dict(scores):
    return {score["label"]: score["score"] for score in scores}


def assert_same(scores, expected, tolerance=1e-5):
    assert as_dict(scores) == pytest.approx(as_dict(expected), abs=tolerance)


@pytest.fixture(scope="module")
def expected(checkpoint, processor):
    """Scores of a clip by hand, for any labels, template and function."""
    model = MSClapModel.from_pretrained(checkpoint)

    def score(clip, labels=LABELS, template=DEFAULT_TEMPLATE, rate=RATE):
        inputs = processor(text=[template.format(label) for label in labels], audio=clip, sampling_rate=rate)
        with torch.no_grad():
            probabilities = model(**inputs).logits_per_audio.softmax(dim=1)[0].tolist()
        return [{"score": score, "label": label} for score, label in zip(probabilities, labels, strict=True)]

    return score


# Stock pipelines


def test_stock_zero_shot(checkpoint, expected):
    """As it is, in batches, and with clips of several windows."""
    stock = pipeline(TASK, model=str(checkpoint), device="cpu")
    clips = [sound(0.7, seed=1), sound(3.4, seed=2), sound(1.0, seed=3), sound(2.1, seed=4)]
    options = {"candidate_labels": LABELS, "hypothesis_template": DEFAULT_TEMPLATE}
    for batch_size in (1, 3):
        for clip, scores in zip(clips, stock(clips, batch_size=batch_size, **options), strict=True):
            assert_same(scores, expected(clip))
    assert_same(stock(clips[1], **options), expected(clips[1]))
    assert_same(next(iter(stock((clip for clip in clips), **options))), expected(clips[0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stock_audio_classification(tmp_path, dtype):
    torch.manual_seed(0)
    names = {0: "dog", 1: "rain", 2: "piano"}
    config = make_config(num_labels=3, id2label=names, label2id={name: i for i, name in names.items()})
    MSClapForAudioClassification(config).save_pretrained(tmp_path)
    extract = make_feature_extractor()
    extract.save_pretrained(tmp_path)
    stock = pipeline("audio-classification", model=str(tmp_path), device="cpu", dtype=dtype)
    clips = [sound(0.7, seed=1), sound(3.4, seed=2), sound(1.0, seed=3)]
    one_by_one = [stock(clip) for clip in clips]
    for scores, in_batch, clip in zip(one_by_one, stock(clips, batch_size=2), clips, strict=True):
        assert_same(scores, in_batch, 1e-5 if dtype == "float32" else 2e-2)
        with torch.no_grad():
            logits = stock.model(**extract(clip, RATE)).logits[0].float()
        by_hand = {names[i]: value for i, value in enumerate(logits.softmax(0).tolist())}
        assert as_dict(scores) == pytest.approx(by_hand, abs=1e-5 if dtype == "float32" else 2e-2)
    assert len(stock(clips[0], top_k=2)) == 2
    assert_same(stock({"array": clips[1], "sampling_rate": RATE}), one_by_one[1])


# Kinds of input


def test_every_kind_of_input_gives_the_same_scores(classify, expected, tmp_path):
    clip = np.round(sound(2.2) * 2**14).astype(np.float32) / 2**14  # exact in 16 bits
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip, RATE, subtype="PCM_16")
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(clip)[None], sample_rate=RATE)
    )
    own_rate = {
        "str": str(path),
        "Path": path,
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "memoryview": memoryview(path.read_bytes()),
        "BytesIO": io.BytesIO(path.read_bytes()),
        "file object": path.open("rb"),
        "Audio": load_audio(path),
        "row": {"audio": {"path": str(path), "bytes": None}, "label": 3},
        "row with a decoder": {"audio": decoder, "label": 3},
        "array dict": {"array": clip, "sampling_rate": RATE, "path": None},
        "raw dict": {"raw": clip, "sampling_rate": RATE},
        "path dict": {"path": str(path), "bytes": None},
        "bytes dict": {"path": "elsewhere.wav", "bytes": path.read_bytes()},
        "decoder": decoder,
    }
    scores = expected(clip)
    for kind in own_rate.values():
        assert_same(classify(kind, candidate_labels=LABELS), scores)
    stereo = np.stack([clip, clip])
    numbers = clip.tolist(), tuple(clip.tolist()), list(clip)
    arrays = clip, clip.astype(np.float64), torch.from_numpy(clip), stereo, stereo.T, torch.from_numpy(stereo)
    for kind in (*numbers, *arrays):
        assert_same(classify(kind, candidate_labels=LABELS, sampling_rate=RATE), scores)
    for name in ("BytesIO", "file object"):
        own_rate[name].seek(0)  # they were read to their end
    listed = classify(list(own_rate.values()), candidate_labels=LABELS, batch_size=4)
    assert len(listed) == len(own_rate)
    for result in listed:
        assert_same(result, scores)


@pytest.mark.parametrize("name", ["speech.wav", "piano.flac", "dog.ogg", "music.mp3"])
def test_a_file_and_its_samples_score_alike(classify, name):
    """16 and 22.05 kHz, stereo, four formats: files keep their own rate until the feature extractor."""
    audio = load_audio(EXAMPLES / name)
    from_file = classify(EXAMPLES / name, candidate_labels=LABELS)
    from_samples = classify(audio.samples, candidate_labels=LABELS, sampling_rate=audio.sampling_rate)
    assert from_file == from_samples


def test_the_rate_is_heard(classify, expected):
    clip = sound(2.0, 44_100)
    assert_same(classify(clip, candidate_labels=LABELS, sampling_rate=44_100), expected(clip, rate=44_100))
    misread = as_dict(classify(clip, candidate_labels=LABELS, sampling_rate=16_000))
    assert misread != pytest.approx(as_dict(expected(clip, rate=44_100)), abs=1e-3)


def test_lists_generators_and_datasets(classify, expected, tmp_path):
    clips = [np.round(sound(0.4 + 0.5 * i, seed=i) * 2**14).astype(np.float32) / 2**14 for i in range(5)]
    paths = [str(tmp_path / f"{i}.wav") for i in range(5)]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip, RATE, subtype="PCM_16")
    rows = datasets.Dataset.from_dict({"audio": [{"array": clip, "sampling_rate": RATE} for clip in clips]})
    files = datasets.Dataset.from_dict({"audio": paths}).cast_column("audio", datasets.Audio(decode=False))
    options = {"candidate_labels": LABELS, "batch_size": 2}
    runs = {
        "list": classify(clips, sampling_rate=RATE, **options),
        "tuple": classify(tuple(clips), sampling_rate=RATE, **options),
        "generator": classify((clip for clip in clips), sampling_rate=RATE, **options),
        "column": classify(files["audio"], **options),
        "numpy column": classify(rows.with_format("numpy")["audio"], **options),
        "torch column": classify(rows.with_format("torch")["audio"], **options),
        "KeyDataset": classify(KeyDataset(files, "audio"), **options),
    }
    assert classify([], **options) == classify((), **options) == []
    assert isinstance(runs["list"], list) and isinstance(runs["column"], list)
    for results in runs.values():
        for result, clip in zip(results, clips, strict=True):
            assert_same(result, expected(clip))


@pytest.mark.parametrize(
    "audio, error, message",
    [
        (sound(0.5), ValueError, "has no sampling rate"),
        ("https://example.org/dog.wav", ValueError, "is a URL.*Download it first"),
        ({"path": "http://example.org/dog.wav", "bytes": None}, ValueError, "is a URL"),
        ("missing.wav", AudioDecodeError, "missing.wav"),
        (b"not a sound", AudioDecodeError, "bytes"),
        ({"array": np.zeros(0), "sampling_rate": 8_000}, ValueError, "empty"),
        ({"array": [0.1, np.nan], "sampling_rate": 8_000}, ValueError, "NaN"),
        ({"array": np.zeros((3, 3)), "sampling_rate": 8_000}, ValueError, "has shape"),
        ({"sampling_rate": 8_000}, ValueError, "expected 'array'"),
        ({"path": None, "bytes": None}, ValueError, "expected 'array'"),
        (7, TypeError, "is a int"),
        (io.StringIO("RIFF"), TypeError, "binary mode"),
        (io.BytesIO(b""), AudioDecodeError, "0 bytes"),
        (bytearray(b"not a sound"), AudioDecodeError, "bytes"),
    ],
)
def test_bad_sounds_are_errors(classify, audio, error, message):
    with pytest.raises(error, match=message):
        classify(audio, candidate_labels=LABELS)


# Labels and templates


def test_labels_are_encoded_once(classify, text_calls):
    clips = [sound(0.5 + 0.4 * i, seed=i) for i in range(6)]
    classify(clips, candidate_labels=LABELS, sampling_rate=RATE, batch_size=2)
    assert text_calls == [3]
    for clip in clips:
        classify(clip, candidate_labels=LABELS, sampling_rate=RATE)
    list(classify((clip for clip in clips), candidate_labels=tuple(LABELS), sampling_rate=RATE))
    assert text_calls == [3], "later calls with the same labels, too"
    classify(clips[0], candidate_labels=LABELS[:2], sampling_rate=RATE)
    assert text_calls == [3, 2]
    classify(clips[0], candidate_labels=LABELS[:2], sampling_rate=RATE, hypothesis_template=["{}", "hear {}"])
    assert text_calls == [3, 2, 4]
    classify(clips[0], candidate_labels=LABELS, sampling_rate=RATE)
    assert text_calls == [3, 2, 4], "label sets that take turns, too"


def test_the_default_template(classify, expected):
    assert DEFAULT_TEMPLATE == "this is a sound of {}"
    clip = sound(0.9)
    plain = classify(clip, candidate_labels=LABELS, sampling_rate=RATE)
    assert_same(plain, expected(clip))
    other = classify(clip, candidate_labels=LABELS, sampling_rate=RATE, hypothesis_template="{}")
    assert_same(other, expected(clip, template="{}"))
    assert as_dict(other) != pytest.approx(as_dict(plain), abs=1e-3)


def test_template_ensembles_average_unit_vectors(classify, processor):
    templates = ["this is a sound of {}", "{} can be heard", "{}"]
    clip = sound(0.9)
    logits = as_dict(
        classify(
            clip, candidate_labels=LABELS, sampling_rate=RATE, hypothesis_template=templates, function_to_apply="none"
        )
    )
    model = classify.model
    with torch.no_grad():
        audio = model.get_audio_features(**processor(audio=clip, sampling_rate=RATE)).pooler_output
        for label in LABELS:
            texts = processor(text=[template.format(label) for template in templates])
            text = F.normalize(model.get_text_features(**texts).pooler_output.mean(dim=0), dim=0)
            expected = (model.logit_scale.exp() * audio @ text).item()
            assert logits[label] == pytest.approx(expected, abs=1e-4)


def test_many_labels_go_through_in_batches(classify, text_calls, expected):
    labels = [f"label {i}" for i in range(300)]
    clip = sound(0.9)
    scores = classify(clip, candidate_labels=labels, sampling_rate=RATE)
    assert text_calls == [168, 132]  # as many as make 512 different beginnings
    assert_same(scores, expected(clip, labels))


def test_labels_that_read_alike_are_named(classify):
    """GPT-2 has a token for every byte: only one and the same label reads alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify(sound(0.5), candidate_labels=["🐶", "🦄", "狗"], sampling_rate=RATE)


def test_max_windows(classify, expected):
    clip = sound(6.5)
    middle = clip[round(2.75 * RATE) : round(3.75 * RATE)]
    scores = classify(clip, candidate_labels=LABELS, sampling_rate=RATE, max_windows=1)
    assert_same(scores, expected(middle))
    assert as_dict(scores) != pytest.approx(as_dict(expected(clip)), abs=1e-3)


def test_a_model_in_train_mode_scores_as_in_evaluation_mode(checkpoint, expected):
    classify, clip = make_pipeline(checkpoint), sound(0.9)
    classify.model.train()
    assert_same(classify(clip, candidate_labels=LABELS, sampling_rate=RATE), expected(clip))
    assert classify.model.training


def test_a_string_of_labels_is_split_at_commas(classify):
    clip = sound(0.9)
    assert classify(clip, candidate_labels="a dog, heavy rain,a piano", sampling_rate=RATE) == classify(
        clip, candidate_labels=LABELS, sampling_rate=RATE
    )


def test_labels_are_compared_in_linear_time():
    compared = []

    class Label(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

    labels = [Label(f"sound {number}") for number in range(2000)]
    assert check_labels(labels) == tuple(labels)
    compared.clear()
    check_labels(labels)
    assert len(compared) < 2 * len(labels)
    with pytest.raises(ValueError, match="holds .'sound 0', .*'sound 1000'. and 1995 others more than once"):
        check_labels(labels + labels)


def test_long_labels_are_truncated(classify):
    scores = classify(sound(0.5), candidate_labels=["rain " * 300, "wind"], sampling_rate=RATE)
    assert len(scores) == 2


def test_labels_with_braces_are_taken_as_they_are(classify):
    scores = classify(sound(0.5), candidate_labels=["{}", "{0} {x}", "wind"], sampling_rate=RATE)
    assert set(as_dict(scores)) == {"{}", "{0} {x}", "wind"}


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ValueError, "candidate_labels is missing"),
        ({"candidate_labels": []}, ValueError, "at least one label"),
        ({"candidate_labels": " , "}, ValueError, "at least one label"),
        ({"candidate_labels": ["dog", ""]}, ValueError, "not empty"),
        ({"candidate_labels": ["dog", 3]}, ValueError, "each a text"),
        ({"candidate_labels": ["dog", "cat", "dog"]}, ValueError, "'dog'.* more than once"),
        ({"candidate_labels": ["dog", "x" * 10_001]}, ValueError, "10,001 characters, 'x{40}'.*at most 10,000"),
        (
            {"candidate_labels": LABELS, "hypothesis_template": "a sound"},
            ValueError,
            "'a sound'.*where the label goes",
        ),
        ({"candidate_labels": LABELS, "hypothesis_template": ["{}", "x"]}, ValueError, "'x'"),
        ({"candidate_labels": LABELS, "hypothesis_template": []}, ValueError, "where the label goes"),
        ({"candidate_labels": LABELS, "function_to_apply": "relu"}, ValueError, "'relu', expected one of"),
        ({"candidate_labels": LABELS, "top_k": 0}, ValueError, "top_k is 0"),
        ({"candidate_labels": LABELS, "multi_label": True}, ValueError, "calibrated.*function_to_apply='sigmoid'"),
        ({"candidate_labels": LABELS, "multi_label": False, "function_to_apply": "none"}, ValueError, "one of them"),
        ({"candidate_labels": LABELS, "topk": 1}, TypeError, "topk"),
        ({"candidate_labels": LABELS, "sampling_rate": 3}, ValueError, "has sampling rate 3"),
    ],
)
def test_bad_options_are_errors(classify, options, error, message):
    with pytest.raises(error, match=message):
        classify(sound(0.5), **{"sampling_rate": RATE, **options})


def test_bad_options_are_errors_when_the_pipeline_is_made(checkpoint):
    with pytest.raises(TypeError, match="topk"):
        make_pipeline(checkpoint, topk=1)
    with pytest.raises(ValueError, match="where the label goes"):
        make_pipeline(checkpoint, hypothesis_template="a sound")


# Scores


def test_functions(classify):
    clip = sound(0.9)

    def scores(**options):
        return as_dict(classify(clip, candidate_labels=LABELS, sampling_rate=RATE, **options))

    logits = scores(function_to_apply="none")
    values = torch.tensor(list(logits.values()))
    assert list(scores().values()) == pytest.approx(values.softmax(0).tolist(), abs=1e-6)
    assert list(scores(function_to_apply="sigmoid").values()) == pytest.approx(values.sigmoid().tolist(), abs=1e-6)
    assert scores(multi_label=False) == scores(function_to_apply="softmax") == scores()


def test_best_first_and_top_k(classify):
    clip = sound(0.9)
    scores = classify(clip, candidate_labels=LABELS, sampling_rate=RATE)
    assert [score["score"] for score in scores] == sorted((score["score"] for score in scores), reverse=True)
    assert sum(score["score"] for score in scores) == pytest.approx(1)
    assert classify(clip, candidate_labels=LABELS, sampling_rate=RATE, top_k=2) == scores[:2]
    assert classify(clip, candidate_labels=LABELS, sampling_rate=RATE, top_k=99) == scores


def test_options_of_the_pipeline_hold_until_a_call_changes_them(checkpoint):
    classify = make_pipeline(
        checkpoint, candidate_labels=LABELS, top_k=1, sampling_rate=RATE, function_to_apply="sigmoid"
    )
    clip = sound(0.9)
    first = classify(clip)
    assert len(first) == 1
    assert len(classify(clip, top_k=3)) == 3 and classify(clip) == first
    assert len(classify(clip, candidate_labels=["x", "y"], top_k=2, function_to_apply="softmax")) == 2


def test_bfloat16_keeps_decibels_in_float32(checkpoint, classify):
    half = make_pipeline(checkpoint, dtype=torch.bfloat16)
    seen = []
    half.model.audio_model.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    clip = sound(2.3)
    options = {"candidate_labels": LABELS, "sampling_rate": RATE}
    assert_same(half(clip, **options), classify(clip, **options), tolerance=0.1)
    assert seen == [torch.float32]
    assert half.model.text_model.dtype == torch.bfloat16
