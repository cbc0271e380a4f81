"""Pushing to the loopback Hub and loading from there; what a bad token, a cut or a wrong folder leads to."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Audio, load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard, hf_hub_download
from safetensors.torch import load_file, save_file
from scripts.build_evaluation_set import build_evaluation_set
from transformers import AutoModel, AutoModelForAudioClassification, AutoProcessor, pipeline
from typer.testing import CliRunner

import clap_hf
from clap_hf import (
    MSClapCaptioningConfig,
    MSClapConditionalGenerationConfig,
    MSClapForAudioCaptioning,
    MSClapForConditionalGeneration,
)
from clap_hf.cli import app
from clap_hf.evaluation.loading import DataSourceError
from clap_hf.hub import BackgroundPush, push
from clap_hf.model.modeling_msclap import MSClapForAudioClassification
from conftest import EXAMPLES, TINY_CNN14, TINY_GPT2, make_config, make_model, sound
from training.corpus import write_corpus

CODE = {"configuration_msclap.py", "feature_extraction_msclap.py", "processing_msclap.py", "modeling_msclap.py"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, processor):
    """A saved tiny model with a card."""
    folder = tmp_path_factory.mktemp("made") / "m"
    make_model(audio=TINY_CNN14).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [clap]\n---\n# A card\n")
    return folder


@pytest.fixture
def model_folder(made, tmp_path):
    """A copy with weights of its own: a Hub does not take what it has already."""
    return save(made, tmp_path / "m")


def save(made, folder):
    """Copy a model's folder, with other weights."""
    shutil.copytree(made, folder)
    weights = load_file(folder / "model.safetensors")
    weights["text_model.wte.weight"] += torch.rand(())
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def same_weights(one, other):
    """Every bit; outputs may differ in the last one, since weights read from a file lie elsewhere in memory."""
    others = other.state_dict()
    assert one.state_dict().keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in one.state_dict().items())


def printed_by_snippets(card):
    """What each Python snippet of a card prints."""
    printed = []
    for snippet in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(snippet, {})
        printed.append(output.getvalue())
    return printed


def tree(repo_id, revision=None):
    return {file for file in HfApi().list_repo_files(repo_id, revision=revision) if file != ".gitattributes"}


def test_round_trip_in_one_commit(hub, processor, tmp_path, batch):
    model = make_model(audio=TINY_CNN14, seed=101)
    model.save_pretrained(tmp_path / "clap")
    processor.save_pretrained(tmp_path / "clap")
    done = push(tmp_path / "clap", "acme/hub-clap", commit_message="all", license="mit")
    assert [commit.title for commit in HfApi().list_repo_commits("acme/hub-clap")] == ["all", "initial commit"]
    assert {file.path for file in done.files} == tree("acme/hub-clap")
    assert tree("acme/hub-clap") >= CODE | {"README.md", "model.safetensors", "config.json", "processor_config.json"}

    loaded = AutoModel.from_pretrained("acme/hub-clap")
    made = AutoProcessor.from_pretrained("acme/hub-clap")
    same_weights(loaded, model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits_per_audio, model(**batch).logits_per_audio)
    assert torch.equal(
        made(audio=sound(1.0), sampling_rate=16_000)["input_features"],
        processor(audio=sound(1.0), sampling_rate=16_000)["input_features"],
    )
    arguments = {"audio": {"array": sound(0.5), "sampling_rate": 16_000}}
    scores = [
        pipeline(
            "zero-shot-audio-classification",
            model=where,
            pipeline_class=clap_hf.MSClapZeroShotAudioClassificationPipeline,
            device="cpu",
        )(arguments["audio"], candidate_labels=["dog", "rain"])
        for where in ("acme/hub-clap", str(tmp_path / "clap"))
    ]
    assert [score["label"] for score in scores[0]] == [score["label"] for score in scores[1]]
    card = ModelCard.load("acme/hub-clap")
    assert card.data.license == "mit" and card.data.pipeline_tag == "feature-extraction"
    assert hub.unhandled == []


