"""MPEG audio: a walk from frame to frame, of which the first may be a tag (Xing, Info, VBRI) with their number."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from .structure import TRAILING, Damage, Part, Reader, Structure

_LOW_RATES = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_BITRATES = {  # kbit/s of the indices 1 to 14, by MPEG version (1, or 2 and 2.5) and layer
    (1, 1): tuple(range(32, 449, 32)),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): _LOW_RATES,
    (2, 3): _LOW_RATES,
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version bits
_BEFORE = 8192  # bytes in which the first frame is looked for
_HEADER = 54  # bytes of a frame in which a tag shows


@dataclass(frozen=True)
class _Frame:
    """A frame's size, bytes; its samples; their rate, Hz; its layer; and where a Xing tag stands in it, bytes."""

    size: int
    samples: int
    rate: int
    layer: int
    tag_at: int


@lru_cache(1024)
def _frame(header: bytes) -> _Frame | None:
    """Parse the four bytes of a frame header; None for anything else, and for free bitrates."""
    bits = int.from_bytes(header, "big")
    version, layer, bitrate, rate = bits >> 19 & 3, 4 - (bits >> 17 & 3), bits >> 12 & 15, bits >> 10 & 3
    if len(header) < 4 or bits >> 21 != 0x7FF or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    generation, hz = 1 if version == 3 else 2, _RATES[version][rate]
    samples = 384 if layer == 1 else 576 if (generation, layer) == (2, 3) else 1152
    slot = 4 if layer == 1 else 1
    slots = samples // 8 * _BITRATES[generation, layer][bitrate - 1] * 1000 // (hz * slot)
    mono = bits >> 6 & 3 == 3
    side = (17 if mono else 32) if generation == 1 else (9 if mono else 17)
    return _Frame((slots + (bits >> 9 & 1)) * slot, samples, hz, layer, 4 + side)


def _stated_frames(data: bytes, frame: _Frame) -> int | None:
    """Number of frames that a tag states, 0 where it does not state it; None where the frame is no tag."""
    at = frame.tag_at
    if data[at : at + 4] in (b"Xing", b"Info"):
        flags, frames = struct.unpack_from(">II", data, at + 4)
        return (frames if flags & 1 else 0) if flags < 16 else None
    if data[36:40] == b"VBRI":
        return int.from_bytes(data[50:54], "big")
    return None


def after_tags(reader: Reader, position: int, size: int) -> int:
    """Position behind the ID3, APE and lyrics tags that begin here."""
    while True:
        data = reader.at(position, 32)
        if data[:3] == b"ID3" and len(data) >= 10 and max(data[6:10]) < 128:
            length = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
            length += 10 if data[5] & 0x10 else 0
        elif data[:8] == b"APETAGEX" and len(data) == 32:
            is_header = data[23] & 0x20
            length = 32 + int.from_bytes(data[12:16], "little") if is_header else 32
        elif data[:3] == b"TAG":
            length = 128
        elif data[:11] == b"LYRICSBEGIN":
            end = reader.find(b"LYRICS200", position)
            length = 0 if end is None else end + 9 - position
        else:
            return position
        if not length or position + length > size:
            return position
        position += length


