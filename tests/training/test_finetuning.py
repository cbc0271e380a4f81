"""The shipped recipe that goes on from the embedded checkpoint, on pairs of one's own."""

import json
from pathlib import Path

import pytest
import torch

import clap_hf
from clap_hf.training.recipe import load_recipe
from clap_hf.training.run import train_recipe
from pairs import write_pairs

RECIPE = Path(__file__).parents[2] / "configs" / "finetune_embedded.yaml"


@pytest.mark.slow
def test_the_embedded_checkpoint_learns_other_pairs(tmp_path):
    folder = write_pairs(tmp_path / "sounds", rows=24)
    write_pairs(folder, rows=24, files=1, split="validation")  # the same: how well they are learnt
    data = {"sources": [{"dataset": str(folder)}], "validation": {"dataset": str(folder)}}
    recipe = load_recipe(RECIPE, **data, batch_size=12, epochs=4, warmup_steps=1)
    train_recipe(recipe, tmp_path / "run", num_workers=0)
    epochs = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()][1:]
    assert len(epochs) == 4 and epochs[-1]["validation_loss"] < epochs[0]["validation_loss"]

    before = clap_hf.MSClapModel.from_pretrained(clap_hf.embedded_checkpoint()).state_dict()
    after = clap_hf.MSClapModel.from_pretrained(tmp_path / "run" / "best").state_dict()
    for name, value in after.items():
        untouched = name.startswith("text_model.") or ("running_" in name and ".blocks." in name)
        assert torch.equal(value, before[name]) == untouched or name.endswith("num_batches_tracked"), name
    ours, theirs = (
        clap_hf.MSClapFeatureExtractor.from_pretrained(folder)
        for folder in (tmp_path / "run" / "best", clap_hf.embedded_checkpoint())
    )
    assert (ours.duration_s, ours.fmax, ours.hop_length) == (theirs.duration_s, theirs.fmax, theirs.hop_length)
