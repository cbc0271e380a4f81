"""The sounds of one package: unpack it, decode or render its clips, keep them in one part of the work folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from clap_hf.atomic_io import PartStore
from clap_hf.audio import encode_flac
from tools.sound_corpus.archives import ARCHIVE_READERS
from tools.sound_corpus.decode import MUSIC_WINDOWS, SAMPLING_RATE, Excerpt, UnusableSound, read_excerpts
from tools.sound_corpus.duplicates import thumbnail
from tools.sound_corpus.manifest import Clip
from tools.sound_corpus.packages import PackageError, fetch_package, unpack_package
from tools.sound_corpus.repositories import clone_repository, find_repository, unpack_repository
from tools.sound_corpus.soundfonts import Font
from tools.sound_corpus.synthesis import SILENT_PEAK, Phrase, RenderError, render_phrases

# Raise it when decoding or rendering changes, so that finished packages are made again.
BUILDER_VERSION = 3

# Only what takes long to make; labels and captions are joined at assembly, so mending one decodes nothing.
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("clip", pa.string()),
        pa.field("flac", pa.binary()),
        pa.field("duration_s", pa.float32()),
        pa.field("original_sampling_rate", pa.int32()),
        pa.field("digest", pa.string()),
        pa.field("thumbnail", pa.binary()),
    ]
)

Sound = dict[str, object]
Problem = dict[str, str]


@dataclass(frozen=True)
class PackageJob:
    """The clips that one package gives.

    Args:
        package: The package.
        clips: Recorded clips.
        fonts: Soundfonts in the package, each with the phrases to render.
    """

    package: str
    clips: tuple[Clip, ...]
    fonts: tuple[tuple[Font, tuple[Phrase, ...]], ...] = ()

    @property
    def commit(self) -> str | None:
        """Commit of a git repository; None for a package."""
        return self.clips[0].commit if self.clips else None

    @property
    def size(self) -> int:
        """Number of clips and phrases."""
        return len(self.clips) + sum(len(phrases) for _, phrases in self.fonts)

    @property
    def part(self) -> str:
        """Name of the part that holds the package's sounds."""
        return self.package.replace("/", "-")

    def store(self, work_dir: Path) -> PartStore:
        """Store of the package's sounds, made from these clips by this version of the builder.

        Args:
            work_dir: The builder's own folder.
        """
        files = [
            [clip.id, clip.path, clip.archive, clip.category == "music"]
            + ([clip.commit, clip.windows] if clip.commit is not None else [])
            for clip in self.clips
        ]
        phrases = [
            [phrase.clip.id, phrase.channel, phrase.program, phrase.length_s, *map(dataclasses.astuple, phrase.notes)]
            for _, planned in self.fonts
            for phrase in planned
        ]
        content = [BUILDER_VERSION, files, phrases]
        identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return PartStore(work_dir / "sounds", identity, SCHEMA, suffix=".arrow")


def _sound(clip: Clip, excerpt: Excerpt) -> Sound:
    flac = encode_flac(excerpt.waveform, SAMPLING_RATE)
    return {
        "id": clip.id if excerpt.part == 0 else f"{clip.id}-part{excerpt.part}",
        "clip": clip.id,
        "flac": flac,
        "duration_s": len(excerpt.waveform) / SAMPLING_RATE,
        "original_sampling_rate": excerpt.sampling_rate,
        "digest": hashlib.sha256(flac).hexdigest(),
        "thumbnail": thumbnail(excerpt.waveform).tobytes(),
    }


def _problem(clip: Clip, reason: str) -> Problem:
    return {"id": clip.id, "package": clip.package, "path": clip.path, "reason": reason}


def _open_archives(job: PackageJob, folder: Path) -> list[Problem]:
    """Put the wanted members of the package's archives beside its plain files."""
    problems = []
    for kind in sorted({clip.archive for clip in job.clips if clip.archive}):
        suffixes, reader = ARCHIVE_READERS[kind]
        wanted = {clip.path for clip in job.clips if clip.archive == kind}
        for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()):
            try:
                for name, content in reader(path):
                    if name in wanted:
                        target = folder / name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(content)
            except Exception as error:  # a damaged archive fails in many ways; it is listed and the rest goes on
                where = str(path.relative_to(folder))
                reason = f"archive cannot be read: {error!r}"
                problems.append({"id": "", "package": job.package, "path": where, "reason": reason})
    return problems


