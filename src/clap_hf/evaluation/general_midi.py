"""General MIDI, read from `general_midi.yaml`: names of programs, their families, and names of drum notes."""

from __future__ import annotations

from .benchmarks import read_table

_TABLE = read_table("general_midi.yaml")
FAMILY: dict[int, str] = {program: name for first, stop, name in _TABLE["families"] for program in range(first, stop)}
PROGRAM_NAME: dict[int, str] = {
    program: name for first, names in _TABLE["programs"].items() for program, name in enumerate(names, start=first)
}
_DRUMS: dict[str, list[int]] = _TABLE["drums"]
DRUM_NAME = {note: name for name, notes in sorted(_DRUMS.items(), key=lambda item: item[1]) for note in notes}


def register_name(midi: int) -> str:
    """Name of a note's register.

    Args:
        midi: MIDI note number.

    Returns:
        `very low` (below E2), `low` (to D3), `medium` (to A4), `high` (to A5) or `very high`.
    """
    for top, name in ((39, "very low"), (50, "low"), (69, "medium"), (81, "high")):
        if midi <= top:
            return name
    return "very high"
