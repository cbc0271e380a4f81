"""Every setting of every recipe changes the run or is refused: each is changed in each kind of run."""

import itertools
import json
import shutil
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import yaml
from corpus import write_corpus
from safetensors.torch import save_file

from clap_hf.data.augment import Augmentation
from clap_hf.training import loop, run
from clap_hf.training.classification import cross_validate
from clap_hf.training.recipe import RECIPES, ClassificationRecipe, LanguageModel, TextTower, load_recipe
from clap_hf.training.resume import load_checkpoint, newest_checkpoint
from clap_hf.training.settings import TrainingSettings
from conftest import GPT2_TOKENIZER, TESTS
from pairs import write_pairs

pytestmark = pytest.mark.slow

HTSAT = {
    "num_mel_bins": 32, "num_frames": 128, "num_time_chunks": 2, "embed_dim": 16, "depths": [1, 1],
    "num_attention_heads": [2, 4], "window_size": 4, "spec_augment_time_width": 8, "spec_augment_freq_width": 4,
}  # fmt: skip
CNN14 = {"architecture": "cnn14", "num_mel_bins": 32, "conv_channels": [4, 8, 8], "hidden_size": 32}
FEATURES = {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 0.5, "n_fft": 512, "hop_length": 64}
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 77}
TEXT = {"config": GPT2, "tokenizer": str(GPT2_TOKENIZER)}
MAPPER = {"prefix_length": 4, "mapper_input_length": 2, "mapper_num_layers": 1, "mapper_num_heads": 2}
LOOP = {"batch_size": 8, "steps": 4, "steps_per_epoch": 2, "warmup_steps": 1, "learning_rate": 3e-3, "ema_decay": 0.5}
LOOP |= {"best_metric": "step"}

