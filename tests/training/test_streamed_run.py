"""Training from a dataset repository of a Hub over HTTP: shuffled, stopped, resumed, tracked, and pushed back."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi, list_repo_refs
from kill_and_resume import short_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clap_hf import MSClapModel
from clap_hf.hub import BackgroundPush
from clap_hf.training.contrastive_stage import ContrastiveStage
from clap_hf.training.records import check_trackers
from clap_hf.training.resume import load_checkpoint, newest_checkpoint
from clap_hf.training.run import train_recipe
from pairs import write_pairs

REPO = "acme/pairs-to-train-on"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    from conftest import HUB

    folder = write_pairs(tmp_path_factory.mktemp("pairs"), bad=(13, 40))
    write_pairs(folder, rows=16, files=1, split="validation")
    api = HfApi(token=HUB.tokens["write"])
    api.create_repo(REPO, repo_type="dataset")
    api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=folder)
    return short_recipe(REPO, "text", streamed=True)


def final(folder):
    tensors, about = load_checkpoint(newest_checkpoint(folder / "last"))
    return tensors["model"], about["state"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_on_a_hubs_repository_is_stopped_and_resumed_exactly(hub, repository, tmp_path, monkeypatch):
    push = BackgroundPush("acme/streamed-run", wait_s=0.1)
    train_recipe(repository, tmp_path / "whole", num_workers=0, trackers=["tensorboard"], push=push)
    expected, state = final(tmp_path / "whole")
    assert (state["step"], state["epoch"]) == (12, 2)

    # Both branches went up while it ran, and load.
    assert {branch.name for branch in list_repo_refs("acme/streamed-run").branches} == {"main", "last"}
    MSClapModel.from_pretrained("acme/streamed-run", revision="last")

    events = EventAccumulator(str(next((tmp_path / "whole" / "tracking").rglob("events*")).parent)).Reload()
    logged = set(events.Tags()["scalars"])
    assert logged >= {
        "loss", "loss_text_to_audio", "loss_audio_to_text", "batch_accuracy_text_to_audio",
        "batch_accuracy_audio_to_text", "logit_scale", "gradient_norm", "learning_rate", "clips_per_s", "waiting",
        "peak_memory_gib", "epoch/recall_at_10",
    }  # fmt: skip

    real, stopped = ContrastiveStage.prepare_batch, []

    def stop_at_step_8(self, batch, position):
        if position.step == 8 and not stopped:
            stopped.append(position)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, position)

    monkeypatch.setattr(ContrastiveStage, "prepare_batch", stop_at_step_8)
    train_recipe(repository, tmp_path / "broken", num_workers=2)
    assert final(tmp_path / "broken")[1]["step"] == 9
    train_recipe(repository, tmp_path / "broken", resume=True, num_workers=1)
    ours, our_state = final(tmp_path / "broken")
    for name, value in expected.items():
        assert torch.equal(value, ours[name]), name
    assert our_state["skipped"] == state["skipped"] > 0
    skipped = [[row["id"] for row in lines(tmp_path / run / "skipped.jsonl")] for run in ("whole", "broken")]
    assert skipped[0] == skipped[1] and set(skipped[0]) <= {f"{REPO}:clip-13", f"{REPO}:clip-40"}


@pytest.mark.slow
def test_too_many_unreadable_rows_stop_the_run(repository, tmp_path):
    with pytest.raises(RuntimeError, match="more than max_skipped=0.*clip-(13|40)"):
        train_recipe(replace(repository, max_skipped=0), tmp_path / "run", num_workers=0)


@pytest.mark.slow
def test_a_changed_recipe_or_other_data_are_not_resumed(repository, tmp_path):
    short = replace(repository, steps=6)
    train_recipe(short, tmp_path / "run", num_workers=0)
    with pytest.raises(ValueError, match="learning_rate: 0.001 then, 0.1 now"):
        train_recipe(replace(short, learning_rate=0.1), tmp_path / "run", resume=True, num_workers=0)
    simple = replace(short, streaming="simple", lanes=None, name="simple")
    train_recipe(simple, tmp_path / "simple", num_workers=1)
    assert len(lines(tmp_path / "simple" / "run.jsonl")) == 2


def test_trackers_are_checked(capsys):
    assert check_trackers(["tensorboard"]) == ["tensorboard"]
    assert check_trackers(["wandb"]) in (["wandb"], [])
    with pytest.raises(ValueError, match="no tracker 'tensorbord'"):
        check_trackers(["tensorbord"])
