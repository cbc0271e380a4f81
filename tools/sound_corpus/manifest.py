"""The list of clips: which file of which package, and what is known about its sound."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

# `unlabelled` sounds have no caption; they are for distillation.
SPLITS = ("train", "validation", "test", "sealed", "unlabelled")
MANIFESTS = ("manifest.jsonl.gz", "manifest_git.jsonl.gz")


@dataclass(frozen=True)
class Clip:
    """One sound and what is known about it.

    Args:
        id: Unique and stable: the package, then the path without its suffix.
        package: Debian package name, `@scope/name@version` for an npm package, or `owner/name` for a git repository.
        path: Path inside the package; for a clip inside an archive, `<archive>/<member>` (see `archives`).
        split: `train`, `validation`, `test`, `sealed` (a test that is read once) or `unlabelled`; a package, kit or
            soundfont is never on two sides.
        category: Coarse kind of sound, for example `animal`, `weapon`, `speech`, `instrument`, `drum`, `music`.
        quality: How the label was found: `named` by people, `rule` by keywords in the file name, `weak` the file name,
            `none` for an unlabelled sound; `described` where the caption was written for this clip alone.
        label: Short class name.
        caption: One sentence about the sound; empty for an unlabelled one.
        license: License of the package's sounds as its copyright file states it.
        archive: Kind of archive that holds the clip (`zip`, `ttd`, `wad`, `clonk`), or None for a plain file.
        raw_label: File name or title the label came from.
        lang: Spoken language, in English.
        transcript: The spoken words.
        family: Instrument family.
        midi: MIDI note number, 60 is middle C.
        velocity: MIDI velocity, 1 to 127.
        register: `very low` to `very high`.
        kit: Drum kit.
        program: General MIDI program, counted from 0.
        commit: Commit of a git repository; None for a package.
        author: Who made the sound, where the source states it.
        windows: At most this many excerpts of ten seconds are cut out of a long file.
    """

    id: str
    package: str
    path: str
    split: str
    category: str
    quality: str
    label: str
    caption: str
    license: str
    archive: str | None = None
    raw_label: str | None = None
    lang: str | None = None
    transcript: str | None = None
    family: str | None = None
    midi: int | None = None
    velocity: int | None = None
    register: str | None = None
    kit: str | None = None
    program: int | None = None
    commit: str | None = None
    author: str | None = None
    windows: int = 1


def load_manifest(path: str | Path | None = None) -> list[Clip]:
    """Read the recorded clips (rendered notes are planned by `soundfonts`).

    Args:
        path: A gzipped JSON-lines file; by default the two inside the package, of packages and of git repositories.

    Returns:
        One `Clip` a line, in file order.

    Raises:
        ValueError: A line is not a clip or names an unknown split, or an id occurs twice.
    """
    folder = resources.files(__package__)
    sources = [Path(str(path))] if path is not None else [folder / name for name in MANIFESTS]
    clips: list[Clip] = []
    seen: set[str] = set()
    for source in sources:
        text = gzip.decompress(source.read_bytes()).decode("utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                clip = Clip(**json.loads(line))
            except (TypeError, json.JSONDecodeError) as error:
                raise ValueError(
                    f"{source}, line {number}: expected one clip as a JSON object, found {error}"
                ) from error
            if clip.split not in SPLITS:
                raise ValueError(f"{source}, line {number}: split {clip.split!r} is unknown, expected one of {SPLITS}")
            if clip.id in seen:
                raise ValueError(f"{source}, line {number}: id {clip.id!r} occurs twice, ids must be unique")
            seen.add(clip.id)
            clips.append(clip)
    return clips
