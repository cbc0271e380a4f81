"""The task table, its answers, balanced sampling, and examples from real sounds."""

import datasets
import numpy as np
import pytest

from clap_hf.data.pairs import BalancedSampler
from clap_hf.data.prompts import PAPER_STREAMS, PROMPT_STREAMS, PromptCollator, PromptDataset, PromptStream, one
from clap_hf.data.registry import training_sets
from conftest import EXAMPLES, make_feature_extractor

ROWS = {
    "audioset_events": ({"labels": ["Dog_bark", "Speech"]}, ["dog bark, speech"]),
    "cochlscene_scene": ({"scene": "SubwayStation"}, ["subway station"]),
    "meld_emotion": ({"emotion": "anger"}, ["angry"]),
    "msp_emotion": ({"emotion": "S"}, ["sad"]),
    "mosi_sentiment": ({"sentiment": -1.4}, ["negative"]),
    "meld_sentiment": ({"sentiment": "positive"}, ["positive"]),
    "nsynth_instrument": (
        {"instrument_family_str": "brass", "instrument_source_str": "acoustic"},
        ["produced by brass with source acoustic"],
    ),
    "nsynth_pitch": ({"pitch": 60, "velocity": 0}, ["pitch 60, velocity 0"]),
    "nsynth_qualities": ({"qualities_str": ["fast_decay", "bright"]}, ["having qualities like fast decay, bright"]),
    "clotho_captions": ({"text": ["A dog barks. ", "", "Dogs!"]}, ["A dog barks.", "Dogs!"]),
    "clothoaqa_answers": ({"question": "Is it raining?", "answer": "Yes"}, ["yes"]),
    "wavcaps_metadata": ({"text": "rain on a roof"}, ["rain on a roof"]),
}


def test_the_table_has_22_streams_of_the_paper():
    assert len(PAPER_STREAMS) == 22 == len({task.name for task in PAPER_STREAMS})
    assert len({(task.dataset, task.name) for task in PAPER_STREAMS}) == 22
    assert len({task.dataset for task in PAPER_STREAMS}) == 18
    assert set(ROWS) <= set(PROMPT_STREAMS)


@pytest.mark.parametrize("name", ROWS)
def test_answers(name):
    task, (row, answers) = PROMPT_STREAMS[name], ROWS[name]
    assert set(row) == set(task.columns)
    assert task.answers(row) == answers
    assert task.answers({column: None for column in task.columns}) == []


def test_labels_without_agreement_are_no_answers():
    assert PROMPT_STREAMS["msp_emotion"].answers({"emotion": "X"}) == []
    assert PROMPT_STREAMS["mosei_emotion"].answers({"emotion": "Angry"}) == ["angry"]


def test_built_sets_have_what_the_papers_streams_ask_for():
    """In the columns of the builder, and in the form of the worked examples."""
    titles = {"Clotho": "Clotho v2", "FindSounds": "findsounds.com"}
    by_title = {entry.title: entry for entry in training_sets().values()}
    for stream in PAPER_STREAMS:
        entry = by_title[titles.get(stream.dataset, stream.dataset)]
        row = {"text": entry.formed} | {name: entry.example[name] for name in entry.keep}
        assert set(stream.columns) <= row.keys() and stream.answers(row), stream.name


@pytest.fixture(scope="module")
def split():
    files = [str(EXAMPLES / name) for name in ("dog.ogg", "speech.wav", "bird.wav", "fire.ogg")]
    return datasets.Dataset.from_dict(
        {
            "audio": [*({"path": file, "bytes": None} for file in files), {"path": None, "bytes": b"not a sound"}],
            "label": ["dog", "speech", "bird", "fire", "noise"],
            "captions": [["a dog", "barking"], ["a man speaks"], ["a bird"], [], ["hiss"]],
            "lang": [None, "English", None, None, None],
            "question": ["what is it?"] * 5,
        },
        features=datasets.Features(
            {
                "audio": {"path": datasets.Value("string"), "bytes": datasets.Value("binary")},
                "label": datasets.Value("string"),
                "captions": datasets.List(datasets.Value("string")),
                "lang": datasets.Value("string"),
                "question": datasets.Value("string"),
            }
        ),
    )


@pytest.fixture(scope="module")
def dataset(split):
    asked = PromptStream("asked", "test", "question: {question}", one("label"), ("label", "question"))
    tasks = (PROMPT_STREAMS["corpus_captions"], PROMPT_STREAMS["corpus_language"], asked)
    return PromptDataset([(task, split) for task in tasks], make_feature_extractor(), seed=0)


def test_rows_without_an_answer_are_left_out(dataset):
    assert [dataset.places[i] for i in range(5)] == [(0, 0), (0, 1), (0, 2), (0, 4), (1, 1)]
    assert len(dataset) == 4 + 1 + 5


def test_sampling_is_balanced_over_tasks(dataset):
    """Captions weigh 2, the others 1, however many rows they have."""
    task = np.array([task for task, _ in dataset.places])
    sampler = BalancedSampler(dataset.weights(1.0), 4000, seed=0)
    drawn = np.bincount([task[row] for row, _ in sampler]) / 4000
    np.testing.assert_allclose(drawn, [0.5, 0.25, 0.25], atol=0.03)
    by_size = dataset.weights(0.0)
    np.testing.assert_allclose(np.bincount(task, by_size) / by_size.sum(), np.array([8, 1, 5]) / 14)


def test_examples(dataset, tokenizer):
    first, again, later = dataset[0, 5], dataset[0, 5], dataset[0, 6]
    assert first.input_features.shape == (1, 201, 32) and first.prompt == "generate audio caption"
    assert np.array_equal(first.input_features, again.input_features) and first.answer == again.answer
    assert {dataset[0, draw].answer for draw in range(8)} == {"a dog", "barking"}
    assert later.skipped == ()
    asked = dataset[5, 0]
    assert (asked.prompt, asked.answer) == ("question: what is it?", "dog")
    batch = PromptCollator(tokenizer)([first, asked, dataset[4, 0]])
    assert tokenizer.decode(batch["prompt_ids"][1][batch["prompt_mask"][1].bool()]) == "question: what is it?"
    assert batch["input_ids"][1, :3].tolist() == [*tokenizer("dog")["input_ids"]]
    assert batch["input_features"].shape == (3, 1, 201, 32)


def test_an_unreadable_row_is_replaced_and_listed(dataset, tokenizer):
    broken = dataset.places.index((0, 4))
    example = dataset[broken, 0]
    assert example.answer == "english" and example.prompt == "this language is"  # the next one
    assert len(example.skipped) == 1 and example.skipped[0]["id"] == "corpus_captions:4"
    assert PromptCollator(tokenizer)([example])["skipped"] == list(example.skipped)


def test_missing_columns_and_answers_are_named(split):
    with pytest.raises(ValueError, match=r"'nsynth_pitch' needs the columns \['pitch', 'velocity'\]"):
        PromptDataset([(PROMPT_STREAMS["nsynth_pitch"], split)], make_feature_extractor(), 0)
    silent = split.select([0, 2])
    with pytest.raises(ValueError, match="'corpus_language': none of 2 rows has an answer"):
        PromptDataset([(PROMPT_STREAMS["corpus_language"], silent)], make_feature_extractor(), 0)