def inspect(reader: Reader, start: int, size: int, until_s: float) -> Structure:
    """Follow the frames, which show cuts, lost pieces and concatenated streams.

    Args:
        reader: reads the file.
        start: where the first frame stands, bytes.
        size: end of the file, bytes.
        until_s: with a tag that states the length, the walk ends there, seconds.

    Returns:
        Streams and damage; the whole file where its frames cannot be followed.
    """
    parts: list[Part] = []
    damage: list[Damage] = []
    if not _frames_follow(reader, start, size, 2):
        beginning = reader.at(start, _BEFORE)
        found = beginning.find(b"\xff", 1)
        while found >= 0 and not _frames_follow(reader, start + found, size, 4):
            found = beginning.find(b"\xff", found + 1)
        if found < 0:
            return Structure([Part(0, size)])
        if any(beginning[:found]):  # zeros are padding
            damage.append(Damage(f"{found} bytes before the first frame are no tag"))
        start += found
    first = _frame(reader.at(start, 4))
    assert first is not None
    position, part_start, begin, number, stated, seconds = start, 0, start, 0, None, 0.0
    bitrates: set[int] = set()

    def end_part(end: int) -> None:
        if stated and not stated <= number <= stated + 1:  # some encoders leave out the last one, or count the tag
            damage.append(Damage(f"the tag states {stated} frames, {number} are there", seconds))
        # Of a stream without a tag, decoders estimate the length from the first frame and the size of the file.
        if stated is None and len(bitrates) > 1 and first.layer == 3:
            parts.append(Part(begin, end, _tag(reader.at(begin, 4), number)))
        else:
            samples = number * first.samples
            known = stated is None  # not from a tag, which states what to cut off
            parts.append(Part(part_start, end, frames=samples if known else None, coded=None if known else samples))

    while position < size:
        data = reader.at(position, _HEADER)
        frame = _frame(data[:4])
        if frame is not None and frame.samples == first.samples and frame.rate == first.rate:
            if position + frame.size > size:
                damage.append(Damage("the file ends inside a frame", seconds))
                break
            tag = _stated_frames(data, frame) if len(data) == _HEADER else None
            if tag is not None and position > begin:
                end_part(position)
                part_start, begin, number = position, position, 0
                bitrates.clear()
            if tag is not None:
                stated = tag
            else:
                number += 1
                bitrates.add(data[2] >> 4)
                seconds += frame.samples / frame.rate
                if stated and seconds > until_s:
                    return Structure([*parts, Part(part_start, size)], damage)
            position += frame.size
            continue
        behind = after_tags(reader, position, size)
        if behind > position:
            position = behind
            continue
        lost, position = position, _next_frame(reader, position + 1, size)
        if position < size or position - lost > TRAILING or any(reader.at(lost, size - lost)):  # zeros are padding
            damage.append(Damage(f"{position - lost} bytes from byte {lost} on are no frames", seconds, seconds))
        frame = _frame(reader.at(position, 4))
        if frame is not None and frame.rate != first.rate:  # another stream, which its own header describes
            end_part(lost)
            following = inspect(reader, position, size, until_s)
            return Structure([*parts, Part(position, size), *following.parts[1:]], damage + following.damage)
    end_part(size)
    return Structure(parts, damage)


def _frames_follow(reader: Reader, position: int, size: int, count: int) -> bool:
    """Whether `count` frames of one kind, or fewer up to the end of the file, stand at a position."""
    kinds = set()
    for _ in range(count):
        frame = _frame(reader.at(position, 4))
        if frame is None:
            return False
        kinds.add((frame.samples, frame.rate))
        position += frame.size
        if position >= size:
            break
    return len(kinds) == 1


def _next_frame(reader: Reader, position: int, size: int) -> int:
    """Where two frames follow each other next, or the end of the file."""
    while (found := reader.find(b"\xff", position)) is not None:
        if found + 4 < size and _frames_follow(reader, found, size, 2):
            return found
        position = found + 1
    return size


def _tag(header: bytes, frames: int) -> bytes:
    """An Info frame that states a number of frames, for a stream whose first frame has this header."""
    for bitrate in range(1, 15):
        bits = int.from_bytes(header, "big") & ~0xF200 | 1 << 16 | bitrate << 12  # no checksum, no padding
        frame = _frame(bits.to_bytes(4, "big"))
        if frame is not None and frame.size >= frame.tag_at + 140:
            content = bits.to_bytes(4, "big").ljust(frame.tag_at, b"\0") + b"Info" + struct.pack(">II", 1, frames)
            return content.ljust(frame.size, b"\0")
    return b""
