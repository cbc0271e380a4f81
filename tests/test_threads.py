"""What a server shares between threads gives every caller its own answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

from clap_hf import MSClapZeroShotAudioClassificationPipeline, SoundCollection
from conftest import make_model, sound

RATE, THREADS, CALLS = 16_000, 12, 240
LABEL_SETS = [
    ["a dog", "heavy rain"],
    ["a piano", "a car"],  # as many, so that vectors of another set would go unnoticed
    ["a dog", "a piano", "wind"],
    [f"label {i}" for i in range(17)],
]


def in_threads(call, arguments):
    """Results of a call for many arguments, from threads that start together."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, arguments))


@pytest.fixture(scope="module")
def clips():
    return [sound(0.4 + 0.5 * i, seed=i) for i in range(5)]


def test_the_zero_shot_pipeline(checkpoint, clips):
    def make():
        cls = MSClapZeroShotAudioClassificationPipeline
        return pipeline("zero-shot-audio-classification", model=str(checkpoint), pipeline_class=cls, device="cpu")

    def scores(classify, case):
        clip, labels = case
        found = classify(clips[clip], candidate_labels=LABEL_SETS[labels], sampling_rate=RATE)
        return {score["label"]: score["score"] for score in found}

    alone, shared = make(), make()
    expected = {(c, s): scores(alone, (c, s)) for c in range(len(clips)) for s in range(len(LABEL_SETS))}
    cases = [(i % len(clips), (i * 7 + i // 3) % len(LABEL_SETS)) for i in range(CALLS)]
    for case, found in zip(cases, in_threads(lambda case: scores(shared, case), cases), strict=True):
        assert found == pytest.approx(expected[case], abs=1e-5)


def test_the_captioning_pipeline(captioner, clips):
    describe = pipeline("audio-captioning", model=str(captioner), device="cpu", num_beams=1)
    expected = [describe(clip, sampling_rate=RATE) for clip in clips]
    cases = [i % len(clips) for i in range(40)]
    found = in_threads(lambda case: describe(clips[case], sampling_rate=RATE), cases)
    assert found == [expected[case] for case in cases]


def test_processor_and_model(processor, clips):
    model = make_model()

    def embed(case):
        inputs = processor(text=LABEL_SETS[case % 4], audio=clips[case % 5], sampling_rate=RATE)
        with torch.no_grad():
            return model(**inputs).logits_per_audio

    expected = [embed(case) for case in range(20)]
    for case, found in zip(range(CALLS), in_threads(embed, [i % 20 for i in range(CALLS)]), strict=True):
        torch.testing.assert_close(found, expected[case % 20], atol=1e-4, rtol=1e-5)


def test_a_collection(processor, clips, tmp_path):
    files = []
    for i, clip in enumerate(clips):
        files.append(tmp_path / f"{i}.wav")
        soundfile.write(files[-1], clip, RATE)
    collection = SoundCollection(tmp_path / "index", make_model(), processor)
    collection.add(files[:3])
    words = ["a dog", "rain", "a piano"]
    expected = {query: collection.search(query, 3) for query in words}
    queries = [(words + clips)[i % 8] for i in range(80)]

    def search(query):
        if isinstance(query, str):
            return collection.search(query, 3)
        return collection.search(query, 1, sampling_rate=RATE)

    for query, hits in zip(queries, in_threads(search, queries), strict=True):
        if isinstance(query, str):
            assert [hit.file for hit in hits] == [hit.file for hit in expected[query]]
        else:
            [i] = [i for i, clip in enumerate(clips) if np.array_equal(clip, query)]
            assert (hits[0].file == files[i]) is (i < 3)
    in_threads(lambda file: collection.add(file), files * 3)
    assert len(collection) == 5 and sorted(hit.file for hit in collection.search("a dog")) == files
