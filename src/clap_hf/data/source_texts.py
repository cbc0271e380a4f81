"""How the texts of the training sets are formed from their metadata: pure functions of a row.

Label sets follow the rules of LAION's data ("The sounds of A, B and C") or the paper's own zero-shot prompt; human
captions and descriptions are taken as they are, but for markup and file endings. `RULES` names the functions that a
table of training sets may use.
"""

from __future__ import annotations

import html
import re
from typing import Any

Row = dict[str, Any]

SOUND_FILE_ENDING = re.compile(r"\.(wav|mp3|flac|ogg|aiff?|m4a)$", re.IGNORECASE)
MARKUP, LINK, SPACE = re.compile(r"<[^>]*>"), re.compile(r"https?://\S+"), re.compile(r"\s+")
EMOTIONS = {
    "ang": "angry", "hap": "happy", "exc": "excited", "sad": "sad", "neu": "neutral", "fru": "frustrated",
    "fea": "fearful", "sur": "surprised", "dis": "disgusted", "A": "angry", "H": "happy", "S": "sad", "N": "neutral",
    "U": "surprised", "F": "fearful", "D": "disgusted", "C": "contemptuous", "anger": "angry", "joy": "happy",
    "sadness": "sad", "fear": "fearful", "surprise": "surprised", "disgust": "disgusted", "neutral": "neutral",
    "happiness": "happy",
}  # fmt: skip
MIDI_NAMES = ("C", "C sharp", "D", "D sharp", "E", "F", "F sharp", "G", "G sharp", "A", "A sharp", "B")


def clean(text: str | None) -> str:
    """A text without markup, links and doubled spaces.

    `clean('<b>Rain</b> on &amp; off, see https://a.b')` is `'Rain on & off, see'`.
    """
    return SPACE.sub(" ", LINK.sub(" ", MARKUP.sub(" ", html.unescape(text or "")))).strip()


