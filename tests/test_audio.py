"""Decoding: every format against the samples that went in, damaged files, windows, limits, folders."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import subprocess
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clap_hf.audio import AudioDecodeError, audio_files, load_audio

# (format, subtype, extension, largest difference from what was written; None where the codec is lossy)
FORMATS = [
    ("WAV", "PCM_U8", "wav", 1 / 127),
    ("WAV", "PCM_16", "wav", 1 / 2**14),
    ("WAV", "PCM_24", "wav", 1 / 2**22),
    ("WAV", "PCM_32", "wav", 1e-7),
    ("WAV", "FLOAT", "wav", 0.0),
    ("WAV", "DOUBLE", "wav", 1e-7),
    ("WAV", "ULAW", "wav", 0.02),
    ("WAVEX", "PCM_24", "wav", 1 / 2**22),
    ("RF64", "PCM_16", "rf64", 1 / 2**14),
    ("W64", "PCM_16", "w64", 1 / 2**14),
    ("AIFF", "PCM_16", "aiff", 1 / 2**14),
    ("AIFF", "FLOAT", "aif", 0.0),
    ("AU", "PCM_16", "au", 1 / 2**14),
    ("CAF", "PCM_16", "caf", 1 / 2**14),
    ("CAF", "ALAC_24", "caf", 1 / 2**22),
    ("FLAC", "PCM_S8", "flac", 1 / 127),
    ("FLAC", "PCM_16", "flac", 1 / 2**14),
    ("FLAC", "PCM_24", "flac", 1 / 2**22),
    ("OGG", "VORBIS", "ogg", None),
    ("OGG", "OPUS", "opus", None),
    ("MP3", "MPEG_LAYER_III", "mp3", None),
]
IDS = [f"{extension}-{subtype}" for _, subtype, extension, _ in FORMATS]
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="needs the ffmpeg program"
)


def tone(seconds: float, rate: int, channels: int) -> np.ndarray:
    """A tone of its own pitch a channel, rising in level, with some noise; `[samples, channels]`."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.01, (len(time), channels))
    pitch = 300.0 * (1 + np.arange(channels))
    return ((0.2 + 0.4 * time / seconds)[:, None] * np.sin(2 * np.pi * time[:, None] * pitch) + noise).astype(
        "float32"
    )


