"""The paper's training sets: all there, each with a worked example that holds."""

import pytest

from clap_hf.data import source_texts as texts
from clap_hf.data.registry import ACCESS, PRETRAINING_ONLY, TABLE, read_training_sets, source_of, training_sets


def test_all_of_the_papers_sets_are_there():
    assert len(training_sets().keys() - PRETRAINING_ONLY) == 20 == len(training_sets()) - len(PRETRAINING_ONLY)
    assert {entry.access for entry in training_sets().values()} == set(ACCESS)
    assert {entry.texts for entry in training_sets().values()} == set(texts.RULES.values())


@pytest.mark.parametrize("name", training_sets())
def test_worked_examples_hold(name):
    entry = training_sets()[name]
    assert entry.texts(entry.example) == entry.formed
    assert {*entry.columns, *entry.keep} >= set(entry.example) >= set(entry.keep)
    assert 0 <= entry.clips <= entry.epoch_pairs and entry.seconds > 0
    assert entry.license and entry.exclude and entry.original.startswith("http") and entry.splits


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("access: open", "access: free", "nsynth.access is 'free', expected one of .'open', 'per clip', 'own copy'"),
        ("texts: note", "texts: notes", "nsynth.texts is 'notes', expected one of"),
        ("splits: [train]", "splits: train", "wavcaps.splits is 'train', expected a list"),
        ("  pairs: 289", "  size: 289", "nsynth differs in the fields .'pairs', 'size'."),
        ("pairs: 13,100", "pairs: 13100", "ljspeech.pairs is 13100, expected a str"),
        ("clips: 13100", "clips: many", "ljspeech.clips is 'many', expected a number"),
    ],
)
def test_a_mistake_in_the_table_is_named(before, after, message, tmp_path):
    table = TABLE.read_text()
    assert before in table
    (tmp_path / "sets.yaml").write_text(table.replace(before, after, 1))
    with pytest.raises(ValueError, match=f"sets.yaml: {message}"):
        read_training_sets(tmp_path / "sets.yaml")


def test_texts_of_odd_rows():
    assert texts.captions({"captions": [" a  dog\n", "", None]}) == ["a dog"]
    assert texts.labels({"labels": []}) == [] and texts.labels({"labels": ["Rain"]}) == ["the sound of rain"]
    assert texts.title_and_description({"title": "a.b.WAV", "description": None}) == ["a.b"]
    assert texts.title_and_description({"title": None, "description": ""}) == []
    assert texts.emotion({"emotion": "xxx"}) == []
    assert texts.emotion({"emotion": "exc", "transcript": "Yes!"})[1] == 'an excited person says "Yes!"'
    assert texts.sentiment({"sentiment": 0.0}) == ["a person speaking with neutral sentiment"]
    assert texts.track({"title": "", "artist": "", "genres": [], "tags": ["Lo-Fi"]}) == ["music", "music: lo-fi"]
    assert texts.clean("<b>Rain</b> on &amp; off, see https://a.b") == "Rain on & off, see"


def test_a_recipes_source_takes_the_sets_rule_and_may_differ():
    source = source_of({"source": "audiocaps", "dataset": "me/mine", "weight": 2.0}, "train")
    assert (source.dataset, source.weight, source.split) == ("me/mine", 2.0, "train")
    assert source.columns == ["audio", "captions"] and source.texts is not None
    with pytest.raises(ValueError, match="unknown settings .'caption'."):
        source_of({"dataset": "x", "caption": "y"}, "train")
    with pytest.raises(ValueError, match="names no dataset"):
        source_of({"source": "findsounds"}, "train")
    with pytest.raises(ValueError, match="no training set 'esc50'"):
        source_of({"source": "esc50"}, "train")
