"""Model cards: the embedded checkpoint's again from its stored records, and the cards of other models."""

import contextlib
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from packaging.version import Version
from safetensors.torch import load_file
from tools.release import average_weights, export_embedded
from transformers import AutoTokenizer

import clap_hf
from clap_hf.cards import Records, check_card, corpus_facts, draw_curves, model_card, read_records, write_card
from clap_hf.cards.results import measured
from clap_hf.embedding import front_end, model_identity
from clap_hf.evaluation.captioner import score_captions
from clap_hf.pretrained import load_checked
from conftest import GPT2_TOKENIZER, TINY_CNN14, make_model
from pages import Block, run_python

ROOT = Path(__file__).parent.parent
STORED = [ROOT / "model_cards" / f"embedded.{name}" for name in ("run.jsonl", "results.json", "corpus.json")]
APART = {name: ROOT / "model_cards" / f"embedded.{name}.json" for name in ("sealed", "hubs", "average")}
APART |= {name: ROOT / "model_cards" / f"embedded.{name}.jsonl" for name in ("earlier", "looks")}
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def embedded_card():
    return (clap_hf.embedded_checkpoint() / "README.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("model")
    make_model(audio=TINY_CNN14).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_embedded_card_is_what_the_generator_writes(embedded_card, tmp_path):
    measured_apart = {"moments": export_embedded.MOMENTS, "calibration": export_embedded.CALIBRATION}
    records = read_records(*STORED, **APART, **measured_apart)
    files = write_card(clap_hf.embedded_checkpoint(), tmp_path, records, license="mit")
    assert (tmp_path / "README.md").read_text() == embedded_card
    assert set(files) == {"README.md", "curves.png"}
    for picture in (tmp_path / "curves.png", clap_hf.embedded_checkpoint() / "curves.png"):
        content = picture.read_bytes()
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and width == 1100 and height == 352


def test_what_the_embedded_card_states_was_measured_of_its_weights():
    model, processor = load_checked(clap_hf.MSClapModel, str(clap_hf.embedded_checkpoint()), dtype=torch.float32)
    identity = model_identity(model, front_end(processor.feature_extractor), processor.tokenizer)
    again = "measure it again"
    assert json.loads(export_embedded.MOMENTS.read_text())["identity"] == identity, again
    assert json.loads(export_embedded.CALIBRATION.read_text())["fitted"]["identity"]["float32"] == identity, again
    file = hashlib.sha256((clap_hf.embedded_checkpoint() / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads(APART["looks"].read_text().splitlines()[-1])["weights"] == file, again
    assert json.loads(APART["hubs"].read_text())["weights"] == file, again


def test_a_run_becomes_a_checkpoint_with_records_and_card(folder, tmp_path):
    """Weights, records, card and picture from a run's folder, an evaluation and a corpus, in one command."""
    run, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(folder, run / "best")
    shutil.copy(STORED[0], run / "run.jsonl")
    shutil.copy(STORED[0], run / "earlier.jsonl")
    rows = Dataset.from_dict(
        {"audio": ["-", "-"], "license": ["CC0", "MIT"], "source": ["b", "a"], "duration_s": [1800.0, 1800.0]}
    )
    (corpus / "data").mkdir(parents=True)
    for number, split in enumerate(("train", "validation")):  # the stored run learned from the first
        rows.select([number]).to_parquet(corpus / "data" / f"{split}-00000-of-00001.parquet")
    output = tmp_path / "embedded"
    export_embedded.main(run, None, STORED[1], str(corpus), output, tmp_path / "records")
    assert {path.name for path in (tmp_path / "records").iterdir()} == {
        path.name for path in (*STORED, APART["earlier"])
    }
    assert "1 clips, 0.5 h" in (output / "README.md").read_text() and (output / "curves.png").is_file()
    assert not list(output.glob("*.py")) and "auto_map" not in (output / "config.json").read_text()
    before, after = (load_file(path / "model.safetensors") for path in (folder, output))
    assert all(torch.equal(value.half(), after[name].half()) for name, value in before.items())
    written = (output / "README.md").read_text()
    assert "## Probabilities" not in written, "of other weights"
    export_embedded.main(output=output, records=tmp_path / "records")  # again, from the records alone
    again = (output / "README.md").read_text()
    assert "## Probabilities" in again and "## Where in a recording" in again
    left = re.sub("## Where in a recording.*?(?=## Training\n)", "", again, flags=re.DOTALL)
    assert left == written


def test_the_mean_of_two_models_is_exported_and_its_card_says_so(folder, processor, tmp_path):
    other, run, mean = tmp_path / "other", tmp_path / "run", tmp_path / "mean"
    model = make_model(audio=TINY_CNN14)
    for weight in model.parameters():
        weight.data += 0.5
    model.save_pretrained(other)
    processor.save_pretrained(other)
    run.mkdir()
    shutil.copy(STORED[0], run / "run.jsonl")
    average_weights.main(str(folder), str(other), "it is wider", mean, "the weights that the last run went on from")
    export_embedded.main(run, mean, STORED[1], None, tmp_path / "embedded", tmp_path / "records")
    card = (tmp_path / "embedded" / "README.md").read_text()
    assert (
        "the mean of the weights that the last run went on from and those that the last run ended with; it is wider"
        in card
    )
    first, second, exported = (
        load_file(path / "model.safetensors") for path in (folder, other, tmp_path / "embedded")
    )
    for name, weight in second.items():
        expected = (first[name] + weight) / 2 if weight.is_floating_point() else weight
        assert torch.equal(exported[name].half(), expected.half())
    with pytest.raises(ValueError, match="differ in .'more'"):
        average_weights.mean_of_weights(first, second | {"more": torch.zeros(1)})


def test_the_script_writes_it_again(tmp_path):
    """On a copy without weights: the card alone is made anew."""
    folder = clap_hf.embedded_checkpoint()
    (tmp_path / "embedded").mkdir()
    for file in folder.glob("*.json"):
        shutil.copy(file, tmp_path / "embedded")
    export_embedded.main(output=tmp_path / "embedded")
    assert (tmp_path / "embedded" / "README.md").read_text() == (folder / "README.md").read_text()


def test_every_number_of_the_records_is_in_the_card(embedded_card):
    records = read_records(*STORED, **APART)
    assert records.looks[-1].get("found_later", "") in embedded_card
    assert records.looks[-1]["why"] in embedded_card and f"included: {len(records.looks)};" in embedded_card
    assert f"Looks at the test: {records.evaluation['test_looks']} sets of weights" in embedded_card
    results = measured(records.evaluation)
    assert len(results) == 15
    for result in results:
        assert f"| {result['task']} | {result['metric']} | {result['value']:.1%} |" in embedded_card
    for result in measured(records.sealed):
        assert f"| {result['task']} | {result['metric']} | {result['value']:.1%} |" in embedded_card
    for split, counted in records.hubs["splits"].items():
        for answer, rows in (("best", counted["labels"]), ("stated", counted["stated"]["labels"])):
            for row in rows:
                cells = f"{split} | {answer} | {row['label']} | {row['first']} | {row['own']} | {row['ratio']:.1f}"
                assert f"| {cells} |" in embedded_card
    epochs = [line for line in records.run if "epoch" in line]
    before = [line for line in records.earlier if "epoch" in line]
    assert f"{sum(e['seconds'] for e in before + epochs) / 3600:.1f} hours of training on " in embedded_card
    assert f"{records.corpus['rows']:,} clips" in embedded_card
    assert sum(entry["rows"] for entry in records.corpus["licenses"].values()) == records.corpus["rows"]
    section = embedded_card.split("\n## Training data\n")[1].split("\n## ")[0]
    shown = re.findall(r"^- (.+): ([\d,]+) clips of ((?:\d+ \w+(?: and )?)+)$", section, re.MULTILINE)
    assert len(shown) > 8
    for name, clips, sources in shown:
        entry = records.corpus["licenses"][name]
        assert f"{entry['rows']:,}" == clips
        assert sum(map(int, re.findall(r"\d+", sources))) == len(entry["sources"])
    assert "YAMNet" in embedded_card and "aiSFX" in embedded_card and "SoundNet" in embedded_card
    assert f"- the other clips: {len(records.corpus['licenses']) - len(shown)} further licenses" in section
    index = {result.dataset_config: result.metric_value for result in ModelCard(embedded_card).data.eval_results}
    assert index == {result["task"]: round(result["value"], 4) for result in results}


def test_the_hubs_checks_take_it(hub, embedded_card):
    card = ModelCard(embedded_card)
    if Version(huggingface_hub.__version__) > Version("1.31.0"):  # before, it asked the real Hub whatever was set
        card.validate()
    check_card(embedded_card, Path("README.md"))
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "feature-extraction", "mit")
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    for section in (
        "Use",
        "What it is for",
        "Training",
        "Training data",
        "What it does not know",
        "License",
        "Citation",
    ):
        assert f"\n## {section}\n" in embedded_card
    for word in ("/work", "/home", "/tmp", "{{", "None"):
        assert word not in card.text


def test_the_embedded_cards_snippet_runs(embedded_card):
    (snippet,) = SNIPPET.findall(embedded_card)
    printed = run_python(Block("card", "python", snippet, None))
    assert all(f"'label': '{label}'" in printed for label in ("dog", "rain", "music"))


def test_a_card_without_records_claims_nothing(folder):
    text = model_card(folder, Records(), repo_id="acme/plain")
    assert text.startswith("---\n") and "# plain\n" in text
    assert "No license of the weights has been stated" in text
    for absent in ("## Training", "## Results", "Environmental", "model-index", "curves.png", "license:"):
        assert absent not in text
    check_card(text, Path("README.md"))


def test_a_run_of_todays_settings(folder, tmp_path):
    """Optimiser, schedule and best metric as recipes name them, a Hub dataset, a pretrained tower from the Hub."""
    start = json.loads(STORED[0].read_text().splitlines()[0])
    recipe = start["recipe"] | {
        "name": "big",
        "dataset": "acme/sounds",
        "loss": "contrastive",
        "text_bank": False,
        "optimizer": "adam",
        "schedule": "plateau",
        "ema_decay": 0.0,
        "best_metric": "validation_loss",
        "max_grad_norm": None,
        "learning_rate": 1e-3,
        "batch_size": 64,
    }
    recipe["text"] = recipe["text"] | {"pretrained": "gpt2", "freeze": False}
    epochs = [
        {"epoch": 1, "step": 10, "loss": 3.0, "seconds": 1800.0, "validation_loss": 2.0, "best": True},
        {"epoch": 2, "step": 20, "loss": 2.0, "seconds": 1800.0, "validation_loss": 2.5},
    ]
    run = [{"recipe": recipe, "from_step": 0, "versions": start["versions"]}, *epochs]
    run.insert(2, {"recipe": recipe | {"batch_size": 128}, "from_step": 10, "versions": start["versions"]})
    text = model_card(folder, Records(run=run), repo_id="acme/big", license="apache-2.0")
    data = ModelCard(text).data
    assert (data.base_model, data.datasets, data.license) == ("gpt2", ["acme/sounds"], "apache-2.0")
    assert "| optimiser | Adam, 0.001, reduced on plateau | Adam, 1e-3, reduced on plateau |" in text
    assert "| epoch kept | 1 of 2, by validation loss on validation data |" in text
    assert "batch_size was 64 until step 10, then 128" in text
    assert "60 min of training" in text
    draw_curves(run, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_results_of_a_suite(folder):
    """What `clap-hf evaluate` writes: values, missing tasks, the paper's figures."""
    esc = {"task": "ESC50", "status": "done", "reason": "", "location": "own/esc50, test", "metric": "accuracy"}
    evaluation = {
        "title": "26 tasks",
        "score": {"score": 0.5, "tasks": ["ESC50"], "missing": [], "paper": 0.939},
        "tasks": [
            esc | {"value": 0.5, "low": 0.4, "high": 0.6, "paper": 0.939, "clips": 2000},
            {"task": "AudioCaps", "status": "missing", "reason": "no source in reach", "location": None},
        ],
    }
    text = model_card(folder, Records(evaluation=evaluation), repo_id="acme/x")
    assert "26 tasks. Mean of 1 values: 0.500." in text
    assert "| ESC50 | accuracy | 50.0% | 40.0% – 60.0% | 93.9% | 2000 | own/esc50, test |" in text
    assert "AudioCaps" not in text
    (result,) = ModelCard(text).data.eval_results
    assert (result.dataset_name, result.metric_value) == ("ESC50", 0.5)


def test_captions_are_shown_as_they_are(captioner, processor):
    """CIDEr-D where SPIDEr cannot be had, and 20 captions that a seed chose."""
    captions = [f"a sound {i} | of things" for i in range(60)]
    references = [[f"sound {i}", f"it is {i}", f"{i}, once more", "left out"] for i in range(60)]
    scored = score_captions(captions, references)
    examples = scored["examples"]
    assert len(examples) == 20 and examples == score_captions(captions, references)["examples"]
    assert [captions.index(example["caption"]) for example in examples] != list(range(20))
    task = {"task": "captions", "status": "done", "reason": "", "location": "own/sounds, test", "paper": None}
    evaluation = {"title": "sounds", "score": {"score": None, "tasks": [], "missing": [], "paper": None}}
    text = model_card(captioner, Records(evaluation=evaluation | {"tasks": [task | scored]}), repo_id="acme/x")
    value = scored["cider_d"]["value"]
    assert f"| captions | CIDEr-D | {value:.3f} | " in text and f"{value:.1%}" not in text
    [result] = ModelCard(text).data.eval_results
    assert (result.metric_type, result.metric_value) == ("CIDEr-D", round(value, 4))
    first = captions.index(examples[0]["caption"])
    assert f"| a sound {first} \\| of things | sound {first} / it is {first} / {first}, once more |\n" in text


def records_with_tokenizer(folder, target, max_length):
    """A copy of a published card's records, with the tokenizer that they leave out; the card states its limit only."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.md", "*.png"))
    tokenizer = AutoTokenizer.from_pretrained(GPT2_TOKENIZER)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(target)
    return target


def test_the_small_captioner_s_card(captioner, monkeypatch, tmp_path):
    """Written again from its records; its snippets run, with a tiny captioner in place of its weights."""
    folder = ROOT / "model_cards" / "small_captioning"
    start = json.loads((folder / "run.jsonl").read_text().splitlines()[0])
    records = records_with_tokenizer(folder, tmp_path / "records", start["recipe"]["language_model"]["max_length"])
    write_card(records, tmp_path, repo_id="small-captioning", license="mit")
    card = (folder / "README.md").read_text()
    assert (tmp_path / "README.md").read_text() == card
    assert card.split("| caption written by the model |")[1].split("\n## ")[0].count("\n| ") == 20
    assert "/work" not in card and "/tmp" not in card
    (tmp_path / "small-captioning").symlink_to(captioner)
    monkeypatch.chdir(tmp_path)
    for snippet in SNIPPET.findall(card):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(snippet, "card", "exec"), {})
        assert "generated_text" in output.getvalue()


def test_the_small_htsat_gpt2_s_card(tmp_path):
    folder = ROOT / "model_cards" / "small_htsat_gpt2"
    start = json.loads((folder / "run.jsonl").read_text().splitlines()[0])
    records = records_with_tokenizer(folder, tmp_path / "records", start["recipe"]["text"]["max_length"])
    write_card(records, tmp_path / "card", repo_id="small-htsat-gpt2", license="mit")
    card = (folder / "README.md").read_text()
    assert (tmp_path / "card" / "README.md").read_text() == card
    assert "this run took the audio tower alone" in card
    assert "/work" not in card and "/tmp" not in card


def test_paths_are_left_out(folder):
    start = json.loads(STORED[0].read_text().splitlines()[0])
    start["recipe"] |= {"dataset": "/home/somebody/sounds", "teacher": {"features": "/home/somebody/t", "weight": 1.0}}
    text = model_card(folder, Records(run=[start]), repo_id="acme/x")
    assert "somebody" not in text and "`sounds`" in text and "a teacher's features, `t`" in text
    start["recipe"]["teacher"]["features"] = "runs/soundnet-whisper.safetensors"
    text = model_card(folder, Records(run=[start]), repo_id="acme/x")
    assert "`soundnet-whisper.safetensors`" in text and "Nothing of the teacher is in the weights" in text
    start["recipe"] |= {"dataset": "", "sources": [{"dataset": "/home/somebody/a"}, {"dataset": "acme/b"}]}
    text = model_card(folder, Records(run=[start]), repo_id="acme/x")
    assert "somebody" not in text and "`a, acme/b`" in text and ModelCard(text).data.datasets == ["acme/b"]


def test_runs_of_the_generative_stages(captioner):
    """Their recipes name data and models in other places than the contrastive one's."""
    start = json.loads(STORED[0].read_text().splitlines()[0])
    shared = {name: start["recipe"][name] for name in ("name", "seed", "batch_size", "learning_rate")}
    clap = {"clap": "/home/somebody/clap", "sources": [{"dataset": "acme/captions"}], "validation": {"dataset": "x"}}
    run = [start | {"recipe": shared | clap}, {"epoch": 1, "step": 10, "loss": 1.0, "seconds": 60.0, "cider_d": 0.3}]
    text = model_card(captioner, Records(run=run), repo_id="acme/x")
    assert ModelCard(text).data.datasets == ["acme/captions"] and "somebody" not in text
    run[0] = start | {"recipe": shared | {"streams": [{"task": "t", "dataset": "acme/a"}] * 2}}
    assert ModelCard(model_card(captioner, Records(run=run), repo_id="acme/x")).data.datasets == ["acme/a"]


def test_corpus_facts():
    rows = Dataset.from_dict(
        {"license": ["CC0", "MIT", "MIT"], "source": ["b", "a", "c"], "duration_s": [1800.0, 900.0, 900.0]}
    )
    assert corpus_facts(rows, "train") == {
        "split": "train",
        "rows": 3,
        "hours": 1.0,
        "licenses": {"MIT": {"rows": 2, "sources": ["a", "c"]}, "CC0": {"rows": 1, "sources": ["b"]}},
    }
