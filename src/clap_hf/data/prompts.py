"""Prompts and answers about clips for multi-task pretraining (Eq. 5): the paper's 22, and those of the sound corpus.

The paper says "22 audio tasks using a similar method to [Pengi]" (Section 2.2) for the pretraining of HTSAT-22, and
lists neither tasks nor data. Pengi (Deshmukh et al., 2023) maps every training set to one of 8 prompts.
`PAPER_STREAMS` is a reading of both: the 22 pairs of a training set and a target that Pengi's sets give. Prompts are
in Pengi's wording where it is published and in its manner where it is not. With NSynth as one stream there would be
20, with five single attributes 24. Columns are those that `tools/training_sets` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from ..audio import AudioDecodeError, load_stored_audio
from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from .source_texts import EMOTIONS, polarity, scene_words

Row = dict[str, Any]
ATTEMPTS = 10  # rows tried in the place of one that cannot be read


@dataclass(frozen=True)
class PromptStream:
    """A prompt about clips of one dataset, and its answers.

    Args:
        name: Its name in recipes and records.
        dataset: The training set it is for.
        prompt: The text before the answer; `{question}` is the row's own.
        answers: Gives a row's answers, each right on its own; none where the row has none.
        columns: What `answers`, and the prompt, read of a row.
        weight: How often it is drawn, beside the others' weights.
        closed: Whether answers come from a fixed set, so that an exact match counts.
    """

    name: str
    dataset: str
    prompt: str
    answers: Callable[[Row], list[str]]
    columns: tuple[str, ...]
    weight: float = 1.0
    closed: bool = True


def clean(label: str) -> str:
    """A label as words: lower case, without underscores."""
    return " ".join(label.replace("_", " ").lower().split())


def one(column: str, words: Callable[[Any], str | None] = str) -> Callable[[Row], list[str]]:
    """The label in a column, in words; none where `words` has none."""

    def answers(row: Row) -> list[str]:
        label = None if row[column] in (None, "") else words(row[column])
        return [clean(label)] if label else []

    return answers


def emotion_words(label: str) -> str | None:
    """`'ang'`, `'anger'`, `'A'` and `'Angry'` are `'angry'`; None for labels that annotators did not agree on."""
    return EMOTIONS.get(label) or (label.lower() if label.lower() in EMOTIONS.values() else None)


def listed(column: str) -> Callable[[Row], list[str]]:
    """All labels of a column in one answer, in the row's order."""
    return lambda row: [", ".join(clean(label) for label in row[column])] if row[column] else []


def each(column: str) -> Callable[[Row], list[str]]:
    """A text, or any of several texts, as they are."""

    def answers(row: Row) -> list[str]:
        texts = row[column] or []
        return [text.strip() for text in ([texts] if isinstance(texts, str) else texts) if text and text.strip()]

    return answers


def form(template: str, *columns: str) -> Callable[[Row], list[str]]:
    """A sentence with labels in it, where the row has them all."""

    def answers(row: Row) -> list[str]:
        values = [row[column] for column in columns]
        if any(value is None or value == "" or value == [] for value in values):
            return []
        words = [", ".join(map(clean, v)) if isinstance(v, (list, tuple)) else clean(str(v)) for v in values]
        return [template.format(*words)]

    return answers


# The first three are in Pengi's published code, the others in code that follows it or, for genres, in its manner.
CAPTION, METADATA, EVENT = "generate audio caption", "generate metadata", "this is a sound of"
SCENE, EMOTION, SENTIMENT, NOTE = (
    "this acoustic scene is",
    "this emotion is",
    "this sentiment is",
    "this music note is",
)
GENRE, QUESTION = "this music genre is", "question: {question}"

