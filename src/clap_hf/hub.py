"""Sharing on the Hugging Face Hub: a saved folder in one commit, by hand or in the background of training."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RevisionNotFoundError
from transformers.dynamic_module_utils import custom_object_save

from .cards import CARD, check_card, write_card
from .pretrained import load_config, load_processor, model_class
from .text_files import read_text

logger = logging.getLogger(__name__)

# Never pushed: pickles (they run code where they are loaded) and what is in the making.
_LEFT_OUT = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".pyc", ".new", ".old", ".incomplete", ".tmp")
# What an earlier push may have left in a repository, and would be loaded together with the new files.
_REPLACED = (".safetensors", ".safetensors.index.json", ".py")
_CONNECT_S = 5.0  # after which a Hub that does not answer counts as out of reach


def unreachable_hub() -> str:
    """Why no request can reach the Hub, at once; its own client finds out in five tries that take half a minute.

    Returns:
        The reason, or an empty text where the Hub answers, or where a proxy is between.
    """
    if constants.HF_HUB_OFFLINE:
        return "offline mode is on (HF_HUB_OFFLINE)"
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies():
        return ""
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), _CONNECT_S).close()
    except OSError as error:
        return f"the Hub ({constants.ENDPOINT}) cannot be reached ({error})"
    return ""


@dataclass(frozen=True)
class PushedFile:
    """A file of a push: its path in the repository and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Push:
    """What a push sent, or would send: `files`, and the `commit`, which is None after a dry run."""

    files: list[PushedFile]
    commit: CommitInfo | None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    license: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Upload a saved folder in one commit: weights, configuration, processor, remote code and card.

    What a model folder misses of code and card is made: the code of `clap_hf.model`, and a card from `run.jsonl` and
    `results.json` in the folder or beside it. Everything is checked before the repository is touched, and the commit
    is all or nothing. When an upload is cut, push again: large files that arrived whole are not sent again (with
    `hf_xet`, on the real Hub, not even the chunks that arrived).

    Args:
        folder: Folder of `save_pretrained`, or of a dataset (parquet files and a card).
        repo_id: `organisation/name`; made if it does not exist.
        repo_type: `"model"` or `"dataset"`.
        private: Visibility of the repository; None leaves it as it is, or to the organisation's default.
        revision: Branch to commit to, made if it does not exist; the main one when None.
        create_pr: Propose the commit as a pull request instead.
        commit_message: First line of the commit's message.
        license: License of the weights for a card that is made, as the Hub spells it.
        token: Access token; `HF_TOKEN` or the one of `hf auth login` when None.
        dry_run: Only list what would go. Needs no network.

    Returns:
        The files, and the commit.

    Raises:
        FileNotFoundError: If there is no such folder, or a file is missing that no one can load it without.
        PermissionError: If the token may not write there.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If the folder holds a link, the card is not valid, or the repository's visibility or branch is not
            the one asked for.
        RuntimeError: If the upload was cut; nothing is committed then.
    """
    with _complete_folder(Path(folder), repo_id, repo_type, license) as paths:
        files = [PushedFile(name, path.stat().st_size) for name, path in sorted(paths.items())]
        if dry_run:
            return Push(files, None)
        reason = unreachable_hub()
        if reason:
            raise ConnectionError(f"{repo_id}: {reason}. Nothing was pushed; connect, and push again.")
        api = HfApi(token=token, library_name="clap_hf")
        message = commit_message or f"Upload {Path(folder).name} with clap_hf"
        try:
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
            info = api.repo_info(repo_id, repo_type=repo_type)
            if private is not None and info.private is not private:
                found, expected = ("public", "private") if private else ("private", "public")
                raise ValueError(
                    f"{repo_id} exists already and is {found}, expected {expected}. Change it in its settings on the "
                    "Hub, or choose another name."
                )
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
            present = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
            stale = [name for name in present if name.endswith(_REPLACED) and name not in paths]
            commit = api.create_commit(
                repo_id,
                repo_type=repo_type,
                revision=revision,
                create_pr=create_pr,
                commit_message=message,
                operations=[
                    *(CommitOperationAdd(name, str(path)) for name, path in sorted(paths.items())),
                    *(CommitOperationDelete(name) for name in stale if repo_type == "model"),
                ],
            )
        except (HfHubHTTPError, LocalTokenNotFoundError, RuntimeError) as error:
            raise _explained(error, repo_id, revision) from error
    return Push(files, commit)


def _explained(error: Exception, repo_id: str, revision: str | None) -> Exception:
    """The same error with its remedy."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    remedy = "Make one with write access in the Hub's settings (Access Tokens), and pass it as --token or HF_TOKEN."
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return PermissionError(
            f"{repo_id}: no token, or an unknown one, was sent, expected one that may write. {remedy}"
        )
    if status == 403:
        return PermissionError(f"{repo_id}: the token may read but not write there; nothing was pushed. {remedy}")
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f"{repo_id} has no revision {revision!r}. Leave it out, or name a branch.")
    return RuntimeError(
        f"{repo_id}: the upload was cut, and nothing is committed. Push again: large files that arrived are not sent "
        f"again. Reason: {error.__cause__ or error}"
    )


