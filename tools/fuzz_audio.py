"""Decode mutated sound files and count what goes wrong: `python tools/fuzz_audio.py --files 10000 --out fuzz.json`.

Valid files of every format that the installed programs (soundfile's libsndfile, ffmpeg, sox, lame, flac, oggenc,
opusenc) can write are decoded as they are, which must raise no alarm, and then with one mutation each from a seed:
cuts, flipped bits, zeroed blocks, removed and doubled pieces, pieces of other files. Every file is decoded in a
second process, which a crash or a hang ends. With `--minutes`, a run stops early, and the same command goes on from
its record.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import shutil
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from clap_hf.audio import AudioDecodeError, load_audio

SECONDS, RATE = 3.0, 22_050
HANG_S = 90.0
SHORTER_S = 0.025  # an MP3 frame: decoders differ in what they do with the last one
SOUNDFILE = {
    "wav": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM GSM610",
    "wavex": "PCM_16 FLOAT",
    "rf64": "PCM_16",
    "w64": "PCM_16 FLOAT",
    "aiff": "PCM_S8 PCM_16 PCM_24 FLOAT ULAW IMA_ADPCM",
    "au": "PCM_16 FLOAT ULAW",
    "caf": "PCM_16 ALAC_16 FLOAT",
    "flac": "PCM_S8 PCM_16 PCM_24",
    "ogg": "VORBIS OPUS",
    "mp3": "MPEG_LAYER_III",
    "voc": "PCM_16",
    "nist": "PCM_16",
    "svx": "PCM_16",
}
# name: program and arguments; {wav} is read, {out} is written
PROGRAMS = {
    "m4a-aac": "ffmpeg -v error -i {wav} -c:a aac {out}.m4a",
    "m4a-alac": "ffmpeg -v error -i {wav} -c:a alac -movflags +faststart {out}.m4a",
    "aac-adts": "ffmpeg -v error -i {wav} -c:a aac {out}.aac",
    "wma": "ffmpeg -v error -i {wav} -c:a wmav2 {out}.wma",
    "webm-opus": "ffmpeg -v error -i {wav} -c:a libopus {out}.webm",
    "mka-vorbis": "ffmpeg -v error -i {wav} -c:a libvorbis {out}.mka",
    "mka-flac": "ffmpeg -v error -i {wav} -c:a flac {out}.mka",
    "ac3": "ffmpeg -v error -i {wav} -ar 32000 -c:a ac3 {out}.ac3",
    "wavpack": "ffmpeg -v error -i {wav} -c:a wavpack {out}.wv",
    "tta": "ffmpeg -v error -i {wav} -c:a tta {out}.tta",
    "ogg-flac": "ffmpeg -v error -i {wav} -c:a flac {out}.oga",
    "mp2": "ffmpeg -v error -i {wav} -c:a mp2 {out}.mp2",
    "mp3-ffmpeg": "ffmpeg -v error -i {wav} -c:a libmp3lame {out}.mp3",
    "mp3-cover": "ffmpeg -v error -i {wav} -i {cover} -map 0 -map 1 -c:a libmp3lame -c:v copy {out}.mp3",
    "flac-cover": "ffmpeg -v error -i {wav} -i {cover} -map 0 -map 1 -c:v copy -disposition:v attached_pic {out}.flac",
    "mp3-vbr": "lame --quiet -V 4 {wav} {out}.mp3",
    "mp3-no-tag": "lame --quiet -t -b 96 {wav} {out}.mp3",
    "mp3-vbr-no-tag": "lame --quiet -t -V 2 {wav} {out}.mp3",
    "mp3-tags": "lame --quiet --add-id3v2 --pad-id3v2 --tt title --ta artist {wav} {out}.mp3",
    "mp3-id3v1": "lame --quiet --id3v1-only --tt title --ta artist {wav} {out}.mp3",
    "ogg-oggenc": "oggenc -Q -o {out}.ogg {wav}",
    "opus-opusenc": "opusenc --quiet {wav} {out}.opus",
    "flac-flac": "flac -s -8 -o {out}.flac {wav}",
    "ogg-flac-flac": "flac -s --ogg -o {out}.oga {wav}",
    "wav-ffmpeg-adpcm-ms": "ffmpeg -v error -i {wav} -c:a adpcm_ms {out}.wav",
    "wav-ffmpeg-adpcm-ima": "ffmpeg -v error -i {wav} -c:a adpcm_ima_wav {out}.wav",
    "wav-sox-adpcm": "sox {wav} -e ms-adpcm {out}.wav",
    "wav-sox-gsm": "sox {wav} -c 1 -e gsm-full-rate {out}.wav",
    "wav-sox-a-law": "sox {wav} -e a-law {out}.wav",
    "aiff-sox": "sox {wav} {out}.aiff",
    "au-sox": "sox {wav} {out}.au",
    "aiff-ffmpeg": "ffmpeg -v error -i {wav} {out}.aiff",
    "caf-ffmpeg": "ffmpeg -v error -i {wav} {out}.caf",
    "w64-ffmpeg": "ffmpeg -v error -i {wav} {out}.w64",
    "au-ffmpeg": "ffmpeg -v error -i {wav} {out}.au",
}
PIPES = {  # written to a pipe: headers without lengths
    "wav-pipe-ffmpeg": "ffmpeg -v error -i {wav} -f wav -",
    "wav-pipe-sox": "sox {wav} -t wav -",
    "flac-pipe": "flac -s -c -",
    "flac-pipe-ffmpeg": "ffmpeg -v error -i {wav} -f flac -",
    "mp3-pipe-ffmpeg": "ffmpeg -v error -i {wav} -f mp3 -",
    "ogg-pipe-ffmpeg": "ffmpeg -v error -i {wav} -c:a libvorbis -f ogg -",
    "au-pipe-sox": "sox {wav} -t au -",
    "wma-pipe": "ffmpeg -v error -i {wav} -c:a wmav2 -f asf -",
    "mka-pipe": "ffmpeg -v error -i {wav} -c:a libvorbis -f matroska -",
    "m4a-fragments": "ffmpeg -v error -i {wav} -c:a aac -movflags frag_keyframe+empty_moov -f mp4 -",
}
# Streams that state no length: cut between two frames, or with whole frames removed, they are shorter valid ones.
WITHOUT_LENGTH = (
    *("wav-pipe-ffmpeg", "mp3-pipe", "mp3-no-tag", "mp3-vbr-no-tag", "mp3-id3v1", "mp3-tags", "mp2"),
    *("chain-mp3-no-tag", "aac-adts", "wma-pipe"),
)
CHAINED = ["ogg-VORBIS", "ogg-OPUS", "ogg-oggenc", "mp3-MPEG_LAYER_III", "mp3-no-tag", "flac-PCM_16", "wav-PCM_16"]


def valid_files(folder: Path) -> dict[str, bytes]:
    """Write the same sound, mono and stereo, in every format.

    Args:
        folder: for the files that programs write.

    Returns:
        The files' bytes by format.
    """
    files: dict[str, bytes] = {}
    for channels, label in ((1, ""), (2, "-stereo")):
        time_s = np.arange(round(SECONDS * RATE)) / RATE
        noise = np.random.default_rng(0).normal(0, 0.02, (len(time_s), channels))
        tones = 0.4 * np.sin(2 * np.pi * time_s[:, None] * 330 * (1 + np.arange(channels)))
        samples = ((1 + time_s[:, None] / SECONDS) / 2 * (tones + noise)).astype("float32")
        wav, cover = folder / f"in{label}.wav", folder / "cover.png"
        soundfile.write(wav, samples, RATE, "PCM_16")
        cover.write_bytes(_png(300))
        for kind, subtypes in SOUNDFILE.items():
            for subtype in subtypes.split():
                rate = 48_000 if subtype == "OPUS" else RATE
                buffer = io.BytesIO()
                try:
                    with soundfile.SoundFile(buffer, "w", rate, channels, subtype, format=kind.upper()) as sound:
                        for block in np.array_split(samples, 32):
                            sound.write(block)
                except soundfile.SoundFileError:
                    continue  # as this libsndfile cannot
                files[f"{kind}-{subtype}{label}"] = buffer.getvalue()
        for name, command in PROGRAMS.items():
            if shutil.which(command.split()[0]):
                out = folder / f"{name}{label}"
                extension = command.rpartition("{out}")[2].split()[0]
                arguments = [word.format(wav=wav, out=out, cover=cover) for word in command.split()]
                subprocess.run(arguments, check=True, stdin=subprocess.DEVNULL)
                files[f"{name}{label}"] = Path(f"{out}{extension}").read_bytes()
        for name, command in PIPES.items():
            if shutil.which(command.split()[0]):
                arguments = [word.format(wav=wav) for word in command.split()]
                with wav.open("rb") as standard_input:
                    done = subprocess.run(
                        arguments, check=True, stdin=standard_input, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                    )
                files[f"{name}{label}"] = done.stdout
    for name in CHAINED:
        if name in files:
            files[f"chain-{name}"] = files[name] * 2
    return files


def _png(size: int) -> bytes:
    """A picture of noise, which does not compress."""
    import struct
    import zlib

    rows = np.random.default_rng(0).integers(0, 256, (size, 1 + 3 * size), "uint8")
    rows[:, 0] = 0
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes())),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def cut(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """The beginning."""
    return data[: int(random.integers(1, len(data)))]


def flip(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """One to eight bits, half of the times near the beginning."""
    changed = bytearray(data)
    reach = min(len(data), 200) if random.random() < 0.5 else len(data)
    for _ in range(int(random.integers(1, 9))):
        changed[int(random.integers(reach))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def zero(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """A block of zeros."""
    at, length = _piece(data, random)
    return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]


def remove(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """A piece less; of Ogg files, a page."""
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)] if data[:4] == b"OggS" else []
    if len(pages) > 3:
        page = int(random.integers(len(pages)))
        return data[: pages[page]] + (data[pages[page + 1] :] if page + 1 < len(pages) else b"")
    at, length = _piece(data, random)
    return data[:at] + data[at + length :]


def double(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """A piece twice."""
    at, length = _piece(data, random)
    return data[: at + length] + data[at:]


def splice(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """A piece of another file in the place of as many bytes."""
    at, length = _piece(data, random)
    start = int(random.integers(len(other)))
    piece = other[start : start + length]
    return data[:at] + piece + data[at + len(piece) :]


def garbage(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """Random bytes in front of the file or over its beginning."""
    length = int(random.integers(1, 100))
    return random.bytes(length) + data[length * int(random.integers(2)) :]


def _piece(data: bytes, random: np.random.Generator) -> tuple[int, int]:
    return int(random.integers(len(data))), int(2 ** random.uniform(2, 13))


MUTATIONS = (cut, cut, flip, flip, zero, remove, double, splice, garbage)


def mutated(files: dict[str, bytes], number: int, seed: int) -> tuple[str, str, bytes]:
    """Format, mutation and bytes of one file; `number` and `seed` decide."""
    names = list(files)
    random = np.random.default_rng((seed, number))
    name = names[number % len(names)]
    mutation = MUTATIONS[number // len(names) % len(MUTATIONS)]
    return name, mutation.__name__, mutation(files[name], files[names[int(random.integers(len(names)))]], random)


def outcome(path: Path, original_s: float | None, rate: int | None) -> str:
    """Decode a file, and put what comes of it in one word or two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            audio = load_audio(path, max_duration_s=600)
        except AudioDecodeError as error:
            return "refused" if str(error).startswith(f"{path}: ") else "unnamed error"
        except BaseException as error:  # a fuzzer counts whatever comes
            return f"crash: {type(error).__name__}"
    if not audio.samples.size or not np.isfinite(audio.samples).all():
        return "not finite"
    if audio.truncated:
        return "reported"
    if original_s is not None and rate is not None and audio.samples.shape[1] / rate < original_s - SHORTER_S:
        return "silent shortening"
    return "as long as before"


