"""`clap-hf train` and `clap-hf compare`: each stage by its recipe, and what is wrong in one line."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from clap_hf.cli import app
from conftest import GPT2_TOKENIZER, TESTS
from training.corpus import write_corpus

CONFIGS = TESTS.parent / "configs"
AUDIO = {
    "num_mel_bins": 32, "num_frames": 128, "num_time_chunks": 2, "embed_dim": 16, "depths": [1, 1],
    "num_attention_heads": [2, 4], "window_size": 4,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 77}


def invoke(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def recipe(tmp_path):
    settings = {
        "stage": "contrastive", "name": "tiny", "dataset": str(write_corpus(tmp_path / "corpus")), "audio": AUDIO,
        "features": {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 0.5, "n_fft": 512, "hop_length": 64},
        "text": {"config": GPT2, "tokenizer": str(GPT2_TOKENIZER)}, "model": {"projection_dim": 16},
        "batch_size": 8, "steps": 2, "steps_per_epoch": 2, "warmup_steps": 1,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "recipe.yaml"


def test_training_by_a_recipe_with_options(recipe, tmp_path):
    options = ["--output-dir", tmp_path / "run", "--trackers", "", "--num-workers", 0]
    result = invoke(
        "train",
        recipe,
        *options,
        "--seed",
        7,
        "--set",
        "balance=0.25",
        "--set",
        "betas=[0.9, 0.99]",
        "--set",
        "augmentation=null",
    )
    assert result.exit_code == 0, result.output
    start, epoch = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()]
    found = [start["recipe"][name] for name in ("seed", "balance", "betas", "augmentation")]
    assert found == [7, 0.25, [0.9, 0.99], None] and epoch["step"] == 2
    again = invoke("train", recipe, *options)
    assert again.exit_code == 2 and "--resume" in again.stderr


def test_a_run_that_diverges_ends_with_an_error_of_one_line(recipe, tmp_path):
    options = ["--output-dir", tmp_path / "run", "--trackers", "", "--num-workers", 0]
    result = invoke("train", recipe, *options, "--learning-rate", 1e30, "--set", "steps=6", "--set", "max_grad_norm=0")
    line = result.stderr.strip().splitlines()[-1]  # after the progress of log-mels
    assert result.exit_code == 2 and line.startswith("Error: Step ") and "expected finite numbers" in line
    assert "Traceback" not in result.stderr and "not_finite.json" in line
    assert (tmp_path / "run" / "not_finite.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml"], "gone.yaml"),
        ([CONFIGS / "esc50.yaml", "--set", "batch_size=0"], "batch_size is 0, expected a number, 1 or more"),
        (
            [CONFIGS / "captioning.yaml", "--set", "batch_size=x"],
            "batch_size is 'x', a text for YAML, expected a whole",
        ),
        ([CONFIGS / "table1.yaml"], "combination is None, expected one of"),
        ([CONFIGS / "esc50.yaml", "--steps", 5], "steps"),
        ([CONFIGS / "esc50.yaml", "--resume"], "--resume has no effect in the classification stage"),
        ([CONFIGS / "esc50.yaml", "--device", "cpu"], "device is 'cpu', which has no effect with frozen: false"),
        ([CONFIGS / "captioning.yaml", "--device", "cpu"], "--device has no effect in the captioning stage"),
        ([CONFIGS / "captioning.yaml", "--private"], "--private has no effect without --push-to-hub"),
        ([CONFIGS / "captioning.yaml", "--cache-dir", "x"], "cache_dir has no effect"),
        ([CONFIGS / "captioning.yaml", "--weights", "x"], "weights"),
        ([CONFIGS / "captioning.yaml", "--set", "lanes"], "expected SETTING=VALUE"),
        ([CONFIGS / "small_htsat_minilm.yaml", "--set", "loss=sigmoid"], "loss is 'sigmoid', which has no effect"),
    ],
)
def test_wrong_training_commands_are_named(tmp_path, arguments, message):
    result = invoke("train", *arguments, "--output-dir", tmp_path / "run")
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "run").exists()


def test_comparing_reads_what_is_there(tmp_path):
    options = ["--output-dir", tmp_path, "--only-compare", "--combinations", "HTSAT+GPT2,CNN14+BERT", "--seeds", "1,2"]
    result = invoke("compare", CONFIGS / "table1.yaml", *options)
    assert result.exit_code == 0 and result.stdout.count("not trained") == 2, result.output
    assert list(json.loads((tmp_path / "comparison.json").read_text())["combinations"]) == ["HTSAT+GPT2", "CNN14+BERT"]
    unknown = invoke("compare", CONFIGS / "table1.yaml", *options, "--combinations", "CNN6")
    assert unknown.exit_code == 2 and "no combinations ['CNN6']" in unknown.stderr
