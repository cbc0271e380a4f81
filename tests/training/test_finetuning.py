"""Fine-tuning on sounds of one's own: what learns, what is measured, what the card states, what is refused."""

import json
import sys

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from typer.testing import CliRunner

import clap_hf
from clap_hf.cli import app
from clap_hf.training.finetune import RECIPE, finetune
from clap_hf.training.recipe import load_recipe
from clips import as_dataset, write_clips
from conftest import sound

SMALL = {"batch_size": 8, "steps_per_epoch": 2, "augmentation.speeds": [1.0]}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine") / "my-sounds"
    write_clips(folder, pieces=6, recordings=4, seconds=0.5)
    return folder


def weights(folder):
    return clap_hf.MSClapModel.from_pretrained(folder).state_dict()


def changed(before, after):
    """Parts of the model of which a weight differs."""
    names = [name for name, value in after.items() if not torch.equal(value, before[name])]
    return {name.split(".")[0] for name in names if not name.endswith("num_batches_tracked")}


def run(sounds, output, checkpoint, **options):
    settings = SMALL | options.pop("settings", {})
    return finetune(sounds, output, model=str(checkpoint), steps=4, settings=settings, num_workers=0, **options)


PROJECTIONS = {"audio_projection", "text_projection", "logit_scale"}


@pytest.mark.parametrize(
    ("freeze", "learns"),
    [
        ("text", {"audio_model"}),
        ("audio", {"text_model"}),
        ("both", set()),
        ("none", {"audio_model", "text_model"}),
    ],
)
def test_a_frozen_tower_stays_what_it_was(sounds, checkpoint, tmp_path, freeze, learns):
    report = run(sounds, tmp_path / "run", checkpoint, freeze=freeze)
    assert changed(weights(checkpoint), weights(tmp_path / "run" / "best")) == learns | PROJECTIONS
    assert report["pairs"] + report["held_out"] == 24 and report["held_out"] == 4 and report["steps"] == 4
    assert json.loads((tmp_path / "run" / "finetune.json").read_text()) == report
    assert list(report["before"]) == list(report["after"]) and report["before"] != report["after"]


def test_what_is_measured_before_is_the_model_itself(sounds, checkpoint, tmp_path):
    report = run(sounds, tmp_path / "run", checkpoint, freeze="both", settings={"learning_rate": 0.0})
    assert report["before"] == report["after"]
    again = run(sounds, tmp_path / "again", tmp_path / "run" / "best")
    assert again["before"] == report["after"]  # the same pairs are held out


def test_datasets_in_python_and_their_own_split(sounds, checkpoint, tmp_path):
    rows = [(path.name, path.stem.rsplit("_", 1)[0]) for path in sorted(sounds.glob("*.wav"))]
    whole = as_dataset(sounds, rows)
    report = run(whole, tmp_path / "whole", checkpoint, held_out=0.25)
    assert (report["pairs"], report["held_out"], report["dataset"]) == (18, 6, ["sounds"])
    assert "accuracy" not in report["before"]  # sentences
    divided = datasets.DatasetDict({"train": whole.select(range(16)), "validation": whole.select(range(16, 24))})
    report = run(divided, tmp_path / "divided", checkpoint)
    assert (report["pairs"], report["held_out"]) == (16, 8)


