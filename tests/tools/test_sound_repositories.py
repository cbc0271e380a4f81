"""Git repositories as sources of sounds: a real local repository stands in for public ones."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from tools.sound_corpus import scan
from tools.sound_corpus.assemble import assemble
from tools.sound_corpus.build import build_packages, plan_jobs
from tools.sound_corpus.captions import caption_variants
from tools.sound_corpus.duplicates import read_outside
from tools.sound_corpus.manifest import Clip, load_manifest
from tools.sound_corpus.naming import describe_path, plain_words
from tools.sound_corpus.packages import PackageError
from tools.sound_corpus.repositories import clone_repository, find_repository, list_files, read_blobs
from tools.sound_corpus.scan import (
    MIN_CLASS,
    load_descriptions,
    load_repositories,
    scan_repository,
    wanted_paths,
    without_thin_labels,
)
from tools.sound_corpus.sounds import GitClones
from typer.testing import CliRunner

GIT = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org"]


def wav(low: float, high: float, seconds: float = 0.6, level: float = 0.5, rate: int = 22_050) -> bytes:
    """A wav file of a decaying sweep between two frequencies in Hz."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (low * time + (high - low) * time**2 / (2 * seconds))
    buffer = io.BytesIO()
    soundfile.write(buffer, level * np.sin(phase) * np.exp(-time / seconds), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def make_repository(base: Path, repository: str, files: dict[str, bytes]) -> str:
    """Commit files to a new bare repository `base/owner/name.git`; return the commit."""
    work = base / "work" / repository
    work.mkdir(parents=True)
    subprocess.run([*GIT, "init", "-q", str(work)], check=True)
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    subprocess.run([*GIT, "-C", str(work), "add", "-A"], check=True)
    subprocess.run([*GIT, "-C", str(work), "commit", "-q", "-m", "Add sounds"], check=True)
    target = base / f"{repository}.git"
    subprocess.run([*GIT, "clone", "-q", "--bare", str(work), str(target)], check=True, capture_output=True)
    head = subprocess.run([*GIT, "-C", str(work), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


@pytest.fixture
def two_projects(tmp_path: Path) -> tuple[Path, dict[str, scan.Settings]]:
    """Two bare repositories that share a dog, and their settings."""
    base = tmp_path / "host"
    dog = wav(300, 900)
    farm = {
        "sounds/farm_dog_bark.01.wav": dog,
        "sounds/farm_cow.wav": wav(200, 120, seconds=1.5),
        "sounds/farm_cow.ogg": b"another format of the same sound",
        "sounds/menu_select.wav": wav(1000, 1000),
        "music/theme.wav": wav(440, 880, seconds=45, rate=8000),
        "README.md": b"CC0",
    }
    zoo = {
        "sfx/dog.wav": wav(300, 900, level=0.2, rate=32_000),
        "sfx/lion/roar 2.wav": wav(90, 60, seconds=2.0),
        "sfx/pointer.wav": b"version 1",
    }
    settings: dict[str, scan.Settings] = {
        "someone/farm": {"license": "CC0-1.0", "take": ["*"], "author": "Someone", "without": "farm"},
        "someone/zoo": {"license": "MIT", "take": ["sfx/*"]},
    }
    settings["someone/farm"]["commit"] = make_repository(base, "someone/farm", farm)
    settings["someone/zoo"]["commit"] = make_repository(base, "someone/zoo", zoo)
    return base, settings


def test_corpus_of_two_repositories(two_projects: tuple[Path, dict[str, scan.Settings]], tmp_path: Path) -> None:
    base, settings = two_projects
    root = tmp_path / "clones"
    clips = []
    for repository, entry in settings.items():
        clips += scan_repository(repository, entry, clone_repository(root, repository, str(base)))
    by_path = {clip.path: clip for clip in clips}
    assert list(by_path) == [
        "music/theme.wav",
        "sounds/farm_cow.wav",
        "sounds/farm_dog_bark.01.wav",
        "sfx/dog.wav",
        "sfx/lion/roar 2.wav",
    ]
    assert by_path["sounds/farm_dog_bark.01.wav"].label == "dog"
    assert by_path["sfx/lion/roar 2.wav"].caption == "a lion roaring"
    assert by_path["music/theme.wav"].split == "unlabelled" and by_path["music/theme.wav"].windows == 4

    jobs = plan_jobs(clips, fonts=())
    assert build_packages(jobs, tmp_path / "work", processes=1, clones=GitClones(root)) == []
    report = assemble(jobs, tmp_path / "work", tmp_path / "corpus", [])
    assert report["rows"] == {"train": 3, "validation": 0, "test": 0, "sealed": 0, "unlabelled": 4}
    assert [drop["id"] for drop in report["shared_dropped"]] == ["someone/zoo/sfx/dog"]
    data = datasets.load_dataset(str(tmp_path / "corpus"), cache_dir=str(tmp_path / "cache"))
    assert sorted(zip(data["train"]["source"], data["train"]["label"], strict=True)) == [
        ("someone/farm", "cow"),
        ("someone/farm", "dog"),
        ("someone/zoo", "lion"),
    ]
    assert data["unlabelled"]["captions"] == [[]] * 4
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert f"| someone/farm | CC0-1.0 | Someone | {settings['someone/farm']['commit'][:10]} |" in card


def test_sounds_of_a_sealed_repository_are_in_no_other_split(
    two_projects: tuple[Path, dict[str, scan.Settings]], tmp_path: Path
) -> None:
    base, settings = two_projects
    settings["someone/zoo"]["sealed"] = True
    root, clips = tmp_path / "clones", []
    for repository, entry in settings.items():
        clips += scan_repository(repository, entry, clone_repository(root, repository, str(base)))
    assert {clip.package for clip in clips if clip.split == "sealed"} == {"someone/zoo"}
    jobs = plan_jobs(clips, fonts=())
    assert build_packages(jobs, tmp_path / "work", processes=1, clones=GitClones(root)) == []
    report = assemble(jobs, tmp_path / "work", tmp_path / "corpus", [])
    # The dog is in both repositories; it stays in the test, whatever is trained on.
    assert [drop["id"] for drop in report["shared_dropped"]] == ["someone/farm/sounds/farm_dog_bark.01"]
    assert report["rows"] == {"train": 1, "validation": 0, "test": 0, "sealed": 2, "unlabelled": 4}


def test_described_clip_has_its_own_caption_first(
    two_projects: tuple[Path, dict[str, scan.Settings]],
) -> None:
    base, settings = two_projects
    described = {"someone/zoo/sfx/lion/roar 2": "the second roar of a lion"}
    clips = list(scan_repository("someone/zoo", settings["someone/zoo"], base / "someone" / "zoo.git", described))
    lion = next(clip for clip in clips if clip.label == "lion")
    assert (lion.quality, lion.category, lion.caption) == ("described", "animal", "the second roar of a lion")
    assert caption_variants(lion)[0] == "the second roar of a lion"
    assert {clip.quality for clip in clips if clip.label != "lion"} == {"rule"}


def clip_of(label: str, package: str, split: str, windows: int = 1) -> Clip:
    """A clip of which only the label, the package, the split and the windows matter."""
    return Clip(
        id=f"{package}/{label}",
        package=package,
        path=f"{label}.wav",
        split=split,
        category="animal",
        quality="rule",
        label=label,
        caption=label,
        license="CC0-1.0",
        windows=windows,
    )


def test_sealed_labels_without_several_sources_are_left_out() -> None:
    def both(label: str, sealed: int, training: int, windows: int = 2) -> list[Clip]:
        clips = [clip_of(label, f"sealed/{number}", "sealed", windows) for number in range(sealed)]
        return clips + [clip_of(label, f"train/{number}", "train") for number in range(training)]

    clips = both("cow", 2, 3) + both("owl", 2, 1) + both("bat", 1, 9, windows=3) + both("loon", 1, 0, windows=1)
    packages = [clip_of("owl", "package", "validation"), clip_of("owl", "other package", "test")]
    kept = without_thin_labels(clips, packages)
    assert {clip.label for clip in kept if clip.split == "sealed"} == {"cow", "loon"}
    assert [clip for clip in kept if clip.split == "train"] == [clip for clip in clips if clip.split == "train"]
    enough = without_thin_labels(clips, [*packages, clip_of("owl", "third package", "train")])
    assert {clip.label for clip in enough if clip.split == "sealed"} == {"cow", "owl", "loon"}


def test_sounds_like_another_dataset_are_left_out(
    two_projects: tuple[Path, dict[str, scan.Settings]], tmp_path: Path
) -> None:
    base, settings = two_projects
    clips = list(scan_repository("someone/zoo", settings["someone/zoo"], base / "someone" / "zoo.git"))
    known = tmp_path / "known"
    known.mkdir()
    (known / "quiet dog.wav").write_bytes(wav(300, 900, level=0.1, rate=32_000))
    jobs = plan_jobs(clips, fonts=())
    build_packages(jobs, tmp_path / "work", processes=1, clones=GitClones(base))
    report = assemble(jobs, tmp_path / "work", tmp_path / "corpus", [], read_outside([known]))
    assert [(drop["id"], drop["like"]) for drop in report["outside_dropped"]] == [
        ("someone/zoo/sfx/dog", "quiet dog.wav")
    ]
    assert report["rows"]["train"] == 1
    again = assemble(jobs, tmp_path / "work", tmp_path / "again", [], read_outside([tmp_path / "corpus"]))
    assert [drop["id"] for drop in again["outside_dropped"]] == ["someone/zoo/sfx/lion/roar 2"]


def test_missing_repositories_are_skipped_with_a_line(
    two_projects: tuple[Path, dict[str, scan.Settings]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, settings = two_projects
    farm = list(scan_repository("someone/farm", settings["someone/farm"], base / "someone" / "farm.git"))
    failed = build_packages(plan_jobs(farm, fonts=()), tmp_path / "work", processes=1, clones=GitClones(tmp_path))
    assert [problem["package"] for problem in failed] == ["someone/farm"]
    assert "no clone in" in failed[0]["reason"]
    lost = settings["someone/zoo"] | {"commit": "0" * 40}
    monkeypatch.setattr(scan, "load_repositories", lambda: {**settings, "someone/zoo": lost, "no/where": lost})
    command = scan.typer.Typer()
    command.command()(scan.main)
    output = tmp_path / "manifest.jsonl.gz"
    outcome = CliRunner().invoke(command, ["--git-root", str(base), "--output", str(output)])
    assert outcome.exit_code == 0, outcome.output
    assert "no/where: no clone in" in outcome.output and "is not in this clone" in outcome.output
    assert "3 clips, 2 repositories left out" in outcome.output
    assert {clip.package for clip in load_manifest(output)} == {"someone/farm"}


def test_blobs_are_read_at_the_commit(two_projects: tuple[Path, dict[str, scan.Settings]], tmp_path: Path) -> None:
    base, settings = two_projects
    git_dir = find_repository(base, "someone/zoo")
    assert git_dir is not None and find_repository(base, "someone/else") is None
    commit = settings["someone/zoo"]["commit"]
    blobs = dict(read_blobs(git_dir, commit, ["sfx/pointer.wav", "sfx/none.wav", "sfx/lion/roar 2.wav"]))
    assert blobs["sfx/pointer.wav"] == b"version 1" and list(blobs) == ["sfx/pointer.wav", "sfx/lion/roar 2.wav"]
    with pytest.raises(PackageError, match="fetch it"):
        list_files(git_dir, "0" * 40)
    with pytest.raises(PackageError, match="no/where: cannot be cloned"):
        clone_repository(tmp_path / "clones", "no/where", str(base))


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("mobs/dog/dog_bark_03.ogg", "dog"),
        ("sounds/technic_vacuumcleaner.ogg", "vacuum cleaner"),
        ("audio/SteamTrainWhistle.wav", "train horn"),
        ("sounds/step_snow.1.ogg", "footsteps snow"),
        ("sounds/weather/heavy rain.ogg", "rain"),
        ("voice/woman_cough1.ogg", "cough"),
        ("sounds/doors_door_close.ogg", "door close"),
        ("mobs/lion/idle.ogg", "lion"),
        ("ui/menu_select.ogg", None),
        ("sounds/01.ogg", None),
        ("sounds/mobs_skeleton_hurt.ogg", None),
    ],
)
def test_names_say_the_class_or_nothing(path: str, label: str | None) -> None:
    named = describe_path(path, without=frozenset({"technic", "mobs", "doors"}))
    assert (named.label if named is not None else None) == label


def test_licenses_stated_by_file_decide(tmp_path: Path) -> None:
    stated = """
- files: ["cough.wav", "sneeze"]
  license: CC-BY-SA-3.0
  copyright: Someone
- files:
  - yawn.wav
  license: CC-BY-NC-4.0
"""
    files = {f"voice/{name}.wav": wav(300, 200) for name in ("cough", "sneeze", "yawn", "laugh")}
    settings = {"license": "by file", "take": ["*"], "attributions": "attributions.yml"}
    settings["commit"] = make_repository(tmp_path, "a/b", files | {"voice/attributions.yml": stated.encode()})
    clips = list(scan_repository("a/b", settings, tmp_path / "a" / "b.git"))
    assert [(clip.label, clip.license, clip.author) for clip in clips] == [
        ("cough", "CC-BY-SA-3.0", "Someone"),
        ("sneeze", "CC-BY-SA-3.0", "Someone"),
    ]


def test_words_of_a_name() -> None:
    assert plain_words("petz_puppyBark.02", frozenset({"petz"})) == "puppy bark"
    assert plain_words("156049__user__Rain-on-Roof") == "user rain on roof"


def test_one_format_of_a_sound_is_taken() -> None:
    paths = ["a/x.mp3", "a/x.ogg", "a/x.wav", "a/y.mp3", "b/z.ogg", "a/skip_me.ogg", "a/readme.txt"]
    assert wanted_paths(paths, {"take": ["a/*"], "skip": ["*skip*"]}) == ["a/x.wav", "a/y.mp3"]


def test_recorded_repositories_have_free_licenses_and_commits() -> None:
    repositories = load_repositories()
    assert len(repositories) >= 100
    for repository, entry in repositories.items():
        assert len(entry["commit"]) == 40 and entry["take"], repository
        assert not {"NC", "ND"} & set(entry["license"].replace(",", " ").replace("-", " ").split()), repository
    clips = [clip for clip in load_manifest() if clip.commit is not None]
    assert {clip.package for clip in clips} <= set(repositories)
    for clip in clips:
        entry = repositories[clip.package]
        assert clip.commit == entry["commit"] and clip.license
        assert (clip.split == "sealed") == entry.get("sealed", False)
        assert clip.license == entry["license"] or "attributions" in entry
        assert not {"NC", "ND", "Custom"} & set(clip.license.replace(",", " ").replace("-", " ").split()), clip.id
        assert bool(clip.caption) == bool(clip.label) == (clip.split != "unlabelled") == bool(caption_variants(clip))


def test_recorded_descriptions_are_of_one_sealed_clip_each() -> None:
    descriptions = load_descriptions()
    clips = {clip.id: clip for clip in load_manifest()}
    assert len(descriptions) >= 150
    assert len(set(descriptions.values())) == len(descriptions)
    for name, caption in descriptions.items():
        clip = clips[name]
        assert (clip.split, clip.quality, clip.windows) == ("sealed", "described", 1), name
        assert caption_variants(clip)[0] == caption, name
        assert 4 <= len(caption.split()) <= 12, name
    assert {clip.id for clip in clips.values() if clip.quality == "described"} == set(descriptions)


def test_recorded_sealed_classes_have_several_sources() -> None:
    sealed: dict[str, list[Clip]] = {}
    training: dict[str, set[str]] = {}
    for clip in load_manifest():
        if clip.split == "sealed":
            sealed.setdefault(clip.label, []).append(clip)
        elif clip.split in ("train", "validation"):
            training.setdefault(clip.label, set()).add(clip.package)
    for label, clips in sealed.items():
        if sum(clip.windows for clip in clips) >= MIN_CLASS:
            assert len({clip.package for clip in clips}) >= 2 and len(training[label]) >= 3, label


def test_rules_are_in_a_readable_order() -> None:
    content = json.loads((Path(scan.__file__).parent / "names.json").read_text(encoding="utf-8"))
    assert all(len(rule) == 4 and all(rule) for rule in content["rules"])
