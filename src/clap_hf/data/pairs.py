"""Audio-text pairs for training: cropped and augmented log-mels of the sound corpus, with a text each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .augment import Augmentation, blend, fill_window

# Their captions hold more than their labels: a note's pitch, a sentence's language.
CAPTION_GROUPS = ("instrument", "speech", "other")


class LogMels(Protocol):
    """Log-mels of the rows of a split at several speeds: see `LogMelStore`."""

    speeds: tuple[float, ...]

    def __call__(self, row: int, speed: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Pair:
    """One training pair, ready to be collated: log-mel `[1, frames, mel]` in dB, a text, its group, the clip's row."""

    input_features: torch.Tensor
    text: str
    group: int
    row: int


class PairDataset(Dataset):
    """A split of the sound corpus as augmented pairs.

    Every random choice comes from (seed, draw, row): the same draw of a row gives the same pair in any worker.

    Args:
        split: Rows with `captions`, `label` and `category`.
        log_mels: The rows' log-mels.
        frames: Frames of the window.
        augmentation: Random changes of the clips.
        template: Zero-shot template with `{}` for a label.
        template_probability: How often the label in the template replaces the caption.
        seed: Source of every choice.
    """

    def __init__(
        self,
        split: datasets.Dataset,
        log_mels: LogMels,
        frames: int,
        augmentation: Augmentation,
        template: str,
        template_probability: float,
        seed: int,
    ):
        self.log_mels = log_mels
        self.frames = frames
        self.augmentation = augmentation
        self.template = template
        self.template_probability = template_probability
        self.seed = seed
        self.captions: list[list[str]] = split["captions"][:]
        self.labels: list[str] = split["label"][:]
        self.categories: list[str] = split["category"][:]
        self.sources: list[str] = split["source"][:]
        names = [
            f"{category}/{captions[0] if category in CAPTION_GROUPS else label}".lower()
            for captions, label, category in zip(self.captions, self.labels, self.categories, strict=True)
        ]
        self.texts = sorted(
            {caption for captions in self.captions for caption in captions}
            | {template.format(label) for label in set(self.labels)}
        )
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        self.groups = [numbers[name] for name in names]
        self.members: dict[int, list[int]] = defaultdict(list)
        for row, group in enumerate(self.groups):
            self.members[group].append(row)

    def __len__(self) -> int:
        return len(self.groups)

    def texts_of_groups(self) -> torch.Tensor:
        """Which of `texts` are captions or labels of a group, `[groups, texts]`, bool."""
        column = {text: i for i, text in enumerate(self.texts)}
        table = torch.zeros(max(self.groups) + 1, len(self.texts), dtype=torch.bool)
        for group, captions, label in zip(self.groups, self.captions, self.labels, strict=True):
            table[group, [column[text] for text in (*captions, self.template.format(label))]] = True
        return table

    def weights(self, balance: float, category_weights: dict[str, float], source_balance: float = 0.0) -> np.ndarray:
        """Sampling weight of every row: (rows of its label) ** -balance, times its category's factor.

        Args:
            balance: 0 draws labels by their rows, 1 all labels alike.
            category_weights: Factor by category, 1 where there is none.
            source_balance: The same among the sources of a label, whose share stays what it is: with 1, ten takes of a
                sound in one package count as much as the one take of another.

        Returns:
            `[rows]`.
        """
        labels = [f"{category}/{label}" for category, label in zip(self.categories, self.labels, strict=True)]
        sources = [f"{label}/{source}" for label, source in zip(labels, self.sources, strict=True)]
        of_label, of_source = Counter(labels), Counter(sources)
        factors = np.array([category_weights.get(category, 1.0) for category in self.categories])
        within = np.array([of_source[source] ** -source_balance for source in sources])
        shares: dict[str, float] = defaultdict(float)
        for label, weight in zip(labels, within, strict=True):
            shares[label] += weight
        return factors * within * np.array([of_label[label] ** (1 - balance) / shares[label] for label in labels])

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        row, draw = key
        rng = np.random.default_rng([self.seed, draw, row])
        features = self._window(row, rng)
        if rng.random() < self.augmentation.blend_probability:
            members = self.members[self.groups[row]]
            other = members[int(rng.integers(len(members)))]
            features = blend(features, self._window(other, rng), rng, self.augmentation)
        return Pair(torch.from_numpy(features)[None], self.text(row, rng), self.groups[row], row)

    def _window(self, row: int, rng: np.random.Generator) -> np.ndarray:
        speed = int(rng.integers(len(self.log_mels.speeds)))
        return fill_window(self.log_mels(row, speed), self.frames, rng, self.augmentation)

    def text(self, row: int, rng: np.random.Generator) -> str:
        """A caption of the row, or its label in the zero-shot template."""
        if self.categories[row] not in CAPTION_GROUPS and rng.random() < self.template_probability:
            return self.template.format(self.labels[row])
        captions = self.captions[row]
        # Half of the time the first caption, which is the most specific one.
        return captions[0] if rng.random() < 0.5 else captions[int(rng.integers(len(captions)))]

    def text_shares(self, probabilities: np.ndarray) -> torch.Tensor:
        """How often each of `texts` is drawn by `text`.

        Args:
            probabilities: Of drawing every row `[rows]`; sum 1.

        Returns:
            `[texts]`, sum 1, float64.
        """
        column = {text: i for i, text in enumerate(self.texts)}
        shares = torch.zeros(len(self.texts), dtype=torch.float64)
        for row, probability in enumerate(probabilities.tolist()):
            captions = self.captions[row]
            if self.categories[row] not in CAPTION_GROUPS:
                shares[column[self.template.format(self.labels[row])]] += probability * self.template_probability
                probability *= 1 - self.template_probability
            shares[column[captions[0]]] += probability / 2
            for caption in captions:
                shares[column[caption]] += probability / 2 / len(captions)
        return shares


class BalancedSampler(Sampler):
    """Draws (row, draw number) by weight, with replacement, from (seed, epoch).

    Args:
        weights: Weight of every row.
        draws: Draws per epoch.
        seed: Source of the order.
    """

    def __init__(self, weights: np.ndarray, draws: int, seed: int):
        self.probabilities = weights / weights.sum()
        self.draws = draws
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.choice(len(self.probabilities), size=self.draws, p=self.probabilities)
        for i, row in enumerate(rows):
            yield int(row), self.epoch * self.draws + i


class PairCollator:
    """Stacks pairs and tokenizes their texts.

    Args:
        tokenizer: Tokenizer with the text tower's sentence rules.
        texts: All texts of the dataset; a batch also has the indices of its own among them.
    """

    def __init__(self, tokenizer: Any, texts: list[str]):
        self.tokenizer = tokenizer
        self.text_numbers = {text: number for number, text in enumerate(texts)}

    def __call__(self, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer([p.text for p in pairs], padding=True, truncation=True, return_tensors="pt")
        return {
            "input_features": torch.stack([p.input_features for p in pairs]),
            "groups": torch.tensor([p.group for p in pairs]),
            "rows": torch.tensor([p.row for p in pairs]),
            "texts": torch.tensor([self.text_numbers[p.text] for p in pairs]),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
        }
