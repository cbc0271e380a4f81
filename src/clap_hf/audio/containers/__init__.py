"""Check the structure of sound files: cuts, lost pages and frames, and streams that follow each other in one file.

Decoders pass over much of this in silence. Headers are read and, for Ogg, checksums; nothing is decoded. Memory is
constant.
"""

from __future__ import annotations

import math
import os

from . import chunks, flac, mp3, ogg
from .structure import Damage, File, Part, PartFile, Reader, Structure

__all__ = ["Damage", "File", "Part", "PartFile", "Structure", "inspect"]


def inspect(file: File, until_s: float = math.inf) -> Structure:
    """Find the streams of a sound file and what is wrong with it.

    Args:
        file: the file; its position is set to the beginning.
        until_s: end of the part of the sound that will be decoded, seconds; what lies behind may go unchecked.

    Returns:
        The streams and the damage; for a format without checks the whole file and no damage.
    """
    size = file.seek(0, os.SEEK_END)
    reader = Reader(file)
    magic = reader.at(0, 16)
    start = mp3.after_tags(reader, 0, size)
    if magic[:4] == b"OggS":
        structure = ogg.inspect(reader, size, until_s)
    elif magic[:4] in chunks.LAYOUTS or magic == chunks.W64:
        structure = chunks.inspect(reader, 0, size)
    elif magic[:4] == b".snd":
        structure = chunks.inspect_au(reader, size)
    elif magic == b"Creative Voice F":
        structure = chunks.inspect_voc(reader, size)
    elif magic[:7] == b"NIST_1A":
        structure = chunks.inspect_nist(reader, size)
    elif magic == chunks.ASF:
        structure = chunks.inspect_asf(reader, size)
    elif reader.at(start, 4) == b"fLaC":
        structure = flac.inspect(reader, start, size, until_s)
    else:
        structure = mp3.inspect(reader, start, size, until_s)
    file.seek(0)
    return structure
