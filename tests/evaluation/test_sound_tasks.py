"""The corpus' tasks: class selection, an oracle and a random model, retrieval ties."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tools.sound_corpus.manifest import load_manifest

from clap_hf.cards.results import rows_of
from clap_hf.evaluation.scoring import bootstrap_interval
from clap_hf.evaluation.sound_tasks import (
    RETRIEVAL_SOURCE,
    SOUND_TASKS,
    SoundTask,
    corpus_tasks,
    select_clips,
    with_labels,
)
from clap_hf.evaluation.task_scores import class_texts, score_classification, score_retrieval

RELABELLED = Path(__file__).parents[2] / "model_cards" / "embedded.relabelled.json"
BLANK = dict.fromkeys(("family", "register", "lang", "velocity"))


def row(number, category, label, **values):
    base = {"id": f"{category}/{label}/{number}", "category": category, "label": label, "quality": "named"}
    return BLANK | base | {"source": "x", "captions": [f"{label} {number}"]} | values


def scored(rows, audio, embed_texts):
    """Results of the scored tasks by name, as training and the cards name them."""
    results = {}
    for task, data in corpus_tasks(rows, [{}] * len(rows)):
        if not task.scored or not data.rows:
            continue
        vectors = audio[data.rows].numpy()
        if task.kind == "classification":
            found, _ = score_classification(task, data, vectors, class_texts(task, data.classes), embed_texts)
        else:
            found, _ = score_retrieval(task, data, vectors, embed_texts)
        results |= {row["task"]: row for row in rows_of({"task": task.name} | found)}
    return results


def corpus_rows():
    rows = [row(i, "animal", name) for name in ("dog", "cow", "frog") for i in range(25)]
    rows += [row(i, "animal", "snake") for i in range(2)]
    rows += [row(i, "human", name) for name in ("scream", "pain") for i in range(6)]
    rows += [row(i, "vehicle", f"train {i}", source=RETRIEVAL_SOURCE) for i in range(12)]
    return rows


def test_classes_are_capped_and_rare_ones_left_out():
    task = next(task for task in SOUND_TASKS if task.name == "animals")
    rows = corpus_rows()
    chosen = select_clips(task, rows)
    counts = {name: list(chosen.values()).count(name) for name in set(chosen.values())}
    assert counts == {"dog": 20, "cow": 20, "frog": 20}
    # The choice hangs on ids, not on the order of the rows.
    assert {rows[::-1][i]["id"] for i in select_clips(task, rows[::-1])} == {rows[i]["id"] for i in chosen}


def test_labels_before_a_correction_can_be_measured_too():
    rows = corpus_rows()
    split = datasets.Dataset.from_list(rows)
    was = {"animal/dog/3": {"category": "human", "label": "bark", "quality": "rule"}}
    changed = with_labels(split, was).to_list()
    assert [a["id"] for a, b in zip(changed, rows, strict=True) if a != b] == ["animal/dog/3"]
    assert changed[3] == rows[3] | was["animal/dog/3"]
    with pytest.raises(ValueError, match="lacks 1 of 2 relabelled clips, the first 'animal/cat/1'"):
        with_labels(split, was | {"animal/cat/1": was["animal/dog/3"]})


def test_the_list_of_corrected_labels_is_what_the_manifest_says():
    clips = {clip.id: clip for clip in load_manifest() if clip.split == "test"}
    corrected = json.loads(RELABELLED.read_text(encoding="utf-8"))["clips"]
    assert len({change["id"] for change in corrected}) == len(corrected) == 120
    for change in corrected:
        assert change["is"] == {name: getattr(clips[change["id"]], name) for name in ("category", "label", "quality")}
        assert change["was"] != change["is"] and change["why"]


def test_one_class_is_no_task():
    task = SoundTask("x", (1, 10), categories=("vehicle",), words={f"train {i}": "only" for i in range(12)})
    assert select_clips(task, corpus_rows()) == {}


@pytest.fixture
def fake_space():
    """Texts and clips as vectors that know the truth: every distinct text gets its own axis."""
    axes: dict[str, int] = {}

    def axis(name):
        return F.one_hot(torch.tensor(axes.setdefault(name, len(axes))), 256).float()

    def embed_texts(texts):
        by_length = sorted(labels, key=len, reverse=True)
        return torch.stack([axis(next((name for name in by_length if name in text), text)) for text in texts])

    rows = corpus_rows()
    labels = {r["label"] for r in rows}
    return rows, torch.stack([axis(r["label"]) for r in rows]), embed_texts


def test_oracle_scores_one_on_every_task(fake_space):
    results = scored(*fake_space)
    assert {"animals", "sound events", "human vocal sounds", "text to audio R@1"} <= set(results)
    for name, result in results.items():
        assert result["value"] == result["low"] == result["high"] == 1.0, name


def test_random_embeddings_score_chance(fake_space):
    rows, audio, embed_texts = fake_space
    random = F.normalize(torch.randn(audio.shape, generator=torch.Generator().manual_seed(3)), dim=-1)
    result = scored(rows, random, embed_texts)["animals"]
    assert result["low"] <= result["chance"] <= result["high"]


def test_ties_count_against_the_model(fake_space):
    rows, audio, embed_texts = fake_space
    results = scored(rows, torch.ones_like(audio), embed_texts)
    assert results["text to audio R@1"]["value"] == 0.0
    assert results["text to audio R@10"]["value"] == 0.0


def test_interval_of_a_mean():
    low, high = bootstrap_interval(np.array([1.0] * 50 + [0.0] * 50))
    assert (low, high) == bootstrap_interval(np.array([1.0] * 50 + [0.0] * 50))
    assert low == pytest.approx(0.40, abs=0.03) and high == pytest.approx(0.60, abs=0.03)
