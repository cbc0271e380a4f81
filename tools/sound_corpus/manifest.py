"""The list of clips: which file of which package, and what is known about its sound."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Clip:
    """One sound and what is known about it.

    Args:
        id: Unique and stable: the package, then the path without its suffix.
        package: Debian package name, or `@scope/name@version` for an npm package.
        path: Path inside the package; for a clip inside an archive, `<archive>/<member>` (see `archives`).
        split: `train`, `validation` or `test`; a package, kit or soundfont is never on two sides.
        category: Coarse kind of sound, for example `animal`, `weapon`, `speech`, `instrument`, `drum`, `music`.
        quality: How the label was found: `named` by people, `rule` by keywords in the file name, `weak` the file name.
        label: Short class name.
        caption: One sentence about the sound.
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


def load_manifest(path: str | Path | None = None) -> list[Clip]:
    """Read the recorded clips (rendered notes are planned by `soundfonts`).

    Args:
        path: A gzipped JSON-lines file; by default the one inside the package.

    Returns:
        One `Clip` a line, in file order.

    Raises:
        ValueError: A line is not a clip or names an unknown split, or an id occurs twice.
    """
    source = Path(str(path)) if path is not None else resources.files(__package__) / "manifest.jsonl.gz"
    text = gzip.decompress(source.read_bytes()).decode("utf-8")
    clips: list[Clip] = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            clip = Clip(**json.loads(line))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{source}, line {number}: expected one clip as a JSON object, found {error}") from error
        if clip.split not in SPLITS:
            raise ValueError(f"{source}, line {number}: split {clip.split!r} is unknown, expected one of {SPLITS}")
        if clip.id in seen:
            raise ValueError(f"{source}, line {number}: id {clip.id!r} occurs twice, ids must be unique")
        seen.add(clip.id)
        clips.append(clip)
    return clips