def _recorded_sounds(job: PackageJob, folder: Path, problems: list[Problem]) -> Iterator[Sound]:
    problems += _open_archives(job, folder)
    for clip in job.clips:
        path = folder / clip.path
        if not path.is_file():
            problems.append(_problem(clip, "missing from the package"))
            continue
        try:
            is_music = clip.category == "music" and clip.commit is None
            excerpts = read_excerpts(path, MUSIC_WINDOWS if is_music else clip.windows)
        except UnusableSound as error:
            problems.append(_problem(clip, str(error).replace(f"{folder}/", "")))
            continue
        yield from (_sound(clip, excerpt) for excerpt in excerpts)


def _rendered_sounds(
    font: Font, phrases: tuple[Phrase, ...], folder: Path, problems: list[Problem]
) -> Iterator[Sound]:
    files = sorted(folder.rglob(font.file))
    if not files:
        problems.append({"id": "", "package": font.package, "path": font.file, "reason": "missing from the package"})
        return
    try:
        for phrase, waveform in render_phrases(files[0], list(phrases)):
            if len(waveform) < phrase.length_s * SAMPLING_RATE / 2 or abs(waveform).max() < SILENT_PEAK:
                problems.append(_problem(phrase.clip, "the font does not play this"))
            else:
                yield _sound(phrase.clip, Excerpt(waveform, SAMPLING_RATE))
    except RenderError as error:  # of the machine, not of the font: the next run tries the package again
        raise PackageError(str(error)) from error


def _wanted_paths(job: PackageJob) -> Callable[[str], bool]:
    plain = {clip.path for clip in job.clips if clip.archive is None}
    fonts = {font.file for font, _ in job.fonts}
    suffixes = {suffix for clip in job.clips if clip.archive for suffix in ARCHIVE_READERS[clip.archive][0]}
    if any(name.endswith(".cfg") for name in fonts):
        suffixes.add(".pat")

    def wanted(path: str) -> bool:
        is_font = Path(path).name in fonts and "/examples/" not in path
        return path in plain or is_font or Path(path).suffix.lower() in suffixes

    return wanted


def is_finished(job: PackageJob, work_dir: Path) -> bool:
    """Whether the sounds of a package are there, made from these very clips.

    Args:
        job: The package's clips.
        work_dir: The builder's own folder.
    """
    return job.store(work_dir).has(job.part)


@dataclass(frozen=True)
class GitClones:
    """Where the clones of git repositories are.

    Args:
        root: Folder of clones.
        base: Address to clone missing repositories from; None leaves them out.
    """

    root: Path
    base: str | None = None

    def find(self, repository: str) -> Path:
        """Find or make the clone of a repository.

        Args:
            repository: `owner/name`.

        Returns:
            The git directory.

        Raises:
            PackageError: There is no clone and none can be made.
        """
        if self.base is not None:
            return clone_repository(self.root, repository, self.base)
        found = find_repository(self.root, repository)
        if found is None:
            raise PackageError(f"{repository}: no clone in {self.root}; clone it there or name an address")
        return found


def _unpack(job: PackageJob, work_dir: Path, folder: Path, clones: GitClones | None) -> None:
    if job.commit is None:
        unpack_package(fetch_package(job.package, work_dir / "packages"), _wanted_paths(job), folder)
    elif clones is None:
        raise PackageError(f"{job.package}: is a git repository; name the folder of clones")
    else:
        unpack_repository(clones.find(job.package), job.commit, [clip.path for clip in job.clips], folder)


def build_package(job: PackageJob, work_dir: Path, clones: GitClones | None = None) -> None:
    """Make the sounds of one package and keep them in the work folder, with the problems met.

    A package that cannot be fetched or rendered leaves no file, so the next run tries it again.

    Args:
        job: The package's clips.
        work_dir: The builder's own folder; fetched packages are kept in its `packages` folder.
        clones: Where the git repositories are; None if there are none.

    Raises:
        PackageError: If the package cannot be fetched, unpacked or rendered.
    """
    folder = work_dir / "unpacked" / job.part
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _unpack(job, work_dir, folder, clones)
        problems: list[Problem] = []
        sounds = chain(
            _recorded_sounds(job, folder, problems),
            *(_rendered_sounds(font, phrases, folder, problems) for font, phrases in job.fonts),
        )
        job.store(work_dir).write(sounds, job.part, lambda: {"problems": problems})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
