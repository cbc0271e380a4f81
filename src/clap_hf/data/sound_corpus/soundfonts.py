"""Single notes and drum hits rendered from free soundfonts, with exact labels."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from clap_hf.data.sound_corpus.decode import SAMPLING_RATE
from clap_hf.data.sound_corpus.gm import DRUM_NAME, FAMILY, PROGRAM_NAME, register_name
from clap_hf.data.sound_corpus.manifest import Clip

# Below -60 dB of full scale a rendered note counts as missing from the font.
SILENT_NOTE_PEAK = 1e-3
_TICKS_PER_SECOND = 960
_GUARD_SECONDS = 0.1
_PERCUSSION_CHANNEL = 9

_NOTES = {"bass": (28, 34, 40, 46, 52, 58), "flute": (60, 66, 72, 78, 84, 90)}
_OTHER_NOTES = (40, 48, 54, 60, 66, 72, 78, 84)
_KITS = (0, 8, 16, 24, 25, 32, 40, 48)
# The two kits of avldrums answer on a melodic channel with a map of their own.
_AVL_NOTES = range(36, 60)
_AVL_NAMES = {48: "open hi-hat", 50: "crash cymbal", 52: "ride cymbal"}


class RenderError(RuntimeError):
    """A synthesiser is missing or failed."""


@dataclass(frozen=True)
class Font:
    """A soundfont inside a package.

    Args:
        package: the Debian package.
        file: file name of the font, or of the Timidity configuration.
        split: the split that all its notes go to: fonts that share samples must share a split.
        licence: licence of the samples.
        layout: `gm` for a General MIDI bank, `avl` for one drum kit on a melodic channel.
        velocities: velocities of the notes.
        hit_velocities: velocities of the drum hits.
        kits: drum kits, as programs of the percussion channel.
    """

    package: str
    file: str
    split: str
    licence: str
    layout: str = "gm"
    velocities: tuple[int, ...] = (35, 80, 120)
    hit_velocities: tuple[int, ...] = (50, 85, 120)
    kits: tuple[int, ...] = _KITS


# MuseScore General holds 751 samples of FluidR3, so the two stay together. TimGM6mb shares none with them; the csound
# bank shares 245 of its 379 samples with TimGM6mb and is left out. FreePats has one layer a note, so one velocity.
FONTS = (
    Font("fluid-soundfont-gm", "FluidR3_GM.sf2", "train", "MIT"),
    Font("musescore-general-soundfont-lossless", "MuseScore_General_Full.sf2", "train", "MIT"),
    Font("avldrums.lv2-soundfont", "Black_Pearl_4_LV2.sf2", "train", "CC-BY-SA-3.0", layout="avl"),
    Font("avldrums.lv2-soundfont", "Red_Zeppelin_4_LV2.sf2", "train", "CC-BY-SA-3.0", layout="avl"),
    Font(
        "freepats",
        "freepats.cfg",
        "validation",
        "GPL-2+",
        velocities=(80,),
        hit_velocities=(85,),
        kits=(0,),
    ),
    Font("timgm6mb-soundfont", "TimGM6mb.sf2", "test", "GPL-2"),
)


@dataclass(frozen=True)
class Note:
    """One rendered note: its clip, and what to play.

    Args:
        clip: what the corpus says of it.
        channel: MIDI channel counted from 0; 9 is percussion.
        program: program or kit.
        midi: note number.
        velocity: 1 to 127.
        held_s: seconds from note-on to note-off.
        length_s: seconds kept.
    """

    clip: Clip
    channel: int
    program: int
    midi: int
    velocity: int
    held_s: float
    length_s: float


def _melodic_note(font: Font, program: int, midi: int, velocity: int) -> Note:
    stem = Path(font.file).stem
    label, register = PROGRAM_NAME[program], register_name(midi)
    clip = Clip(
        id=f"{font.package}/{stem}-program{program:03d}-note{midi:03d}-velocity{velocity:03d}",
        package=font.package,
        path=font.file,
        split=font.split,
        category="instrument",
        quality="named",
        label=label,
        caption=f"a {register} pitched {label} note",
        licence=font.licence,
        raw_label=label,
        family=FAMILY[program],
        midi=midi,
        velocity=velocity,
        register=register,
        program=program,
    )
    return Note(clip, 0, program, midi, velocity, held_s=1.4, length_s=2.0)


def _drum_hit(font: Font, kit: int, midi: int, velocity: int) -> Note:
    stem = Path(font.file).stem
    is_avl = font.layout == "avl"
    label = (_AVL_NAMES.get(midi) if is_avl else None) or DRUM_NAME[midi]
    clip = Clip(
        id=f"{font.package}/{stem}-kit{kit:03d}-note{midi:03d}-velocity{velocity:03d}",
        package=font.package,
        path=font.file,
        split=font.split,
        category="drum",
        quality="named",
        label=label,
        caption=f"{'an' if label[0] in 'aeiou' else 'a'} {label} hit",
        licence=font.licence,
        raw_label=label,
        midi=midi,
        velocity=velocity,
        kit=f"{stem} {kit}",
    )
    channel = 0 if is_avl else _PERCUSSION_CHANNEL
    return Note(clip, channel, kit, midi, velocity, held_s=0.8, length_s=1.2)


def plan_notes(font: Font) -> list[Note]:
    """Lists the notes and hits to render from a font.

    Args:
        font: the font.

    Returns:
        The notes, those of one program side by side.
    """
    if font.layout == "avl":
        return [_drum_hit(font, 0, midi, velocity) for midi in _AVL_NOTES for velocity in font.hit_velocities]
    notes = [
        _melodic_note(font, program, midi, velocity)
        for program, family in FAMILY.items()
        for midi in _NOTES.get(family, _OTHER_NOTES)
        for velocity in font.velocities
    ]
    hits = [
        _drum_hit(font, kit, midi, velocity)
        for kit in font.kits
        for midi in sorted(DRUM_NAME)
        for velocity in font.hit_velocities
    ]
    return notes + hits


def _variable_length(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append((value & 0x7F) | 0x80)
    return bytes(reversed(groups))


def _midi_file(notes: list[Note]) -> bytes:
    """Lays notes of one program end to end, a guard of silence before each and all sound off after each."""
    channel = notes[0].channel
    track = bytearray()

    def event(seconds: float, *message: int) -> None:
        track.extend(_variable_length(round(seconds * _TICKS_PER_SECOND)) + bytes(message))

    event(0, 0xB0 | channel, 0, 0)
    event(0, 0xC0 | channel, notes[0].program)
    for note in notes:
        event(_GUARD_SECONDS, 0x90 | channel, note.midi, note.velocity)
        event(note.held_s, 0x80 | channel, note.midi, 0)
        event(note.length_s - note.held_s, 0xB0 | channel, 120, 0)
    track.extend(b"\x00\xff\x2f\x00")
    # Format 0, one track, 480 ticks a quarter note: 960 a second at the standard tempo.
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def _synthesise(font_file: Path, score: bytes, folder: Path) -> np.ndarray:
    midi, sound = folder / "score.mid", folder / "sound.wav"
    midi.write_bytes(score)
    if font_file.suffix == ".cfg":
        # The configuration names the folder where the package would be installed; point it at the unpacked one.
        patches = next(path for path in font_file.parents if (path / "usr").is_dir()) / "usr/share/midi/freepats"
        configuration = folder / "timidity.cfg"
        lines = font_file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith("dir ")]
        configuration.write_text("\n".join([f"dir {patches}", *kept]) + "\n", encoding="utf-8")
        command = ["timidity", "-c", str(configuration), "-Ow1sl", "-s", str(SAMPLING_RATE), "-EFreverb=0"]
        command += ["-EFchorus=0", "-EFdelay=0", "-EFresamp=g", "--no-polyphony-reduction", "-o", str(sound), str(midi)]
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
    if command[0] == "timidity":
        # Timidity begins to write at the first note-on and leaves the guard before it out.
        samples = np.pad(samples, ((round(_GUARD_SECONDS * SAMPLING_RATE), 0), (0, 0)))
    return samples.mean(axis=1)


def render_notes(font_file: Path, notes: list[Note]) -> Iterator[tuple[Note, np.ndarray]]:
    """Renders notes dry with fluidsynth (`.sf2`) or Timidity (`.cfg` with GUS patches), one program at a time.

    Args:
        font_file: the font on disk.
        notes: notes as `plan_notes` lists them.

    Yields:
        Each note with its float32 samples at 44.1 kHz, shape `[samples]`; a note the font lacks is silent.

    Raises:
        RenderError: the synthesiser is missing or failed.
    """
    programs: dict[tuple[int, int], list[Note]] = {}
    for note in notes:
        programs.setdefault((note.channel, note.program), []).append(note)
    with tempfile.TemporaryDirectory(prefix="sound-corpus-") as folder:
        for group in programs.values():
            samples = _synthesise(font_file, _midi_file(group), Path(folder))
            start = 0.0
            for note in group:
                start += _GUARD_SECONDS
                first = round(start * SAMPLING_RATE)
                yield note, samples[first : first + round(note.length_s * SAMPLING_RATE)]
                start += note.length_s