PAPER_STREAMS = (
    PromptStream("audioset_events", "AudioSet", EVENT, listed("labels"), ("labels",)),
    PromptStream("fsd50k_events", "FSD50K", EVENT, listed("labels"), ("labels",)),
    PromptStream("cochlscene_scene", "CochlScene", SCENE, one("scene", scene_words), ("scene",)),
    PromptStream("msp_emotion", "MSP-Podcast", EMOTION, one("emotion", emotion_words), ("emotion",)),
    PromptStream("mosei_emotion", "CMU-MOSEI", EMOTION, one("emotion", emotion_words), ("emotion",)),
    PromptStream("meld_emotion", "MELD", EMOTION, one("emotion", emotion_words), ("emotion",)),
    PromptStream("mosi_sentiment", "CMU-MOSI", SENTIMENT, one("sentiment", polarity), ("sentiment",)),
    PromptStream("mosei_sentiment", "CMU-MOSEI", SENTIMENT, one("sentiment", polarity), ("sentiment",)),
    PromptStream("meld_sentiment", "MELD", SENTIMENT, one("sentiment", polarity), ("sentiment",)),
    PromptStream(
        "nsynth_instrument",
        "NSynth",
        NOTE,
        form("produced by {} with source {}", "instrument_family_str", "instrument_source_str"),
        ("instrument_family_str", "instrument_source_str"),
    ),
    PromptStream(
        "nsynth_pitch", "NSynth", NOTE, form("pitch {}, velocity {}", "pitch", "velocity"), ("pitch", "velocity")
    ),
    PromptStream(
        "nsynth_qualities", "NSynth", NOTE, form("having qualities like {}", "qualities_str"), ("qualities_str",)
    ),
    PromptStream("fma_genre", "FMA", GENRE, listed("genres"), ("genres",)),
    PromptStream("audiocaps_captions", "AudioCaps", CAPTION, each("text"), ("text",), closed=False),
    PromptStream("clotho_captions", "Clotho", CAPTION, each("text"), ("text",), closed=False),
    PromptStream("clothoaqa_answers", "ClothoAQA", QUESTION, one("answer"), ("question", "answer")),
    PromptStream("wavtext5k_metadata", "WavText5K", METADATA, each("text"), ("text",), closed=False),
    PromptStream("sounddescs_metadata", "SoundDescs", METADATA, each("text"), ("text",), closed=False),
    PromptStream("macs_metadata", "MACS", METADATA, each("text"), ("text",), closed=False),
    PromptStream("wavcaps_metadata", "WavCaps", METADATA, each("text"), ("text",), closed=False),
    PromptStream("freesound_metadata", "Freesound", METADATA, each("text"), ("text",), closed=False),
    PromptStream("findsounds_metadata", "FindSounds", METADATA, each("text"), ("text",), closed=False),
)

# For runs at small size.
CORPUS = "sound corpus"
CORPUS_STREAMS = (
    PromptStream("corpus_events", CORPUS, EVENT, one("label"), ("label",), 2.0),
    PromptStream("corpus_captions", CORPUS, CAPTION, each("captions"), ("captions",), 2.0, closed=False),
    PromptStream("corpus_kind", CORPUS, "this kind of sound is", one("category"), ("category",)),
    PromptStream("corpus_family", CORPUS, NOTE, form("produced by {}", "family"), ("family",)),
    PromptStream("corpus_register", CORPUS, "this register is", one("register"), ("register",)),
    PromptStream("corpus_language", CORPUS, "this language is", one("lang"), ("lang",)),
)

PROMPT_STREAMS = {stream.name: stream for stream in (*PAPER_STREAMS, *CORPUS_STREAMS)}


@dataclass(frozen=True)
class PromptExample:
    """A clip with its question and an answer: log-mel `[1, frames, mel]` in dB; what was skipped for it."""

    input_features: torch.Tensor
    prompt: str
    answer: str
    skipped: tuple[dict[str, str], ...] = ()


