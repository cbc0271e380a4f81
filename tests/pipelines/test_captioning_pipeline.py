"""The captioning pipeline: every kind of sound, batches, options of generation."""

import io
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from clap_hf import AudioDecodeError, MSClapAudioCaptioningPipeline, load_audio
from conftest import EXAMPLES, sound

RATE = 16_000


@pytest.fixture(scope="module")
def describe(captioner):
    return pipeline("audio-captioning", model=str(captioner), device="cpu")


@pytest.fixture(scope="module")
def clips():
    """Exact in 16 bits; the third has three windows, and the last, a low tone, another caption with any release."""
    tone = 0.5 * np.sin(2 * np.pi * 90 * np.arange(20_000) / RATE)
    clips = [*(sound(0.4 + 0.9 * i, seed=i) for i in range(3)), tone]
    return [np.round(clip * 2**14).astype(np.float32) / 2**14 for clip in clips]


@pytest.fixture(scope="module")
def expected(describe, clips):
    """Captions by hand."""
    texts = []
    for clip in clips:
        features = describe.feature_extractor(clip, RATE)
        tokens = describe.model.generate(**features)
        texts.append([{"generated_text": describe.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()}])
    assert len({text[0]["generated_text"] for text in texts}) > 1 and all(text[0]["generated_text"] for text in texts)
    return texts


def test_the_task_is_registered(describe):
    assert type(describe) is MSClapAudioCaptioningPipeline
    assert describe.model.generation_config.num_beams == 5


def test_every_kind_of_sound_gives_the_same_caption(describe, clips, expected, tmp_path):
    clip, caption = clips[2], expected[2]
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip, RATE, subtype="PCM_16")
    samples = SimpleNamespace(data=torch.from_numpy(clip)[None], sample_rate=RATE)
    own_rate = [
        str(path),
        path,
        path.read_bytes(),
        bytearray(path.read_bytes()),
        memoryview(path.read_bytes()),
        io.BytesIO(path.read_bytes()),
        load_audio(path),
        {"audio": {"path": str(path), "bytes": None}},
        {"array": clip, "sampling_rate": RATE},
        {"path": "elsewhere.wav", "bytes": path.read_bytes()},
        SimpleNamespace(get_all_samples=lambda: samples),
    ]
    for kind in own_rate:
        assert describe(kind) == caption
    for kind in (clip, clip.tolist(), torch.from_numpy(clip), np.stack([clip, clip])):
        assert describe(kind, sampling_rate=RATE) == caption
    own_rate = [kind for kind in own_rate if not isinstance(kind, io.BytesIO)]  # which was read to its end
    assert describe(own_rate, batch_size=3) == [caption] * len(own_rate)


def test_batches_lists_generators_and_datasets(describe, clips, expected, tmp_path):
    paths = [str(tmp_path / f"{i}.wav") for i in range(4)]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip, RATE, subtype="PCM_16")
    rows = datasets.Dataset.from_dict({"audio": paths}).cast_column("audio", datasets.Audio(decode=False))
    for batch_size in (1, 3):
        assert describe(clips, sampling_rate=RATE, batch_size=batch_size) == expected
        assert describe(rows["audio"], batch_size=batch_size) == expected
        assert list(describe((path for path in paths), batch_size=batch_size)) == expected
        assert list(describe(KeyDataset(rows, "audio"), batch_size=batch_size)) == expected


def test_options_of_generation(describe, clips, captioner):
    several = describe(clips[:3], sampling_rate=RATE, batch_size=2, generate_kwargs={"num_return_sequences": 3})
    assert [len(texts) for texts in several] == [3, 3, 3]
    for clip, texts in zip(clips, several, strict=False):
        assert describe(clip, sampling_rate=RATE)[0] == texts[0]
        assert len({text["generated_text"] for text in texts}) == 3
    short = describe(clips[0], sampling_rate=RATE, max_new_tokens=2)[0]["generated_text"]
    assert len(describe.tokenizer(short, add_special_tokens=False)["input_ids"]) <= 2
    greedy = pipeline("audio-captioning", model=str(captioner), device="cpu", num_beams=1, max_new_tokens=2)
    by_call = describe(clips[0], sampling_rate=RATE, max_new_tokens=2, generate_kwargs={"num_beams": 1})
    assert greedy(clips[0], sampling_rate=RATE) == by_call
    with pytest.raises(ValueError, match="max_new_tokens was passed twice"):
        describe(clips[0], sampling_rate=RATE, max_new_tokens=2, generate_kwargs={"max_new_tokens": 3})


@pytest.mark.parametrize(
    "audio, error, message",
    [
        (sound(0.5), ValueError, "has no sampling rate"),
        ("https://example.org/dog.wav", ValueError, "is a URL.*Download it first"),
        (EXAMPLES / "missing.wav", AudioDecodeError, "missing.wav"),
        ({"array": [0.1, np.nan], "sampling_rate": 8_000}, ValueError, "NaN"),
        (7, TypeError, "is a int"),
    ],
)
def test_bad_sounds_are_errors(describe, audio, error, message):
    with pytest.raises(error, match=message):
        describe(audio)


def test_unknown_options_are_errors(describe):
    with pytest.raises(TypeError, match="beams"):
        describe(sound(0.5), sampling_rate=RATE, beams=3)


def test_long_files_are_captioned_and_classified_in_blocks(captioner, checkpoint, tmp_path, monkeypatch):
    import clap_hf.audio.load
    from clap_hf import MSClapZeroShotAudioClassificationPipeline

    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    soundfile.write(short, sound(3.0), 16_000)
    soundfile.write(long, sound(40.0, seed=4), 16_000)  # windows of 1 s: more than 32 of them
    describe = pipeline("audio-captioning", model=str(captioner), device="cpu")
    classify = pipeline(
        "zero-shot-audio-classification",
        model=str(checkpoint),
        pipeline_class=MSClapZeroShotAudioClassificationPipeline,
        device="cpu",
    )
    samples = {"array": soundfile.read(long, dtype="float32")[0], "sampling_rate": 16_000}
    expected = describe(samples, generate_kwargs={"num_beams": 2, "num_return_sequences": 2})
    scores = classify(samples, candidate_labels=["dog", "rain"])
    limited = classify(samples, candidate_labels=["dog", "rain"], max_windows=5, top_k=1)
    whole = clap_hf.audio.load.load_audio
    monkeypatch.setattr(
        clap_hf.audio.load, "load_audio", lambda path: pytest.fail("decoded whole") if path == long else whole(path)
    )
    assert describe(long, generate_kwargs={"num_beams": 2, "num_return_sequences": 2}) == expected
    assert [len(answer) for answer in describe([short, long, str(long)])] == [1, 1, 1]
    found = classify([long, short], candidate_labels=["dog", "rain"])
    assert [entry["label"] for entry in found[0]] == [entry["label"] for entry in scores] and len(found) == 2
    assert [entry["score"] for entry in found[0]] == pytest.approx([entry["score"] for entry in scores], abs=1e-5)
    [one] = classify(long, candidate_labels=["dog", "rain"], max_windows=5, top_k=1)
    assert one["score"] == pytest.approx(limited[0]["score"], abs=1e-5)
