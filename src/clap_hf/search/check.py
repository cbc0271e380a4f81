"""What a collection on disk was made with, and what is wrong with it; no model is needed."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..atomic_io import ForeignPartError, PartError, PartStore, locked, part_facts, read_part
from ..audio.stored import is_there

COLUMNS = {"file", "embedding", "size", "mtime_ns", "sha256"}
BEFORE_UPGRADE = ".before-upgrade"  # ending of the old folder's name while two collections are swapped


@dataclass(frozen=True)
class CollectionCheck:
    """What `check_collection` found.

    Attributes:
        sounds: How many files have a row that can be used.
        parts: How many parts are whole and of the collection's model.
        damaged: What is wrong with the damaged parts.
        foreign: What is wrong with the parts of another model, or of something else.
        repeated: Files with more than one row, of which the newest counts.
        missing: Files that are not there.
        mended: Whether the damaged and foreign parts were moved aside and the repeated rows removed.
    """

    sounds: int
    parts: int
    damaged: dict[Path, str]
    foreign: dict[Path, str]
    repeated: list[Path]
    missing: list[Path]
    mended: bool = False

    @property
    def whole(self) -> bool:
        """Whether there is nothing to mend, or it is mended; missing files are no damage."""
        return self.mended or not (self.damaged or self.foreign or self.repeated)


def collection_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a collection was made with: `name` of the model, `max_windows`, and `identity`.

    Args:
        folder: The collection.

    Raises:
        ValueError: There is no collection.
    """
    restore_collection(Path(folder))
    parts = sorted(Path(folder).glob("*.parquet"))
    if not parts:
        raise _no_collection(folder)
    return part_facts(parts[0])


def check_collection(folder: str | os.PathLike[str], *, mend: bool = False) -> CollectionCheck:
    """Read every part of a collection, without its model: find what is damaged, foreign, repeated or missing.

    The collection's model is the one that most rows are of, or else the first part's.

    Args:
        folder: The collection.
        mend: Move damaged and foreign parts aside, to names ending in `.damaged`, and remove the older rows of
            repeated files. The files of parts that were moved are embedded again when they are added again.

    Raises:
        ValueError: There is no collection.
    """
    folder, root = Path(folder), root_of(folder)
    if not any(folder.glob("*.parquet")):
        raise _no_collection(folder)
    with locked(folder) if mend else nullcontext():  # to read a collection, nobody waits
        damaged: dict[Path, str] = {}
        foreign: dict[Path, str] = {}
        identities: dict[Path, str] = {}
        rows: dict[str, int] = Counter()
        for part in sorted(folder.glob("*.parquet")):
            try:
                facts = part_facts(part)
                table = read_part(part)
            except PartError as error:
                if part.exists():  # and was not removed meanwhile
                    (foreign if isinstance(error, ForeignPartError) else damaged)[part] = str(error)
                continue
            if not COLUMNS <= set(table.column_names):
                foreign[part] = f"{part}: has the columns {table.column_names}, expected {sorted(COLUMNS)}."
                continue
            identities[part] = facts["identity"]
            rows[facts["identity"]] += len(table)
        main = max(rows, key=lambda identity: rows[identity], default="")
        for part, identity in identities.items():
            if identity != main:
                foreign[part] = f"{part}: made from {identity[:16]}, expected {main[:16]} as in most others."
        whole = [part for part in identities if part not in foreign]
        seen: set[int] = set()
        repeated: dict[str, None] = {}
        missing: list[Path] = []
        for part in reversed(whole):
            names = read_part(part, ["file"])["file"].to_pylist()
            newest = _newest(names, seen)
            for name, is_newest in zip(names, newest, strict=True):
                if not is_newest:
                    repeated[name] = None
                elif not is_there(root / name):
                    missing.append(root / name)
            if mend and not all(newest):
                table, facts = read_part(part), part_facts(part)
                schema = table.schema.remove_metadata()
                about = {name: fact for name, fact in facts.items() if name != "identity"}
                keep_rows(PartStore(folder, main, schema, about=about), part, table, newest)
        if mend:
            for part in (*damaged, *foreign):
                os.replace(part, _free(part.with_name(part.name + ".damaged")))
    return CollectionCheck(
        sounds=len(seen),
        parts=len(whole),
        damaged=damaged,
        foreign=foreign,
        repeated=sorted(root / name for name in repeated),
        missing=sorted(missing),
        mended=mend,
    )


def restore_collection(folder: Path) -> None:
    """Undo an upgrade that was stopped between its two renames, when the old folder is the only whole one."""
    before = folder.with_name(folder.name + BEFORE_UPGRADE)
    if before.is_dir() and not folder.exists():
        os.replace(before, folder)


def root_of(folder: str | os.PathLike[str]) -> Path:
    """What stored paths are relative to: the folder that a collection lies in."""
    return Path(os.path.abspath(folder)).parent


def _newest(names: list[str], seen: set[int]) -> list[bool]:
    """Which rows of a part are the newest of their file; `seen` has the hashes of newer parts' files, and gets these.

    A hash of 64 bits takes less memory than a path; for a million files two are equal with a chance of 3e-8.
    """
    newest = [False] * len(names)
    for row in range(len(names) - 1, -1, -1):
        hashed = hash(names[row])
        newest[row] = hashed not in seen
        seen.add(hashed)
    return newest


def keep_rows(store: PartStore, part: Path, table: pa.Table, kept: list[bool]) -> None:
    """Write a part again with some of its rows, or remove it where none is left."""
    rest = table.filter(pa.array(kept, pa.bool_()))
    if len(rest):
        store.write(rest.to_pylist(), name=part.stem)
    else:
        part.unlink(missing_ok=True)


def _free(path: Path) -> Path:
    """A path, with a number behind it where it is taken."""
    taken = (path.with_name(f"{path.name}.{number}") for number in range(1, 1_000_000))
    return path if not path.exists() else next(other for other in taken if not other.exists())


def _no_collection(folder: str | os.PathLike[str]) -> ValueError:
    return ValueError(f"{folder}: no collection of sounds here, expected one that `clap-hf embed` made.")
