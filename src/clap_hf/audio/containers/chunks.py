"""RIFF, RF64, W64, AIFF, CAF and VOC: chunks, some of which hold the samples; AU and NIST, which have one header."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator

from .structure import TRAILING, Damage, Part, Reader, Structure

ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
LAYOUTS = {  # a chunk's header, what chunks are padded to in bytes, and where the first one stands
    b"RIFF": ("<4sI", 2, 12),
    b"RF64": ("<4sI", 2, 12),
    b"RIFX": (">4sI", 2, 12),
    b"FORM": (">4sI", 2, 12),
    b"caff": (">4sQ", 1, 8),
    W64[:4]: ("<16sQ", 8, 40),
}
_SAMPLES = {b"data", b"SSND"}
_UNKNOWN_SIZE = 0x7FF0_0000  # programs that cannot seek back state 0xFFFFFFFF, 0x7FFFFFFF and nearby
_PLAIN_AIFF = {  # bytes a sample, 0 where the header's number of bits decides
    **dict.fromkeys((b"", b"NONE", b"sowt", b"twos"), 0),
    **dict.fromkeys((b"ulaw", b"alaw", b"ULAW", b"ALAW"), 1),
    **{b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8},
}

_AU_BYTES = {3: 2, 4: 3, 5: 4, 6: 4, 7: 8}  # a sample, by encoding; one for the others


def inspect(reader: Reader, first: int, size: int) -> Structure:
    """Check that chunks follow each other to the end of the file, and that stated sizes agree with each other.

    Args:
        reader: reads the file.
        first: where the first header stands, bytes.
        size: end of the file, bytes.
    """
    magic = reader.at(first, 4)
    layout, align, offset = LAYOUTS[magic]
    header_size = struct.calcsize(layout)
    structure = Structure([Part(first, size)])
    form_end = size
    if magic in (b"RIFF", b"RIFX", b"FORM"):
        form_end = first + 8 + struct.unpack(f"{layout[0]}I", reader.at(first + 4, 4).ljust(4))[0]
    contents: dict[bytes, tuple[bytes, int]] = {}  # first bytes of a chunk and its length
    position = first + offset
    while position + header_size <= size and not (position >= form_end and contents.keys() & _SAMPLES):
        name, length = struct.unpack(layout, reader.at(position, header_size))
        name = name[:4]
        start = position + header_size
        if not name.isascii() or not name.decode().isprintable():
            if not contents.keys() & _SAMPLES:
                structure.damage.append(Damage(f"no chunk at byte {position}"))
                return structure
            break
        if name == magic and contents.keys() & _SAMPLES:  # another file
            break
        if magic == W64[:4]:
            length -= header_size
        elif magic == b"RF64" and name == b"data" and length == 0xFFFF_FFFF:
            length = int.from_bytes(contents.get(b"ds64", (b"", 0))[0][8:16], "little")
        if start + length > size:
            if name == b"data" and (_UNKNOWN_SIZE <= length < 1 << 32 or length == (1 << 64) - 1):
                length = size - start
            else:
                stated = f"the chunk {name.decode()!r} states {length} bytes, {size - start} are there"
                structure.damage.append(Damage(stated, math.inf))
                return structure
        contents[name] = (reader.at(start, min(length, 64)), length)
        end = start + length
        position = first - (first - end) // align * align
        if position > end and reader.at(end, 4) in (b"LIST", b"RIFF", b"FORM", b"id3 ", b"fact"):
            position = end  # written without padding
    if magic == b"FORM" and position > form_end + align:  # libsndfile reads to the end that the form states
        structure.damage.append(Damage(f"the form states {form_end - first} bytes, {position - first} are there"))
    structure.damage += [Damage(reason) for reason in _contradictions(contents, layout[0])]
    if magic in (b"RIFF", b"RIFX", b"FORM") and size - position > 44 and reader.at(position, 4) == magic:
        following = inspect(reader, position, size)
        structure = Structure([Part(first, position), *following.parts], structure.damage + following.damage)
    elif size - position > TRAILING or (size > position and form_end > position + header_size):
        structure.damage.append(Damage(f"{size - position} bytes after the last chunk belong to nothing"))
    return structure


def _contradictions(contents: dict[bytes, tuple[bytes, int]], order: str) -> Iterator[str]:
    """What headers of uncompressed samples state that cannot be true together."""
    head, _ = contents.get(b"fmt ", (b"", 0))
    if len(head) >= 16:
        kind, channels, _, _, block, bits = struct.unpack_from(f"{order}HHIIHH", head)
        if kind in (1, 3, 6, 7) and channels and (block % channels or block // channels * 8 < bits):
            yield f"the 'fmt ' chunk states {channels} channels of {bits} bits in {block} bytes"
        length = contents.get(b"data", (b"", 0))[1]
        if kind in (1, 3, 6, 7, 0xFFFE) and block and length % block:
            yield f"the 'data' chunk holds {length} bytes, which is no multiple of {block}"
    (head, _), (samples, length) = contents.get(b"COMM", (b"", 0)), contents.get(b"SSND", (b"", 0))
    if len(head) >= 18 and len(samples) >= 8 and head[18:22] in _PLAIN_AIFF:
        length -= int.from_bytes(samples[:4], "big")  # an offset
        channels, frames, bits = struct.unpack_from(">hIh", head)
        stated = frames * channels * (_PLAIN_AIFF[head[18:22]] or -(-bits // 8))
        if abs(stated - (length - 8)) > 1:
            yield f"the 'COMM' chunk states {stated} bytes of samples, {length - 8} are there"


def inspect_au(reader: Reader, size: int) -> Structure:
    """Check the size that an AU header states."""
    structure = Structure([Part(0, size)])
    header = reader.at(4, 20)
    if len(header) == 20:
        start, stated, encoding, _, channels = struct.unpack(">5I", header)
        there = size - start
        if stated < _UNKNOWN_SIZE and not 0 <= there - stated <= TRAILING:
            structure.damage.append(Damage(f"the header states {stated} bytes of samples, {there} are there"))
        frame = _AU_BYTES.get(encoding, 1) * max(channels, 1)
        if min(stated, there) % frame:
            structure.damage.append(Damage(f"{min(stated, there)} bytes of samples are no multiple of {frame}"))
    return structure


def inspect_voc(reader: Reader, size: int) -> Structure:
    """Follow the blocks of a VOC file to the one that ends it."""
    structure = Structure([Part(0, size)])
    position = int.from_bytes(reader.at(20, 2), "little")
    while (header := reader.at(position, 4)) and header[0] != 0:
        position += 4 + int.from_bytes(header[1:], "little")
        if len(header) < 4 or header[0] > 9 or position > size:
            structure.damage.append(
                Damage("a block ends behind the end of the file, or is of no known kind", math.inf)
            )
            return structure
    if size - position > 1 + TRAILING:
        structure.damage.append(Damage(f"{size - position - 1} bytes after the last block belong to nothing"))
    return structure


def inspect_nist(reader: Reader, size: int) -> Structure:
    """Compare the number of samples that a NIST Sphere header states with the size of the file."""
    structure = Structure([Part(0, size)])
    stated = dict(re.findall(rb"^(\w+) -i (\d+)$", reader.at(0, 1024), re.MULTILINE))
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    if all(name in stated for name in names):
        samples = math.prod(int(stated[name]) for name in names)
        if not 0 <= size - 1024 - samples <= TRAILING:
            structure.damage.append(Damage(f"the header states {samples} bytes of samples, {size - 1024} are there"))
    return structure


def inspect_asf(reader: Reader, size: int) -> Structure:
    """Compare the size that the data of an ASF file (WMA) states with the file's; live streams state none."""
    structure = Structure([Part(0, size)])
    start = int.from_bytes(reader.at(16, 8), "little")  # the header comes first
    data = reader.at(start, 24) if start <= size else b""
    stated = int.from_bytes(data[16:], "little")
    if data[:16] != ASF_DATA:
        structure.damage.append(Damage("no data follows the header", math.inf))
    elif stated > size - start:
        structure.damage.append(Damage(f"the data states {stated} bytes, {size - start} are there", math.inf))
    return structure