# What each setting is changed to. Settings of a part are named `part.setting`.
CHANGES = {
    "seed": 5, "batch_size": 4, "steps": 6, "epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-2,
    "optimizer": "adam", "rate_factors": {"audio_": 0.1}, "betas": [0.5, 0.5], "weight_decay": 0.9,
    "schedule": "constant", "warmup_steps": 3, "plateau_metric": "nonsense", "plateau_mode": None,
    "plateau_factor": 0.5, "plateau_patience": 5, "best_metric": "nonsense", "best_mode": None, "max_grad_norm": 1e-3,
    "ema_decay": 0.05, "precision": "bf16", "gradient_checkpointing": True, "checkpoint_steps": 1, "max_skipped": 0,
    "dataset": "gone", "split": "train+validation", "balance": 0.0, "source_balance": 3.0,
    "category_weights": {"animal": 9.0}, "sources": [{"dataset": "gone"}], "validation": {"dataset": "gone"},
    "streaming": "simple", "lanes": 2, "shuffle_block": 1, "augmentation": None,
    "validation_pairs": 4, "evaluation_tasks": "nonsense",
    "audio": HTSAT | {"depths": [1, 2]}, "audio_tower": "{tower}", "weights": "{weights}",
    "features": FEATURES | {"fmax": 7000.0}, "text": TEXT | {"max_length": 3}, "model": {"projection_dim": 8},
    "loss": "sigmoid", "mask_shared": True, "text_bank": True, "logit_adjustment": 1.0,
    "teacher": {"features": "{teacher}"}, "chunk_size": 2,
    "batch_norm": "frozen", "template": "a {}", "template_probability": 1.0,
    "clap": "{cnn14}", "language_model": TEXT | {"max_length": 3}, "validation_clips": 1, "streams": [],
    "label": "category", "fold": "quality", "folds": 3, "frozen": True,
    "held_out": 0.4, "freeze_audio": True, "lora": {},
    "text.pretrained": "gone", "text.config": GPT2 | {"n_embd": 16}, "text.pooling": "mean",
    "text.tokenizer": str(TESTS / "tokenizers" / "bert-base-uncased"), "text.max_length": 3, "text.freeze": True,
    "augmentation.speeds": [1.0], "augmentation.gain_db": 1.0, "augmentation.pad_probability": 1.0,
    "augmentation.blend_probability": 1.0, "augmentation.blend_db": 0.0, "augmentation.mix_probability": 1.0,
    "augmentation.mix_snr_db": [0.0, 1.0], "augmentation.filter_db": 0.0, "augmentation.lowpass_probability": 1.0,
    "augmentation.noise_floor_db": [-20.0, -10.0], "augmentation.stretch_probability": 1.0,
    "augmentation.time_stretch": [0.5, 0.6], "augmentation.mel_stretch": [0.5, 0.6], "augmentation.mel_shift": 9.0,
    "language_model.pretrained": "gone", "language_model.config": GPT2 | {"n_layer": 2},
    "language_model.tokenizer": "gone", "language_model.max_length": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs that settings are changed in, by name."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = str(write_corpus(folder / "corpus"))
    pairs = write_pairs(folder / "pairs", bad=tuple(range(0, 60, 4)))
    write_pairs(pairs, rows=16, files=1, split="validation")
    source = {"dataset": str(pairs), "text": "text", "id": "id"}
    contrastive = {
        "stage": "contrastive", "name": "x", "audio": HTSAT, "features": FEATURES, "text": TEXT,
        "model": {"projection_dim": 32}, **LOOP,
    }  # fmt: skip
    shared = {"dataset": corpus, "text": "captions", "id": "id", "weight": 2.0}  # of few texts, and short
    streams = {
        "sources": [source, shared],
        "validation": source,
        "validation_pairs": 12,
        "best_metric": "recall_at_10",
    }
    captioning = {
        "stage": "captioning", "name": "x", "clap": "{weights}", "language_model": TEXT, "model": MAPPER,
        "validation": {"dataset": corpus, "text": "captions"}, "validation_clips": 3,
        "augmentation": {"pad_probability": 0.5}, **LOOP,
    }  # fmt: skip
    plateau = {"schedule": "plateau", "plateau_metric": "step", "plateau_patience": 0, "optimizer": "adam"}
    found = {
        "dataset": contrastive | {"dataset": corpus},
        "sources": contrastive | streams | {"lanes": 4, "loss": "contrastive"},
        "simple": contrastive | streams | {"streaming": "simple", "sources": [source]},
        "bank": contrastive | {"dataset": corpus, "text_bank": True, "text": TEXT | {"freeze": True}},
        "cnn14": contrastive | {"dataset": corpus, "audio": CNN14},
        "weights": {
            "stage": "contrastive", "name": "x", "dataset": corpus, "weights": "{weights}", "text": {"freeze": True},
            **LOOP,
        },
        "plateau": contrastive | {"dataset": corpus, **plateau, "weight_decay": 0.0, "warmup_steps": 0, "steps": 6},
        "captioning": captioning | {"dataset": corpus},
        "captioning sources": captioning | {"sources": [source], "lanes": 4},
        "prompts": {
            "stage": "prompts", "name": "x", "audio": HTSAT, "features": FEATURES, "language_model": TEXT,
            "streams": [{"prompts": f"corpus_{name}", "dataset": corpus} for name in ("events", "language")],
            "model": {"projection_dim": 32, **MAPPER}, "validation_clips": 3, **LOOP,
        },
        "classification": {
            "stage": "classification", "model": "{weights}", "dataset": corpus, "folds": 2, "epochs": 1,
            "batch_size": 8,
        },
    }  # fmt: skip
    found["classification"] |= {"label": "label", "learning_rate": 1e-2}
    found["probe"] = {key: found["classification"][key] for key in ("stage", "model", "dataset", "folds")}
    found["probe"] |= {"frozen": True}
    places = {"{weights}": str(folder / "weights" / "best"), "{cnn14}": str(folder / "cnn14" / "best")}
    places |= {"{tower}": places["{weights}"], "{teacher}": str(folder / "teacher.safetensors")}
    for name, key in (("weights", "dataset"), ("cnn14", "cnn14")):
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(found[key] | {"steps": 2}))
        run.train_recipe(load_recipe(path), folder / name, num_workers=0, cache_dir=folder / "log-mels")
    ids = [f"{stem}-{k}" for stem in {path.stem for path in (TESTS.parent / "examples").iterdir()} for k in range(8)]
    save_file({"features": torch.randn(len(ids), 4)}, places["{teacher}"], {"ids": json.dumps(ids)})
    return folder, found, places


def outcome(runs, settings, monkeypatch):
    """Everything that a run does by its settings: weights, metrics, checkpoints; or the error that it ends with."""
    folder, _, places = runs
    text = yaml.safe_dump(settings)
    for name, place in places.items():
        text = text.replace(f"'{name}'", place)
    path = folder / f"run-{next(NUMBERS)}.yaml"
    path.write_text(text)
    output = path.with_suffix("")
    try:
        return outcome_of(load_recipe(path), output, folder, monkeypatch)
    finally:
        shutil.rmtree(output, ignore_errors=True)  # 60 MB, a hundred times and more


