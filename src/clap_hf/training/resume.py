"""Checkpoints that a run is resumed from: written whole or not at all, and found again after any kill.

A run's `last/` holds a folder per kept step. A folder is written under another name, and its manifest, with the size
and hash of every file, comes last; then it is renamed, and only then is the one before it deleted. So a kill at any
moment leaves at least one whole checkpoint, once there was one, and a torn one is known by its manifest. The
checkpoint before the newest is kept too, for a disk that tears what was written whole.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from ..atomic_io import write_json
from ..text_files import read_json

MANIFEST = "manifest.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Path, name: str, state: dict[str, Any], progress: dict[str, Any]) -> Path:
    """Write a checkpoint, then delete the others but for the one before it.

    Args:
        folder: Holds the checkpoints of a run.
        name: From `checkpoint_name`. A whole one of that name is left as it is: a step has one outcome.
        state: Tensors, for `torch.save`.
        progress: Everything else, as JSON data.

    Returns:
        The checkpoint's own folder.

    Raises:
        OSError: If it cannot be written, such as to a full disk; the checkpoints before it are kept.
    """
    fresh, target = folder / f"{name}.new", folder / name
    if not is_whole(target):
        for leftover in (fresh, target):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            torch.save(state, fresh / "state.pt")
        except RuntimeError as error:  # of torch's writer, which does not name a full disk
            free = shutil.disk_usage(fresh).free
            raise OSError(
                f"{fresh}: the checkpoint cannot be written, {free / 1e6:.1f} MB are free ({str(error)[:100]}). Make "
                "room, and go on with --resume."
            ) from error
        write_json(fresh / "progress.json", progress)
        files = [fresh / "state.pt", fresh / "progress.json"]
        write_json(fresh / MANIFEST, {path.name: [path.stat().st_size, _sha256(path)] for path in files})
        for path in (*files, fresh / MANIFEST, fresh):
            _sync(path)
        os.replace(fresh, target)
        _sync(folder)
    others = [path for path in folder.glob("step-*") if path != target]
    before = [path for path in others if path.suffix != ".new" and path.name < name]
    for other in others:
        if other != max(before, default=None):
            shutil.rmtree(other)
    return target


def checkpoint_name(step: int, evaluated: bool) -> str:
    """Folder of a checkpoint after `step` optimiser steps; `evaluated`: whether the epoch's evaluation is done too.

    Names sort by what is newer.
    """
    return f"step-{step:09d}" + ("-evaluated" if evaluated else "")


def _sync(path: Path) -> None:
    """Have the disk, not only the operating system, hold a file or a folder's list."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there as they were written."""
    try:
        manifest = read_json(folder / MANIFEST)
        return all(
            (folder / name).stat().st_size == size and _sha256(folder / name) == digest
            for name, (size, digest) in manifest.items()
        )
    except (OSError, ValueError, TypeError):
        return False


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint was ever finished there, be it damaged since."""
    return any(path.suffix != ".new" for path in folder.glob("step-*"))


def newest_checkpoint(folder: Path) -> Path:
    """The whole checkpoint of the latest step.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = sorted(folder.glob("step-*"), key=lambda path: path.name.removesuffix(".new"))
    for candidate in reversed(found):
        if is_whole(candidate):
            return candidate
    if found:
        raise FileNotFoundError(
            f"Nothing to resume: {folder} holds {', '.join(path.name for path in found)}, all of them torn, expected "
            "a whole checkpoint. Start a new run in another folder, without --resume; it can go on from this one's "
            "best/, named as its weights."
        )
    raise FileNotFoundError(f"Nothing to resume: {folder} has no checkpoint. Run without --resume.")


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a checkpoint: the tensors, on the CPU, and the rest.

    Raises:
        ValueError: If it is none of a run's.
    """
    try:
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        return state, read_json(path / "progress.json")
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        # Its own message advises to run the code that an unknown file holds.
        raise ValueError(
            f"{path} is no checkpoint of a run ({type(error).__name__}), expected tensors and JSON. Start a new run "
            "in another folder, without --resume."
        ) from error
