"""Sounds inside game archives, read into memory.

Four kinds pay: zip files under other names (.pk3, .wz, .love), Transport Tycoon sample catalogues (.cat), Doom WADs
and OpenClonk groups. Each reader yields the member's name as the manifest spells it, and the bytes of a playable file.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

Member = tuple[str, bytes]

_AUDIO_SUFFIXES = (".ogg", ".oga", ".wav", ".mp3", ".flac", ".aiff", ".aif", ".au", ".opus")


def read_zip(path: Path) -> Iterator[Member]:
    """Yield the sounds of a zip archive.

    Args:
        path: The archive.

    Yields:
        `<archive name>.d/<member>` and the member's bytes.
    """
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.lower().endswith(_AUDIO_SUFFIXES):
                yield f"{path.name}.d/{info.filename}", archive.read(info)


def read_ttd_catalogue(path: Path) -> Iterator[Member]:
    """Yield the sounds of a Transport Tycoon Deluxe sample catalogue, the format of OpenTTD's base sounds.

    The file opens with pairs of 32-bit offset and size, one a sound; at each offset lie a title and a RIFF file.

    Args:
        path: The `.cat` file.

    Yields:
        `opensfx/osfx_<number>.wav` and the bytes of the wav file.
    """
    data = path.read_bytes()
    # The top bit of the first offset separates old files from new ones; it is not part of the offset.
    count = (struct.unpack_from("<I", data, 0)[0] & 0x7FFFFFFF) // 8
    for index in range(count):
        offset = struct.unpack_from("<I", data, 8 * index)[0] & 0x7FFFFFFF
        start = data.index(b"RIFF", offset)
        size = struct.unpack_from("<I", data, start + 4)[0] + 8
        yield f"opensfx/osfx_{index:02d}.wav", data[start : start + size]


def read_doom_wad(path: Path) -> Iterator[Member]:
    """Yield the digital sounds (`DS…` lumps, unsigned 8 bit) of a Doom WAD.

    Args:
        path: The `.wad` file.

    Yields:
        `<wad name>/<lump>.wav` and the bytes of a wav file.
    """
    data = path.read_bytes()
    count, directory = struct.unpack_from("<II", data, 4)
    for index in range(count):
        offset, size, raw_name = struct.unpack_from("<II8s", data, directory + 16 * index)
        name = raw_name.split(b"\0")[0].decode("latin1")
        # A sound lump: format 3, rate, sample count, 16 bytes of padding, the samples, 16 bytes of padding.
        if not name.startswith("DS") or size <= 40 or data[offset : offset + 2] != b"\x03\0":
            continue
        rate, length = struct.unpack_from("<HI", data, offset + 2)
        samples = np.frombuffer(data[offset + 24 : offset + 8 + length - 16], np.uint8).astype(np.int16) - 128
        buffer = io.BytesIO()
        soundfile.write(buffer, samples * 256, rate, format="WAV", subtype="PCM_16")
        yield f"{path.name}/{name}.wav", buffer.getvalue()


def _clonk_group(data: bytes, prefix: str) -> Iterator[Member]:
    if data[:2] in (b"\x1e\x8c", b"\x1f\x8b"):
        data = gzip.decompress(b"\x1f\x8b" + data[2:])
    # The 204-byte head is scrambled: bytes 0 and 2 of each triple swapped, then all xored with 237.
    head = bytearray(data[:204])
    for start in range(0, 202, 3):
        head[start], head[start + 2] = head[start + 2], head[start]
    head = bytearray(byte ^ 237 for byte in head)
    if not head.startswith(b"RedWolf Design"):
        raise ValueError("expected an OpenClonk group (its head names RedWolf Design), found another file")
    count = struct.unpack_from("<I", head, 36)[0]
    body = 204 + 316 * count
    for index in range(count):
        entry = 204 + 316 * index
        name = data[entry : entry + 260].split(b"\0")[0].decode("latin1")
        _packed, is_group, size, _entry_size, offset = struct.unpack_from("<IIIII", data, entry + 260)
        content = data[body + offset : body + offset + size]
        if is_group:
            yield from _clonk_group(content, f"{prefix}{name}/")
        elif name.lower().endswith(_AUDIO_SUFFIXES):
            yield f"{prefix}{name}", content


def read_clonk_group(path: Path) -> Iterator[Member]:
    """Yield the sounds of an OpenClonk group and of the groups inside it.

    Args:
        path: The `.ocg` or `.ocd` file.

    Yields:
        `clonk/<inner group>/…/<member>` and the member's bytes.

    Raises:
        ValueError: The file is no group.
    """
    yield from _clonk_group(path.read_bytes(), "clonk/")


ARCHIVE_READERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Iterator[Member]]]] = {
    "zip": ((".zip", ".pk3", ".wz", ".love"), read_zip),
    "ttd": ((".cat",), read_ttd_catalogue),
    "wad": ((".wad",), read_doom_wad),
    "clonk": ((".ocg", ".ocd"), read_clonk_group),
}
