"""The corpus builder on real, tiny packages: a Debian package, zip and WAD archives, a broken and a missing file."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import typer
from tools.sound_corpus import __main__ as command
from tools.sound_corpus.archives import read_clonk_group, read_doom_wad, read_ttd_catalogue, read_zip
from tools.sound_corpus.assemble import FEATURES, assemble
from tools.sound_corpus.build import build_packages, plan_jobs
from tools.sound_corpus.captions import caption_variants, clean_title, with_article
from tools.sound_corpus.decode import SAMPLING_RATE, UnusableSound, read_excerpts
from tools.sound_corpus.duplicates import find_near_duplicates, thumbnail
from tools.sound_corpus.manifest import Clip, load_manifest
from tools.sound_corpus.packages import SUITES, PackageError, fetch_package, unpack_package
from tools.sound_corpus.soundfonts import FONTS, Font, plan_phrases
from tools.sound_corpus.sounds import PackageJob, is_finished
from tools.sound_corpus.synthesis import render_phrases
from typer.testing import CliRunner

from clap_hf.audio import encode_flac

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def chirp(low: float, high: float, seconds: float = 0.5, rate: int = 22_050, level: float = 0.5) -> np.ndarray:
    """A decaying sweep between two frequencies in Hz."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (low * time + (high - low) * time**2 / (2 * seconds))
    return (level * np.sin(phase) * np.exp(-3 * time)).astype(np.float32)


def wav_bytes(samples: np.ndarray, rate: int = 22_050) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def a_clip(package: str, path: str, split: str = "train", **changes: object) -> Clip:
    clip = Clip(
        id=f"{package}/{Path(path).stem}",
        package=package,
        path=path,
        split=split,
        category="animal",
        quality="named",
        label="owl",
        caption="an owl hooting",
        license="CC0",
    )
    return dataclasses.replace(clip, **changes)


