"""A Hub to test against: a real HTTP server on this machine that speaks what the Hugging Face libraries ask for.

It serves models, datasets and spaces: create, delete and list repositories, push (preupload, LFS batch, upload in one
piece or in parts, commit), branches, tags, pull requests, tree, paths-info, resolve with ranges and with redirects to
a second host name for large files, whoami and access by token. Repositories and contents lie on disk.

In tests, `conftest.py` starts one Hub for the session and sets `HF_ENDPOINT` before any Hugging Face library is
imported (they read it at import). So every library call in this process, and in every process that a test starts,
talks to it without further ado, and what nobody pushed is "not found" at once. The fixture `hub` gives it with the
right to write (`from conftest import HUB` where a fixture of a wider scope needs it):

    def test_something(hub):
        model.push_to_hub("acme/clap")                                  # write token in HF_TOKEN
        Dataset.from_dict({"a": [1]}).push_to_hub("acme/data")
        for row in load_dataset("acme/data", split="train", streaming=True): ...
        HfApi(token=hub.tokens["read"])                                 # may read all, write nothing
        hub.fail(r"/commit/", 503)                                      # the next commit is refused
        hub.seed("models", "gpt2", folder)                              # somebody else's repository
        hub.cut_upload(100_000)                                         # the connection breaks after so many bytes
        assert hub.unhandled == []                                      # nothing was asked for that it does not have

`tokens` are "write" and "read" of user `tester`, who belongs to the organisation `acme`, and "outsider", a write token
of another user. Names of repositories are shared by all tests of a session: take your own. By hand,
`python -m hub_server --folder FOLDER` in `tests/` serves one until Ctrl-C and prints the environment to set.

It is laxer than the real Hub: large files go by LFS (Xet is switched off by the environment), and it knows few of the
real rules for cards.
"""

from __future__ import annotations

import base64
import http.server
import re
import shutil
import socketserver
import sys
import tempfile
import threading
from pathlib import Path

from .server import Cut, Handler
from .store import MAIN, HubError, Store

__all__ = ["LoopbackHub"]


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the name server who we are
        self.server_name, self.server_port = self.server_address[:2]

    def shutdown_request(self, request) -> None:
        self.close_request(request)  # a cut connection is reset, not ended politely

    def handle_error(self, request, client_address) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):  # a client that went away is no bug
            self.hub.errors.append(repr(error))


class LoopbackHub:
    """One Hub on a free port of this machine; `start` it, and set `environment`.

    Args:
        folder: Where repositories lie; a temporary folder, gone with `stop`, when None.
        port: Port, any free one for 0.
    """

    members: dict[str, tuple[str, ...]] = {"tester": ("acme",), "outsider": ()}  # user -> organisations
    tokens = {"write": "hf_loopback_write", "read": "hf_loopback_read", "outsider": "hf_loopback_outsider"}
    accounts = {
        tokens["write"]: ("tester", "write"),
        tokens["read"]: ("tester", "read"),
        tokens["outsider"]: ("outsider", "write"),
    }

    def __init__(self, folder: Path | None = None, port: int = 0):
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="loopback-hub-")) if folder is None else folder
        self.store = Store(self.folder / "hub")
        self.part_size = 8 * 2**20  # larger files are uploaded in parts
        self.requests: list[tuple[str, str, int]] = []  # method, path, status
        self.unhandled: list[tuple[str, str]] = []  # asked for, but not a thing this server has
        self.errors: list[str] = []  # bugs of this server
        self._failures: list[list] = []
        self._bytes_until_cut: int | None = None
        self._server = _Server(("127.0.0.1", port), Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}"  # another host: tokens must not follow there

    @property
    def environment(self) -> dict[str, str]:
        """Variables that send the Hugging Face libraries here; to be set before these are imported."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.folder / "hf-home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # its server is another one, which only the real Hub has
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def start(self) -> LoopbackHub:
        """Serve in the background."""
        threading.Thread(target=self._server.serve_forever, name="loopback-hub", daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop, and remove a temporary folder."""
        self._server.shutdown()
        self._server.server_close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def seed(self, kind: str, repo_id: str, path: Path) -> None:
        """Put a repository of somebody else in place, with a file or the files of a folder; kind is `models`..."""
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        lines = [
            {
                "key": "file",
                "value": {
                    "path": file.name if file == path else file.relative_to(path).as_posix(),
                    "content": base64.b64encode(file.read_bytes()).decode(),
                },
            }
            for file in files
        ]
        with self.store.lock:
            repo = self.store.repo(kind, repo_id) or self.store.create(kind, repo_id, False, repo_id.split("/")[0])
            repo.commit(MAIN, "seed", "", repo_id.split("/")[0], lines)

    def fail(self, path: str, status: int, times: int = 1) -> None:
        """Answer the next requests whose path contains this pattern with an error."""
        self._failures.append([re.compile(path), status, times])

    def cut_upload(self, after: int) -> None:
        """Break the connection of the next upload once this many bytes have arrived; once."""
        self._bytes_until_cut = after

    def forget(self) -> None:
        """Drop planned faults and the list of requests; repositories stay."""
        self._failures.clear()
        self._bytes_until_cut = None
        for seen in (self.requests, self.unhandled, self.errors):
            seen.clear()

    def break_on_purpose(self, method: str, path: str) -> None:
        """Called by the server for each request."""
        for failure in self._failures:
            if failure[0].search(path) and failure[2] > 0:
                failure[2] -= 1
                raise HubError(failure[1], f"{method} {path} fails on purpose")

    def count_upload(self, size: int) -> None:
        """Called by the server for each piece of an upload."""
        if self._bytes_until_cut is not None:
            self._bytes_until_cut -= size
            if self._bytes_until_cut < 0:
                self._bytes_until_cut = None
                raise Cut