def encoded(kind: str, subtype: str, samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, samples.shape[1], subtype, format=kind) as sound:
        for block in np.array_split(samples, max(1, len(samples) // 4096)):  # libsndfile's Vorbis likes small writes
            sound.write(block)
    return file.getvalue()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("rate, channels", [(8000, 1), (48000, 2)])
@pytest.mark.parametrize("kind, subtype, extension, tolerance", FORMATS, ids=IDS)
def test_samples_come_back(tmp_path, kind, subtype, extension, tolerance, rate, channels):
    written = tone(1.5, rate, channels)
    path = tmp_path / f"sound.{extension}"
    path.write_bytes(encoded(kind, subtype, written, rate))
    audio = load_audio(path)
    assert audio.sampling_rate == rate
    assert audio.samples.dtype == np.float32 and audio.samples.flags.c_contiguous
    assert audio.path == str(path) and not audio.truncated
    assert audio.samples.shape == written.T.shape and audio.duration_s == 1.5
    if tolerance is None:
        assert all(correlation(got, put) > 0.98 for got, put in zip(audio.samples, written.T, strict=True))
    else:
        assert np.abs(audio.samples - written.T).max() <= tolerance


@pytest.mark.parametrize("rate", [11025, 16000, 22050, 32000, 44100, 96000, 192000])
def test_sampling_rate_is_the_files_own(rate):
    audio = load_audio(encoded("WAV", "PCM_16", tone(0.1, rate, 1), rate))
    assert audio.sampling_rate == rate and audio.samples.shape == (1, round(0.1 * rate))


def test_six_channels():
    written = tone(0.5, 16000, 6)
    audio = load_audio(encoded("WAV", "FLOAT", written, 16000))
    assert np.array_equal(audio.samples, written.T)


@pytest.mark.parametrize("kind, subtype, extension, tolerance", FORMATS, ids=IDS)
def test_window_is_a_slice_of_the_whole(kind, subtype, extension, tolerance):
    data = encoded(kind, subtype, tone(3.0, 48000, 2), 48000)
    whole = load_audio(data).samples
    window = load_audio(data, start_s=1.25, duration_s=0.5)
    piece = whole[:, 60000:84000]
    assert window.samples.shape == piece.shape and not window.truncated
    if subtype in ("OPUS", "MPEG_LAYER_III"):  # these decode from a running start
        assert correlation(window.samples, piece) > 0.999
    else:
        assert np.array_equal(window.samples, piece)


def test_window_beyond_the_end_is_cut_there():
    data = encoded("FLAC", "PCM_16", tone(1.0, 8000, 1), 8000)
    audio = load_audio(data, start_s=0.75, duration_s=5.0)
    assert audio.samples.shape == (1, 2000) and not audio.truncated


def test_path_bytes_and_file_objects_agree(tmp_path):
    path = tmp_path / "sound.raw"  # the name must not matter
    path.write_bytes(encoded("WAV", "PCM_16", tone(0.5, 16000, 2), 16000))
    with path.open("rb") as file:
        from_file = load_audio(file)
    sounds = [load_audio(path), load_audio(str(path)), load_audio(path.read_bytes()), from_file]
    assert all(np.array_equal(sound.samples, sounds[0].samples) for sound in sounds)
    assert [sound.path for sound in sounds] == [str(path), str(path), "<bytes>", str(path)]
    assert load_audio(io.BytesIO(path.read_bytes())).path == "<file object>"


def test_same_bytes_give_the_same_samples():
    for kind, subtype, _, _ in FORMATS:
        data = encoded(kind, subtype, tone(0.5, 48000, 1), 48000)
        assert np.array_equal(load_audio(data).samples, load_audio(data).samples)


@needs_ffmpeg
@pytest.mark.parametrize("extension, codec", [("m4a", "aac"), ("mka", "aac"), ("wma", "wmav2"), ("mp4", "alac")])
def test_ffmpeg_reads_what_libsndfile_does_not(tmp_path, extension, codec):
    written = tone(3.0, 44100, 2)
    source, path = tmp_path / "in.wav", tmp_path / f"sound.{extension}"
    source.write_bytes(encoded("WAV", "PCM_16", written, 44100))
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, "-c:a", codec, path], check=True)
    for sound in (path, path.read_bytes()):
        audio = load_audio(sound)
        assert audio.sampling_rate == 44100 and not audio.truncated
        assert audio.samples.shape[0] == 2 and abs(audio.duration_s - 3.0) < 0.1
    window = load_audio(path, start_s=1.0, duration_s=0.5)
    assert abs(window.duration_s - 0.5) < 0.05  # WMA is cut at its packets
    with pytest.raises(AudioDecodeError, match="max_duration_s=2.0"):
        load_audio(path, max_duration_s=2.0)
    with pytest.raises(AudioDecodeError, match="start_s is 9.0"):
        load_audio(path, start_s=9.0)


@needs_ffmpeg
def test_ffmpeg_decodes_alac_exactly_and_flags_a_cut_file(tmp_path):
    written = tone(20.0, 44100, 1)
    source, path, cut = tmp_path / "in.wav", tmp_path / "sound.m4a", tmp_path / "cut.m4a"
    source.write_bytes(encoded("WAV", "PCM_16", written, 44100))
    command = ["ffmpeg", "-v", "error", "-i", source, "-c:a", "alac", "-movflags", "+faststart", path]
    subprocess.run(command, check=True)
    audio = load_audio(path)
    assert np.abs(audio.samples - written.T).max() <= 1 / 2**14
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="cut.m4a: truncated"):
        audio = load_audio(cut)
    assert audio.truncated and 5 < audio.duration_s < 15


def test_without_ffmpeg_the_error_says_so(tmp_path, monkeypatch):
    path = tmp_path / "song.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(2000))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioDecodeError) as caught:
        load_audio(path)
    message = str(caught.value)
    assert (
        message.startswith(str(path)) and "ffmpeg is not installed" in message and "put FFmpeg on the PATH" in message
    )


