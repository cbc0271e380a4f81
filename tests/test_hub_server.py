"""The loopback Hub, asked by the libraries that it stands in for."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, load_dataset
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from conftest import sound


@pytest.fixture
def api(hub):
    return HfApi()


@pytest.fixture
def folder(tmp_path):
    """A small text, an inner file and a binary of 300 kB."""
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [clap]\n---\n# Hello\n")
    (folder / "inner" / "größe.txt").write_text("here")
    (folder / "weights.safetensors").write_bytes(np.random.default_rng(0).bytes(300_000))
    return folder


def test_push_list_and_download(hub, api, folder, tmp_path):
    assert api.whoami()["name"] == "tester"
    assert str(api.create_repo("acme/server-push")) == f"{hub.endpoint}/acme/server-push"
    commit = api.upload_folder(repo_id="acme/server-push", folder_path=folder, commit_message="all of it")
    info = api.model_info("acme/server-push", files_metadata=True)
    assert info.sha == commit.oid and info.card_data.license == "mit" and info.tags == ["clap"]
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert sizes.pop(".gitattributes") > 0
    assert sizes == {"README.md": 42, "inner/größe.txt": 4, "weights.safetensors": 300_000}
    assert [c.title for c in api.list_repo_commits("acme/server-push")] == ["all of it", "initial commit"]
    tree = {item.path: type(item).__name__ for item in api.list_repo_tree("acme/server-push")}
    assert tree["inner"] == "RepoFolder" and "inner/größe.txt" not in tree
    assert api.get_paths_info("acme/server-push", ["inner", "nothing"])[0].path == "inner"

    copy = snapshot_download("acme/server-push", cache_dir=tmp_path / "cache")
    for path in ("README.md", "inner/größe.txt", "weights.safetensors"):
        assert (folder / path).read_bytes() == open(os.path.join(copy, path), "rb").read()
    paths = [path for _, path, _ in hub.requests]
    assert any(path.startswith("/lfs/") for path in paths) and any(path.startswith("/cdn/") for path in paths)
    assert hub.unhandled == []


def test_nothing_is_sent_twice(hub, api, folder):
    api.create_repo("acme/server-again")
    first = api.upload_folder(repo_id="acme/server-again", folder_path=folder)
    hub.requests.clear()
    assert api.upload_folder(repo_id="acme/server-again", folder_path=folder).oid == first.oid
    assert not [path for _, path, _ in hub.requests if path.startswith("/lfs/") or "/commit/" in path]


def test_large_files_go_in_parts(hub, api, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "part_size", 70_000)
    (folder / "weights.safetensors").write_bytes(np.random.default_rng(2).bytes(300_000))
    api.create_repo("acme/server-parts")
    api.upload_folder(repo_id="acme/server-parts", folder_path=folder)
    assert len([path for method, path, _ in hub.requests if method == "PUT"]) == 5
    path = hf_hub_download("acme/server-parts", "weights.safetensors", cache_dir=tmp_path / "cache")
    assert open(path, "rb").read() == (folder / "weights.safetensors").read_bytes()


def test_ranges(hub, api, folder):
    api.create_repo("acme/server-ranges")
    api.upload_folder(repo_id="acme/server-ranges", folder_path=folder)
    whole = (folder / "weights.safetensors").read_bytes()
    with HfFileSystem(skip_instance_cache=True).open("acme/server-ranges/weights.safetensors", block_size=0) as file:
        assert file.read(10) == whole[:10]
    url = f"{hub.endpoint}/acme/server-ranges/resolve/main/weights.safetensors"
    for asked, expected in {"5-9": whole[5:10], "299990-": whole[-10:], "-7": whole[-7:], "0-999999": whole}.items():
        response = get_session().get(url, headers={"Range": f"bytes={asked}"}, follow_redirects=True)
        assert response.status_code == 206 and response.content == expected
    response = get_session().get(url, headers={"Range": "bytes=300000-"}, follow_redirects=True)
    assert response.status_code == 416


def test_branches_tags_and_pull_requests(hub, api, folder):
    repo = "acme/server-refs"
    api.create_repo(repo)
    api.create_branch(repo, branch="trial")
    on_branch = api.upload_file(path_or_fileobj=b"branch", path_in_repo="a.txt", repo_id=repo, revision="trial").oid
    api.create_tag(repo, tag="v1", revision="trial")
    proposed = api.upload_file(path_or_fileobj=b"proposed", path_in_repo="a.txt", repo_id=repo, create_pr=True)
    assert proposed.pr_revision == "refs/pr/1"
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert {ref.name for ref in refs.branches} == {"main", "trial"}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", on_branch)]
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    assert [pr.is_pull_request for pr in api.get_repo_discussions(repo)] == [True]
    read = {
        revision: open(hf_hub_download(repo, "a.txt", revision=revision)).read()
        for revision in ("trial", "v1", "refs/pr/1", on_branch)
    }
    assert read == {"trial": "branch", "v1": "branch", "refs/pr/1": "proposed", on_branch: "branch"}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo, "a.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repo, "a.txt", revision="nowhere")
    api.delete_file("a.txt", repo, revision="trial")
    assert not api.file_exists(repo, "a.txt", revision="trial")
    with pytest.raises(HfHubHTTPError, match="has happened since"):
        api.upload_file(path_or_fileobj=b"late", path_in_repo="b", repo_id=repo, parent_commit=on_branch)


def test_who_may(hub, api, folder):
    api.create_repo("acme/server-private", private=True)
    api.upload_folder(repo_id="acme/server-private", folder_path=folder)
    api.create_repo("acme/server-public")
    reader, outsider = (HfApi(token=hub.tokens[name]) for name in ("read", "outsider"))
    anonymous, unknown = HfApi(token=False), HfApi(token="hf_nobody")
    assert reader.model_info("acme/server-private").private
    for other in (outsider, anonymous):
        with pytest.raises(RepositoryNotFoundError):
            other.model_info("acme/server-private")
        assert not other.model_info("acme/server-public").private
    for other in (reader, outsider):
        with pytest.raises(HfHubHTTPError, match="403"):
            other.create_repo("acme/server-other")
        with pytest.raises(HfHubHTTPError, match="403"):
            other.upload_folder(repo_id="acme/server-public", folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        unknown.whoami()
    assert not api.repo_exists("acme/server-other")
    api.update_repo_settings("acme/server-public", private=True)
    assert not anonymous.repo_exists("acme/server-public")
    api.delete_repo("acme/server-private")
    assert not api.repo_exists("acme/server-private")


def test_a_bad_card_is_refused(api, folder):
    (folder / "README.md").write_text("---\n[oops\n---\n")
    api.create_repo("acme/server-card")
    with pytest.raises(ValueError, match=r"Invalid metadata in README.md"):
        api.upload_folder(repo_id="acme/server-card", folder_path=folder)


def test_faults(hub, api, folder):
    repo = "acme/server-faults"
    api.create_repo(repo)
    hub.fail("/commit/", 503)
    with pytest.raises(HfHubHTTPError, match="503"):
        api.upload_folder(repo_id=repo, folder_path=folder)
    assert api.list_repo_files(repo) == [".gitattributes"]
    api.upload_folder(repo_id=repo, folder_path=folder)
    assert "weights.safetensors" in api.list_repo_files(repo)

    (folder / "weights.safetensors").write_bytes(np.random.default_rng(1).bytes(300_000))
    hub.cut_upload(100_000)
    hub.requests.clear()
    api.upload_folder(repo_id=repo, folder_path=folder)  # huggingface_hub itself tries again after a second
    assert [status for method, path, status in hub.requests if method == "PUT"] == [0, 200]


def test_datasets_push_and_stream(hub, tmp_path):
    files = []
    for index in range(6):
        files.append(str(tmp_path / f"{index}.wav"))
        soundfile.write(files[-1], sound(0.3, seed=index), 16_000)
    data = Dataset.from_dict({"audio": files, "text": [f"sound {index}" for index in range(6)]})
    data.cast_column("audio", Audio()).push_to_hub("acme/server-sounds", num_shards=3)
    streamed = load_dataset("acme/server-sounds", split="train", streaming=True).cast_column(
        "audio", Audio(decode=False)
    )
    assert streamed.num_shards == 3
    rows = list(streamed)
    assert [row["text"] for row in rows] == data["text"]
    assert rows[2]["audio"]["bytes"] == open(files[2], "rb").read()
    assert load_dataset("acme/server-sounds", split="train")["text"] == data["text"]
    url = f"{hub.endpoint}/api/datasets/acme/server-sounds/parquet"
    listed = get_session().get(url).json()
    assert len(listed["default"]["train"]) == 3
    assert hub.unhandled == []


def test_other_processes_use_it_too(hub, tmp_path):
    HfApi().create_repo("acme/server-process", repo_type="dataset", private=True)
    Dataset.from_dict({"a": [1, 2]}).push_to_hub("acme/server-process")
    code = (
        "import json; from datasets import load_dataset as l; print(l('acme/server-process', split='train')['a'][:])"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == [1, 2], done.stderr
    done = subprocess.run(
        command,
        env={**environment, "HF_TOKEN": "", "HF_HOME": str(tmp_path / "2")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode and "acme/server-process" in done.stderr