class PromptDataset(Dataset):
    """Rows of several streams in one sequence; every random choice comes from (seed, draw, row).

    Args:
        streams: Each with the rows of its dataset: `audio` as `datasets.Audio` stores it, and its columns.
        feature_extractor: Makes the log-mel of a crop at random.
        seed: Source of every choice.

    Raises:
        ValueError: If a dataset lacks a stream's columns, or no row of it has an answer.
    """

    def __init__(
        self,
        streams: Sequence[tuple[PromptStream, datasets.Dataset]],
        feature_extractor: MSClapFeatureExtractor,
        seed: int,
    ):
        self.streams = [stream for stream, _ in streams]
        self.feature_extractor, self.seed = feature_extractor, seed
        self.splits: list[datasets.Dataset] = []
        self.places: list[tuple[int, int]] = []  # (stream, row) of every example
        for number, (stream, split) in enumerate(streams):
            missing = [name for name in ("audio", *stream.columns) if name not in split.column_names]
            if missing:
                raise ValueError(
                    f"Stream {stream.name!r} needs the columns {missing}, the dataset has {split.column_names}. "
                    "Rename them."
                )
            self.splits.append(split.cast_column("audio", datasets.Audio(decode=False)))
            words = split.select_columns(list(stream.columns))
            rows = [(number, row) for row, values in enumerate(words) if stream.answers(values)]
            if not rows:
                raise ValueError(
                    f"Stream {stream.name!r}: none of {len(split)} rows has an answer in {stream.columns}."
                )
            self.places += rows

    def __len__(self) -> int:
        return len(self.places)

    def weights(self, balance: float) -> np.ndarray:
        """Sampling weight of every row.

        Args:
            balance: 1 draws streams by their weights alone, 0 in proportion to their rows, too.

        Returns:
            A stream's weight x (its rows) ** -balance, `[rows]`.
        """
        numbers = np.array([stream for stream, _ in self.places])
        counts = np.bincount(numbers, minlength=len(self.streams)).astype(float)
        return np.array([stream.weight for stream in self.streams])[numbers] * counts[numbers] ** -balance

    def __getitem__(self, key: tuple[int, int]) -> PromptExample:
        index, draw = key
        rng = np.random.default_rng([self.seed, draw, index])
        skipped: list[dict[str, str]] = []
        for _ in range(ATTEMPTS):
            number, row = self.places[index]
            stream, values = self.streams[number], self.splits[number][row]
            try:
                features = self._features(values["audio"], rng)
            except AudioDecodeError as error:
                skipped.append({"id": f"{stream.name}:{row}", "reason": str(error)})
                index = (index + 1) % len(self.places)
                continue
            answers = stream.answers(values)
            answer = answers[int(rng.integers(len(answers)))]
            prompt = stream.prompt.replace("{question}", str(values.get("question", "")))
            return PromptExample(features, prompt, answer, tuple(skipped))
        raise RuntimeError(f"None of {ATTEMPTS} rows from {skipped[0]['id']} on can be read: {skipped[0]['reason']}")

    def _features(self, audio: Row, rng: np.random.Generator) -> torch.Tensor:
        sound = load_stored_audio(audio)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        extracted = self.feature_extractor(
            [sound.samples], sound.sampling_rate, long_audio="random", generator=generator
        )
        return extracted["input_features"][0, 0]

    def examples_of(self, stream: int) -> Iterator[int]:
        """Places of a stream's examples."""
        return (place for place, (number, _) in enumerate(self.places) if number == stream)


class PromptCollator:
    """Stacks examples and tokenizes prompts and answers; only answers end with the end token.

    Args:
        tokenizer: The language model's, with an end token after every text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer

    def __call__(self, examples: Sequence[PromptExample]) -> dict[str, Any]:
        answers = self.tokenizer([e.answer for e in examples], padding=True, truncation=True, return_tensors="pt")
        prompts = self.tokenizer(
            [e.prompt for e in examples], add_special_tokens=False, padding=True, truncation=True, return_tensors="pt"
        )
        return {
            "input_features": torch.stack([e.input_features for e in examples]),
            "prompt_ids": prompts["input_ids"],
            "prompt_mask": prompts["attention_mask"],
            "input_ids": answers["input_ids"],
            "attention_mask": answers["attention_mask"],
            "skipped": [row for e in examples for row in e.skipped],
        }
