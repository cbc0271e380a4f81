"""Rendering short phrases with a soundfont: fluidsynth for SoundFont 2 files, Timidity for GUS patches."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from tools.sound_corpus.decode import SAMPLING_RATE
from tools.sound_corpus.manifest import Clip

PERCUSSION_CHANNEL = 9
# Below -60 dB of full scale a rendered phrase counts as missing from the font.
SILENT_PEAK = 1e-3
_TICKS_PER_SECOND = 960
_GUARD_SECONDS = 0.1
_NOTE_OFF, _NOTE_ON, _CONTROL, _PROGRAM = 0x80, 0x90, 0xB0, 0xC0
_ALL_SOUND_OFF = 120


class RenderError(RuntimeError):
    """A synthesiser is missing or failed."""


@dataclass(frozen=True)
class PlayedNote:
    """One note of a phrase.

    Args:
        start_s: Seconds from the start of the phrase to the note-on.
        held_s: Seconds from note-on to note-off.
        midi: Note number.
        velocity: 1 to 127.
    """

    start_s: float
    held_s: float
    midi: int
    velocity: int


@dataclass(frozen=True)
class Phrase:
    """A phrase to render, and its row of the corpus.

    Args:
        clip: The corpus row.
        channel: MIDI channel counted from 0; 9 is percussion.
        program: Program or drum kit.
        notes: What to play.
        length_s: Seconds kept.
    """

    clip: Clip
    channel: int
    program: int
    notes: tuple[PlayedNote, ...]
    length_s: float


def _variable_length(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append((value & 0x7F) | 0x80)
    return bytes(reversed(groups))


def _score(phrases: list[Phrase]) -> bytes:
    """Write phrases of one program end to end as a MIDI file: silence before each, all sound off after each."""
    channel = phrases[0].channel
    events: list[tuple[int, bytes]] = [
        (0, bytes([_CONTROL | channel, 0, 0])),
        (0, bytes([_PROGRAM | channel, phrases[0].program])),
    ]
    start = 0.0
    for phrase in phrases:
        start += _GUARD_SECONDS
        for note in phrase.notes:
            on = round((start + note.start_s) * _TICKS_PER_SECOND)
            off = round((start + note.start_s + note.held_s) * _TICKS_PER_SECOND)
            events.append((on, bytes([_NOTE_ON | channel, note.midi, note.velocity])))
            events.append((off, bytes([_NOTE_OFF | channel, note.midi, 0])))
        start += phrase.length_s
        events.append((round(start * _TICKS_PER_SECOND), bytes([_CONTROL | channel, _ALL_SOUND_OFF, 0])))
    track = bytearray()
    now = 0
    for tick, message in sorted(events, key=lambda event: event[0]):
        track += _variable_length(tick - now) + message
        now = tick
    track += b"\x00\xff\x2f\x00"
    # Format 0, one track, 480 ticks a quarter note: 960 a second at the standard tempo.
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def _configured_patches(configuration: Path) -> set[tuple[bool, int]]:
    """List what a Timidity configuration has: pairs of (is a drum, program or drum note)."""
    patches: set[tuple[bool, int]] = set()
    is_drums = False
    for line in configuration.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and words[0] in ("bank", "drumset"):
            is_drums = words[0] == "drumset"
        elif words and words[0].isdigit():
            patches.add((is_drums, int(words[0])))
    return patches


def _timidity_command(configuration: Path, folder: Path) -> list[str]:
    # The configuration names the folder where the package would be installed; point it at the unpacked one.
    root = next(path for path in configuration.parents if (path / "usr").is_dir())
    lines = configuration.read_text(encoding="utf-8").splitlines()
    patches = next(line.split()[1] for line in lines if line.startswith("dir "))
    kept = [line for line in lines if not line.startswith("dir ")]
    local = folder / "timidity.cfg"
    local.write_text("\n".join([f"dir {root}{patches}", *kept]) + "\n", encoding="utf-8")
    effects = ["-EFreverb=0", "-EFchorus=0", "-EFdelay=0", "--no-polyphony-reduction"]
    return ["timidity", "-c", str(local), "-Ow1sl", "-s", str(SAMPLING_RATE), *effects]


def _synthesise(font_file: Path, score: bytes, folder: Path) -> np.ndarray:
    midi, sound = folder / "score.mid", folder / "sound.wav"
    midi.write_bytes(score)
    is_timidity = font_file.suffix == ".cfg"
    if is_timidity:
        command = [*_timidity_command(font_file, folder), "-o", str(sound), str(midi)]
    else:
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-g", "0.5", "-r", str(SAMPLING_RATE)]
        command += ["-T", "wav", "-O", "s16", "-F", str(sound), str(font_file), str(midi)]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RenderError(f"{font_file.name}: cannot be rendered, {command[0]} is not installed") from error
    if outcome.returncode or not sound.is_file():
        raise RenderError(f"{font_file.name}: {command[0]} failed: {outcome.stderr.strip() or 'no message'}")
    samples, _ = soundfile.read(sound, dtype="float32", always_2d=True)
    if is_timidity:
        # Timidity begins to write at the first note-on and leaves the guard before it out.
        samples = np.pad(samples, ((round(_GUARD_SECONDS * SAMPLING_RATE), 0), (0, 0)))
    return samples.mean(axis=1)


def render_phrases(font_file: Path, phrases: list[Phrase]) -> Iterator[tuple[Phrase, np.ndarray]]:
    """Render phrases dry, one program at a time.

    Args:
        font_file: A SoundFont 2 file, or the Timidity configuration of a set of patches.
        phrases: What to play; each starts with a note at 0 s.

    Yields:
        Each phrase with its float32 samples at 44.1 kHz, shape `[samples]`, silent where the font has no such note.

    Raises:
        RenderError: The synthesiser is missing or failed.
    """
    programs: dict[tuple[int, int], list[Phrase]] = {}
    # Timidity would play what its configuration lacks on whatever other bank this machine has.
    patches = _configured_patches(font_file) if font_file.suffix == ".cfg" else None
    for phrase in phrases:
        is_drum = phrase.channel == PERCUSSION_CHANNEL
        if patches is not None and (is_drum, phrase.notes[0].midi if is_drum else phrase.program) not in patches:
            yield phrase, np.zeros(round(phrase.length_s * SAMPLING_RATE), np.float32)
        else:
            programs.setdefault((phrase.channel, phrase.program), []).append(phrase)
    with tempfile.TemporaryDirectory(prefix="sound-corpus-") as folder:
        for group in programs.values():
            samples = _synthesise(font_file, _score(group), Path(folder))
            start = 0.0
            for phrase in group:
                first = round((start + _GUARD_SECONDS) * SAMPLING_RATE)
                yield phrase, samples[first : first + round(phrase.length_s * SAMPLING_RATE)]
                start += _GUARD_SECONDS + phrase.length_s
