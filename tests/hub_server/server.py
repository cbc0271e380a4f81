"""The HTTP side of the loopback Hub: what huggingface_hub, transformers and datasets ask for, and who may."""

from __future__ import annotations

import base64
import http.server
import json
import re
import socket
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from .store import MAIN, HubError, Repo, Store, describe, is_lfs, now

KINDS = ("models", "datasets", "spaces")
ACTIONS = (
    "preupload commit commits revision tree paths-info refs branch tag settings parquet discussions auth-check".split()
)
CHUNK = 2**16


class Cut(Exception):
    """The connection is to be dropped here."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection; `self.server.hub` is the `LoopbackHub`."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: no waiting for an acknowledgement in between
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in `hub.requests` instead of printed."""

    def do_GET(self) -> None:
        self.status, self.body_read = 0, False
        url = urlsplit(self.path)
        self.parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.store: Store = self.server.hub.store
        try:
            try:
                self.server.hub.break_on_purpose(self.command, unquote(url.path))
                self._route()
            except HubError as error:
                self._drain()
                # Latin-1 is all a header can hold.
                headers = {"X-Error-Message": str(error).encode("ascii", "replace").decode()}
                if error.code:
                    headers["X-Error-Code"] = error.code
                self._json({"error": str(error)}, error.status, headers)
        except (Cut, ConnectionError):
            self.close_connection = True
            # A reset, as of a cable pulled: the client must not take it for an answer.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            self.server.hub.requests.append((self.command, unquote(url.path), self.status))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # Reading

    def _body(self) -> Iterator[bytes]:
        """The request's body, chunk by chunk, whichever way it is framed."""
        self.body_read = True
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                left = size
                while left:
                    chunk = self._read(min(left, CHUNK))
                    left -= len(chunk)
                    yield chunk
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left:
                chunk = self._read(min(left, CHUNK))
                left -= len(chunk)
                yield chunk

    def _read(self, size: int) -> bytes:
        chunk = self.rfile.read(size)
        if not chunk:
            raise Cut
        return chunk

    def _drain(self) -> None:
        if not self.body_read:
            for _ in self._body():
                pass

    def _sent_json(self) -> Any:
        return json.loads(b"".join(self._body()) or b"{}")

    # Writing

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._drain()
        self.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, path: Path, headers: dict[str, str]) -> None:
        """A file or the asked range of it."""
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and asked[0] != "bytes=-":
            first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
            last = min(size - 1, int(asked[2])) if asked[1] and asked[2] else size - 1
            status = 206
            if first > last:
                raise HubError(416, f"Range {asked[0]} of a file of {size} bytes")
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        self.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(last - first + 1), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            file.seek(first)
            left = last - first + 1
            while left:
                chunk = file.read(min(left, CHUNK))
                left -= len(chunk)
                self.wfile.write(chunk)

    # Who may

    @property
    def user(self) -> str | None:
        """Whose token was sent; None without one."""
        return self._token()[0]

    def _token(self) -> tuple[str | None, str]:
        header = self.headers.get("Authorization", "")
        if not header:
            return None, "none"
        known = self.server.hub.accounts.get(header.removeprefix("Bearer ").strip())
        if known is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return known

    def _repo(self, kind: str, repo_id: str) -> Repo:
        """A repository that the caller may see; others look as if they were not there."""
        repo = self.store.repo(kind, repo_id)
        if repo is None or (repo.facts["private"] and not self._owns(repo_id)):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _owns(self, repo_id: str) -> bool:
        return self.user is not None and repo_id.split("/")[0] in (self.user, *self.server.hub.members[self.user])

    def _must_write(self, repo_id: str) -> str:
        user, role = self._token()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write" or not self._owns(repo_id):
            raise HubError(403, f"You don't have the required permissions to write to {repo_id} with this token")
        return user

    # Where to

    def _route(self) -> None:
        parts = self.parts
        if parts[0] == "cdn":
            return self._send_file(self.store.object(parts[1]), {"ETag": f'"{parts[1]}"'})
        if parts[0] == "lfs":
            return self._lfs_part(parts[1:])
        if parts[:2] == ["api", "repos"]:
            return self._create() if parts[2] == "create" else self._delete()
        if parts[0] == "api" and parts[1] in KINDS:
            if len(parts) == 2:
                return self._list(parts[1])
            canonical = len(parts) == 3 or parts[3] in ACTIONS
            repo_id, rest = "/".join(parts[2 : 3 if canonical else 4]), parts[3 if canonical else 4 :]
            return self._repo_api(parts[1], repo_id, rest)
        if parts[0] == "api":
            calls: dict[str, Callable[[], None]] = {"whoami-v2": self._whoami, "validate-yaml": self._validate_yaml}
            if parts[1] in calls:
                return calls[parts[1]]()
        kind = parts.pop(0) if parts[0] in KINDS else "models"
        joined = "/".join(parts)
        if joined.endswith(".git/info/lfs/objects/batch"):
            return self._lfs_batch(kind, joined.removesuffix(".git/info/lfs/objects/batch"))
        for verb in ("resolve", "raw"):
            if verb in parts[1:3]:
                at = parts.index(verb, 1)
                return self._resolve(kind, "/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        self.server.hub.unhandled.append((self.command, self.path))
        raise HubError(404, f"The loopback Hub has no {self.command} {self.path}")

    def _repo_api(self, kind: str, repo_id: str, rest: list[str]) -> None:
        action, arguments = (rest[0], rest[1:]) if rest else ("", [])
        repo = self._repo(kind, repo_id)
        revision = arguments[0] if arguments else "main"
        if action in ("", "revision"):
            return self._json(self._info(repo, revision, "blobs" in self.query))
        if action == "tree":
            recursive = self.query.get("recursive", "").lower() in ("true", "1")
            return self._json(repo.tree(revision, "/".join(arguments[1:]), recursive))
        if action == "paths-info":
            sent = b"".join(self._body()).decode()
            json_sent = self.headers.get("Content-Type", "").startswith("application/json")
            paths = json.loads(sent)["paths"] if json_sent else parse_qs(sent).get("paths", [])
            return self._json(repo.paths_info(revision, paths))
        if action == "refs":
            return self._json(self._refs(repo))
        if action == "commits":
            fields = ("id", "title", "message", "date")
            commits = repo.history(revision)
            return self._json(
                [{**{name: c[name] for name in fields}, "authors": [{"user": c["author"]}]} for c in commits]
            )
        if action == "parquet":
            return self._json(self._parquet(kind, repo))
        if action == "discussions":
            return self._discussions(repo, arguments)
        if action == "auth-check":
            if arguments == ["write"]:
                self._must_write(repo_id)
            return self._json({})
        author = self._must_write(repo_id)
        with self.store.lock:
            repo = self._repo(kind, repo_id)  # as it is now that nobody else writes
            if action == "preupload":
                return self._preupload(repo, revision)
            if action == "commit":
                return self._commit(repo, revision, author)
            if action in ("branch", "tag"):
                return self._change_ref(repo, action, revision)
            if action == "settings":
                sent = self._sent_json()
                repo.facts["private"] = sent.get("private", sent.get("visibility") == "private")
                repo.save()
                return self._json({"private": repo.facts["private"]})
        self.server.hub.unhandled.append((self.command, self.path))
        raise HubError(404, f"The loopback Hub has no {self.command} {self.path}")

    # Accounts and repositories

    def _whoami(self) -> None:
        user, role = self._token()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        organizations = [{"type": "org", "name": name, "fullname": name} for name in self.server.hub.members[user]]
        token = {"type": "access_token", "accessToken": {"displayName": role, "role": role}}
        self._json({"type": "user", "id": user, "name": user, "fullname": user, "orgs": organizations, "auth": token})

    def _create(self) -> None:
        sent = self._sent_json()
        kind = f"{sent.get('type') or 'model'}s"
        user, _ = self._token()
        repo_id = f"{sent.get('organization') or user}/{sent['name']}"
        prefix = "" if kind == "models" else f"{kind}/"
        url = {"url": f"{self.server.hub.endpoint}/{prefix}{repo_id}", "name": repo_id}
        author = self._must_write(repo_id)
        with self.store.lock:
            if self.store.repo(kind, repo_id) is not None:
                return self._json({"error": f"You already created this {kind[:-1]} repo", **url}, 409)
            private = sent.get("visibility") == "private" or bool(sent.get("private"))
            self.store.create(kind, repo_id, private, author)
        self._json(url)

    def _delete(self) -> None:
        sent = self._sent_json()
        repo_id = f"{sent.get('organization') or self.user}/{sent['name']}"
        kind = f"{sent.get('type') or 'model'}s"
        self._repo(kind, repo_id)
        self._must_write(repo_id)
        with self.store.lock:
            self.store.delete(kind, repo_id)
        self._json({})

    def _list(self, kind: str) -> None:
        visible = [repo for repo in self.store.repos(kind) if not repo.facts["private"] or self._owns(repo.id)]
        author, search = self.query.get("author"), self.query.get("search", "")
        self._json(
            [
                self._info(repo, "main", False)
                for repo in visible
                if search in repo.id and author in (None, repo.id.split("/")[0])
            ]
        )

    def _info(self, repo: Repo, revision: str, blobs: bool) -> dict[str, Any]:
        commit = repo.resolve(revision)
        card = _front_matter(self._text(commit, "README.md"))
        siblings: list[dict[str, Any]] = []
        for path, entry in commit["files"].items():
            described = describe(path, entry)
            facts = {"size": described["size"], "blobId": described["oid"]}
            if entry["lfs"]:
                facts["lfs"] = {**described["lfs"], "sha256": entry["sha256"]}
            siblings.append({"rfilename": path, **(facts if blobs else {})})
        info = {
            "id": repo.id,
            "sha": commit["id"],
            "author": repo.id.split("/")[0],
            "lastModified": commit["date"],
            "createdAt": repo.facts["createdAt"],
            "private": repo.facts["private"],
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags") or [],
            "cardData": card or None,
            "siblings": siblings,
        }
        if repo.folder.is_relative_to(self.store.folder / "models"):
            info |= {"pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name")}
        return info

    def _text(self, commit: dict[str, Any], path: str) -> str:
        entry = commit["files"].get(path)
        return self.store.object(entry["sha256"]).read_text() if entry else ""

    def _refs(self, repo: Repo) -> dict[str, Any]:
        shown = {"heads": "branches", "tags": "tags", "convert": "converts", "pr": "pullRequests"}
        found: dict[str, Any] = {name: [] for name in shown.values()}
        for ref, commit in repo.facts["refs"].items():
            _, group, name = ref.split("/", 2)
            found[shown[group]].append({"name": name, "ref": ref, "targetCommit": commit})
        return found

    def _change_ref(self, repo: Repo, action: str, name: str) -> None:
        """POST branch/NAME {startingPoint}, POST tag/REVISION {tag}, DELETE branch/NAME, DELETE tag/NAME."""
        folder = "refs/heads/" if action == "branch" else "refs/tags/"
        refs = repo.facts["refs"]
        if self.command == "DELETE":
            if refs.pop(folder + name, None) is None:
                raise HubError(404, f"No {action} {name}", "RevisionNotFound")
        else:
            sent = self._sent_json()
            new, start = (name, sent.get("startingPoint", "main")) if action == "branch" else (sent["tag"], name)
            if folder + new in refs:
                raise HubError(409, f"Reference {folder + new} already exists")
            refs[folder + new] = repo.resolve(start)["id"]
        repo.save()
        self._json({})

    def _parquet(self, kind: str, repo: Repo) -> dict[str, Any]:
        """URLs of the parquet files by configuration and split, by the usual names `[CONFIG/]SPLIT-....parquet`."""
        found: dict[str, Any] = {}
        for path in sorted(repo.resolve("main")["files"]):
            if match := re.fullmatch(r"(?:(.+)/)?([^/-]+)(-[^/]*)?\.parquet", path):
                config = match[1] if match[1] not in (None, "data") else "default"
                url = f"{self.server.hub.endpoint}/{kind}/{repo.id}/resolve/main/{quote(path)}"
                found.setdefault(config, {}).setdefault(match[2], []).append(url)
        return found

    def _discussions(self, repo: Repo, arguments: list[str]) -> None:
        pull_requests = [
            {**pr, "repo": {"name": repo.id, "type": "model"}, "isPullRequest": True, "filesWithConflicts": []}
            for pr in repo.facts["pull_requests"]
        ]
        if not arguments:
            return self._json({"discussions": pull_requests, "count": len(pull_requests), "start": 0})
        found = [pr for pr in pull_requests if str(pr["num"]) == arguments[0]]
        if not found:
            raise HubError(404, f"No discussion {arguments[0]}", "EntryNotFound")
        self._json(found[0])

    def _validate_yaml(self) -> None:
        """The Hub's own check knows more; this one knows what it refuses most: broken YAML and no mapping."""
        content = self._sent_json()["content"]
        errors: list[dict[str, str]] = []
        warnings: list[dict[str, str]] = []
        try:
            if not _front_matter(content, strict=True):
                warnings.append({"message": "empty or missing yaml metadata in repo card"})
        except (yaml.YAMLError, ValueError) as error:
            errors.append({"message": str(error)})
        self._json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    # Contents

    def _preupload(self, repo: Repo, revision: str) -> None:
        files = repo.resolve(revision)["files"]
        answers = []
        for file in self._sent_json()["files"]:
            path = file["path"]
            lfs = is_lfs(path, base64.b64decode(file["sample"]), file["size"])
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if path in files:
                answer["oid"] = files[path]["sha256" if files[path]["lfs"] else "sha1"]
            answers.append(answer)
        self._json({"files": answers})

    def _commit(self, repo: Repo, revision: str, author: str) -> None:
        lines = [json.loads(line) for line in b"".join(self._body()).splitlines() if line.strip()]
        header = lines.pop(0)["value"]
        tip = repo.resolve(revision)["id"]
        if header.get("parentCommit") not in (None, tip):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        pull_request = None
        if self.query.get("create_pr") == "1":
            pull_request = len(repo.facts["pull_requests"]) + 1
            ref = f"refs/pr/{pull_request}"
            repo.facts["refs"][ref] = tip
            repo.facts["pull_requests"].append(
                {
                    "num": pull_request,
                    "title": header["summary"],
                    "status": "open",
                    "createdAt": now(),
                    "author": {"name": author},
                    "changes": {"base": MAIN},
                    "events": [],
                }
            )
        elif ref not in repo.facts["refs"]:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        oid = repo.commit(ref, header["summary"], header.get("description", ""), author, lines)
        url = f"{self.server.hub.endpoint}/{repo.id}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{url}/discussions/{pull_request}"
        self._json(answer)

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        repo = self._repo(kind, repo_id)
        commit, entry = repo.file(revision, path)
        headers = {"X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        if not entry["lfs"]:
            return self._send_file(self.store.object(entry["sha256"]), {**headers, "ETag": f'"{entry["sha1"]}"'})
        headers |= {"X-Linked-Etag": f'"{entry["sha256"]}"', "X-Linked-Size": str(entry["size"])}
        self._send(b"", 302, {**headers, "Location": f"{self.server.hub.cdn}/cdn/{entry['sha256']}"})

    def _lfs_batch(self, kind: str, repo_id: str) -> None:
        self._repo(kind, repo_id)
        self._must_write(repo_id)
        hub, objects = self.server.hub, []
        for wanted in self._sent_json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.store.has(wanted["oid"]):
                upload = f"{hub.cdn}/lfs/{uuid.uuid4().hex}/{wanted['oid']}"
                count = -(-wanted["size"] // hub.part_size)
                action: dict[str, Any] = {"href": f"{upload}/whole"}
                if count > 1:
                    urls = {str(number): f"{upload}/{number}" for number in range(1, count + 1)}
                    action = {"href": upload, "header": {"chunk_size": str(hub.part_size), **urls}}
                answer["actions"] = {"upload": action, "verify": {"href": f"{hub.endpoint}/lfs/verify"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_part(self, parts: list[str]) -> None:
        """PUT of a whole file or a part of one, POST to join the parts, POST to verify."""
        if parts == ["verify"]:
            sent = self._sent_json()
            if not self.store.has(sent["oid"]):
                raise HubError(404, f"No object {sent['oid']}")
            return self._json({})
        incoming = self.store.folder / "incoming"
        if self.command == "POST":
            upload, oid = parts
            count = len(self._sent_json()["parts"])
            self.store.finish(oid, [incoming / f"{upload}-{number}" for number in range(1, count + 1)])
            return self._json({})
        upload, oid, number = parts
        path = incoming / f"{upload}-{number}"
        with path.open("wb") as file:
            for chunk in self._body():
                self.server.hub.count_upload(len(chunk))
                file.write(chunk)
        if number == "whole":
            self.store.finish(oid, [path])
        self._send(b"", 200, {"ETag": f'"{uuid.uuid4().hex}"'})


def _front_matter(text: str, strict: bool = False) -> dict[str, Any]:
    """The YAML block at the head of a card."""
    match = re.match(r"\s*---\n(.*?)\n---", text, re.DOTALL)
    try:
        content = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        if strict:
            raise
        return {}
    if not isinstance(content or {}, dict):
        if strict:
            raise ValueError(f"metadata is a {type(content).__name__}, expected a mapping")
        return {}
    return content or {}
