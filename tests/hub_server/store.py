"""Repositories of the loopback Hub on disk: contents by hash, a JSON file per commit, one of refs per repository."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import shutil
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAIN = "refs/heads/main"
LFS_SIZE = 10 * 2**20
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in (
        "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot "
        "*.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst "
        "*.flac *.mp3 *.ogg *.wav *.png *.jpg *.jpeg *.gif *.webp"
    ).split()
)


class HubError(Exception):
    """What the server answers instead of a result."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Repo:
    """One repository: `repo.json` (visibility, refs, pull requests), `commits/<id>.json` (all files of a commit)."""

    def __init__(self, store: Store, folder: Path):
        self.store, self.folder = store, folder
        self.facts: dict[str, Any] = json.loads((folder / "repo.json").read_text())

    @property
    def id(self) -> str:
        return self.facts["id"]

    def save(self) -> None:
        _write(self.folder / "repo.json", self.facts)

    def resolve(self, revision: str) -> dict[str, Any]:
        """The commit that a branch, tag, `refs/...` or commit id names."""
        refs = self.facts["refs"]
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        commit = next((refs[name] for name in names if name in refs), revision)
        path = self.folder / "commits" / f"{commit}.json"
        if "/" in commit or not path.is_file():
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return json.loads(path.read_text())

    def file(self, revision: str, path: str) -> tuple[str, dict[str, Any]]:
        """Commit id and entry of a file."""
        commit = self.resolve(revision)
        if path not in commit["files"]:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return commit["id"], commit["files"][path]

    def tree(self, revision: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders below a folder, as the API lists them."""
        files = self.resolve(revision)["files"]
        prefix = f"{folder}/" if folder else ""
        inside = {path: entry for path, entry in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        folders = {
            prefix + "/".join(parts[:depth])
            for parts in (path[len(prefix) :].split("/") for path in inside)
            for depth in range(1, len(parts) if recursive else min(len(parts), 2))
        }
        listed = [describe(path, inside[path]) for path in inside if recursive or "/" not in path[len(prefix) :]]
        return sorted(listed + [_describe_folder(path) for path in folders], key=lambda item: item["path"])

    def paths_info(self, revision: str, paths: list[str]) -> list[dict[str, Any]]:
        """The entries of some paths; unknown ones are left out."""
        files = self.resolve(revision)["files"]
        found = []
        for path in paths:
            if path in files:
                found.append(describe(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                found.append(_describe_folder(path))
        return found

    def history(self, revision: str) -> list[dict[str, Any]]:
        """Commits from the newest to the first."""
        commits = [self.resolve(revision)]
        while commits[-1]["parent"]:
            commits.append(self.resolve(commits[-1]["parent"]))
        return commits

    def commit(self, ref: str, title: str, message: str, author: str, changes: list[dict[str, Any]]) -> str:
        """Apply the lines of a commit request to the tip of a branch; all of them or none."""
        parent = self.facts["refs"].get(ref)
        files = dict(self.resolve(parent)["files"]) if parent else {}
        for change in changes:
            key, value = change["key"], change["value"]
            path = value["path"]
            if key == "file":
                files[path] = self.store.add(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if not self.store.has(value["oid"]):
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = self.store.lfs_entry(value["oid"])
            elif key in ("deletedFile", "deletedFolder"):
                gone = [name for name in files if name == path or name.startswith(f"{path.rstrip('/')}/")]
                if not gone:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for name in gone:
                    del files[name]
            else:
                raise HubError(400, f"Unknown commit line {key!r}")
        commit = {
            "parent": parent,
            "title": title,
            "message": message,
            "author": author,
            "date": now(),
            "files": files,
        }
        commit["id"] = hashlib.sha1(json.dumps([commit, uuid.uuid4().hex]).encode()).hexdigest()
        _write(self.folder / "commits" / f"{commit['id']}.json", commit)
        self.facts["refs"][ref] = commit["id"]
        self.save()
        return commit["id"]


class Store:
    """All repositories and contents below one folder.

    Args:
        folder: Where they lie; what an earlier run left there is served again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.RLock()
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        (folder / "incoming").mkdir(exist_ok=True)

    def _repo_folder(self, kind: str, repo_id: str) -> Path:
        return self.folder / kind / repo_id

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        """The repository, or None; kind is `models`, `datasets` or `spaces`."""
        folder = self._repo_folder(kind, repo_id)
        return Repo(self, folder) if (folder / "repo.json").is_file() else None

    def repos(self, kind: str) -> list[Repo]:
        """All repositories of a kind."""
        return [Repo(self, path.parent) for path in sorted((self.folder / kind).rglob("repo.json"))]

    def create(self, kind: str, repo_id: str, private: bool, author: str) -> Repo:
        """A new repository, with the first commit that the Hub makes."""
        facts = {"id": repo_id, "private": private, "createdAt": now(), "refs": {}, "pull_requests": []}
        _write(self._repo_folder(kind, repo_id) / "repo.json", facts)
        repo = Repo(self, self._repo_folder(kind, repo_id))
        content = base64.b64encode(GITATTRIBUTES.encode()).decode()
        line = {"key": "file", "value": {"path": ".gitattributes", "content": content}}
        repo.commit(MAIN, "initial commit", "", author, [line])
        return repo

    def delete(self, kind: str, repo_id: str) -> None:
        """Forget a repository; contents stay."""
        shutil.rmtree(self._repo_folder(kind, repo_id))

    def object(self, sha256: str) -> Path:
        """Where a content lies."""
        return self.folder / "objects" / sha256

    def has(self, sha256: str) -> bool:
        """Whether a content is complete."""
        return self.object(sha256).is_file()

    def lfs_entry(self, sha256: str) -> dict[str, Any]:
        """The entry of a large file; its git hash is that of the pointer file."""
        size = self.object(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return {"size": size, "sha256": sha256, "sha1": _git_hash(pointer.encode()), "lfs": True}

    def add(self, content: bytes) -> dict[str, Any]:
        """Keep a small content; returns its entry."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.has(sha256):
            temporary = self.folder / "incoming" / uuid.uuid4().hex
            temporary.write_bytes(content)
            os.replace(temporary, self.object(sha256))
        return {"size": len(content), "sha256": sha256, "sha1": _git_hash(content), "lfs": False}

    def finish(self, sha256: str, parts: list[Path]) -> None:
        """Join uploaded parts, and keep them if they are what was announced."""
        digest = hashlib.sha256()
        with parts[0].open("ab") as whole:
            for part in parts[1:]:
                whole.write(part.read_bytes())
                part.unlink()
        with parts[0].open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            parts[0].unlink()
            raise HubError(400, f"uploaded content has sha256 {digest.hexdigest()}, expected {sha256}")
        os.replace(parts[0], self.object(sha256))


def is_lfs(path: str, sample: bytes, size: int) -> bool:
    """Whether the Hub would want a file in large-file storage."""
    patterns = (line.split()[0] for line in GITATTRIBUTES.splitlines())
    return size > LFS_SIZE or b"\0" in sample or any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], p) for p in patterns)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def describe(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A file as tree and paths-info list it."""
    facts = {"type": "file", "path": path, "size": entry["size"], "oid": entry["sha1"]}
    if entry["lfs"]:
        facts["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}
    return facts


def _describe_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{uuid.uuid4().hex}.new")
    fresh.write_text(json.dumps(content))
    os.replace(fresh, path)