def test_a_fine_tuned_classifier(hub, processor, tmp_path):
    torch.manual_seed(102)
    labels = {"dog": 0, "rain": 1, "a bell": 2}
    config = make_config(audio=TINY_CNN14, id2label={i: name for name, i in labels.items()}, label2id=labels)
    model = MSClapForAudioClassification(config).eval()
    model.save_pretrained(tmp_path / "classifier")
    processor.save_pretrained(tmp_path / "classifier")
    push(tmp_path / "classifier", "acme/hub-classifier", private=True)
    assert HfApi().model_info("acme/hub-classifier").private
    loaded = AutoModelForAudioClassification.from_pretrained("acme/hub-classifier")
    features = processor(audio=sound(0.5), sampling_rate=16_000)
    same_weights(loaded, model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**features).logits, model(**features).logits)
    classify = pipeline("audio-classification", model="acme/hub-classifier", device="cpu")
    assert {score["label"] for score in classify(sound(0.5), top_k=3)} == {"dog", "rain", "a bell"}
    card = ModelCard.load("acme/hub-classifier").text
    assert "dog, rain, a bell" in card
    with_package, without = printed_by_snippets(card)
    assert set(re.findall(r"'label': '([^']*)'", with_package)) == set(labels)
    assert without.strip() in labels  # "Without the package" is run without it below, for the other models


def captioner():
    torch.manual_seed(110)
    config = MSClapCaptioningConfig(
        text_config=TINY_GPT2,
        audio_config=TINY_CNN14,
        projection_dim=24,
        prefix_length=4,
        mapper_input_length=2,
        mapper_num_layers=1,
        mapper_num_heads=4,
    )
    return MSClapForAudioCaptioning(config).eval()


def test_a_captioner(hub, processor, tmp_path):
    model = captioner()
    model.save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    push(tmp_path / "captioner", "acme/hub-captioner")
    assert tree("acme/hub-captioner") >= CODE | {"modeling_msclap_captioning.py", "pipeline_msclap.py"}
    describe = pipeline("audio-captioning", model="acme/hub-captioner", device="cpu")  # no trust asked for
    assert type(describe) is clap_hf.MSClapAudioCaptioningPipeline
    same_weights(describe.model, model)
    clip = {"array": sound(0.5), "sampling_rate": 16_000}
    local = pipeline("audio-captioning", model=str(tmp_path / "captioner"), device="cpu")
    assert describe(clip, max_new_tokens=5) == local(clip, max_new_tokens=5)
    assert ModelCard.load("acme/hub-captioner").data.pipeline_tag == "audio-text-to-text"
    assert hub.unhandled == []


def test_a_model_of_audio_tasks(hub, processor, tmp_path):
    """What multi-task pretraining leaves, with the snippet of its card."""
    torch.manual_seed(112)
    sizes = {"prefix_length": 2, "mapper_input_length": 2, "mapper_num_layers": 1, "mapper_num_heads": 4}
    config = MSClapConditionalGenerationConfig(
        text_config=TINY_GPT2, audio_config=TINY_CNN14, projection_dim=24, **sizes
    )
    model = MSClapForConditionalGeneration(config).eval()
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "tasks")
    processor.save_pretrained(tmp_path / "tasks")
    push(tmp_path / "tasks", "acme/hub-tasks")
    same_weights(MSClapForConditionalGeneration.from_pretrained("acme/hub-tasks"), model)
    card = ModelCard.load("acme/hub-tasks")
    assert card.data.pipeline_tag == "audio-text-to-text"
    (printed,) = printed_by_snippets(card.text)
    assert len(eval(printed)) == 1 and hub.unhandled == []


WITHOUT_PACKAGE = """
import json, sys
sys.modules["clap_hf"] = sys.modules["torchaudio"] = None
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, pipeline
torch.set_num_threads(1)
clip = np.load(sys.argv[1])
classify = pipeline("zero-shot-audio-classification", model="acme/remote-clap", device="cpu", trust_remote_code=True)
describe = pipeline("audio-captioning", model="acme/remote-captioner", device="cpu", trust_remote_code=True)
for part in (classify.model, classify.feature_extractor, describe, describe.model):
    assert type(part).__module__.startswith("transformers_modules."), type(part)
results = {
    "scores": classify(clip, candidate_labels=["dog", "rain"]),
    "captions": describe(clip, sampling_rate=16_000, max_new_tokens=5),
    "dicts": describe([{"array": clip, "sampling_rate": 16_000}] * 2, max_new_tokens=5),
    "frames": AutoFeatureExtractor.from_pretrained("acme/remote-clap", trust_remote_code=True)(clip, 16_000)[
        "input_features"
    ].shape[3],
}
for snippet in json.load(open(sys.argv[2])):
    exec(snippet, {})
print(json.dumps(results))
"""


