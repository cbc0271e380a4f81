"""The checkpoint inside the package: size, dtype, its card, and what it makes of the example recordings."""

import csv

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor, pipeline

import clap_hf
from conftest import EXAMPLES


@pytest.fixture(scope="module")
def classifier():
    return pipeline(
        "zero-shot-audio-classification",
        model=str(clap_hf.embedded_checkpoint()),
        pipeline_class=clap_hf.MSClapZeroShotAudioClassificationPipeline,
    )


def test_it_is_small_and_holds_no_copy_of_the_code():
    files = list(clap_hf.embedded_checkpoint().iterdir())
    assert sum(file.stat().st_size for file in files) <= 64 * 2**20
    assert not [file for file in files if file.suffix == ".py"]


def test_auto_classes_load_it_in_float32_by_default():
    model = AutoModel.from_pretrained(clap_hf.embedded_checkpoint())
    assert isinstance(model, clap_hf.MSClapModel)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert isinstance(AutoProcessor.from_pretrained(clap_hf.embedded_checkpoint()), clap_hf.MSClapProcessor)


def test_examples_get_their_own_label_far_beyond_chance(classifier):
    expected = {line["file"]: line["label"] for line in csv.DictReader((EXAMPLES / "labels.csv").open())}
    labels = sorted(set(expected.values()))
    found = classifier([str(EXAMPLES / file) for file in expected], candidate_labels=labels)
    hits = sum(scores[0]["label"] == label for scores, label in zip(found, expected.values(), strict=True))
    assert hits >= 6, [(file, scores[0]["label"]) for file, scores in zip(expected, found, strict=True)]


def test_texts_do_not_collapse():
    model = AutoModel.from_pretrained(clap_hf.embedded_checkpoint()).eval()
    processor = AutoProcessor.from_pretrained(clap_hf.embedded_checkpoint())
    texts = ["a dog barking", "thunder", "a violin", "a gunshot", "somebody speaking French", "rain", "a click"]
    with torch.inference_mode():
        vectors = model.get_text_features(**processor(text=texts)).pooler_output
    cosine = (vectors @ vectors.t())[~torch.eye(len(texts), dtype=torch.bool)]
    assert cosine.mean() < 0.9


def test_the_card_is_complete():
    card = ModelCard.load(clap_hf.embedded_checkpoint() / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "transformers"
    names = {result.dataset_name for result in card.data.eval_results}
    assert {"sound corpus, animals", "sound corpus, text to audio R@10"} <= names
    assert "95 % interval" in card.text and "What it does not know" in card.text
    assert "{{" not in card.text
