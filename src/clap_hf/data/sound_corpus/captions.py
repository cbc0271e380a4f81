"""Several true sentences for one clip, from its caption, label and human-given name."""

from __future__ import annotations

import re

from clap_hf.data.sound_corpus.manifest import Clip

# Labels that name a bucket, not a sound.
_EMPTY_LABELS = {"other", "percussion", "music"}
# Packages whose clips carry titles written by people for people; elsewhere the file name is a programmer's.
_TITLED_PACKAGES = {"qabcs-data", "tuxpaint-stamps-default"}


def with_article(noun: str) -> str:
    """Puts `a` or `an` before a noun, as its first letter asks for.

    Args:
        noun: a noun without an article.

    Returns:
        The noun with its article.
    """
    sounds_like_consonant = noun.lower().startswith(("eu", "uku", "uni", "use"))
    return f"an {noun}" if noun[:1].lower() in "aeiou" and not sounds_like_consonant else f"a {noun}"


def clean_title(title: str) -> str:
    """Turns a human-given title into a plain phrase.

    Args:
        title: for example `An orca.` or `walkie-talkie`.

    Returns:
        The phrase in lower case without final punctuation, or an empty string if it has no word of three letters.
    """
    phrase = re.sub(r"\s+", " ", title.replace("_", " ")).strip(" .!").lower()
    plain = re.fullmatch(r"[a-z][a-z' -]*", phrase)
    return phrase if plain and re.search(r"[a-z]{3}", phrase) else ""


def caption_variants(clip: Clip) -> list[str]:
    """Writes one to four captions; the manifest's own comes first.

    Args:
        clip: the clip to describe.

    Returns:
        Distinct captions. None speaks of loudness, which level normalisation would undo.
    """
    first = re.sub(r"\b(an?) (?:soft|hard|loud|quiet) (?=\w)", r"\1 ", clip.caption)
    first = re.sub(r"\ba (?=[aeio]\w)", "an ", first)
    captions = [first]
    if clip.lang is not None:
        captions += [f"speech in {clip.lang}", f"somebody speaking {clip.lang}"]
    elif clip.category == "speech":
        captions += [clip.label, f"the sound of {with_article(clip.label)}"]
    elif clip.category == "instrument" and clip.label not in _EMPTY_LABELS:
        captions += [clip.label, f"the sound of {with_article(clip.label)}"]
        if clip.family not in (None, "percussion", clip.label):
            captions.append(f"{with_article(str(clip.family))} instrument")
    elif clip.category != "music" and clip.label not in _EMPTY_LABELS:
        captions += [clip.label, f"the sound of {clip.label}"]
    if clip.package in _TITLED_PACKAGES and clip.quality == "named" and clip.lang is None and clip.raw_label:
        title = clean_title(clip.raw_label)
        if title:
            captions.insert(1, f"the sound of {title}")
    return list(dict.fromkeys(captions))[:4]