@needs_ffmpeg
def test_text_playlists_and_subtitles_are_refused(tmp_path):
    (tmp_path / "secret.wav").write_bytes(encoded("WAV", "PCM_16", tone(0.5, 8000, 1), 8000))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"
    for name, text in (("a.m3u8", playlist), ("b.txt", "ffconcat version 1.0\nfile secret.wav\n"), ("c.wav", "hello")):
        path = tmp_path / name
        path.write_text(text * 20)
        with pytest.raises(AudioDecodeError, match="not a sound that libsndfile reads"):
            load_audio(path)


def test_a_long_file_is_never_read_whole(tmp_path):
    path = tmp_path / "silence.flac"
    hour = 3600 * 8000
    with soundfile.SoundFile(path, "w", 8000, 2) as sound:
        for _ in range(20):
            sound.write(np.zeros((hour // 20, 2), "int16"))
    assert path.stat().st_size < 1_000_000  # against 230 MB of float32
    tracemalloc.start()
    audio = load_audio(path, start_s=1800, duration_s=2, max_duration_s=10)
    with pytest.raises(AudioDecodeError, match=r"silence\.flac: 3600.000 s to decode.*max_duration_s=10"):
        load_audio(path, max_duration_s=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert audio.samples.shape == (2, 16000)
    assert peak < 2_000_000


@pytest.mark.parametrize("kind, subtype, extension, tolerance", FORMATS, ids=IDS)
def test_a_cut_file_is_never_taken_for_a_whole_one(tmp_path, kind, subtype, extension, tolerance):
    data = encoded(kind, subtype, tone(2.0, 48000, 1), 48000)
    path = tmp_path / f"cut.{extension}"
    random = np.random.default_rng(1)
    flagged = 0
    for keep in random.uniform(0.02, 0.97, 12):
        path.write_bytes(data[: int(len(data) * keep)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                audio = load_audio(path)
            except AudioDecodeError as error:
                assert str(error).startswith(str(path))
                continue
        assert audio.truncated and audio.duration_s < 2.0
        assert [str(warning.message).startswith(f"{path}: truncated") for warning in caught] == [True]
        flagged += 1
    # CAF keeps its sizes to itself: libsndfile refuses a cut one.
    assert flagged >= (0 if kind == "CAF" else 6)


def test_a_window_before_the_cut_is_whole():
    data = encoded("WAV", "PCM_16", tone(2.0, 16000, 1), 16000)[:40_000]  # 1.25 s are left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not load_audio(data, duration_s=1.0).truncated
    with pytest.warns(UserWarning, match="<bytes>: truncated"):
        assert load_audio(data, start_s=1.0, duration_s=1.0).truncated


def test_a_streamed_wav_is_whole():
    # What a program writes that cannot go back to the header: unknown sizes, all ones.
    data = bytearray(encoded("WAV", "PCM_16", tone(0.5, 16000, 1), 16000))
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFFF)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audio = load_audio(bytes(data))
    assert audio.samples.shape == (1, 8000) and not audio.truncated


def test_a_tag_after_an_ogg_stream_is_no_cut():
    data = encoded("OGG", "VORBIS", tone(0.5, 16000, 1), 16000)
    assert not load_audio(data + b"TAG" + bytes(125)).truncated


def fuzz(folder: Path, count: int) -> None:
    """Decode seeded mutations of eight formats: samples that are finite, or an error that names the file."""
    random = np.random.default_rng(7)
    kinds = ["wav-PCM_16", "wav-FLOAT", "aiff-PCM_16", "au-PCM_16", "flac-PCM_16", "ogg-VORBIS", "opus-OPUS"]
    chosen = [FORMATS[IDS.index(kind)] for kind in [*kinds, "mp3-MPEG_LAYER_III"]]
    originals = [(extension, encoded(kind, sub, tone(0.5, 48000, 2), 48000)) for kind, sub, extension, _ in chosen]
    outcomes = {"decoded": 0, "refused": 0}
    for number in range(count):
        extension, original = originals[number % len(originals)]
        data = bytearray(original)
        where = int(random.integers(len(data)))
        match number // len(originals) % 5:
            case 0:
                data = data[:where]
            case 1:
                data[where] ^= 1 << int(random.integers(8))
            case 2:
                data[:64] = random.bytes(64)
            case 3:
                data[where : where + 256] = bytes(len(data[where : where + 256]))
            case 4:
                data = bytearray(random.bytes(100)) + data
        path = folder / f"{number}.{extension}"
        path.write_bytes(data)
        try:
            audio = load_audio(path, max_duration_s=60)
        except AudioDecodeError as error:
            assert str(error).startswith(f"{path}: ") and "expected" in str(error)
            outcomes["refused"] += 1
        else:
            assert audio.samples.size and np.isfinite(audio.samples).all()
            outcomes["decoded"] += 1
        path.unlink()
    assert min(outcomes.values()) > count / 10, outcomes


@pytest.mark.filterwarnings("ignore:.*truncated")
def test_mutated_files(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # libsndfile alone: quick
    fuzz(tmp_path, 2000)


@pytest.mark.parametrize(
    "data, complaint",
    [
        (b"", "0 bytes; expected an encoded sound"),
        (encoded("WAV", "PCM_16", np.zeros((0, 1), "float32"), 16000), "0 samples; expected at least one sample"),
        (encoded("WAV", "FLOAT", np.array([[0.5], [np.nan], [np.inf]], "float32"), 16000), "2 of 3 values are NaN"),
        (b"just some words, no samples", "not a sound that libsndfile reads"),
    ],
    # Not the bytes, which hold the time of day: workers must agree on ids.
    ids=["no bytes", "no samples", "not finite", "words"],
)
def test_unusable_content_is_a_named_error(tmp_path, data, complaint):
    path = tmp_path / "bad.wav"
    path.write_bytes(data)
    for source, name in ((path, str(path)), (data, "<bytes>")):
        with pytest.raises(AudioDecodeError) as caught:
            load_audio(source)
        assert str(caught.value).startswith(f"{name}: ") and complaint in str(caught.value)


def test_one_sample_is_enough():
    assert load_audio(encoded("WAV", "FLOAT", np.full((1, 1), 0.25, "float32"), 16000)).samples == [[0.25]]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(AudioDecodeError, match="no.wav: No such file"):
        load_audio(tmp_path / "no.wav")
    with pytest.raises(AudioDecodeError, match="[Dd]irectory"):
        load_audio(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [{"start_s": -1.0}, {"start_s": np.nan}, {"duration_s": 0.0}, {"duration_s": -2.0}, {"max_duration_s": np.inf}],
)
def test_impossible_arguments_are_named(arguments):
    data = encoded("WAV", "PCM_16", tone(0.5, 16000, 1), 16000)
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
        load_audio(data, **arguments)


def test_start_beyond_the_end_is_named():
    data = encoded("WAV", "PCM_16", tone(0.5, 16000, 1), 16000)
    with pytest.raises(AudioDecodeError, match=r"start_s is 0.5 s; expected less than the file's length, 0.500 s"):
        load_audio(data, start_s=0.5)


def test_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(AudioDecodeError("a.wav", "0 bytes", "a sound", "restore it")))
    assert str(error) == "a.wav: 0 bytes; expected a sound; restore it" and error.name == "a.wav"


def test_folders_are_searched(tmp_path):
    names = ["b.wav", "a.FLAC", "deep/er/c.mp3", "deep/d.m4a", "notes.txt", ".hidden.wav", ".git/e.wav", "noextension"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    inside = [tmp_path / name for name in ("a.FLAC", "b.wav", "deep/d.m4a", "deep/er/c.mp3")]
    assert audio_files([tmp_path]) == inside
    # A file named outright is taken as it is, and nothing comes twice.
    first = tmp_path / "noextension"
    assert audio_files([str(first), tmp_path, tmp_path / "b.wav"]) == [first, *inside]


def test_folder_without_sound_and_missing_path_are_named(tmp_path):
    with pytest.raises(ValueError, match="no sound file in this folder; expected files named .3gp .aac"):
        audio_files([tmp_path])
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        audio_files([tmp_path / "gone"])
