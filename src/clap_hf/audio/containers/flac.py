"""FLAC (RFC 9639): concatenated streams, and the length of streams that do not state it."""

from __future__ import annotations

from .structure import Damage, Part, Reader, Structure

_STREAMINFO = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
_HEAD = 42  # bytes up to the end of the first block of metadata
_TAIL = 1 << 17  # bytes at the end in which the last frame is looked for
_TRIES = 8  # frame headers: now and then samples look like one


def inspect(reader: Reader, start: int, size: int, until_s: float) -> Structure:
    """Find the streams of concatenated files, and the length of one that was written to a pipe.

    Args:
        reader: reads the file.
        start: where the first stream begins, bytes.
        size: end of the file, bytes.
        until_s: where the first stream reaches beyond it, the rest is not looked at, seconds.
    """
    rate, total = _length(reader.at(start, _HEAD))
    if not rate or until_s <= total / rate:
        return Structure([Part(0, size)])
    starts, position = [start], start + _HEAD
    while (found := reader.find(b"fLaC", position)) is not None:
        if reader.at(found, 8) in _STREAMINFO:
            starts.append(found)
        position = found + 4
    structure = Structure([])
    for begin, end in zip(starts, [*starts[1:], size], strict=True):
        head = bytearray(reader.at(begin, _HEAD))
        stated = _length(head)[1]
        tail = reader.at(max(begin, end - _TAIL), min(_TAIL, end - begin))
        there, whole = _last_frame(tail, int.from_bytes(head[8:10], "big"))
        part = Part(begin, end)
        if len(head) == _HEAD and there and (stated != there if whole else not 0 < stated <= there):
            if not whole:
                structure.damage.append(Damage("the file ends inside a frame or too early", there / rate))
            elif stated:
                reason = f"the header states {stated} samples, the frames hold {there}"
                structure.damage.append(Damage(reason, min(stated, there) / rate))
            head[21:26] = (head[21] >> 4 << 36 | there).to_bytes(5, "big")  # decoders need the right length
            part = Part(begin + _HEAD, end, bytes(head))
        structure.parts.append(part)
    if len(starts) == 1 and not structure.parts[0].head:
        structure.parts = [Part(0, size)]
    return structure


def _length(head: bytes | bytearray) -> tuple[int, int]:
    """Sampling rate, Hz, and number of samples that a stream's first bytes state; 0 where they do not."""
    if len(head) < _HEAD:
        return 0, 0
    return int.from_bytes(head[18:21], "big") >> 4, int.from_bytes(head[21:26], "big") & (1 << 36) - 1


def _last_frame(tail: bytes, fixed_block: int) -> tuple[int, bool]:
    """Find the last frame.

    Args:
        tail: the stream's last bytes.
        fixed_block: samples in a frame, for streams that number their frames.

    Returns:
        Number of samples up to the end of the last whole frame, 0 where none is found, and whether it ends the stream.
    """
    at = len(tail)
    firsts: list[int] = []
    while len(firsts) < _TRIES and (at := tail.rfind(b"\xff", 0, at)) >= 0:
        header = _frame_header(tail[at : at + 16])
        if header is not None:
            number, block = header
            firsts.append(number if tail[at + 1] & 1 else number * fixed_block)
            if _crc(tail[at:], _CRC_16, 16) == 0:
                return firsts[-1] + block, True
    return max(firsts, default=0), False


def _frame_header(data: bytes) -> tuple[int, int] | None:
    """Number and length of the frame whose header begins here, or None where its checksum is wrong."""
    code = data[2] >> 4 if len(data) > 4 else 0  # a frame of digital silence has 11 bytes or so
    if code == 0 or data[1] & 0xFE != 0xF8:
        return None
    ones = 8 - (data[4] ^ 0xFF).bit_length()  # a number in the manner of UTF-8
    extra = max(ones - 1, 0)
    number = data[4] & (0xFF >> (ones + 1))
    for byte in data[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    end = 5 + extra
    if code in (6, 7):
        block = int.from_bytes(data[end : end + code - 5], "big") + 1
        end += code - 5
    else:
        block = 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)
    end += {12: 1, 13: 2, 14: 2}.get(data[2] & 15, 0)
    if ones == 1 or end >= len(data) or _crc(data[:end], _CRC_8, 8) != data[end]:
        return None
    return number, block


def _crc_table(polynomial: int, bits: int) -> list[int]:
    """The checksum of every byte."""
    mask, top, table = (1 << bits) - 1, 1 << bits - 1, []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value & top else 0)) & mask
        table.append(value)
    return table


_CRC_8, _CRC_16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)  # of a frame's header, and of the frame


def _crc(data: bytes, table: list[int], bits: int) -> int:
    """Checksum of bytes, most significant bit first."""
    crc, mask, shift = 0, (1 << bits) - 1, bits - 8
    for byte in data:
        crc = (crc << 8 & mask) ^ table[crc >> shift ^ byte]
    return crc