@contextmanager
def _complete_folder(folder: Path, repo_id: str, repo_type: str, license: str | None) -> Iterator[dict[str, Path]]:
    """Path in the repository -> local file, for all that belongs to a push."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder, expected one of save_pretrained or of a dataset.")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(_LEFT_OUT) and not _hidden(path.relative_to(folder))
    ]
    for path in found:
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link to {os.readlink(path)}, expected files and folders of its own: what a link leads "
                "to may be private. Put a copy in its place, or remove it."
            )
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{path} is neither a file nor a folder, expected those alone. Remove it.")
    files = {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}
    with tempfile.TemporaryDirectory() as made:
        if repo_type == "model":
            for name in ("config.json", "processor_config.json"):
                if name not in files:
                    owner = "model" if name == "config.json" else "processor"
                    raise FileNotFoundError(f"{folder} has no {name}. Write it with {owner}.save_pretrained.")
            if not any(name.endswith(".safetensors") for name in files):
                raise FileNotFoundError(f"{folder} has no safetensors weights. Write them with model.save_pretrained.")
            if not any(name.endswith(".py") for name in files):
                files |= _code(folder, Path(made))
        if CARD not in files:
            if repo_type != "model":
                raise FileNotFoundError(f"{folder} has no {CARD}. Write a card: source, license, splits, fields.")
            files |= write_card(folder, Path(made) / "card", repo_id=repo_id, license=license)
        check_card(read_text(files[CARD]), files[CARD])
        yield files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _code(folder: Path, target: Path) -> dict[str, Path]:
    """The code of a model and its processor, and the JSON files that point to it, for a folder saved without."""
    config = load_config(str(folder))
    try:
        architecture = model_class((config.architectures or ["none"])[0])
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: {error}") from error
    with torch.device("meta"):
        model = architecture(config)
    custom_object_save(model, target, config=config)
    config.save_pretrained(target)
    load_processor(str(folder)).save_pretrained(target)
    return {path.name: path for path in target.iterdir()}


@dataclass
class _Job:
    snapshot: Path
    message: str
    revision: str | None


class BackgroundPush:
    """Pushes model folders while training goes on; a failed upload is logged, retried, and never raises.

    One upload runs at a time. A folder that is submitted while an older one of the same revision still waits takes its
    place. `submit` keeps the files as they are by hard links, so that the folder may be replaced right after.

    Args:
        repo_id: `organisation/name`; made if it does not exist.
        private: Visibility of a new repository.
        token: Access token; `HF_TOKEN` or the one of `hf auth login` when None.
        wait_s: Pause after a failed upload, seconds; doubled from failure to failure.
        longest_wait_s: Its limit, seconds.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        wait_s: float = 30.0,
        longest_wait_s: float = 600.0,
    ):
        self.repo_id, self.private, self.token = repo_id, private, token
        self.wait_s, self.longest_wait_s = wait_s, longest_wait_s
        self.pushed: list[str] = []  # messages of the commits made
        self.failures: list[str] = []  # what went wrong, one entry a try
        self._waiting: dict[str | None, _Job] = {}
        self._given_up: list[_Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._count = 0
        self._thread = threading.Thread(target=self._work, name="clap_hf-push", daemon=True)

    def submit(self, folder: str | Path, commit_message: str, revision: str | None = None) -> None:
        """Push a folder as soon as possible.

        Args:
            folder: Folder of `save_pretrained`, processor included.
            commit_message: First line of the commit's message.
            revision: Branch; the main one when None. Use `"last"` for the newest and None for the best epoch.
        """
        try:
            snapshot = self._snapshot(Path(folder))
        except OSError as error:
            self._tell(commit_message, error)
            return
        with self._changed:
            replaced = self._waiting.pop(revision, None)
            self._waiting[revision] = _Job(snapshot, commit_message, revision)
            self._changed.notify_all()
        if replaced is not None:
            shutil.rmtree(replaced.snapshot, ignore_errors=True)
        if not self._thread.is_alive():
            self._thread.start()

    def close(self, timeout_s: float = 600.0) -> list[str]:
        """Try what still waits once more, then stop.

        Args:
            timeout_s: Longest time to wait for that, seconds.

        Returns:
            Commit messages of the folders that could not be pushed.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._changed:
            left = [*self._given_up, *self._waiting.values()]
            self._waiting.clear()
        for job in left:
            logger.warning("Not pushed to %s: %s", self.repo_id, job.message)
            shutil.rmtree(job.snapshot, ignore_errors=True)
        return [job.message for job in left]

    def _snapshot(self, folder: Path) -> Path:
        """Hard links of the files, beside the folder; what a killed run left there goes."""
        prefix = f".push-{folder.name}-"
        if self._count == 0:
            for leftover in folder.parent.glob(f"{prefix}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        self._count += 1
        snapshot = folder.with_name(f"{prefix}{self._count}")
        try:
            shutil.copytree(folder, snapshot, copy_function=os.link)
        except shutil.Error:  # a file system without hard links
            shutil.rmtree(snapshot, ignore_errors=True)
            shutil.copytree(folder, snapshot)
        return snapshot

    def _work(self) -> None:
        wait = self.wait_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                closing = self._closing
                job = self._waiting.pop(next(iter(self._waiting)))
            failed = self._try(job)
            with self._changed:
                if not failed:
                    wait = self.wait_s
                elif closing:
                    self._given_up.append(job)
                else:
                    if job.revision in self._waiting:  # a newer one has come
                        shutil.rmtree(job.snapshot, ignore_errors=True)
                    else:
                        self._waiting[job.revision] = job
                    self._changed.wait_for(lambda: self._closing, timeout=wait)
                    wait = min(2 * wait, self.longest_wait_s)

    def _try(self, job: _Job) -> bool:
        """Push a snapshot; returns whether that failed."""
        try:
            push(
                job.snapshot,
                self.repo_id,
                private=self.private,
                revision=job.revision,
                commit_message=job.message,
                token=self.token,
            )
        except Exception as error:  # whatever it is, training goes on
            self._tell(job.message, error)
            return True
        self.pushed.append(job.message)
        shutil.rmtree(job.snapshot, ignore_errors=True)
        return False

    def _tell(self, message: str, error: Exception) -> None:
        self.failures.append(f"{message}: {error}")
        logger.warning("Push to %s failed, training goes on: %s", self.repo_id, error)
