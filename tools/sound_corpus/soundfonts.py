"""The free soundfonts, and the notes, chords, melodies and drum hits to render from them, with exact labels."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from clap_hf.evaluation.general_midi import DRUM_NAME, FAMILY, PROGRAM_NAME, register_name
from tools.sound_corpus.captions import with_article
from tools.sound_corpus.manifest import Clip
from tools.sound_corpus.synthesis import PERCUSSION_CHANNEL, Phrase, PlayedNote

_KITS = (0, 8, 16, 24, 25, 32, 40, 48)
# MIDI notes rendered of a family: every six semitones, or every three for the dense grid of the train fonts.
_PLAIN_NOTES = {"bass": (28, 34, 40, 46, 52, 58), "flute": (60, 66, 72, 78, 84, 90)}
_OTHER_PLAIN_NOTES = (40, 48, 54, 60, 66, 72, 78, 84)
_DENSE_NOTES = {"bass": range(25, 62, 3), "flute": range(57, 97, 3)}
_OTHER_DENSE_NOTES = range(37, 89, 3)
_CHORDS = {
    "a fifth": (0, 7),
    "an octave": (0, 12),
    "a major chord": (0, 4, 7),
    "a minor chord": (0, 3, 7),
}
_MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11, 12)
_MELODIES = 4
_SINGERS = {52: "a choir", 53: "a voice", 54: "a synth voice"}
# The two kits of avldrums answer on a melodic channel with a map of their own.
_AVL_NOTES = range(36, 60)
_AVL_NAMES = {48: "open hi-hat", 50: "crash cymbal", 52: "ride cymbal"}


@dataclass(frozen=True)
class Font:
    """A soundfont inside a package.

    Args:
        package: The Debian package.
        file: File name of the font, or of the Timidity configuration.
        split: The split that all its phrases go to: fonts that share samples must share a split.
        license: License of the samples.
        layout: `gm` for a General MIDI bank, `avl` for one drum kit on a melodic channel.
        dense: Whether to render chords and melodies too, and notes every three semitones instead of every six.
        velocities: Velocities of the notes.
        hit_velocities: Velocities of the drum hits.
        kits: Drum kits, as programs of the percussion channel.
        left_out: Programs not rendered.
    """

    package: str
    file: str
    split: str
    license: str
    layout: str = "gm"
    dense: bool = False
    velocities: tuple[int, ...] = (35, 80, 120)
    hit_velocities: tuple[int, ...] = (50, 85, 120)
    kits: tuple[int, ...] = _KITS
    left_out: tuple[int, ...] = ()


_TRAIN_VELOCITIES = (35, 60, 90, 120)
# MuseScore General holds 751 samples of FluidR3, so the two stay together. TimGM6mb shares none with them; the csound
# bank shares 245 of its 379 samples with TimGM6mb and is left out. FreePats, the only other recorded bank, stands for
# unseen fonts when a checkpoint is chosen: it has one layer a note, hence one velocity, and its English horn and
# ocarina are those of TimGM6mb. The OPL3 bank imitates a two-operator FM chip, where velocity is level alone.
FONTS = (
    Font("fluid-soundfont-gm", "FluidR3_GM.sf2", "train", "MIT", dense=True, velocities=_TRAIN_VELOCITIES),
    Font(
        "musescore-general-soundfont-lossless",
        "MuseScore_General_Full.sf2",
        "train",
        "MIT",
        dense=True,
        velocities=_TRAIN_VELOCITIES,
    ),
    Font("opl3-soundfont", "OPL-3_FM_128M.sf2", "train", "CC-BY-SA-4.0", dense=True, velocities=(60, 120), kits=(0,)),
    Font("avldrums.lv2-soundfont", "Black_Pearl_4_LV2.sf2", "train", "CC-BY-SA-3.0", layout="avl"),
    Font("avldrums.lv2-soundfont", "Red_Zeppelin_4_LV2.sf2", "train", "CC-BY-SA-3.0", layout="avl"),
    Font(
        "freepats",
        "freepats.cfg",
        "validation",
        "GPL-2+ with an exception for compositions",
        velocities=(80,),
        hit_velocities=(85,),
        kits=(0,),
        left_out=(69, 79),
    ),
    Font("timgm6mb-soundfont", "TimGM6mb.sf2", "test", "GPL-2"),
)


def _instrument_clip(font: Font, program: int, what: str, caption: str) -> Clip:
    label = PROGRAM_NAME[program]
    return Clip(
        id=f"{font.package}/{Path(font.file).stem}-program{program:03d}-{what}",
        package=font.package,
        path=font.file,
        split=font.split,
        category="instrument",
        quality="named",
        label=label,
        caption=caption,
        license=font.license,
        raw_label=label,
        family=FAMILY[program],
        program=program,
    )


def _single_notes(font: Font, program: int) -> list[Phrase]:
    family = FAMILY[program]
    grid = _DENSE_NOTES.get(family, _OTHER_DENSE_NOTES) if font.dense else _PLAIN_NOTES.get(family, _OTHER_PLAIN_NOTES)
    phrases = []
    for midi in grid:
        register = register_name(midi)
        for velocity in font.velocities:
            clip = _instrument_clip(
                font,
                program,
                f"note{midi:03d}-velocity{velocity:03d}",
                f"a {register} pitched {PROGRAM_NAME[program]} note",
            )
            clip = replace(clip, midi=midi, velocity=velocity, register=register)
            phrases.append(Phrase(clip, 0, program, (PlayedNote(0.0, 1.4, midi, velocity),), length_s=2.0))
    return phrases


def _performer(program: int) -> str:
    if program in _SINGERS:
        return f"{_SINGERS[program]} singing"
    return f"{with_article(PROGRAM_NAME[program])} playing"


def _chords_and_melodies(font: Font, program: int) -> list[Phrase]:
    # Seeded by names, so that no font's music depends on which others are rendered.
    chance = random.Random(f"{font.file} {program}")
    grid = _DENSE_NOTES.get(FAMILY[program], _OTHER_DENSE_NOTES)
    roots = range(grid[0] + 6, grid[-1] - 12)
    performer = _performer(program)
    phrases = []
    for name, intervals in _CHORDS.items():
        root, velocity = chance.choice(roots), chance.choice(_TRAIN_VELOCITIES)
        clip = _instrument_clip(
            font, program, f"chord-{name.split(' ', 1)[1].replace(' ', '-')}", f"{performer} {name}"
        )
        notes = tuple(PlayedNote(0.0, 1.8, root + interval, velocity) for interval in intervals)
        phrases.append(Phrase(clip, 0, program, notes, length_s=2.5))
    for number in range(1, _MELODIES + 1):
        root, velocity = chance.choice(roots), chance.choice(_TRAIN_VELOCITIES)
        beat = chance.choice((0.25, 0.4, 0.6))
        steps = [chance.choice(_MAJOR_SCALE) for _ in range(4)]
        clip = _instrument_clip(font, program, f"melody{number}", f"{performer} a short melody")
        notes = tuple(PlayedNote(beat * index, beat, root + step, velocity) for index, step in enumerate(steps))
        phrases.append(Phrase(clip, 0, program, notes, length_s=4 * beat + 0.6))
    return phrases


def _drum_hit(font: Font, kit: int, midi: int, velocity: int) -> Phrase:
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
        caption=f"{with_article(label)} hit",
        license=font.license,
        raw_label=label,
        midi=midi,
        velocity=velocity,
        kit=f"{stem} {kit}",
    )
    channel = 0 if is_avl else PERCUSSION_CHANNEL
    return Phrase(clip, channel, kit, (PlayedNote(0.0, 0.8, midi, velocity),), length_s=1.2)


def plan_phrases(font: Font) -> list[Phrase]:
    """List what to render from a font.

    Args:
        font: The font.

    Returns:
        The phrases, those of one program side by side.
    """
    if font.layout == "avl":
        return [_drum_hit(font, 0, midi, velocity) for midi in _AVL_NOTES for velocity in font.hit_velocities]
    phrases: list[Phrase] = []
    for program in sorted(set(FAMILY) - set(font.left_out)):
        phrases += _single_notes(font, program)
        if font.dense:
            phrases += _chords_and_melodies(font, program)
    for kit in font.kits:
        phrases += [
            _drum_hit(font, kit, midi, velocity) for midi in sorted(DRUM_NAME) for velocity in font.hit_velocities
        ]
    return phrases
