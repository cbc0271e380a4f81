"""How often a clip is drawn."""

from collections import Counter

import datasets
import numpy as np
import pytest

from clap_hf.data.augment import Augmentation
from clap_hf.data.pairs import PairDataset


@pytest.fixture(scope="module")
def dataset():
    clips = [("dog", "animal", "one")] * 9 + [("dog", "animal", "two")] + [("door", "household", "one")] * 4
    labels, categories, sources = map(list, zip(*clips, strict=True))
    rows = {"captions": [[label] for label in labels], "label": labels, "category": categories, "source": sources}
    return PairDataset(datasets.Dataset.from_dict(rows), None, 1, Augmentation(), "{}", 0.0, 0)


def shares(weights):
    """Of the dogs of both sources and of the door."""
    return np.array([weights[:9].sum(), weights[9], weights[10:].sum()]) / weights.sum()


def test_labels_are_balanced_by_the_exponent(dataset):
    assert shares(dataset.weights(0.0, {})) == pytest.approx([9 / 14, 1 / 14, 4 / 14])
    assert shares(dataset.weights(1.0, {})) == pytest.approx([0.45, 0.05, 0.5])
    root = np.sqrt(10) + 2
    assert shares(dataset.weights(0.5, {})) == pytest.approx(
        [0.9 * np.sqrt(10) / root, 0.1 * np.sqrt(10) / root, 2 / root]
    )
    assert shares(dataset.weights(1.0, {"animal": 3.0}))[2] == pytest.approx(0.25)


def test_sources_of_a_label_are_balanced_within_its_share(dataset):
    assert shares(dataset.weights(1.0, {}, 1.0)) == pytest.approx([0.25, 0.25, 0.5])
    assert shares(dataset.weights(0.0, {}, 0.5)) == pytest.approx([0.75 * 10 / 14, 0.25 * 10 / 14, 4 / 14])


def test_shares_of_texts_are_how_often_they_are_drawn():
    rows = {
        "captions": [["a dog barks", "a dog"], ["a dog"], ["a low note", "a piano"]],
        "label": ["dog", "dog", "piano"],
        "category": ["animal", "animal", "instrument"],
        "source": ["one", "two", "one"],
    }
    dataset = PairDataset(datasets.Dataset.from_dict(rows), None, 1, Augmentation(), "a sound of {}", 0.3, 0)
    probabilities = np.array([0.5, 0.2, 0.3])
    found = dict(zip(dataset.texts, dataset.text_shares(probabilities).tolist(), strict=True))
    assert sum(found.values()) == pytest.approx(1)
    rng = np.random.default_rng(0)
    drawn = Counter(dataset.text(int(row), rng) for row in rng.choice(3, 40_000, p=probabilities))
    for text, share in found.items():
        assert drawn[text] / 40_000 == pytest.approx(share, abs=0.01)