@pytest.mark.slow
def test_pipelines_where_only_transformers_is_installed(hub, processor, tmp_path):
    """From the Hub, anonymously, with an empty cache and environment; so do the cards' snippets for that case."""
    for name, model in {"clap": make_model(audio=TINY_CNN14, seed=111), "captioner": captioner()}.items():
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        push(tmp_path / name, f"acme/remote-{name}")
    snippets = {
        name: re.findall(r"```python\n(.*?)```", ModelCard.load(f"acme/remote-{name}").text, re.DOTALL)
        for name in ("clap", "captioner")
    }
    assert all(len(found) == 2 for found in snippets.values())
    (tmp_path / "snippets.json").write_text(json.dumps([found[1] for found in snippets.values()]))
    clip = sound(0.8)
    np.save(tmp_path / "clip.npy", clip)
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_PACKAGE, str(tmp_path / "clip.npy"), str(tmp_path / "snippets.json")],
        env={**hub.environment, "HF_HOME": str(tmp_path / "empty"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    results = json.loads(printed[-1])
    assert "tensor([[" in printed[0] and "generated_text" in printed[-2]

    describe = pipeline("audio-captioning", model="acme/remote-captioner", device="cpu")
    expected = describe(clip, sampling_rate=16_000, max_new_tokens=5)
    assert results["captions"] == expected and results["dicts"] == [expected, expected]
    assert results["frames"] == 201
    classify = pipeline(
        "zero-shot-audio-classification",
        model="acme/remote-clap",
        pipeline_class=clap_hf.MSClapZeroShotAudioClassificationPipeline,
        device="cpu",
        hypothesis_template=["This is a sound of {}."],
    )
    scores = classify({"array": clip, "sampling_rate": 16_000}, candidate_labels=["dog", "rain"])
    ours = {found["label"]: found["score"] for found in scores}
    assert {found["label"]: found["score"] for found in results["scores"]} == pytest.approx(ours, abs=1e-4)

    for name, word in {"clap": "'label': 'dog'", "captioner": "generated_text"}.items():  # and where the package is
        assert word in printed_by_snippets(ModelCard.load(f"acme/remote-{name}").text)[0]
    assert hub.unhandled == []


def test_the_models_own_push_carries_the_code(hub, processor):
    model = make_model(audio=TINY_CNN14, seed=103)
    model.push_to_hub("acme/hub-own")
    processor.push_to_hub("acme/hub-own")
    assert len(HfApi().list_repo_commits("acme/hub-own")) == 3
    assert tree("acme/hub-own") >= CODE | {"model.safetensors", "processor_config.json", "README.md"}
    assert torch.equal(AutoModel.from_pretrained("acme/hub-own").logit_scale, model.logit_scale)


def test_code_is_added_to_a_folder_without(hub, tmp_path):
    push(clap_hf.embedded_checkpoint(), "acme/hub-embedded")
    assert tree("acme/hub-embedded") >= CODE
    config = hf_hub_download("acme/hub-embedded", "config.json")
    assert '"AutoModel": "modeling_msclap.MSClapModel"' in open(config).read()
    weights = hf_hub_download("acme/hub-embedded", "model.safetensors")
    assert open(weights, "rb").read() == (clap_hf.embedded_checkpoint() / "model.safetensors").read_bytes()


def test_branch_and_pull_request(hub, model_folder, tmp_path):
    push(model_folder, "acme/hub-branch", revision="trial")
    assert tree("acme/hub-branch") == set() and "config.json" in tree("acme/hub-branch", "trial")
    done = push(model_folder, "acme/hub-branch", create_pr=True)
    assert done.commit.pr_revision == "refs/pr/1"
    assert tree("acme/hub-branch") == set() and "config.json" in tree("acme/hub-branch", "refs/pr/1")


def test_files_of_an_earlier_push_do_not_stay_among_the_new(hub, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors").unlink()
    make_model(audio=TINY_CNN14, seed=105).save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    push(tmp_path / "shards", "acme/hub-stale")
    assert "model.safetensors.index.json" in tree("acme/hub-stale")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="acme/hub-stale")
    push(model_folder, "acme/hub-stale")
    assert {file for file in tree("acme/hub-stale") if "safetensors" in file} == {"model.safetensors"}
    assert "notes.txt" in tree("acme/hub-stale")
    AutoModel.from_pretrained("acme/hub-stale")


def test_a_dry_run_lists_and_sends_nothing(hub, model_folder, tmp_path):
    (model_folder / "optimizer.pt").write_bytes(b"a pickle")
    (model_folder / ".cache").mkdir()
    (model_folder / ".cache" / "junk").write_text("junk")
    hub.forget()
    result = CliRunner().invoke(app, ["push", str(model_folder), "acme/hub-dry", "--dry-run"])
    assert result.exit_code == 0 and hub.requests == []
    size = (model_folder / "model.safetensors").stat().st_size
    assert "model.safetensors" in result.stdout and f"{size:,}" in result.stdout and "README.md" in result.stdout
    assert "optimizer" not in result.stdout and "junk" not in result.stdout
    assert "nothing was sent to acme/hub-dry" in result.stdout


@pytest.mark.parametrize(
    "token, message", [("read", "may read but not write"), ("outsider", "may read but not"), ("hf_x", "unknown one")]
)
def test_a_token_that_may_not_write(hub, model_folder, token, message):
    HfApi().create_repo("acme/hub-denied", exist_ok=True)
    before = HfApi().model_info("acme/hub-denied").sha
    for repo_id in ("acme/hub-denied", "acme/hub-denied-new"):
        hub.requests.clear()
        with pytest.raises(PermissionError, match=f"{repo_id}: .*{message}.*write access"):
            push(model_folder, repo_id, token=hub.tokens.get(token, token))
        assert not [request for request in hub.requests if request[0] == "PUT"]
    assert HfApi().model_info("acme/hub-denied").sha == before
    assert not HfApi().repo_exists("acme/hub-denied-new")


def test_no_token_at_all(hub, model_folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    result = CliRunner().invoke(app, ["push", str(model_folder), "acme/hub-anonymous"], env={"COLUMNS": "300"})
    assert result.exit_code == 1 and "Not pushed." in result.stderr and "HF_TOKEN" in result.stderr


def test_an_upload_cut_in_the_middle_resumes(hub, model_folder, monkeypatch):
    size = (model_folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(hub, "part_size", -(-size // 4))
    hub.cut_upload(size // 2)
    push(model_folder, "acme/hub-cut")
    parts = [(path.rsplit("/", 1)[-1], status) for method, path, status in hub.requests if method == "PUT"]
    assert parts == [("1", 200), ("2", 200), ("3", 0), ("3", 200), ("4", 200)], "only what broke goes again"
    assert load_file(hf_hub_download("acme/hub-cut", "model.safetensors")).keys()


def test_what_arrived_is_not_sent_again_by_the_next_push(hub, model_folder, tmp_path):
    (model_folder / "extra.safetensors").write_bytes(np.random.default_rng(107).bytes(50_000))
    hub.fail("/commit/", 500)
    with pytest.raises(RuntimeError, match="nothing is committed. Push again"):
        push(model_folder, "acme/hub-again")
    assert tree("acme/hub-again") == set()
    hub.requests.clear()
    push(model_folder, "acme/hub-again")
    assert not [request for request in hub.requests if request[0] == "PUT"]
    assert "extra.safetensors" in tree("acme/hub-again")


def test_folders_that_no_one_could_load(hub, model_folder, tmp_path):
    for missing, message in {
        "processor_config.json": "processor.save_pretrained",
        "model.safetensors": "no safetensors weights",
        "config.json": "model.save_pretrained",
    }.items():
        shutil.copytree(model_folder, tmp_path / missing)
        (tmp_path / missing / missing).unlink()
        with pytest.raises(FileNotFoundError, match=message):
            push(tmp_path / missing, "acme/hub-broken", dry_run=True)
    for card, message in {
        "---\n[a\n---\n": "not valid",
        "# A": "no metadata",
        "---\na: 1\n---\n{{ x }}": "placeholder",
    }.items():
        (model_folder / "README.md").write_text(card)
        with pytest.raises(ValueError, match=message):
            push(model_folder, "acme/hub-broken")
    with pytest.raises(FileNotFoundError, match="gone is not a folder"):
        push(tmp_path / "gone", "acme/hub-broken")
    assert not HfApi().repo_exists("acme/hub-broken")


@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_a_link_is_refused_by_name(hub, model_folder, tmp_path, target):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "token.txt").write_text("hf_secret")
    link = model_folder / "notes"
    link.symlink_to({"file": secret / "token.txt", "folder": secret, "nothing": tmp_path / "gone"}[target])
    with pytest.raises(ValueError, match=re.escape(f"{link} is a link to {os.readlink(link)}")):
        push(model_folder, "acme/linked")
    assert not HfApi().repo_exists("acme/linked")


def test_private_is_not_pushed_to_a_public_repository(hub, model_folder, tmp_path):
    HfApi().create_repo("acme/hub-public")
    with pytest.raises(ValueError, match="is public, expected private"):
        push(model_folder, "acme/hub-public", private=True)
    assert tree("acme/hub-public") == set()


def test_a_corpus_and_an_evaluation_set_stream_back(hub, tmp_path):
    """Folders of parquet splits, as the corpus builder writes them, with their cards."""
    folder = write_corpus(tmp_path / "corpus")
    with pytest.raises(FileNotFoundError, match=r"has no README\.md"):
        push(folder, "acme/hub-corpus", repo_type="dataset")
    (folder / "README.md").write_text("---\nlicense: other\n---\n# Sounds\n")
    push(folder, "acme/hub-corpus", repo_type="dataset", private=True)
    for split in ("train", "validation"):
        there = load_dataset("acme/hub-corpus", split=split, streaming=True).cast_column("audio", Audio(decode=False))
        here = load_dataset(str(folder), split=split).cast_column("audio", Audio(decode=False))
        assert [(row["id"], row["audio"]["bytes"]) for row in there] == [
            (row["id"], row["audio"]["bytes"]) for row in here
        ]

    names = {"dog.ogg": "dog", "speech.wav": "speech", "gone.wav": "rain"}
    rows = [f"{EXAMPLES / name},{label}" for name, label in names.items()]
    (tmp_path / "sounds.csv").write_text("\n".join(["path,label", *rows]))
    sounds = tmp_path / "evaluation"
    report = build_evaluation_set(tmp_path / "sounds.csv", sounds, title="Two sounds", license="cc0-1.0")
    assert [Path(name).name for name in report["skipped"]] == ["gone.wav"] and names.pop("gone.wav")
    push(sounds, "acme/hub-evaluation", repo_type="dataset")
    there = load_dataset("acme/hub-evaluation", split="test", streaming=True).cast_column("audio", Audio(decode=False))
    assert [(row["label"], row["audio"]["bytes"]) for row in there] == [
        (label, (EXAMPLES / name).read_bytes()) for name, label in names.items()
    ]
    assert isinstance(there.features["audio"], Audio) and hub.unhandled == []
    info, card = HfApi().dataset_info("acme/hub-evaluation"), DatasetCard.load("acme/hub-evaluation")
    assert info.card_data.license == "cc0-1.0" and "| dog | 1 |" in card.text and "1 files were left out" in card.text
    assert "2 sounds" in card.text and f"{report['seconds'] / 3600:.2f} h" in card.text


def test_an_evaluation_set_of_captions_and_of_nothing(hub, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text(f"path,caption\n{EXAMPLES / 'dog.ogg'},a dog\n{EXAMPLES / 'dog.ogg'},it barks\n")
    build_evaluation_set(table, tmp_path / "captions", title="A dog", license="mit")
    push(tmp_path / "captions", "acme/hub-captions", repo_type="dataset")
    [row] = load_dataset("acme/hub-captions", split="test").cast_column("audio", Audio(decode=False))
    assert row["caption"] == ["a dog", "it barks"] and row["audio"]["path"] == "dog.ogg"
    table.write_text("path,label\ngone.wav,dog\n")
    with pytest.raises(DataSourceError, match=r"none of its 1 sounds can be read.*gone\.wav"):
        build_evaluation_set(table, tmp_path / "none", title="None", license="mit")
    assert not list((tmp_path / "none").iterdir())


def test_background_push_survives_failures_and_retries(hub, made, tmp_path):
    best = save(made, tmp_path / "best")
    hub.fail(r"/api/repos/create", 500, times=2)
    background = BackgroundPush("acme/hub-background", wait_s=0.05)
    background.submit(best, "epoch 1")
    shutil.rmtree(best)  # training goes on and writes the next one
    save(made, best)
    for _ in range(600):
        if background.pushed:
            break
        time.sleep(0.05)
    assert background.pushed == ["epoch 1"]
    assert len(background.failures) == 2 and "500" in background.failures[0]
    background.submit(best, "epoch 2")
    background.submit(best, "epoch 2", revision="last")
    assert background.close() == []
    titles = [
        [c.title for c in HfApi().list_repo_commits("acme/hub-background", revision=r)] for r in ("main", "last")
    ]
    assert titles[0] == ["epoch 2", "epoch 1", "initial commit"] and titles[1][0] == "epoch 2"
    weights = hf_hub_download("acme/hub-background", "model.safetensors")
    assert open(weights, "rb").read() == (best / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"], "no snapshot is left"


def test_background_push_gives_up_at_the_end_and_says_so(hub, made, tmp_path, caplog):
    save(made, tmp_path / "best")
    background = BackgroundPush("acme/hub-denied-background", token=hub.tokens["read"], wait_s=60)
    background.submit(tmp_path / "best", "epoch 1")
    background.submit(tmp_path / "nothing", "epoch 2")
    assert background.close() == ["epoch 1"]
    assert "may read but not write" in caplog.text and "nothing" in background.failures[-1] + background.failures[0]
    assert not [thread for thread in threading.enumerate() if thread.name == "clap_hf-push"]
    assert sorted(os.listdir(tmp_path)) == ["best"]