def test_the_card_states_what_was(sounds, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = run(sounds, tmp_path / "runs" / "mine", checkpoint, license="cc-by-4.0")
    text = (tmp_path / "runs" / "mine" / "README.md").read_text()
    assert str(tmp_path) not in text and str(checkpoint.parent) not in text and str(sounds.parent) not in text
    assert f"fine-tuned from {checkpoint.name}" in text and ModelCard(text).data.license == "cc-by-4.0"
    assert "| pairs | 20 rows of my-sounds, 4 more held out, 0 that could not be read | 4.6 M |" in text
    temperature = float(torch.exp(-weights(checkpoint)["logit_scale"]))
    assert f"| temperature τ | learnt, from {temperature:.3g}, the base's |" in text
    assert f"{checkpoint.name}, is under terms that its card does not state" in text
    for name, before in report["before"].items():
        form = ".3f" if name == "validation_loss" else ".1%"
        label = "loss" if name == "validation_loss" else name.replace("_", " ")
        assert f"| {label} | {before:{form}} | {report['after'][name]:{form}} |" in text
    assert "On 4 pairs of the same dataset, held out by the seed" in text
    assert "measured once before the first step and after every epoch (2). They chose nothing" in text


def test_a_base_from_the_hub_is_named_in_the_metadata(hub, sounds, checkpoint, tmp_path):
    api = HfApi()
    api.create_repo("acme/tuned-base")
    api.upload_folder(repo_id="acme/tuned-base", folder_path=checkpoint)
    card = "---\nlicense: apache-2.0\n---\n# Base\n\n## Training data\n\nBells and\nwhistles.\n\nMore.\n"
    api.upload_file(repo_id="acme/tuned-base", path_or_fileobj=card.encode(), path_in_repo="README.md")
    run(sounds, tmp_path / "run", "acme/tuned-base", settings={"best_metric": "accuracy"})
    text = (tmp_path / "run" / "README.md").read_text()
    assert ModelCard(text).data.base_model == "acme/tuned-base"
    assert "acme/tuned-base, is under apache-2.0." in text
    assert "other data; its card: Bells and whistles." in text
    assert "They also chose the epoch, by accuracy, so they flatter it." in text


def test_adapters_are_saved_alone_and_merged(sounds, checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    run(sounds, tmp_path / "run", checkpoint, lora=True, freeze="none", settings={"lora.rank": 4})
    best = tmp_path / "run" / "best"
    before, after = weights(checkpoint), weights(best)
    assert after.keys() == before.keys()
    assert changed(before, after) == {"audio_model", "text_model", "audio_projection", "text_projection"}
    base = clap_hf.MSClapModel.from_pretrained(checkpoint)
    merged = peft.PeftModel.from_pretrained(base, best / "adapter").merge_and_unload().state_dict()
    for name, value in after.items():
        torch.testing.assert_close(merged[name], value, msg=name)
    about = json.loads((best / "adapter" / "adapter_config.json").read_text())
    assert (about["r"], about["base_model_name_or_path"]) == (4, None)
    text = (tmp_path / "run" / "README.md").read_text()
    assert (
        "adapters of rank 4" in text and "temperature τ | kept at " in text and "`adapter/` holds them alone" in text
    )


def test_a_run_goes_on(sounds, checkpoint, tmp_path):
    run(sounds, tmp_path / "run", checkpoint)
    with pytest.raises(FileExistsError, match="--resume"):
        run(sounds, tmp_path / "run", checkpoint)
    assert run(sounds, tmp_path / "run", checkpoint, resume=True)["steps"] == 4


def test_the_recipe_lies_in_the_package():
    assert RECIPE.parent.joinpath("loop.py").is_file()
    recipe = load_recipe(RECIPE, None, {"audio.drop_path_rate": 0.3, "text.freeze": False, "held_out": 0.5})
    assert (recipe.audio, recipe.text.freeze, recipe.held_out) == ({"drop_path_rate": 0.3}, False, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "los=sigmoid"], "unknown settings ['los']"),
        (["--set", "audio.embed_dimm=64"], "audio has unknown settings ['embed_dimm'], expected some of"),
        (["--set", "model.temperature=1"], "model has unknown settings ['temperature']"),
        (["--set", "text.frozen=true"], "text has unknown settings ['frozen']"),
        (["--set", "features.rate=1"], "features has unknown settings ['rate']"),
        (["--set", "loss.x=1"], "loss is"),
        (
            ["--set", "best_metric=accuraccy"],
            "best_metric is 'accuraccy', expected one of what the evaluation returns",
        ),
        (["--set", "steps_per_epoch=1000"], "steps_per_epoch is 1000, but one pass over the data has"),
        (
            ["--steps", "2", "--set", "steps_per_epoch=3", "--set", "batch_size=4"],
            "steps is 2, expected at least an epoch's 3",
        ),
        (["--set", "batch_size=1000"], "batch_size is 1000, expected at most the number of pairs for training, 20"),
        (["--set", "lanes=4"], "lanes is 4, which has no effect"),
        (["--freeze", "everything"], "freeze is 'everything', expected one of ['text', 'audio', 'both', 'none']"),
        (["--template", "a sound"], "template is 'a sound', expected a text with {} for the label"),
        (["--text-column", "caption"], "expected ['caption'] among them"),
        (["--model", "nowhere"], "The model 'nowhere' is no folder"),
    ],
)
def test_what_is_wrong_is_one_line_before_the_first_step(sounds, tmp_path, checkpoint, options, message):
    command = ["finetune", str(sounds), "--output-dir", str(tmp_path / "run"), "--num-workers", "0"]
    model = [] if "--model" in options else ["--model", str(checkpoint)]
    result = CliRunner().invoke(app, [*command, *model, *options])
    line = result.stderr.strip().splitlines()[-1]
    assert result.exit_code == 2 and line.startswith("Error: ") and message in line, result.output
    assert not (tmp_path / "run" / "last").exists()


def test_without_peft_the_remedy_is_named(sounds, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ValueError, match="lora needs the package peft, which is not installed. Install it: pip install"
    ):
        run(sounds, tmp_path / "run", checkpoint, lora=True)


def test_training_by_a_recipe_takes_the_same_sources(sounds, tmp_path, checkpoint):
    options = ["--output-dir", str(tmp_path / "run"), "--weights", str(checkpoint), "--num-workers", "0"]
    options += [
        "--trackers",
        "",
        "--steps",
        "2",
        "--set",
        "steps_per_epoch=1",
        "--set",
        "batch_size=8",
        "--set",
        "batch_norm=exact",
    ]
    command = ["train", str(RECIPE), *options]
    result = CliRunner().invoke(app, [*command, "--sources", str(sounds), "--held-out", "0.5"])
    assert result.exit_code == 0, result.output
    assert "1 process, batches of 8, 2 epochs of 1 steps; 12 readable pairs, 12 more held out; 0 rows skipped." in (
        result.stdout
    )
    alone = CliRunner().invoke(app, [*command, "--held-out", "0.5"])
    assert alone.exit_code == 2 and "no effect without --sources" in alone.stderr
    corpus = CliRunner().invoke(app, [*command[:3], str(tmp_path / "x"), *command[4:], "--dataset", str(sounds)])
    assert corpus.exit_code == 2 and "expected a sound corpus" in corpus.stderr


def test_sounds_in_memory_train(checkpoint, tmp_path):
    column = [{"array": sound(0.4, seed=i).astype(np.float32).tolist(), "sampling_rate": 16_000} for i in range(16)]
    rows = datasets.Dataset.from_dict({"audio": column, "label": [i % 2 for i in range(16)]})
    names = {"label_names": ["low", "high"]}
    assert run(rows, tmp_path / "run", checkpoint, columns=names)["held_out"] == 4
