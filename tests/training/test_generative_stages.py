"""Multi-task pretraining, then contrastive training from its tower, then captioning: tiny runs on real recordings."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from corpus import write_corpus
from transformers import AutoModelForMultimodalLM, pipeline

from clap_hf import MSClapForConditionalGeneration, MSClapModel
from clap_hf.cards import model_card, records_of_folder
from clap_hf.model.modeling_msclap_htsat import MSClapHtsatModel
from clap_hf.training.factory import build_language_model, build_model, load_audio_tower
from clap_hf.training.prompt_stage import PromptStage
from clap_hf.training.recipe import LanguageModel, load_recipe
from clap_hf.training.run import train_recipe
from conftest import EXAMPLES, GPT2_TOKENIZER, TESTS

AUDIO = {
    "num_mel_bins": 32, "num_frames": 128, "num_time_chunks": 2, "embed_dim": 16, "depths": [1, 1],
    "num_attention_heads": [2, 4], "window_size": 4, "spec_augment_time_width": 8, "spec_augment_freq_width": 4,
}  # fmt: skip
FEATURES = {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 0.5, "n_fft": 512, "hop_length": 64}
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 77}
LANGUAGE_MODEL = {"config": GPT2, "tokenizer": str(GPT2_TOKENIZER)}
MAPPER = {"prefix_length": 4, "mapper_input_length": 2, "mapper_num_layers": 1, "mapper_num_heads": 2}
RUN = {"batch_size": 8, "steps": 8, "steps_per_epoch": 4, "warmup_steps": 2, "learning_rate": 3e-3}
TASKS = ("corpus_events", "corpus_captions", "corpus_kind", "corpus_language")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return str(write_corpus(tmp_path_factory.mktemp("corpus") / "corpus"))


def write_recipe(folder, settings):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def records(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tasks_recipe(corpus, tmp_path_factory):
    settings = {
        "stage": "prompts",
        "name": "tiny-tasks",
        "streams": [{"prompts": name, "dataset": corpus} for name in TASKS],
        "audio": AUDIO,
        "features": FEATURES,
        "language_model": LANGUAGE_MODEL,
        "model": {"projection_dim": 32, **MAPPER},
        "validation_clips": 4,
        **RUN,
    }
    return load_recipe(write_recipe(tmp_path_factory.mktemp("recipe"), settings))


@pytest.fixture(scope="module")
def tasks_run(tasks_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "run"
    train_recipe(tasks_recipe, folder, num_workers=0)
    return folder


def contrastive_settings(corpus, **settings):
    return {
        "stage": "contrastive", "name": "tiny", "dataset": corpus, "audio": AUDIO, "features": FEATURES,
        "text": {"config": GPT2, "tokenizer": str(GPT2_TOKENIZER)}, "model": {"projection_dim": 32}, **RUN, **settings,
    }  # fmt: skip


@pytest.fixture(scope="module")
def contrastive_run(corpus, tasks_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contrastive")
    settings = contrastive_settings(corpus, audio_tower=str(tasks_run / "best"))
    train_recipe(load_recipe(write_recipe(folder, settings)), folder / "run", num_workers=0)
    return folder / "run"


def test_multi_task_pretraining_moves_the_tower_and_not_the_language_model(tasks_run, tasks_recipe):
    lines = records(tasks_run)
    assert [line["epoch"] for line in lines[1:]] == [1, 2]
    assert lines[-1]["loss"] < lines[1]["loss"] < 12
    assert set(lines[-1]["validation"]["loss"]) == set(TASKS)
    assert set(lines[-1]["validation"]["exact_match"]) == set(TASKS) - {"corpus_captions"}
    model = AutoModelForMultimodalLM.from_pretrained(tasks_run / "best")
    assert type(model) is MSClapForConditionalGeneration
    untrained, _ = build_language_model(tasks_recipe.language_model, tasks_recipe.seed)
    for name, value in untrained.state_dict().items():
        assert torch.equal(model.language_model.state_dict()[name], value)
    torch.manual_seed(tasks_recipe.seed)
    fresh = MSClapForConditionalGeneration(model.config)
    assert not torch.equal(fresh.audio_model.patch_embed.weight, model.audio_model.patch_embed.weight)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tasks_recipe, tasks_run, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PromptStage, "evaluate", stop)  # after the first epoch's steps, which are saved
        train_recipe(tasks_recipe, tmp_path / "run", num_workers=0)
    train_recipe(tasks_recipe, tmp_path / "run", resume=True, num_workers=0)
    first, second = records(tmp_path / "run")[-1], records(tasks_run)[-1]
    assert first["loss"] == second["loss"] and first["validation"] == second["validation"]


def test_the_tower_goes_into_the_contrastive_stage(corpus, tasks_run, tmp_path, contrastive_run):
    settings = contrastive_settings(corpus, audio_tower=str(tasks_run / "best"))
    model, processor = build_model(load_recipe(write_recipe(tmp_path, settings)))
    tower = MSClapHtsatModel.from_pretrained(tasks_run / "best").state_dict()
    assert all(torch.equal(value, tower[name]) for name, value in model.audio_model.state_dict().items())
    scratch, _ = build_model(load_recipe(write_recipe(tmp_path, contrastive_settings(corpus))))
    assert not torch.equal(scratch.audio_model.patch_embed.weight, model.audio_model.patch_embed.weight)
    assert torch.equal(scratch.text_projection.linear1.weight, model.text_projection.linear1.weight)
    assert records(contrastive_run)[0]["recipe"]["audio_tower"] == str(tasks_run / "best")
    MSClapModel.from_pretrained(contrastive_run / "best")


def test_a_tower_that_does_not_fit_is_refused(corpus, tasks_run, tmp_path):
    for change, message in (
        ({"audio": AUDIO | {"embed_dim": 8}}, r"embed_dim: 16 there, 8 here"),
        ({"features": FEATURES | {"fmax": 7000.0}}, r"fmax: 8000.0 there, 7000.0 here"),
    ):
        recipe = load_recipe(write_recipe(tmp_path, contrastive_settings(corpus) | change))
        model, processor = build_model(recipe)
        with pytest.raises(ValueError, match=message):
            load_audio_tower(model, processor, str(tasks_run / "best"))


def test_a_run_goes_on_from_the_weights_of_another(corpus, contrastive_run, tmp_path):
    best = contrastive_run / "best"
    settings = contrastive_settings(corpus, weights=str(best), text={}, steps=1, steps_per_epoch=1)
    recipe = load_recipe(write_recipe(tmp_path, settings))
    trained = MSClapModel.from_pretrained(best).state_dict()
    for name, value in build_model(recipe)[0].state_dict().items():
        assert torch.equal(value, trained[name]), name
    train_recipe(recipe, tmp_path / "run", num_workers=0)
    assert records(tmp_path / "run")[-1]["loss"] < records(contrastive_run)[1]["loss"]
    assert (tmp_path / "run" / "earlier.jsonl").read_text() == (contrastive_run / "run.jsonl").read_text()
    card = model_card(tmp_path / "run" / "best", records_of_folder(tmp_path / "run" / "best"), repo_id="acme/longer")
    assert re.search(r"\| before that \| 8 steps \(64 clips seen\), \d+ s; this run went on from their weights", card)
    for change, message in (
        ({"model": {"projection_dim": 16}}, r"audio_projection.layer_norm.bias: \(32,\) there, \(16,\) here"),
        ({"features": FEATURES | {"fmax": 7000.0}}, r"fmax: 8000.0 there, 7000.0 here"),
        ({"audio_tower": str(best)}, "at most one of"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(load_recipe(write_recipe(tmp_path, settings | change)))


def test_captioning_on_the_contrastive_model(corpus, contrastive_run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Java: METEOR and its like take 8 s an epoch
    settings = {
        "stage": "captioning",
        "name": "tiny-captioning",
        "clap": str(contrastive_run / "best"),
        "sources": [{"dataset": corpus, "text": "captions"}],
        "validation": {"dataset": corpus, "text": "captions"},
        "validation_clips": 4,
        "language_model": LANGUAGE_MODEL,
        "model": MAPPER,
        **RUN,
    }
    recipe = load_recipe(write_recipe(tmp_path, settings))
    train_recipe(recipe, tmp_path / "run", num_workers=0)
    lines = records(tmp_path / "run")
    assert lines[-1]["validation_loss"] < lines[1]["validation_loss"] < 12
    assert 0 <= lines[-1]["cider_d"] <= 10 and {"bleu_4", "rouge_l"} <= set(lines[-1]["validation"])
    assert len(lines[-1]["captions"]) == 4 and all(len(found["references"]) == 2 for found in lines[-1]["captions"])
    # Only the mapper moved: the audio side is that of the contrastive model.
    captioner = AutoModelForMultimodalLM.from_pretrained(tmp_path / "run" / "best")
    clap = MSClapModel.from_pretrained(contrastive_run / "best").state_dict()
    own = captioner.state_dict()
    assert all(torch.equal(own[name], value) for name, value in clap.items() if name.startswith("audio_"))
    # Captions end where the tokenizer ends texts.
    assert captioner.generation_config.eos_token_id == [220, 50256]
    describe = pipeline("audio-captioning", model=str(tmp_path / "run" / "best"), device="cpu")
    assert isinstance(describe(EXAMPLES / "dog.ogg", max_new_tokens=3)[0]["generated_text"], str)


@pytest.mark.parametrize(
    "stage, change, message",
    [
        ("captioning", {"beams": 3}, "unknown settings .*beams"),
        ("captioning", {"language_model": {}}, "exactly one of 'pretrained' and 'config'"),
        ("captioning", {"language_model": {"config": GPT2}}, "'tokenizer' must be named"),
        ("captioning", {"streaming": "simple", "sources": []}, "streaming is 'simple' with 0 sources"),
        ("prompts", {}, "missing .*streams"),
    ],
)
def test_wrong_recipes_are_named(tmp_path, stage, change, message):
    settings = {"stage": stage, "name": "x", "language_model": LANGUAGE_MODEL}
    if stage == "captioning":
        settings |= {"clap": "embedded", "sources": [{"dataset": "d"}], "validation": {}}
    with pytest.raises(ValueError, match=message):
        load_recipe(write_recipe(tmp_path, settings | change))


def test_unknown_prompts_are_named(tasks_recipe, tmp_path):
    with pytest.raises(ValueError, match="prompts is 'humming', expected one of"):
        train_recipe(replace(tasks_recipe, streams=[{"prompts": "humming", "dataset": "d"}]), tmp_path)


def test_a_language_model_must_end_its_texts(tmp_path):
    bert = LanguageModel(
        config={"model_type": "bert", "is_decoder": True, "hidden_size": 32, "num_hidden_layers": 1},
        tokenizer=str(TESTS / "tokenizers" / "bert-base-uncased"),
    )
    with pytest.raises(ValueError, match="does not end texts with an end token"):
        build_language_model(replace(bert, config=bert.config | {"num_attention_heads": 2}), 0)


def test_the_shipped_towers_fit():
    configs = TESTS.parent / "configs"
    small = load_recipe(configs / "small_prompts.yaml")
    contrastive = load_recipe(configs / "small_htsat_minilm.yaml")
    assert small.audio == contrastive.audio and small.features == contrastive.features