def enumeration(names: list[str]) -> str:
    """`['A', 'B', 'C']` is `'A, B and C'`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def captions(row: Row) -> list[str]:
    """Captions written by people or a language model, as they are: `{'captions': ['a dog barks ']}` is
    `['a dog barks']`."""
    return [text for text in map(clean, row["captions"]) if text]


def labels(row: Row) -> list[str]:
    """Sound event labels: `{'labels': ['Dog_bark', 'Rain']}` is `['the sounds of dog bark and rain']`."""
    names = [clean(label.replace("_", " ")).lower() for label in row["labels"] if label]
    return [f"the sound{'s' if len(names) > 1 else ''} of {enumeration(names)}"] if names else []


def title_and_description(row: Row) -> list[str]:
    """What an uploader wrote: `{'title': 'door_slam.wav', 'description': 'A heavy door.'}` is
    `['door slam. A heavy door.']`; one of the two is enough."""
    title = clean(SOUND_FILE_ENDING.sub("", row.get("title") or "").replace("_", " "))
    parts = [part for part in (title, clean(row.get("description"))) if part]
    return [". ".join(part.rstrip(".") for part in parts) + ("." if len(parts) > 1 else "")] if parts else []


def note(row: Row) -> list[str]:
    """A note's instrument and attributes, as in NSynth: `{'instrument_family_str': 'bass', 'instrument_source_str':
    'synthetic', 'pitch': 33, 'velocity': 100, 'qualities_str': ['dark']}` is `['a synthetic bass note',
    'a synthetic bass note of pitch A1 and velocity 100, with dark qualities']`."""
    name = f"{row['instrument_source_str']} {row['instrument_family_str'].replace('_', ' ')} note"
    short = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    pitch = f"{MIDI_NAMES[row['pitch'] % 12]}{row['pitch'] // 12 - 1}"
    full = f"{short} of pitch {pitch} and velocity {row['velocity']}"
    if row["qualities_str"]:
        full += f", with {enumeration([quality.replace('_', ' ') for quality in row['qualities_str']])} qualities"
    return [short, full]


def track(row: Row) -> list[str]:
    """A piece of music: `{'title': 'Food', 'artist': 'AWOL', 'genres': ['Hip-Hop'], 'tags': []}` is
    `['hip-hop music', 'Food by AWOL, hip-hop music']`."""
    genre = enumeration([name.lower() for name in row["genres"]]) + " music" if row["genres"] else "music"
    title, artist = clean(row.get("title")), clean(row.get("artist"))
    texts = [genre]
    if title:
        texts.append(f"{title} by {artist}, {genre}" if artist else f"{title}, {genre}")
    if row.get("tags"):
        texts.append(f"{genre}: {enumeration([clean(tag).lower() for tag in row['tags']])}")
    return texts


def emotion(row: Row) -> list[str]:
    """A speaker's emotion: `{'emotion': 'ang', 'transcript': 'Go away.'}` is `['a person speaking, angry',
    'an angry person says "Go away."']`; an emotion that annotators did not agree on gives no text."""
    name = EMOTIONS.get(row["emotion"])
    if name is None:
        return []
    texts = [f"a person speaking, {name}"]
    if clean(row.get("transcript")):
        texts.append(f'{"an" if name[0] in "aeiou" else "a"} {name} person says "{clean(row["transcript"])}"')
    return texts


def polarity(value: float | str) -> str:
    """A sentiment from -3 to 3 as a word; a word as it is."""
    if isinstance(value, str):
        return value
    return "positive" if value > 0 else "negative" if value < 0 else "neutral"


def sentiment(row: Row) -> list[str]:
    """A speaker's sentiment from -3 to 3: `{'sentiment': -1.4, 'transcript': ''}` is
    `['a person speaking with negative sentiment']`."""
    name = polarity(row["sentiment"])
    texts = [f"a person speaking with {name} sentiment"]
    if clean(row.get("transcript")):
        texts.append(f'a person says with {name} sentiment "{clean(row["transcript"])}"')
    return texts


def emotion_and_sentiment(row: Row) -> list[str]:
    """MELD's two labels: `{'emotion': 'joy', 'sentiment': 'positive', 'transcript': ''}` is
    `['a person speaking, happy', 'a person speaking with positive sentiment']`."""
    return [*emotion(row), f"a person speaking with {row['sentiment']} sentiment"]


def transcript(row: Row) -> list[str]:
    """Read speech: `{'transcript': 'in being comparatively modern.'}` is
    `['a person says "in being comparatively modern."']`."""
    return [f'a person says "{clean(row["transcript"])}"'] if clean(row["transcript"]) else []


def scene_words(name: str) -> str:
    """`'SubwayStation'` is `'subway station'`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()


def scene(row: Row) -> list[str]:
    """An acoustic scene: `{'scene': 'SubwayStation'}` is `['the acoustic scene is subway station']`."""
    return [f"the acoustic scene is {scene_words(row['scene'])}"]


def action(row: Row) -> list[str]:
    """A person's action on video: `{'action': 'playing_drums'}` is `['the sound of a person playing drums']`; a bare
    verb as in `{'action': 'open drawer'}` is `['the sound of a person: open drawer']`."""
    name = clean(row["action"].replace("_", " ")).lower()
    if not name:
        return []
    return [f"the sound of a person {name}" if name.split()[0].endswith("ing") else f"the sound of a person: {name}"]


def query(row: Row) -> list[str]:
    """What a search found a sound by: `{'query': 'cow-bell'}` is `['the sound of cow bell']`."""
    name = clean(row["query"].replace("-", " ").replace("_", " ")).lower()
    return [f"the sound of {name}"] if name else []


def question_and_answer(row: Row) -> list[str]:
    """`{'question': 'Is it raining?', 'answer': 'yes'}` is `['Is it raining? yes']`."""
    return [f"{clean(row['question'])} {clean(row['answer'])}"]


RULES = {
    rule.__name__: rule
    for rule in (
        captions, labels, title_and_description, note, track, emotion, sentiment, emotion_and_sentiment, transcript,
        scene, action, query, question_and_answer,
    )
}  # fmt: skip
