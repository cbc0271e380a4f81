"""The scripts: each loads, and those without a command of `clap-hf` write the right files and name mistakes."""

import csv
import re
import runpy
from pathlib import Path

import datasets
import pytest
import typer
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from clap_hf.cards import CARD
from conftest import EXAMPLES, GPT2_TOKENIZER, TINY_CNN14, make_model

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run(name: str, *arguments: object) -> Result:
    """Run a script of typer in this process."""
    loaded = runpy.run_path(str(SCRIPTS / f"{name}.py")) if "." not in name else runpy.run_module(name)
    app = typer.Typer()
    app.command()(loaded["main"])
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_loads_and_names_itself(path):
    loaded = runpy.run_path(str(path))
    assert loaded["__doc__"] and f"{path.stem}.py" in loaded["__doc__"]


def test_an_evaluation_set_is_built_from_a_csv(tmp_path):
    table = tmp_path / "sounds.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), (EXAMPLES / "dog.ogg", "dog"), (tmp_path / "gone.wav", "rain")])
    options = ("--title", "Two sounds", "--license", "cc0-1.0", "--output", tmp_path / "out")
    result = run("build_evaluation_set", table, *options)
    assert result.exit_code == 0 and "1 sounds" in result.output and "gone.wav" in result.output
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="test")
    assert rows["label"][:] == ["dog"]
    result = run("build_evaluation_set", tmp_path / "none.csv", *options)
    assert result.exit_code == 2 and "none.csv" in re.sub(r"[\s│]", "", result.output)


def test_a_card_is_written_beside_a_model(processor, tmp_path):
    make_model(audio=TINY_CNN14).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    result = run("write_card", tmp_path / "model", "--repo-id", "acme/tiny", "--license", "mit")
    assert result.exit_code == 0, result.output
    assert "acme/tiny" in (tmp_path / "model" / CARD).read_text()


def test_a_tokenizer_is_trained_on_captions(tmp_path):
    captions = [["a dog barks", "a dog"], ["rain on a roof"], ["a dog barks at the rain"]] * 3
    (tmp_path / "corpus").mkdir()
    datasets.Dataset.from_dict({"captions": captions}).to_parquet(tmp_path / "corpus" / "train.parquet")
    options = ("--tokenizer", GPT2_TOKENIZER, "--size", 270, "--output", tmp_path / "tokenizer")
    result = run("train_tokenizer", "--dataset", tmp_path / "corpus", *options)
    assert result.exit_code == 0 and "4 texts, " in result.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer) <= 270 and tokenizer.decode(tokenizer("a dog barks")["input_ids"]) == "a dog barks"


def test_a_training_sets_terms_are_listed_and_unknown_sets_refused(tmp_path):
    result = run("tools.training_sets", "--list")
    assert result.exit_code == 0 and "clotho: Clotho v2" in result.output and result.output.count("layout:") == 22
    result = run("tools.training_sets", "esc50", "--root", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 2 and "esc50" in result.output
    result = run("tools.training_sets", "clotho")
    assert result.exit_code == 2 and "--root" in result.output
