"""A teacher's features beside the captions: read in the order of the clips, and predicted by a linear head."""

import json

import pytest
import torch
from safetensors.torch import save_file

from clap_hf.training.teacher import TeacherHead, load_features


def test_features_find_their_clips(tmp_path):
    features, path = torch.arange(6.0).reshape(3, 2), tmp_path / "t.safetensors"
    save_file({"features": features.half()}, path, {"ids": json.dumps(["a", "b", "c"])})
    assert torch.equal(load_features(path, ["c", "a"]), features[[2, 0]])
    with pytest.raises(ValueError, match="misses 1 of 2 clips, the first 'd'"):
        load_features(path, ["a", "d"])
    with pytest.raises(FileNotFoundError, match="python -m tools.teachers makes it"):
        load_features(tmp_path / "gone.safetensors", ["a"])
    save_file({"weight": features}, path)
    with pytest.raises(ValueError, match=r"holds \['weight'\], expected features"):
        load_features(path, ["a"])


@pytest.mark.parametrize(
    ("features", "metadata", "message"),
    [
        (torch.zeros(2, 3), None, "without an id for each row"),
        (torch.zeros(2, 3), {"ids": '["a"]'}, "without an id for each row"),
        (torch.zeros(2), {"ids": '["a", "b"]'}, r"features \[2\] without"),
        (torch.zeros(2, 3), {"ids": "["}, "is damaged"),
        (torch.full((1, 3), float("nan")), {"ids": '["a"]'}, "holds NaN or infinity"),
    ],
)
def test_files_that_hold_something_else_are_named(tmp_path, features, metadata, message):
    path = tmp_path / "t.safetensors"
    save_file({"features": features}, path, metadata)
    with pytest.raises(ValueError, match=f"t.safetensors .*{message}"):
        load_features(path, ["a"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="t.safetensors is damaged .*tools.teachers"):
        load_features(path, ["a"])


def test_the_head_scores_one_for_the_teachers_own_directions():
    features = torch.randn(5, 4)
    head = TeacherHead(4, features)
    with torch.no_grad():
        head.linear.weight.copy_(3 * torch.eye(4))
        head.linear.bias.zero_()
    rows = torch.tensor([3, 0])
    assert head(features[rows], rows).item() == pytest.approx(1.0)
    assert set(head.state_dict()) == {"linear.weight", "linear.bias"}  # the features are not saved with every step
