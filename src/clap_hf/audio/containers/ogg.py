"""Ogg (RFC 3533): sequence numbers and checksums of pages, links of chained streams."""

from __future__ import annotations

import struct
import zlib

from .structure import Damage, Part, Reader, Structure

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_BEGINS, _ENDS = 2, 4  # flags of a stream's first and last page


def checksum(page: bytes) -> int:
    """CRC-32 of a page whose own checksum field is zero: zlib's polynomial with the bits in the other order."""
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def inspect(reader: Reader, size: int, until_s: float) -> Structure:
    """Check every page. A link of a chain begins with a page that begins a stream, after pages that do not."""
    starts: list[int] = []
    damage: list[Damage] = []
    expected: dict[int, int] = {}  # the next page's sequence number, by stream
    unfinished: set[int] = set()
    rate, link_s, first_s, before_s = 0.0, 0.0, 0.0, 0.0
    position, corrupt, beginning = 0, False, False
    while position < size and before_s <= until_s:
        page = _page(reader, position)
        if page is None:  # what decoders pass over: damage, or a tag behind the last page
            following = reader.find(b"OggS", position + 1)
            corrupt |= following is not None or reader.at(position, 4) == b"OggS"
            position = size if following is None else following
            continue
        flags, granule, serial, number = struct.unpack_from("<BqII", page, 5)
        begins = bool(flags & _BEGINS)
        now_s = before_s
        if begins and not beginning:
            if unfinished:
                damage.append(Damage("a stream ends without its last page", before_s, before_s))
            unfinished.clear()
            link_s, first_s, rate = before_s, 0.0, _granules_per_s(page)
            starts.append(position)
        elif not starts:
            starts.append(0)
            damage.append(Damage("the first page of the stream is missing or damaged"))
        elif rate and granule > 0:
            first_s = first_s or max(granule / rate - 2.0, 1e-9)  # cut out of a longer stream, it starts late
            now_s = max(link_s + granule / rate - first_s, before_s)
        if corrupt or (not begins and number != expected.get(serial, number)):
            damage.append(Damage(f"Ogg pages are missing or damaged before byte {position}", before_s, now_s))
        expected[serial] = number + 1 & 0xFFFF_FFFF
        (unfinished.discard if flags & _ENDS else unfinished.add)(serial)
        before_s, corrupt, beginning = now_s, False, begins
        position += len(page)
    if position >= size and (unfinished or corrupt):
        damage.append(Damage("the file ends before the stream's last page", before_s))
    starts[:1] = [0]
    return Structure([Part(*ends) for ends in zip(starts, [*starts[1:], size], strict=True)], damage)


def _page(reader: Reader, position: int) -> bytes | None:
    """The page at a position, if it is whole and its checksum right."""
    header = reader.at(position, 27 + 255)
    if len(header) < 27 or header[:4] != b"OggS":
        return None
    length = 27 + header[26] + sum(header[27 : 27 + header[26]])
    page = reader.at(position, length)
    if len(page) < length:
        return None
    stated = int.from_bytes(page[22:26], "little")
    return page if checksum(page[:22] + bytes(4) + page[26:]) == stated else None


def _granules_per_s(page: bytes) -> float:
    """Granules per second of the stream that begins with this page, 0 where that is unknown."""
    packet = page[27 + page[26] :]
    if packet[:8] == b"OpusHead":
        return 48_000.0
    if packet[:7] == b"\x01vorbis":
        return float(int.from_bytes(packet[12:16], "little"))
    if packet[:5] == b"\x7fFLAC":
        return float(int.from_bytes(packet[27:30], "big") >> 4)
    return 0.0
