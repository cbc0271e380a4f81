"""What a file's path says about its sound, by plain ordered rules."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePosixPath

# Words of a path that name a place or a format, not a sound.
_EMPTY_WORDS = {
    "sound", "sounds", "sfx", "snd", "fx", "audio", "wav", "ogg", "mp3", "flac", "raw", "res", "resources", "assets",
    "data", "loop", "mono", "stereo", "cc", "com", "soundbible", "bible", "final", "edit", "new", "old", "short",
    "long", "default", "generic", "random", "idle", "var", "v", "vl", "rr", "the", "node", "ambient", "amb", "env",
}  # fmt: skip


@dataclass(frozen=True)
class NamedSound:
    """What a name says.

    Args:
        label: Short class name.
        category: Coarse kind of sound.
        caption: One sentence.
        words: The name as plain words.
    """

    label: str
    category: str
    caption: str
    words: str


@cache
def _rules() -> tuple[re.Pattern[str], tuple[tuple[str, str, str, re.Pattern[str]], ...]]:
    content = json.loads((resources.files(__package__) / "names.json").read_text(encoding="utf-8"))
    rules = tuple(
        (label, category, caption, re.compile(words)) for label, category, caption, words in content["rules"]
    )
    return re.compile("|".join(f"(?:{pattern})" for pattern in content["drop"])), rules


def plain_words(name: str, without: frozenset[str] = frozenset()) -> str:
    """Turn a file or folder name into plain lower-case words without numbers.

    Args:
        name: For example `petz_puppyBark.02`.
        without: Words to leave out, for example the project's own name.

    Returns:
        For example `puppy bark`.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.sub(r"[\W_\d]+", " ", spaced).lower().split()
    return " ".join(word for word in words if word not in _EMPTY_WORDS and word not in without)


def describe_path(path: str, prefix: str = "", without: frozenset[str] = frozenset()) -> NamedSound | None:
    """Find the class and caption of a sound by its path.

    The file's own name is tried first, then with its folder's name in front.

    Args:
        path: Path inside a repository.
        prefix: Words put in front of the name, for a collection of one kind.
        without: Words to leave out.

    Returns:
        What the first matching rule says, or None if the name says nothing.
    """
    drop, rules = _rules()
    pure = PurePosixPath(path)
    stem = plain_words(pure.stem, without)
    folder = plain_words(pure.parent.name, without)
    own = f"{prefix} {stem}".strip()
    if drop.fullmatch(stem):
        return None
    for text in dict.fromkeys((own, f"{folder} {own}".strip())):
        if not text or (text != own and drop.fullmatch(text)):
            continue
        for label, category, caption, pattern in rules:
            if pattern.fullmatch(text):
                return NamedSound(label, category, caption, stem)
    return None
