"""Reading in blocks: equal to the whole, streams that follow each other, damage, files that are no sounds."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import struct
import subprocess
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap_hf.audio import AudioDecodeError, audio_files, ffmpeg, load_audio, load_stored_audio, open_audio
from clap_hf.audio.reader import BLOCK_FRAMES
from test_audio import FORMATS, IDS, encoded, needs_ffmpeg, tone

RATE = 48_000  # of Opus too
CHAINED = [kind for kind in FORMATS if kind[2] in ("ogg", "opus", "flac", "mp3")] + [FORMATS[1]]
CHAINED_IDS = [f"{extension}-{subtype}" for _, subtype, extension, _ in CHAINED]


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs the {program} program")


def made(tmp_path: Path, command: str, seconds: float = 3.0, channels: int = 2) -> bytes:
    """What a program makes of a tone: `{wav}` is its input, `{out}` the file that is read back."""
    wav, out = tmp_path / "in.wav", tmp_path / "out"
    wav.write_bytes(encoded("WAV", "PCM_16", tone(seconds, 44_100, channels), 44_100))
    subprocess.run([word.format(wav=wav, out=out) for word in command.split()], check=True, stdin=subprocess.DEVNULL)
    return out.read_bytes()


def loaded_without_warning(source: bytes | Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_audio(source).samples


@pytest.mark.parametrize("kind, subtype, extension, tolerance", FORMATS, ids=IDS)
def test_blocks_join_to_the_whole(kind, subtype, extension, tolerance):
    data = encoded(kind, subtype, tone(1.5, RATE, 2), RATE)
    with open_audio(data) as reader:
        assert (reader.sampling_rate, reader.channels, reader.duration_s) == (RATE, 2, 1.5)
        blocks = list(reader)
        assert reader.damage == []
    assert all(block.dtype == np.float32 and block.flags.c_contiguous for block in blocks)
    assert [block.shape for block in blocks[:-1]] == [(2, BLOCK_FRAMES)] * (len(blocks) - 1)
    assert np.array_equal(np.concatenate(blocks, axis=1), load_audio(data).samples)


@needs_ffmpeg
def test_ffmpeg_blocks_join_to_the_whole(tmp_path):
    data = made(tmp_path, "ffmpeg -v error -i {wav} -c:a alac -f mov {out}")
    with open_audio(io.BytesIO(data)) as reader:
        assert (reader.sampling_rate, reader.channels, reader.duration_s) == (44_100, 2, 3.0)
        joined = np.concatenate(list(reader), axis=1)
    assert np.abs(joined - tone(3.0, 44_100, 2).T).max() <= 1 / 2**14


@needs_ffmpeg
def test_a_reader_that_is_left_early_ends_ffmpeg(tmp_path):
    data = made(tmp_path, "ffmpeg -v error -i {wav} -c:a alac -f mov {out}", seconds=60.0)
    with open_audio(data) as reader:
        next(iter(reader))
        process = reader._blocks.gi_frame.f_locals["decoding"]._process
    assert process.poll() is not None


@pytest.mark.parametrize("hours", [0.1, 2])
def test_memory_does_not_grow_with_length(tmp_path, hours):
    path = tmp_path / "long.wav"
    frames = int(hours * 3600 * 8000)
    with path.open("wb") as file:
        file.write(
            b"RIFF"
            + struct.pack("<I", 36 + frames)
            + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
        )
        file.write(b"data" + struct.pack("<I", frames))
        file.truncate(44 + frames)  # a hole, which takes no room
    tracemalloc.start()
    with open_audio(path) as reader:
        assert sum(block.shape[1] for block in reader) == frames
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_a_whole_sound_is_in_memory_once(tmp_path):
    path = tmp_path / "sound.flac"
    samples = tone(60.0, 44_100, 2)
    soundfile.write(path, samples, 44_100)
    tracemalloc.start()
    load_audio(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * samples.nbytes


def test_a_false_length_costs_no_memory():
    data = bytearray(encoded("FLAC", "PCM_16", tone(0.5, 16_000, 1), 16_000))
    data[21:26] = (data[21] >> 4 << 36 | (1 << 36) - 1).to_bytes(5, "big")  # 256 GB of float32
    with pytest.warns(UserWarning, match="the header states 68719476735 samples, the frames hold 8000"):
        audio = load_audio(bytes(data))
    assert audio.samples.shape == (1, 8000) and audio.damage


def test_a_pipe_is_read_to_its_end(monkeypatch):
    monkeypatch.setattr("clap_hf.audio.reader._IN_MEMORY", 1000)  # the rest goes to disk
    data = encoded("FLAC", "PCM_16", tone(1.0, 16_000, 2), 16_000)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(data)
        process.stdin.close()
        assert np.array_equal(load_audio(process.stdout).samples, load_audio(data).samples)


@pytest.mark.parametrize("kind, subtype, extension, tolerance", CHAINED, ids=CHAINED_IDS)
def test_streams_that_follow_each_other_are_read_to_the_last(kind, subtype, extension, tolerance):
    first = encoded(kind, subtype, tone(1.0, RATE, 2), RATE)
    second = encoded(kind, subtype, -tone(1.5, RATE, 2), RATE)
    samples = [loaded_without_warning(data) for data in (first, second)]
    assert np.array_equal(loaded_without_warning(first + second), np.concatenate(samples, axis=1))
    window = load_audio(first + second, start_s=0.75, duration_s=0.5)
    assert window.samples.shape == (2, RATE // 2) and not window.damage


@pytest.mark.parametrize("kind, subtype, extension, tolerance", CHAINED, ids=CHAINED_IDS)
def test_a_stream_of_another_rate_is_reported(kind, subtype, extension, tolerance):
    first = encoded(kind, subtype, tone(1.0, RATE, 2), RATE)
    second = encoded(kind, subtype, tone(1.0, 24_000, 1), 24_000)
    with pytest.warns(UserWarning, match="stream 2 of 2 has .* 1 channels after 48000 Hz and 2"):
        audio = load_audio(first + second)
    assert np.array_equal(audio.samples, load_audio(first).samples)


@needs_ffmpeg
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_that_ends_in_digital_silence_is_whole(channels):
    """Its last frame is shorter than 16 bytes."""
    samples = np.concatenate([tone(0.5, 44_100, channels), np.zeros((5000, channels), "float32")])
    audio = load_audio(encoded("FLAC", "PCM_16", samples, 44_100))
    assert audio.samples.shape == (channels, len(samples)) and not audio.damage


def test_flac_in_ogg(tmp_path):
    data = made(tmp_path, "ffmpeg -v error -i {wav} -c:a flac -f ogg {out}")
    samples = loaded_without_warning(data)
    assert np.abs(samples - tone(3.0, 44_100, 2).T).max() <= 1 / 2**14
    assert np.array_equal(loaded_without_warning(data + data), np.tile(samples, 2))
    with pytest.warns(UserWarning, match="Ogg pages are missing or damaged"):
        assert load_audio(data[: len(data) // 2] + bytes(50) + data[len(data) // 2 + 50 :]).truncated


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_flipped_bit_in_an_ogg_page_is_reported(subtype):
    data = bytearray(encoded("OGG", subtype, tone(6.0, RATE, 2), RATE))
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    assert len(pages) > 5
    data[pages[len(pages) // 2] + 100] ^= 1
    with pytest.warns(UserWarning, match="<bytes>: truncated or damaged: .*Ogg pages are missing or damaged"):
        audio = load_audio(bytes(data))
    assert audio.truncated and len(audio.damage) >= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not load_audio(bytes(data), duration_s=0.5).truncated  # before the page


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_cut_between_two_pages_is_reported(subtype):
    data = encoded("OGG", subtype, tone(6.0, RATE, 2), RATE)
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    with pytest.warns(UserWarning, match="the file ends before the stream's last page"):
        load_audio(data[: pages[-2]])
    with pytest.warns(UserWarning, match="Ogg pages are missing"):
        load_audio(data[: pages[-3]] + data[pages[-2] :])


@needs("lame")
def test_mp3_without_a_tag(tmp_path):
    whole = loaded_without_warning(made(tmp_path, "lame --quiet -t -b 128 {wav} {out}"))
    assert whole.shape[1] == 1152 * -(-whole.shape[1] // 1152) and whole.shape[1] >= 3 * 44_100
    data = made(tmp_path, "lame --quiet -t -b 128 {wav} {out}")
    with pytest.warns(UserWarning, match="the file ends inside a frame"):
        load_audio(data[: len(data) // 2 + 50])


@needs("lame")
def test_mp3_of_variable_bitrate_without_a_tag_is_read_whole(tmp_path):
    wav, out = tmp_path / "in.wav", tmp_path / "out.mp3"
    noise = np.random.default_rng(0).normal(0, 0.3, (5 * 44_100, 2))
    soundfile.write(wav, np.concatenate([noise, np.zeros_like(noise)]), 44_100)
    subprocess.run(["lame", "--quiet", "-t", "-V", "2", wav, out], check=True)
    assert loaded_without_warning(out).shape[1] >= 10 * 44_100  # decoders estimate 3.4 s
    assert load_audio(out, start_s=8.0, duration_s=1.0).samples.shape == (2, 44_100)


@needs_ffmpeg
def test_mp3_with_a_picture_is_whole(tmp_path):
    picture = tmp_path / "cover.png"
    make = "ffmpeg -v error -f lavfi -i nullsrc=s=600x600,geq=random(1)*255:random(2)*255:random(3)*255 -frames:v 1"
    subprocess.run([*make.split(), str(picture)], check=True)
    command = f"ffmpeg -v error -i {{wav}} -i {picture} -map 0 -map 1 -c:v copy -c:a libmp3lame -f mp3"
    for tag in ("", " -write_xing 0"):
        data = made(tmp_path, command + tag + " -y {out}")
        assert len(data) > picture.stat().st_size > 200_000
        assert abs(loaded_without_warning(data).shape[1] / 44_100 - 3.0) < 0.06


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["adpcm_ms", "adpcm_ima_wav", "pcm_mulaw", "adpcm_yamaha"])
def test_adpcm_is_whole_and_its_cuts_are_reported(tmp_path, codec):
    data = made(tmp_path, f"ffmpeg -v error -i {{wav}} -c:a {codec} -f wav {{out}}")
    assert loaded_without_warning(data).shape[1] >= 3 * 44_100
    with pytest.warns(UserWarning, match="the chunk 'data' states"):
        load_audio(data[: len(data) // 2])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_that_states_no_length(subtype):
    data = bytearray(encoded("FLAC", subtype, tone(3.0, 44_100, 2), 44_100))
    whole = load_audio(bytes(data)).samples
    data[21:26] = (data[21] >> 4 << 36).to_bytes(5, "big")  # as a program writes it into a pipe
    assert np.array_equal(loaded_without_warning(bytes(data)), whole)
    with pytest.warns(UserWarning, match="the file ends inside a frame"):
        part = load_audio(bytes(data[: len(data) // 2])).samples
    assert 44_100 < part.shape[1] < 2 * 44_100 and np.array_equal(part, whole[:, : part.shape[1]])


@needs_ffmpeg
def test_what_ffmpeg_complains_of_is_reported(tmp_path):
    data = bytearray(made(tmp_path, "ffmpeg -v error -i {wav} -c:a aac -f ipod {out}", seconds=10.0))
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    with pytest.warns(UserWarning, match="FFmpeg: .*aac"):
        assert load_audio(bytes(data)).truncated


@needs_ffmpeg
@pytest.mark.parametrize("seconds", [1e-9, 1e6, 9.9e11])
def test_a_false_duration_of_wma_ends_no_run(tmp_path, seconds):
    data = bytearray(made(tmp_path, "ffmpeg -v error -i {wav} -c:a wmav2 -f asf {out}"))
    at = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")) + 64  # File Properties, play duration
    data[at : at + 8] = struct.pack("<Q", min(int(seconds * 1e7), 2**63 - 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        audio = load_audio(bytes(data))
    assert 2.9 < audio.duration_s < 3.1
    assert audio.truncated == (seconds > 3)


@needs_ffmpeg
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_cut_wma_is_reported(tmp_path, share):
    """FFmpeg guesses the length of a cut file from its size, and complains of nothing."""
    data = made(tmp_path, "ffmpeg -v error -i {wav} -c:a wmav2 -f asf {out}")
    assert not load_audio(data).truncated
    live = ["ffmpeg", "-v", "error", "-i", tmp_path / "in.wav", "-c:a", "wmav2", "-f", "asf", "-"]
    assert not load_audio(subprocess.run(live, check=True, capture_output=True).stdout).truncated  # states no sizes
    with pytest.warns(UserWarning, match="no data follows the header"), contextlib.suppress(AudioDecodeError):
        load_audio(data[:16] + b"\xff" * 8 + data[24:])  # a header that would end far behind the file
    with pytest.warns(UserWarning, match=r"the data states \d+ bytes, \d+ are there"):
        assert load_audio(data[: int(share * len(data))]).truncated


@needs_ffmpeg
@pytest.mark.parametrize("answer", ["", "{", "{}", '{"streams": [{"sample_rate": "N/A"}]}', '{"streams": [{}]}'])
def test_what_ffprobe_cannot_tell_is_a_named_error(tmp_path, monkeypatch, answer):
    for program in ("ffprobe", "ffmpeg"):
        (tmp_path / program).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioDecodeError, match="^<bytes>: not a sound"):
        load_audio(b"no format that anyone knows")


@needs("sh")
def test_an_ffmpeg_that_stalls_is_ended(tmp_path, monkeypatch):
    probed = '{"streams": [{"sample_rate": "8000", "channels": 1, "duration": "5"}]}'
    (tmp_path / "ffprobe").write_text(f"#!/bin/sh\necho '{probed}'\n")
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nprintf 00000000\nexec sleep 1000\n")
    for program in ("ffprobe", "ffmpeg"):
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(ffmpeg, "_STALLED_S", 0.5)
    with pytest.warns(UserWarning, match="FFmpeg gave nothing for 0 s"):
        assert load_audio(b"no format that anyone knows").samples.shape == (1, 2)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "folder.wav").mkdir()
    for name, complaint in (
        ("fifo.wav", "is a FIFO; expected a regular file"),
        ("folder.wav", "is a directory; expected a regular file"),
        ("loop.wav", "Too many levels of symbolic links"),
        ("a\0b.wav", "null"),
    ):
        with pytest.raises(AudioDecodeError, match=complaint) as caught:
            load_audio(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_folders_with_links_that_lead_nowhere(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    assert audio_files([tmp_path]) == [tmp_path / "a.wav", tmp_path / "loop.wav"]


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    data = encoded("WAV", "PCM_16", tone(0.5, 16_000, 1), 16_000)
    Path(path).write_bytes(data[:8000])
    with pytest.warns(UserWarning, match=r"caf\\udce9.wav: truncated") as caught:
        assert load_audio(path).path == path
    str(caught[0].message).encode()
    Path(path).write_bytes(b"words")
    with pytest.raises(AudioDecodeError, match=r"caf\\udce9.wav: not a sound") as error:
        load_audio(path)
    str(error.value).encode()
    assert [str(found) for found in audio_files([tmp_path])] == [path]


def test_a_stored_sound_is_called_by_its_path():
    with pytest.raises(AudioDecodeError, match="^dog.wav: "):
        load_stored_audio({"bytes": b"words", "path": "dog.wav"})


def test_two_samples_of_two_channels():
    written = np.array([[0.25, -0.25], [0.5, -0.5]], "float32")
    assert np.array_equal(load_audio(encoded("WAV", "FLOAT", written, 16_000)).samples, written.T)


def test_max_duration_holds_where_no_length_is_stated(tmp_path):
    data = bytearray(encoded("AU", "PCM_16", tone(2.0, 16_000, 1), 16_000))
    data[8:12] = b"\xff" * 4
    with pytest.raises(AudioDecodeError, match="max_duration_s=1.5"):
        load_audio(bytes(data), max_duration_s=1.5)
    assert load_audio(bytes(data), max_duration_s=2.5).duration_s == 2.0


@pytest.mark.parametrize("header", [b"RIFF", b"FORM", b"caff"])
def test_bytes_that_no_chunk_holds_are_reported(header):
    kind = {b"RIFF": "WAV", b"FORM": "AIFF", b"caff": "CAF"}[header]
    data = bytearray(encoded(kind, "PCM_16", tone(1.0, 16_000, 1), 16_000))
    at = data.index(b"SSND" if kind == "AIFF" else b"data") + (11 if kind == "CAF" else 4)
    size = {"WAV": "<I", "AIFF": ">I", "CAF": ">I"}[kind]
    at -= 3 if kind == "CAF" else 0
    stated = struct.unpack_from(size, data, at)[0]
    struct.pack_into(size, data, at, stated // 2 & ~1)
    with pytest.warns(UserWarning, match="truncated or damaged"):
        assert load_audio(bytes(data)).truncated
