"""Several true sentences for one clip, from its caption, label and human-given name."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources

from tools.sound_corpus.manifest import Clip

MAX_CAPTIONS = 5
# Labels that name a bucket, not a sound.
_EMPTY_LABELS = {"other", "percussion", "music"}
# Packages whose clips carry titles written by people for people; elsewhere the file name is a programmer's.
_TITLED_PACKAGES = {"qabcs-data", "tuxpaint-stamps-default"}

_FAMILY_PHRASES = {
    "piano": "a piano or another keyboard instrument",
    "mallet": "a mallet instrument",
    "organ": "an organ",
    "reed": "a reed instrument",
    "guitar": "a guitar or another plucked instrument",
    "bass": "a bass instrument",
    "strings": "a strings instrument",
    "vocal": "a vocal sound",
    "brass": "a brass instrument",
    "flute": "a flute or another pipe",
    "synth lead": "a synth lead",
    "synth pad": "a synth pad",
}


@cache
def _paraphrases() -> dict[str, list[str]]:
    return json.loads((resources.files(__package__) / "paraphrases.json").read_text(encoding="utf-8"))


def with_article(noun: str) -> str:
    """Put `a` or `an` before a noun in the singular, as its first letters ask for.

    Args:
        noun: A noun without an article.

    Returns:
        The noun with its article; a plural as it is.
    """
    if noun.endswith("s") and not noun.endswith("ss"):
        return noun
    sounds_like_consonant = noun.lower().startswith(("eu", "uku", "uni", "use"))
    return f"an {noun}" if noun[:1].lower() in "aeiou" and not sounds_like_consonant else f"a {noun}"


def clean_title(title: str) -> str:
    """Turn a human-given title into a plain phrase.

    Args:
        title: For example `An orca.` or `walkie-talkie`.

    Returns:
        The phrase in lower case without final punctuation, or an empty string if it has no word of three letters.
    """
    phrase = re.sub(r"\s+", " ", title.replace("_", " ")).strip(" .!").lower()
    plain = re.fullmatch(r"[a-z][a-z' -]*", phrase)
    return phrase if plain and re.search(r"[a-z]{3}", phrase) else ""


def _mended(caption: str, category: str) -> str:
    """Take loudness off drum hits, where level normalisation would make it false, and mend articles."""
    if category == "drum":
        caption = re.sub(r"^an? (?:soft|hard|loud|quiet) (.*)$", lambda match: with_article(match[1]), caption)
    caption = re.sub(r"^an? ([\w -]+) playing$", lambda match: f"{with_article(match[1])} playing", caption)
    return re.sub(r"\ba (?=[aeio]\w)", "an ", caption)


def caption_variants(clip: Clip) -> list[str]:
    """Write up to five captions; the manifest's own comes first.

    Args:
        clip: The clip to describe.

    Returns:
        Distinct captions, none for an unlabelled sound. None states how loud a note or hit is, which level
        normalisation would undo.
    """
    if not clip.caption:
        return []
    captions = [_mended(clip.caption, clip.category)]
    is_titled = clip.package in _TITLED_PACKAGES or clip.commit is not None
    if is_titled and clip.quality == "named" and clip.lang is None and clip.raw_label:
        title = clean_title(clip.raw_label)
        captions += [f"the sound of {title}"] if title else []
    if clip.lang is not None:
        captions += [f"speech in {clip.lang}", f"somebody speaking {clip.lang}"]
    elif clip.category != "music" and clip.label not in _EMPTY_LABELS:
        captions += [clip.label, *_paraphrases().get(clip.label, [])]
        if clip.label not in _paraphrases() and len(captions) < 3:
            captions.append(f"the sound of {with_article(clip.label)}")
        if clip.category == "instrument" and clip.family in _FAMILY_PHRASES:
            captions.append(_FAMILY_PHRASES[clip.family])
    elif clip.label == "music":
        captions += ["music", "a piece of music"]
    return list(dict.fromkeys(captions))[:MAX_CAPTIONS]
