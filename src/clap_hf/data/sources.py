"""The 20 training sets of the paper."""

from __future__ import annotations

from typing import Any

from .stream import StreamSource


def source_of(settings: dict[str, Any], split: str) -> StreamSource:
    """A stream's source from a recipe's settings."""
    return StreamSource(**{"split": split} | settings)
