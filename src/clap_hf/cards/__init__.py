"""Model cards, written from what was recorded: the run, the evaluation, the training data, the conversion."""

from .card import CARD, CURVES, check_card, model_card, write_card
from .curves import draw_curves
from .records import (
    AVERAGE,
    BASE,
    CONVERSION,
    CORPUS,
    EARLIER,
    HUBS,
    LOOKS,
    RESULTS,
    RUN,
    SEALED,
    Records,
    base_facts,
    corpus_facts,
    read_records,
    records_of_folder,
)

__all__ = [
    "AVERAGE",
    "BASE",
    "CARD",
    "CONVERSION",
    "CORPUS",
    "CURVES",
    "EARLIER",
    "HUBS",
    "LOOKS",
    "RESULTS",
    "RUN",
    "SEALED",
    "Records",
    "base_facts",
    "check_card",
    "corpus_facts",
    "draw_curves",
    "model_card",
    "read_records",
    "records_of_folder",
    "write_card",
]
