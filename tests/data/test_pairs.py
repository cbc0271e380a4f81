"""How often a clip is drawn."""

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
