"""Mixtures: planted where and as loud as they say, equal for equal seeds."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from tools.mixtures import RATE, main, make_background, make_mixture, read_corpus, read_sound

from clap_hf.audio import encode_flac, load_audio
from conftest import EXAMPLES

GENERATOR = np.random.default_rng(0)
NOISE = {"rain": [GENERATOR.normal(size=5 * RATE).astype(np.float32) for _ in range(2)]}
TONES = {
    name: [np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)]
    for name, hertz, seconds in (("low", 300, 1.0), ("high", 3000, 2.5))
}


@pytest.mark.parametrize("number", range(6))
def test_events_are_where_and_as_loud_as_the_queries_say(number):
    mixture, queries = make_mixture(number, TONES, NOISE, (20.0, 60.0), seed=3)
    assert 20 <= len(mixture) / RATE <= 60 and np.abs(mixture).max() <= 0.981
    assert queries and all(query.duration == len(mixture) / RATE for query in queries)
    spans = sorted((span, query) for query in queries for span in query.relevant_windows)
    assert all(first[0][1] + 0.4 < second[0][0] for first, second in zip(spans, spans[1:], strict=False))
    around = mixture.copy()
    for (start_s, end_s), _ in spans:
        around[round(start_s * RATE) : round(end_s * RATE)] = np.nan
    level = np.nanmean(around**2)
    for (start_s, end_s), query in spans:
        piece = mixture[round(start_s * RATE) : round(end_s * RATE)]
        tone = TONES[query.label][0]
        assert len(piece) == pytest.approx(len(tone), abs=100)
        own = np.mean(piece**2) - level
        assert 10 * np.log10(own / level) == pytest.approx(query.snr_db, abs=1)  # cross-fades change the noise's level


def test_equal_seeds_make_equal_mixtures():
    first, second, other = (make_mixture(0, TONES, NOISE, (20.0, 30.0), seed) for seed in (1, 1, 2))
    assert np.array_equal(first[0], second[0]) and first[1] == second[1]
    assert len(other[0]) != len(first[0])


def test_a_background_is_as_long_as_asked_and_even():
    background = make_background(NOISE["rain"], 17 * RATE, np.random.default_rng(0))
    levels = np.sqrt(np.mean(background.reshape(17, -1) ** 2, axis=1))
    assert len(background) == 17 * RATE and levels[1:].std() < 0.15 * levels.mean()


def test_silence_at_the_ends_is_no_event(tmp_path):
    samples = np.concatenate([np.zeros(RATE), TONES["low"][0], np.zeros(RATE)])
    soundfile.write(tmp_path / "it.wav", samples, RATE)
    assert len(read_sound(tmp_path / "it.wav")) == pytest.approx(RATE, abs=50)


def test_doubtful_rows_of_the_corpus_are_left_out(tmp_path):
    flac = encode_flac(TONES["low"][0], RATE)
    kinds = [("dog", "animal", "named"), ("cat", "animal", "weak"), ("hello", "speech", "named")]
    rows = [{"audio": {"bytes": flac}, "label": a, "category": b, "quality": c} for a, b, c in kinds]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-0.parquet")
    assert set(read_corpus(tmp_path, "test")) == {"dog"}
    with pytest.raises(ValueError, match="has no train"):
        read_corpus(tmp_path, "train")


def test_a_folder_of_sounds_makes_mixtures(tmp_path):
    main(EXAMPLES, tmp_path / "out", ["stream"], count=2, shortest_s=20.0, longest_s=21.0)
    queries = [json.loads(line) for line in (tmp_path / "out" / "moments.jsonl").read_text().splitlines()]
    assert {query["vid"] for query in queries} == {"mixture_0000", "mixture_0001"}
    assert len({query["qid"] for query in queries}) == len(queries) and "stream" not in {q["label"] for q in queries}
    audio = load_audio(tmp_path / "out" / "mixture_0000.flac")
    assert audio.duration_s == pytest.approx(queries[0]["duration"], abs=1e-4) and not audio.damage