def make_deb(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    """Builds a real Debian package with dpkg-deb."""
    root = folder / f"root-{package}"
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {package}\nVersion: 1.0\nArchitecture: all\nMaintainer: Test <test@example.org>\n"
    (root / "DEBIAN" / "control").write_text(control + "Description: sounds\n")
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    target = folder / f"{package}_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(root), str(target)], check=True, capture_output=True)
    shutil.rmtree(root)
    return target


def part_of(job: PackageJob, work_dir: Path) -> Path:
    """The file that keeps a package's sounds."""
    return job.store(work_dir).path(job.part)


@pytest.fixture
def corpus_jobs(tmp_path: Path):
    """Two packages on disk as if fetched: one plain with good, broken, silent and missing files, one with a zip."""
    packages = tmp_path / "work" / "packages"
    packages.mkdir(parents=True)
    owl, crow = chirp(400, 900), chirp(2500, 700)
    sounds = {
        "usr/share/owl.wav": wav_bytes(np.stack([owl, owl], axis=1)),
        "usr/share/crow.wav": wav_bytes(crow),
        "usr/share/broken.wav": b"RIFF this is no sound at all",
        "usr/share/silent.wav": wav_bytes(np.zeros(22_050, np.float32)),
        "usr/share/tick.wav": wav_bytes(chirp(800, 900, seconds=0.02)),
        "usr/share/unlisted.wav": wav_bytes(owl),
    }
    make_deb(packages, "birds-data", sounds)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("sound/wolf.wav", wav_bytes(chirp(150, 600, seconds=1.2)))
        # The crow again, quieter and at another rate: a leak from train into test.
        file.writestr("sound/crow.wav", wav_bytes(chirp(2500, 700, rate=32_000, level=0.2), 32_000))
    make_deb(packages, "wolves-data", {"usr/share/pak0.pk3": archive.getvalue()})
    clips = [
        a_clip("birds-data", f"usr/share/{name}.wav") for name in ("owl", "crow", "broken", "silent", "tick", "gone")
    ]
    for name in ("wolf", "crow"):
        clips.append(a_clip("wolves-data", f"pak0.pk3.d/sound/{name}.wav", "test", archive="zip", label=name))
    return plan_jobs(clips, fonts=()), tmp_path


@needs_dpkg
def test_build_reports_and_loads(corpus_jobs) -> None:
    jobs, folder = corpus_jobs
    finished: list[str] = []
    failed = build_packages(jobs, folder / "work", processes=1, on_finished=lambda job: finished.append(job.package))
    report = assemble(jobs, folder / "work", folder / "corpus", failed)
    assert failed == [] and sorted(finished) == ["birds-data", "wolves-data"]
    assert report["rows"] == {"train": 1, "validation": 0, "test": 2, "sealed": 0, "unlabelled": 0}
    reasons = {Path(problem["path"]).stem: problem["reason"] for problem in report["problems"]}
    assert set(reasons) == {"broken", "silent", "tick", "gone"}
    assert reasons["gone"] == "missing from the package" and reasons["silent"] == "digital silence"
    assert reasons["broken"].startswith("cannot be decoded") and reasons["tick"] == "shorter than 0.04 s"
    (leak,) = report["near_duplicates_dropped"]
    assert leak["id"] == "birds-data/crow" and leak["like"] == "wolves-data/crow" and leak["cosine"] > 0.985
    assert json.loads((folder / "corpus" / "build_report.json").read_text()) == report

    corpus = datasets.load_dataset(str(folder / "corpus"), cache_dir=str(folder / "cache"))
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 1, "test": 2}
    assert corpus["train"].features == FEATURES
    row = corpus["train"].cast_column("audio", datasets.Audio(decode=False))[0]
    assert row["captions"][0] == "an owl hooting" and row["source"] == "birds-data" and row["license"] == "CC0"
    assert row["original_sampling_rate"] == 22_050 and row["midi"] is None
    samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    assert rate == SAMPLING_RATE and samples.shape == (SAMPLING_RATE // 2,)
    assert soundfile.info(io.BytesIO(row["audio"]["bytes"])).subtype == "PCM_16"
    expected = chirp(400, 900, rate=SAMPLING_RATE)
    assert np.corrcoef(samples, expected)[0, 1] > 0.999
    card = (folder / "corpus" / "README.md").read_text()
    assert "| birds-data | CC0 | 1 | 0 |" in card and card.startswith("---\npretty_name")


@needs_dpkg
def test_second_run_makes_nothing_again_and_gives_equal_bytes(corpus_jobs) -> None:
    jobs, folder = corpus_jobs
    work = folder / "work"
    build_packages(jobs, work, processes=1)
    assemble(jobs, work, folder / "first", [])
    stamps = {job.package: part_of(job, work).stat().st_mtime_ns for job in jobs}
    build_packages(jobs, work, processes=1)
    assert stamps == {job.package: part_of(job, work).stat().st_mtime_ns for job in jobs}
    # One package lost: only that one is made again, and the corpus comes out the same, byte by byte.
    birds, wolves = jobs
    part_of(birds, work).unlink()
    build_packages(jobs, work, processes=1)
    assert part_of(wolves, work).stat().st_mtime_ns == stamps["wolves-data"]
    assemble(jobs, work, folder / "second", [])
    files = sorted(path.relative_to(folder / "first") for path in (folder / "first").rglob("*") if path.is_file())
    assert len(files) == 4
    for name in files:
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes(), name


@pytest.mark.slow
@needs_dpkg
def test_several_processes_make_the_same_sounds(corpus_jobs) -> None:
    jobs, folder = corpus_jobs
    build_packages(jobs, folder / "work", processes=1)
    alone = {job.package: part_of(job, folder / "work").read_bytes() for job in jobs}
    for job in jobs:
        part_of(job, folder / "work").unlink()
    finished: list[str] = []
    assert build_packages(jobs, folder / "work", 2, lambda job: finished.append(job.package)) == []
    assert sorted(finished) == sorted(alone)
    assert alone == {job.package: part_of(job, folder / "work").read_bytes() for job in jobs}


@needs_dpkg
def test_changed_files_are_made_again_and_changed_captions_only_joined(corpus_jobs) -> None:
    jobs, folder = corpus_jobs
    build_packages(jobs, folder / "work", processes=1)
    (recaptioned,) = plan_jobs([dataclasses.replace(clip, caption="a barn owl") for clip in jobs[0].clips], fonts=())
    (other_files,) = plan_jobs(list(jobs[0].clips[:2]), fonts=())
    assert is_finished(recaptioned, folder / "work") and not is_finished(other_files, folder / "work")
    assemble([recaptioned], folder / "work", folder / "corpus", [])
    rows = datasets.load_dataset(str(folder / "corpus"), cache_dir=str(folder / "cache"), split="train")
    assert {captions[0] for captions in rows["captions"]} == {"a barn owl"}


@needs_dpkg
def test_a_rebuilt_corpus_is_not_served_from_the_old_cache(corpus_jobs) -> None:
    jobs, folder = corpus_jobs
    build_packages(jobs, folder / "work", processes=1)
    counts = []
    for chosen in (jobs, jobs[:1]):
        assemble(chosen, folder / "work", folder / "corpus", [])
        counts.append(
            len(datasets.load_dataset(str(folder / "corpus"), cache_dir=str(folder / "cache"), split="train"))
        )
    assert counts == [1, 2]  # without the other package the crow is no leak


def test_unfetchable_package_is_listed_and_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no package client can be found
    jobs = plan_jobs([a_clip("nowhere-data", "owl.wav")], fonts=())
    (problem,) = build_packages(jobs, tmp_path, processes=1)
    assert problem["package"] == "nowhere-data" and "apt-get is not installed" in problem["reason"]
    with pytest.raises(ValueError, match="nowhere-data"):
        assemble(jobs, tmp_path, tmp_path / "corpus", [problem])


@needs_dpkg
def test_a_font_that_failed_to_render_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without sounds once passed for finished: two soundfonts were missing from training so."""
    (tmp_path / "packages").mkdir()
    make_deb(tmp_path / "packages", "a-soundfont", {"usr/share/notes.sf2": b"not read"})
    (tmp_path / "bin").mkdir()
    for name in ("dpkg-deb", "tar"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # without fluidsynth
    jobs = plan_jobs([], fonts=[Font("a-soundfont", "notes.sf2", "train", "MIT")], limit=2)
    (problem,) = build_packages(jobs, tmp_path, processes=1)
    assert problem["package"] == "a-soundfont" and "fluidsynth is not installed" in problem["reason"]
    assert not is_finished(jobs[0], tmp_path)


def test_packages_of_other_suites_are_asked_for_there_and_the_suite_is_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {name for names in SUITES.values() for name in names} <= {clip.package for clip in load_manifest()}
    client = tmp_path / "apt-get"  # knows bookworm only, and leaves what it was asked
    client.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "E: Release not found" >&2\nexit 100\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(
        PackageError, match="E: Release not found; it is in the suite xenial: add that to apt's sources"
    ):
        fetch_package("fofix", tmp_path)
    with pytest.raises(PackageError, match="Release not found$"):
        fetch_package("nexuiz-data", tmp_path)
    assert (tmp_path / "asked").read_text() == "download -q fofix/xenial\ndownload -q nexuiz-data\n"


def test_fetch_takes_the_file_at_hand_and_names_what_it_cannot_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scope-name-1.0.5.tgz").write_bytes(b"")
    assert fetch_package("@scope/name@1.0.5", tmp_path).name == "scope-name-1.0.5.tgz"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="npm is not installed"):
        fetch_package("@scope/other@1.0.0", tmp_path)
    (tmp_path / "bad-1.0.tgz").write_bytes(b"no tar file")
    with pytest.raises(PackageError, match="damaged package"):
        unpack_package(tmp_path / "bad-1.0.tgz", lambda _: True, tmp_path / "out")


def test_plan_refuses_unknown_packages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="typo-data"):
        plan_jobs([a_clip("birds-data", "owl.wav")], fonts=(), packages=["typo-data"])
    app = typer.Typer()
    app.command()(command.main)
    folders = ["--work-dir", str(tmp_path / "work"), "--output-dir", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*folders, "--packages", "typo-data"])
    assert result.exit_code == 2 and "typo-data" in result.output and not list(tmp_path.iterdir())


@needs_dpkg
def test_the_command_builds_a_corpus_of_chosen_packages(tmp_path: Path) -> None:
    clip = next(clip for clip in load_manifest() if clip.archive is None and clip.category != "music")
    (tmp_path / "work" / "packages").mkdir(parents=True)
    make_deb(tmp_path / "work" / "packages", clip.package, {clip.path: wav_bytes(chirp(400, 900))})
    command.main(tmp_path / "work", tmp_path / "out", packages=[clip.package], processes=1)
    report = json.loads((tmp_path / "out" / "build_report.json").read_text())
    assert report["rows"][clip.split] == 1 and set(report["reasons"]) <= {"missing from the package"}


def test_long_files_are_cut_after_their_silence_and_music_is_spread(tmp_path: Path) -> None:
    rate = 8_000
    silence, sound = np.zeros(3 * rate, np.float32), chirp(300, 3_000, seconds=12, rate=rate, level=0.9)
    soundfile.write(tmp_path / "long.wav", np.concatenate([silence, sound]), rate)
    (excerpt,) = read_excerpts(tmp_path / "long.wav")
    assert len(excerpt.waveform) == 10 * SAMPLING_RATE and excerpt.part == 0 and excerpt.sampling_rate == rate
    onset = np.flatnonzero(np.abs(excerpt.waveform) > 0.1)[0] / SAMPLING_RATE
    assert 0 < onset < 0.02
    # Music of 60 s whose pitch tells the time: excerpts start 5, 25 and 45 s in.
    time = np.arange(60 * rate) / rate
    soundfile.write(tmp_path / "music.wav", 0.5 * np.sin(2 * np.pi * (100 * time + 10 * time**2)), rate)
    parts = read_excerpts(tmp_path / "music.wav", windows=3)
    assert [part.part for part in parts] == [1, 2, 3]
    for part, start in zip(parts, (5, 25, 45), strict=True):
        spectrum = np.abs(np.fft.rfft(part.waveform[: SAMPLING_RATE // 10]))
        assert abs(spectrum.argmax() * 10 - (100 + 20 * start)) <= 20
    assert len(read_excerpts(tmp_path / "music.wav")) == 1


def test_unusable_sounds_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 8_000)
    soundfile.write(tmp_path / "nan.wav", np.full(8_000, np.nan, np.float32), 8_000, subtype="FLOAT")
    for name in ("empty.wav", "nan.wav"):
        with pytest.raises(UnusableSound, match=name):
            read_excerpts(tmp_path / name)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_raw_gsm_is_recognised_by_its_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "prompt.wav", chirp(300, 900, seconds=1, rate=8_000), 8_000, subtype="GSM610")
    # Microsoft packs two 33-byte frames into 65 bytes; ffmpeg unpacks them into the raw form of telephone exchanges.
    convert = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "prompt.wav"), "-c:a", "libgsm", "-f", "gsm"]
    if subprocess.run([*convert, str(tmp_path / "prompt.gsm")], capture_output=True, check=False).returncode:
        pytest.skip("this ffmpeg cannot write GSM")
    (excerpt,) = read_excerpts(tmp_path / "prompt.gsm")
    assert excerpt.sampling_rate == 8_000 and abs(len(excerpt.waveform) / SAMPLING_RATE - 1) < 0.05


def test_overshoot_is_scaled_not_clipped(tmp_path: Path) -> None:
    loud = chirp(300, 500, rate=SAMPLING_RATE, level=3.0)
    soundfile.write(tmp_path / "loud.wav", loud, SAMPLING_RATE, subtype="FLOAT")
    (excerpt,) = read_excerpts(tmp_path / "loud.wav")
    assert np.allclose(excerpt.waveform, loud / np.abs(loud).max(), atol=1e-6)
    decoded, _ = soundfile.read(io.BytesIO(encode_flac(excerpt.waveform, SAMPLING_RATE)))
    assert np.abs(decoded - excerpt.waveform).max() < 2 / 32768


def test_thumbnails_match_copies_and_not_other_sounds() -> None:
    original = chirp(2500, 700, rate=SAMPLING_RATE)
    copy = np.pad(0.1 * original, (4_000, 6_000))  # quieter, with silence at both ends
    noise = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    pictures = np.array([thumbnail(sound) for sound in (copy, noise, chirp(700, 2500, rate=SAMPLING_RATE))])
    held_out = np.array([thumbnail(original)])
    assert np.isclose(np.linalg.norm(held_out.astype(np.float32)), 1, atol=1e-2)
    ((candidate, (twin, cosine)),) = find_near_duplicates(pictures, held_out).items()
    assert (candidate, twin) == (0, 0) and cosine > 0.985


def test_zip_and_wad_and_catalogue_members(tmp_path: Path) -> None:
    sound = wav_bytes(chirp(300, 500))
    with zipfile.ZipFile(tmp_path / "data.love", "w") as file:
        file.writestr("sfx/a.wav", sound)
        file.writestr("main.lua", "-- no sound")
    assert list(read_zip(tmp_path / "data.love")) == [("data.love.d/sfx/a.wav", sound)]

    samples = (chirp(300, 500, rate=11_025) * 127 + 128).astype(np.uint8)
    lump = struct.pack("<HHI", 3, 11_025, len(samples) + 32) + bytes(16) + samples.tobytes() + bytes(16)
    directory = struct.pack("<II8s", 12, len(lump), b"DSOWL") + struct.pack("<II8s", 12, len(lump), b"D_MUSIC")
    (tmp_path / "doom.wad").write_bytes(b"IWAD" + struct.pack("<II", 2, 12 + len(lump)) + lump + directory)
    ((name, content),) = read_doom_wad(tmp_path / "doom.wad")
    decoded, rate = soundfile.read(io.BytesIO(content))
    assert name == "doom.wad/DSOWL.wav" and rate == 11_025
    assert np.allclose(decoded, (samples.astype(float) - 128) / 128)

    other = wav_bytes(chirp(900, 500))
    entries, offset = [], 16
    for title, content in ((b"Owl\0", sound), (b"Crow\0", other)):
        entry = bytes([len(title)]) + title + content + b"\x08name.wav"
        entries.append((offset, entry))
        offset += len(entry)
    head = b"".join(struct.pack("<II", start, len(entry)) for start, entry in entries)
    (tmp_path / "base.cat").write_bytes(head + b"".join(entry for _, entry in entries))
    assert list(read_ttd_catalogue(tmp_path / "base.cat")) == [
        ("opensfx/osfx_00.wav", sound),
        ("opensfx/osfx_01.wav", other),
    ]


def clonk_group(members: list[tuple[bytes, bytes, bool]]) -> bytes:
    head = bytearray(204)
    head[:14] = b"RedWolf Design"
    head[36:40] = struct.pack("<I", len(members))
    head = bytearray(byte ^ 237 for byte in head)
    for start in range(0, 202, 3):
        head[start], head[start + 2] = head[start + 2], head[start]
    entries, body = b"", b""
    for name, content, is_group in members:
        entry = name.ljust(260, b"\0") + struct.pack("<IIIII", 0, is_group, len(content), 0, len(body))
        entries += entry.ljust(316, b"\0")
        body += content
    return bytes(head) + entries + body


def test_clonk_groups_nest(tmp_path: Path) -> None:
    sound = wav_bytes(chirp(300, 500))
    inner = clonk_group([(b"Chirp.wav", sound, False), (b"Script.c", b"// code", False)])
    outer = gzip.compress(clonk_group([(b"Bird.ocg", inner, True)]))
    (tmp_path / "Objects.ocd").write_bytes(b"\x1e\x8c" + outer[2:])
    assert list(read_clonk_group(tmp_path / "Objects.ocd")) == [("clonk/Bird.ocg/Chirp.wav", sound)]
    (tmp_path / "other.ocg").write_bytes(b"x" * 300)
    with pytest.raises(ValueError, match="OpenClonk group"):
        list(read_clonk_group(tmp_path / "other.ocg"))


def test_captions_start_with_the_manifests_and_never_claim_loudness() -> None:
    clip = a_clip("qabcs-data", "owl.ogg", raw_label="Barn_owl.")
    assert caption_variants(clip)[:3] == ["an owl hooting", "the sound of barn owl", "owl"]
    drum = a_clip("kit", "k.flac", category="drum", label="open hi-hat", caption="a soft open hi-hat")
    assert caption_variants(drum) == ["an open hi-hat", "open hi-hat", "the sound of an open hi-hat"]
    speech = a_clip("s", "s.ogg", category="speech", label="Czech", lang="Czech", caption="a person speaking in Czech")
    assert caption_variants(speech)[1:] == ["speech in Czech", "somebody speaking Czech"]
    weak = a_clip("g", "g.ogg", category="other", label="other", quality="weak", caption="the sound of seeker")
    assert caption_variants(weak) == ["the sound of seeker"]
    cello = a_clip("c", "c.ogg", category="instrument", label="cello", caption="a cello playing", family="strings")
    assert caption_variants(cello)[-1] == "a strings instrument"
    assert with_article("ukulele") == "a ukulele" and with_article("oboe") == "an oboe"
    assert with_article("cymbals") == "cymbals" and with_article("synth brass") == "a synth brass"
    assert clean_title("An orca.") == "an orca" and clean_title("7-1") == ""


def test_manifest_inside_the_package() -> None:
    clips = load_manifest()
    assert len(clips) > 25_000
    splits: dict[tuple[str, str | None], set[str]] = {}
    for clip in clips:
        source = (clip.package, clip.kit if clip.package == "hydrogen-drumkits" else None)
        if clip.split != "unlabelled":
            splits.setdefault(source, set()).add(clip.split)
    assert all(len(names) == 1 for names in splits.values())
    for clip in clips:
        captions = caption_variants(clip)
        if clip.split == "unlabelled":
            continue
        assert 1 <= len(captions) <= 5 and all(caption.strip() for caption in captions)
        if clip.quality != "described":  # written by somebody; templates leave out what levels no longer show
            assert not any(word in captions[0].split() for word in ("loud", "quiet"))


def test_bad_manifest_names_the_line(tmp_path: Path) -> None:
    good = json.dumps({k: v for k, v in dataclasses.asdict(a_clip("p", "a.wav")).items() if v is not None})
    path = tmp_path / "manifest.jsonl.gz"
    for second, match in (
        ("{}", "line 2: expected one clip"),
        (good, "occurs twice"),
        (good.replace("train", "dev"), "dev"),
    ):
        path.write_bytes(gzip.compress(f"{good}\n{second}\n".encode()))
        with pytest.raises(ValueError, match=match):
            load_manifest(path)


def test_planned_phrases_are_unique_and_fonts_keep_to_one_split() -> None:
    plans = {font: plan_phrases(font) for font in FONTS}
    ids = [phrase.clip.id for phrases in plans.values() for phrase in phrases]
    assert len(ids) == len(set(ids))
    splits = {font.package: font.split for font in FONTS}
    assert splits["fluid-soundfont-gm"] == splits["musescore-general-soundfont-lossless"] == "train"
    assert splits["timgm6mb-soundfont"] == "test" and "csound-soundfont" not in splits
    for font, phrases in plans.items():
        for phrase in phrases:
            assert phrase.notes[0].start_s == 0 and all(0 < note.midi < 128 for note in phrase.notes)
            assert all(note.start_s + note.held_s <= phrase.length_s for note in phrase.notes)
            assert phrase.clip.split == font.split


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fluidsynth") is None, reason="fluidsynth is not installed")
def test_rendered_notes_have_the_pitch_they_claim(tmp_path: Path) -> None:
    try:
        package = fetch_package("timgm6mb-soundfont", tmp_path)
    except PackageError as error:
        pytest.skip(str(error))
    unpack_package(package, lambda path: path.endswith(".sf2"), tmp_path)
    (font_file,) = tmp_path.rglob("TimGM6mb.sf2")
    font = next(font for font in FONTS if font.file == font_file.name)
    # The ocarina is nearly a pure tone: its strongest partial is the note.
    ocarina = [phrase for phrase in plan_phrases(font) if phrase.clip.program == 79 and phrase.clip.velocity == 120]
    first, second = (list(render_phrases(font_file, ocarina)) for _ in range(2))
    for (phrase, samples), (_, again) in zip(first, second, strict=True):
        assert np.array_equal(samples, again) and len(samples) == 2 * SAMPLING_RATE
        assert np.abs(samples[: SAMPLING_RATE // 20]).max() > 1e-3  # the attack is in
        spectrum = np.abs(np.fft.rfft(samples[SAMPLING_RATE // 2 : SAMPLING_RATE]))
        fundamental = 440 * 2 ** ((phrase.notes[0].midi - 69) / 12)
        assert abs(spectrum.argmax() * 2 / fundamental - 1) < 0.03
    dense = Font(font.package, font.file, "train", font.license, dense=True, velocities=(100,))
    melody = [phrase for phrase in plan_phrases(dense) if phrase.clip.id.endswith("program079-melody1")]
    ((phrase, samples),) = render_phrases(font_file, melody)
    for note in phrase.notes:
        middle = round((note.start_s + note.held_s / 2) * SAMPLING_RATE)
        spectrum = np.abs(np.fft.rfft(samples[middle - 2_205 : middle + 2_205]))
        assert abs(spectrum.argmax() * 10 - 440 * 2 ** ((note.midi - 69) / 12)) < 25


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("timidity") is None, reason="timidity is not installed")
def test_patches_keep_their_attack_and_lack_what_the_set_lacks(tmp_path: Path) -> None:
    try:
        package = fetch_package("freepats", tmp_path)
    except PackageError as error:
        pytest.skip(str(error))
    unpack_package(package, lambda path: path.endswith((".pat", "etc/timidity/freepats.cfg")), tmp_path)
    (font_file,) = tmp_path.rglob("freepats.cfg")
    font = next(font for font in FONTS if font.file == font_file.name)
    # Program 3 is not in the set; a Timidity with another bank installed would play that one.
    chosen = [phrase for phrase in plan_phrases(font) if phrase.clip.program in (0, 3)]
    for phrase, samples in render_phrases(font_file, chosen):
        attack = np.abs(samples[: SAMPLING_RATE // 10]).max()
        assert attack == 0 if phrase.program == 3 else attack == pytest.approx(np.abs(samples).max(), rel=0.5)