def outcome_of(recipe, output, folder, monkeypatch):
    if isinstance(recipe, ClassificationRecipe):
        found = cross_validate(recipe, output)
        results = [json.loads(file.read_text()) for file in sorted(output.glob("fold-*/result.json"))]
        weights = [(output / f"fold-{fold['fold']}" / "model.safetensors").read_bytes() for fold in found["folds"]]
        return found["accuracy"], [result["hits"] for result in results], weights
    saved, models = [], []
    with monkeypatch.context() as watched:
        save, train = loop.save_checkpoint, run.train
        watched.setattr(loop, "save_checkpoint", lambda *given: saved.append(given[1]) or save(*given))
        watched.setattr(
            run, "train", lambda stage, *given, **more: models.append(stage.model) or train(stage, *given, **more)
        )
        cache = folder / "log-mels" if getattr(recipe, "dataset", "") else None
        try:
            run.train_recipe(recipe, output, num_workers=0, cache_dir=cache)
        except RuntimeError as error:
            return str(error)
    tensors, _ = load_checkpoint(newest_checkpoint(output / "last"))
    timed = ("seconds", "evaluation_seconds", "clips_per_s", "waiting", "peak_memory_gib")
    epochs = [json.loads(line) for line in (output / "run.jsonl").read_text().splitlines()][1:]
    metrics = [{name: value for name, value in epoch.items() if name not in timed} for epoch in epochs]
    weights = {name: value.tolist() for part in ("model", "average") for name, value in tensors.get(part, {}).items()}
    return saved, models[0].is_gradient_checkpointing, metrics, weights


NUMBERS = itertools.count()
LOOP_SETTINGS = {field.name for field in fields(TrainingSettings)} - {"max_skipped"}
PARTS = (("text", TextTower), ("augmentation", Augmentation), ("language_model", LanguageModel))
# Runs in which the settings of a part take another way than in the others.
RUNS_OF_PARTS = {"dataset", "sources", "captioning", "prompts"}
CASES = [
    (name, setting)
    for name, stage in {
        **dict.fromkeys(("dataset", "sources", "simple", "bank", "cnn14", "weights", "plateau"), "contrastive"),
        **dict.fromkeys(("captioning", "captioning sources"), "captioning"),
        "prompts": "prompts",
        **dict.fromkeys(("classification", "probe"), "classification"),
    }.items()
    for setting in [
        *(field.name for field in fields(RECIPES[stage])),
        *(
            f"{part}.{field.name}"
            for part, kind in PARTS
            if part in {field.name for field in fields(RECIPES[stage])}
            and (name in RUNS_OF_PARTS or (name, part) == ("weights", "text"))
            for field in fields(kind)
        ),
    ]
    # The loop is the same everywhere, and `name` names the run, nothing else.
    # No clip here is shorter than a window: `tests/data/test_augment.py` pads.
    if setting != "augmentation.pad_probability"
    and (setting != "max_skipped" or name in ("sources", "simple"))  # whose rows cannot all be read
    and (setting not in LOOP_SETTINGS or (name in ("dataset", "plateau") and setting != "name"))
    and (setting in LOOP_SETTINGS or name != "plateau")  # another schedule, nothing else
]


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    """METEOR takes seconds to start in every epoch, and a stream of `datasets` seconds to end; the rest stays."""
    monkeypatch.setattr("clap_hf.evaluation.captions.shutil", SimpleNamespace(which=lambda _: None))
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture(scope="module")
def unchanged(runs):
    """Outcomes of the runs as they are."""
    return {}


@pytest.mark.parametrize(("name", "setting"), CASES, ids=lambda part: part)
def test_a_setting_takes_effect_or_is_refused(runs, unchanged, name, setting, monkeypatch):
    settings = runs[1][name]
    part, _, inner = setting.partition(".")
    if inner:
        change = (settings.get(part) or {}) | {inner: CHANGES[setting]}
    elif setting == "model" and settings["stage"] != "contrastive":
        change = "{cnn14}" if settings["stage"] == "classification" else settings["model"] | {"prefix_length": 3}
    elif setting == "best_mode":
        change = "min" if settings["stage"] != "prompts" else "max"
    elif setting == "plateau_mode":
        change = "max" if settings.get(setting) != "max" else "min"
    else:
        change = CHANGES[setting]
    if change == settings.get(setting):
        change = {"streaming": "exact"}.get(setting, change is not True)
    if inner and (settings.get(part) or {}).get(inner) is True:
        change[inner] = False
    changed = settings | {part: change}
    if setting == "epochs" and settings["stage"] != "classification":
        changed.pop("steps")
    try:
        found = outcome(runs, changed, monkeypatch)
    except (ValueError, OSError):
        return  # refused
    if name not in unchanged:
        unchanged[name] = outcome(runs, settings, monkeypatch)
    assert found != unchanged[name]