def _worker(pipe: Connection) -> None:
    while True:
        pipe.send(outcome(*pipe.recv()))


def false_alarms(files: dict[str, bytes]) -> tuple[dict[str, tuple[float, int]], list[str]]:
    """Decode valid files.

    Returns:
        Length, s, and rate, Hz, of every file by its name, and the files that were refused, shortened or reported.
    """
    lengths: dict[str, tuple[float, int]] = {}
    alarms: list[str] = []
    for name, data in files.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                audio = load_audio(data)
            except AudioDecodeError as error:
                alarms.append(f"{name}: refused: {error}")
                continue
        expected = SECONDS * (2 if name.startswith("chain-") else 1)
        if "OPUS" in name:
            expected *= RATE / 48_000
        lengths[name] = (audio.duration_s, audio.sampling_rate)
        if audio.truncated or audio.duration_s < expected - 2 * SHORTER_S:  # WMA loses a packet
            alarms.append(f"{name}: {audio.duration_s:.3f} s of {expected} s: {'cut' if audio.truncated else ''}")
    return lengths, alarms


def run(count: int, seed: int, record: dict[str, Any] | None = None, minutes: float = float("inf")) -> dict[str, Any]:
    """Decode the valid files and `count` mutated ones.

    Args:
        count: Mutated files.
        seed: Of the mutations.
        record: What a run of the same seed gave that was stopped; it goes on from there.
        minutes: Stop after so long.

    Returns:
        Counts of outcomes, overall and by mutation, and every case that should not be.

    Raises:
        ValueError: The record is of another seed, or of other valid files.
    """
    context = multiprocessing.get_context("spawn")
    worker, pipe = None, None
    started = time.monotonic()
    record = record or {}
    by_mutation = {name: Counter(counts) for name, counts in record.get("by mutation", {}).items()}
    bad: list[str] = list(record.get("to look at", []))
    done: int = record.get("mutated files", 0)
    with tempfile.TemporaryDirectory() as folder:
        files = valid_files(Path(folder))
        if record and (record["seed"], record["valid files"]) != (seed, len(files)):
            raise ValueError(
                f"The record has seed {record['seed']} and {record['valid files']} valid files, expected {seed} and "
                f"{len(files)}. Remove it, or name another file."
            )
        lengths, alarms = false_alarms(files)
        path = Path(folder, "mutated")
        while done < count and time.monotonic() - started < 60 * minutes:
            name, mutation, data = mutated(files, done, seed)
            path.write_bytes(data)
            if worker is None or pipe is None:
                pipe, other_end = context.Pipe()
                worker = context.Process(target=_worker, args=(other_end,), daemon=True)
                worker.start()
                other_end.close()
            try:
                pipe.send((path, *lengths.get(name, (None, None))))
                result = pipe.recv() if pipe.poll(HANG_S) else "hang"
            except EOFError:
                result = "crash: the process ended"
            if result == "hang" or result == "crash: the process ended":
                worker.kill()
                worker = None
            if result == "silent shortening" and mutation == "cut" and name.startswith(WITHOUT_LENGTH):
                result = "cut stream without length"
            by_mutation.setdefault(mutation, Counter())[result] += 1
            if result not in ("refused", "reported", "as long as before"):
                bad.append(f"{done} {name} {mutation}: {result}")
            done += 1
        if worker is not None:
            worker.kill()
    total = sum(by_mutation.values(), Counter())
    return {
        "valid files": len(files),
        "formats": len({_format(name) for name in files}),
        "false alarms on valid files": alarms,
        "mutated files": done,
        "seed": seed,
        "outcomes": dict(total),
        "silent share": (total["silent shortening"] + total["cut stream without length"]) / max(done, 1),
        "by mutation": {mutation: dict(counts) for mutation, counts in by_mutation.items()},
        "to look at": bad,
        "seconds": record.get("seconds", 0) + round(time.monotonic() - started),
    }


def _format(name: str) -> str:
    """A format by the name of one of its files: container and codec, whichever program wrote it."""
    return name.removeprefix("chain-").removesuffix("-stereo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000, help="mutated files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result; a run that was stopped goes on from it")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    arguments = parser.parse_args()
    record = None
    if arguments.out and arguments.out.exists():
        record = json.loads(arguments.out.read_text())
    text = json.dumps(run(arguments.files, arguments.seed, record, arguments.minutes), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
