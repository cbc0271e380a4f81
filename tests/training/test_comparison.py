"""All seven pairs of encoders of Table 1, tiny, trained on real recordings and compared."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from corpus import write_corpus
from kill_and_resume import AUDIO, FEATURES

from clap_hf import MSClapFeatureExtractor, MSClapModel, MSClapProcessor
from clap_hf.evaluation.benchmarks import TABLE1_SCORES
from clap_hf.tokenization import sentence_tokenizer
from clap_hf.training.comparison import compare_encoders
from clap_hf.training.recipe import combinations_of, load_recipe
from conftest import GPT2_TOKENIZER, TESTS, make_config

CONFIGS = TESTS.parent / "configs"
CNN14 = {"architecture": "cnn14", "num_mel_bins": 32, "conv_channels": [8, 16, 32], "spec_augment_time_width": 8}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BERT_TOKENIZER = str(TESTS / "tokenizers" / "bert-base-uncased")


def write_roberta_tokenizer(folder: Path) -> str:
    """GPT-2's vocabulary with RoBERTa's special tokens, as RoBERTa's own is."""
    folder.mkdir()
    words = json.loads((GPT2_TOKENIZER / "vocab.json").read_text())
    words |= {token: len(words) + i for i, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
    (folder / "vocab.json").write_text(json.dumps(words))
    shutil.copy(GPT2_TOKENIZER / "merges.txt", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    return str(folder)


def text_towers(folder: Path) -> dict[str, dict]:
    roberta = {"model_type": "roberta", "vocab_size": 50262, "pad_token_id": 50258, "max_position_embeddings": 50400}
    clip = {"model_type": "clip_text_model", "vocab_size": 30522, "projection_dim": 16, "eos_token_id": 102}
    return {
        "BERT": {"config": {"model_type": "bert", "vocab_size": 30522, **SIZES}, "tokenizer": BERT_TOKENIZER},
        "RoBERTa": {"config": {**roberta, **SIZES}, "tokenizer": write_roberta_tokenizer(folder / "roberta")},
        "CLIP": {"config": {**clip, **SIZES}, "tokenizer": BERT_TOKENIZER},
        "GPT2": {
            "config": {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 77},
            "tokenizer": str(GPT2_TOKENIZER),
        },
    }


def write_recipe(folder: Path) -> Path:
    tower = folder / "htsat-22"
    MSClapModel(make_config(audio=AUDIO)).save_pretrained(tower)
    tokenizer = sentence_tokenizer(GPT2_TOKENIZER, make_config().text_config, 77)
    MSClapProcessor(MSClapFeatureExtractor(**FEATURES), tokenizer).save_pretrained(tower)
    towers = text_towers(folder)
    combinations = {}
    for name in TABLE1_SCORES:
        audio, text = name.split("+")
        combinations[name] = {"audio": CNN14 if audio == "CNN14" else AUDIO, "text": towers[text]}
        if audio == "HTSAT-22":
            combinations[name]["audio_tower"] = str(tower)
        if audio != "CNN14":
            combinations[name]["chunk_size"] = 4
    settings = {
        "stage": "contrastive",
        "name": "table1",
        "dataset": str(write_corpus(folder / "corpus")),
        "features": FEATURES,
        "model": {"projection_dim": 16},
        "batch_size": 8,
        "steps": 4,
        "steps_per_epoch": 2,
        "warmup_steps": 1,
        "combinations": combinations,
    }
    (folder / "table1.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder / "table1.yaml"


@pytest.mark.slow
def test_all_seven_pairs_train_and_are_compared_with_the_paper(tmp_path):
    recipe = write_recipe(tmp_path)
    shared = {"overrides": {}, "num_workers": 0, "cache_dir": tmp_path / "log-mels"}
    results = compare_encoders(recipe, tmp_path / "out", combinations_of(recipe), [1], **shared)
    assert list(results) == list(TABLE1_SCORES) and len(results) == 7
    assert all(0 < result["mean"] <= 1 for result in results.values())
    table = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert len(table) == 9 and table[-1].startswith("| HTSAT-22+GPT2 | 0.") and table[-1].endswith("| 0.480 |")
    # Finished runs are not trained again.
    records = {path: path.read_text() for path in (tmp_path / "out").glob("*/run.jsonl")}
    assert len(records) == 7
    again = compare_encoders(recipe, tmp_path / "out", combinations_of(recipe), [1], **shared)
    assert json.dumps(again) == json.dumps(results)
    assert all(path.read_text() == text for path, text in records.items())


def test_table_1_by_task_and_domain_stands_beside_the_papers_rows(tmp_path):
    """From records of two seeds, the better epoch of each; two of the tasks are of one domain."""
    for seed, better in ((1, 0.6), (2, 0.8)):
        run = tmp_path / f"htsat-gpt2-{seed}"
        run.mkdir()
        epochs = [
            {"epoch": 1, "step": 1, "zero_shot_score": 0.1, "tasks": {"ESC50": 0.1, "US8K": 0.1, "LibriCount10": 0.1}},
            {
                "epoch": 2,
                "step": 2,
                "zero_shot_score": 0.5,
                "tasks": {"ESC50": better, "US8K": 0.5, "LibriCount10": 0.3},
            },
        ]
        (run / "run.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in reversed(epochs)))
    recipe = CONFIGS / "table1.yaml"
    results = compare_encoders(recipe, tmp_path, ["HTSAT+GPT2"], [1, 2], overrides={}, num_workers=0, train=False)
    tasks = results["HTSAT+GPT2"]["tasks"]
    assert tasks["ESC50"] == {"mean": pytest.approx(0.7), "paper": 0.819} and list(tasks)[-1] == "LibriCount10"
    text = (tmp_path / "comparison.md").read_text()
    assert "| encoders | ESC50 | US8K | LibriCount10 |" in text
    assert "| HTSAT+GPT2 | 0.700 | 0.500 | 0.300 |" in text and "| HTSAT+GPT2, paper | 0.819 | 0.767 | 0.155 |" in text
    by_domain = text.split("## By domain")[1]
    assert "| encoders | sound event | speaker counting |" in by_domain
    assert "| HTSAT+GPT2 | 0.600 | 0.300 |" in by_domain and "| HTSAT+GPT2, paper | 0.793 | 0.155 |" in by_domain


def test_combinations_change_only_what_they_name(tmp_path):
    names = combinations_of(CONFIGS / "table1.yaml")
    assert names == list(TABLE1_SCORES)
    recipes = [load_recipe(CONFIGS / "table1.yaml", name) for name in names]
    differing = {
        key
        for key in recipes[0].to_dict()
        if len({json.dumps(recipe.to_dict()[key], sort_keys=True) for recipe in recipes}) > 1
    }
    assert differing == {"name", "audio", "text", "audio_tower", "batch_norm"}
    paper = recipes[-1]
    assert (paper.batch_size, paper.epochs, paper.optimizer, paper.learning_rate) == (1536, 40, "adam", 1e-3)
    assert (paper.plateau_factor, paper.plateau_patience, paper.max_grad_norm) == (0.1, 15, None)
    assert len(load_recipe(CONFIGS / "table2.yaml").sources) == 20
    with pytest.raises(ValueError, match="combination is 'HTSAT', expected one of"):
        load_recipe(CONFIGS / "table1.yaml", "HTSAT")


def test_an_unknown_combination_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no combinations \['CNN6'\]"):
        compare_encoders(CONFIGS / "table1.yaml", tmp_path, ["CNN6"], [1], overrides={}, num_workers=0)
