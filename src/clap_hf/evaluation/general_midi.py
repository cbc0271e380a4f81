"""General MIDI: which program sounds like what."""

from __future__ import annotations

# Families as (first program, program after the last, name). Sound effects and percussion programs are left out.
_FAMILIES = (
    (0, 8, "piano"),
    (8, 16, "mallet"),
    (16, 21, "organ"),
    (21, 24, "reed"),
    (24, 32, "guitar"),
    (32, 40, "bass"),
    (40, 52, "strings"),
    (52, 55, "vocal"),
    (55, 56, "strings"),
    (56, 64, "brass"),
    (64, 72, "reed"),
    (72, 80, "flute"),
    (80, 88, "synth lead"),
    (88, 96, "synth pad"),
    (104, 109, "guitar"),
)
FAMILY = {program: name for first, stop, name in _FAMILIES for program in range(first, stop)}

_NAMES_FROM_0 = (
    "acoustic grand piano",
    "bright acoustic piano",
    "electric grand piano",
    "honky-tonk piano",
    "electric piano",
    "chorused electric piano",
    "harpsichord",
    "clavinet",
    "celesta",
    "glockenspiel",
    "music box",
    "vibraphone",
    "marimba",
    "xylophone",
    "tubular bells",
    "dulcimer",
    "drawbar organ",
    "percussive organ",
    "rock organ",
    "church organ",
    "reed organ",
    "accordion",
    "harmonica",
    "bandoneon",
    "nylon-string guitar",
    "steel-string guitar",
    "jazz guitar",
    "clean electric guitar",
    "muted electric guitar",
    "overdriven guitar",
    "distorted guitar",
    "guitar harmonics",
    "acoustic bass",
    "fingered electric bass",
    "picked electric bass",
    "fretless bass",
    "slap bass",
    "slap bass",
    "synth bass",
    "synth bass",
    "violin",
    "viola",
    "cello",
    "double bass",
    "tremolo strings",
    "pizzicato strings",
    "harp",
    "timpani",
    "string ensemble",
    "slow string ensemble",
    "synth strings",
    "synth strings",
    "choir singing aahs",
    "voice oohs",
    "synth voice",
    "orchestra hit",
    "trumpet",
    "trombone",
    "tuba",
    "muted trumpet",
    "french horn",
    "brass section",
    "synth brass",
    "synth brass",
    "soprano saxophone",
    "alto saxophone",
    "tenor saxophone",
    "baritone saxophone",
    "oboe",
    "english horn",
    "bassoon",
    "clarinet",
    "piccolo",
    "flute",
    "recorder",
    "pan flute",
    "blown bottle",
    "shakuhachi",
    "whistle",
    "ocarina",
    "square-wave synth lead",
    "sawtooth synth lead",
    "calliope lead",
    "chiff lead",
    "charang lead",
    "voice lead",
    "fifths lead",
    "bass and lead synth",
    "new age pad",
    "warm pad",
    "polysynth pad",
    "choir pad",
    "bowed pad",
    "metallic pad",
    "halo pad",
    "sweep pad",
)
_NAMES_FROM_104 = ("sitar", "banjo", "shamisen", "koto", "kalimba")
PROGRAM_NAME = dict(enumerate(_NAMES_FROM_0)) | dict(enumerate(_NAMES_FROM_104, start=104))

_DRUMS = {
    "kick drum": (35, 36),
    "rimshot": (37,),
    "snare drum": (38, 40),
    "hand clap": (39,),
    "tom drum": (41, 43, 45, 47, 48, 50),
    "closed hi-hat": (42, 44),
    "open hi-hat": (46,),
    "crash cymbal": (49, 52, 55, 57),
    "ride cymbal": (51, 53, 59),
    "tambourine": (54,),
    "cowbell": (56,),
    "vibraslap": (58,),
    "conga or bongo": (60, 61, 62, 63, 64),
    "timbale": (65, 66),
    "agogo bell": (67, 68),
    "shaker": (69, 70),
    "whistle": (71, 72),
    "guiro": (73, 74),
    "woodblock": (75, 76, 77),
    "cuica": (78, 79),
    "triangle": (80, 81),
}
DRUM_NAME = {note: name for name, notes in sorted(_DRUMS.items(), key=lambda item: item[1]) for note in notes}


def register_name(midi: int) -> str:
    """Names the register of a note.

    Args:
        midi: MIDI note number.

    Returns:
        `very low` (below E2), `low` (to D3), `medium` (to A4), `high` (to A5) or `very high`.
    """
    for top, name in ((39, "very low"), (50, "low"), (69, "medium"), (81, "high")):
        if midi <= top:
            return name
    return "very high"
