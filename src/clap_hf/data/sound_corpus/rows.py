"""The rows of one package: unpack it, decode or render its clips, keep them in one Arrow file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clap_hf.data.sound_corpus.archives import ARCHIVE_READERS
from clap_hf.data.sound_corpus.captions import caption_variants
from clap_hf.data.sound_corpus.decode import SAMPLING_RATE, Excerpt, UnusableSound, encode_flac, read_excerpts
from clap_hf.data.sound_corpus.duplicates import thumbnail
from clap_hf.data.sound_corpus.manifest import Clip
from clap_hf.data.sound_corpus.packages import fetch_package, unpack_package
from clap_hf.data.sound_corpus.soundfonts import SILENT_NOTE_PEAK, Font, Note, RenderError, render_notes

# Raise it when decoding, rendering or captions change, so that finished packages are made again.
BUILDER_VERSION = 1

# What the corpus shows of a clip, and what only the assembly needs.
PUBLIC_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("audio", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
    pa.field("captions", pa.list_(pa.string())),
    pa.field("label", pa.string()),
    pa.field("raw_label", pa.string()),
    pa.field("category", pa.string()),
    pa.field("quality", pa.string()),
    pa.field("source", pa.string()),
    pa.field("licence", pa.string()),
    pa.field("duration_s", pa.float32()),
    pa.field("original_sampling_rate", pa.int32()),
    pa.field("lang", pa.string()),
    pa.field("transcript", pa.string()),
    pa.field("family", pa.string()),
    pa.field("midi", pa.int32()),
    pa.field("velocity", pa.int32()),
    pa.field("register", pa.string()),
    pa.field("kit", pa.string()),
    pa.field("program", pa.int32()),
]
PRIVATE_FIELDS = [
    pa.field("split", pa.string()),
    pa.field("digest", pa.string()),
    pa.field("thumbnail", pa.binary()),
]
SCHEMA = pa.schema(PUBLIC_FIELDS + PRIVATE_FIELDS)

Row = dict[str, object]
Problem = dict[str, str]


@dataclass(frozen=True)
class PackageJob:
    """The clips that one package gives.

    Args:
        package: the package.
        clips: recorded clips.
        fonts: soundfonts in the package, each with the notes to render.
    """

    package: str
    clips: tuple[Clip, ...]
    fonts: tuple[tuple[Font, tuple[Note, ...]], ...] = ()

    @property
    def size(self) -> int:
        """Number of clips and notes."""
        return len(self.clips) + sum(len(notes) for _, notes in self.fonts)

    def fingerprint(self) -> str:
        """Tells this job from one with other clips or made by another version of the builder."""
        fonts = [[dataclasses.asdict(note) for note in notes] for _, notes in self.fonts]
        content = [BUILDER_VERSION, [dataclasses.asdict(clip) for clip in self.clips], fonts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _row(clip: Clip, excerpt: Excerpt) -> Row:
    name = clip.id if excerpt.part == 0 else f"{clip.id}-part{excerpt.part}"
    flac = encode_flac(excerpt.waveform)
    return {
        "id": name,
        "audio": {"bytes": flac, "path": f"{name}.flac"},
        "captions": caption_variants(clip),
        "label": clip.label,
        "raw_label": clip.raw_label,
        "category": clip.category,
        "quality": clip.quality,
        "source": clip.package,
        "licence": clip.licence,
        "duration_s": len(excerpt.waveform) / SAMPLING_RATE,
        "original_sampling_rate": excerpt.sampling_rate,
        "lang": clip.lang,
        "transcript": clip.transcript,
        "family": clip.family,
        "midi": clip.midi,
        "velocity": clip.velocity,
        "register": clip.register,
        "kit": clip.kit,
        "program": clip.program,
        "split": clip.split,
        "digest": hashlib.sha256(flac).hexdigest(),
        "thumbnail": thumbnail(excerpt.waveform).tobytes(),
    }


def _problem(clip: Clip, reason: str) -> Problem:
    return {"id": clip.id, "package": clip.package, "path": clip.path, "reason": reason}


def _open_archives(job: PackageJob, folder: Path) -> list[Problem]:
    """Puts the wanted members of the package's archives beside its plain files."""
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


def _recorded_rows(job: PackageJob, folder: Path) -> tuple[list[Row], list[Problem]]:
    rows: list[Row] = []
    problems = _open_archives(job, folder)
    for clip in job.clips:
        path = folder / clip.path
        if not path.is_file():
            problems.append(_problem(clip, "missing from the package"))
            continue
        try:
            rows += [_row(clip, excerpt) for excerpt in read_excerpts(path, is_music=clip.category == "music")]
        except UnusableSound as error:
            problems.append(_problem(clip, str(error)))
    return rows, problems


def _rendered_rows(font: Font, notes: tuple[Note, ...], folder: Path) -> tuple[list[Row], list[Problem]]:
    rows: list[Row] = []
    problems: list[Problem] = []
    files = sorted(folder.rglob(font.file))
    if not files:
        return rows, [{"id": "", "package": font.package, "path": font.file, "reason": "missing from the package"}]
    try:
        for note, waveform in render_notes(files[0], list(notes)):
            if len(waveform) < note.length_s * SAMPLING_RATE / 2 or abs(waveform).max() < SILENT_NOTE_PEAK:
                problems.append(_problem(note.clip, "the font does not play this note"))
            else:
                rows.append(_row(note.clip, Excerpt(waveform, SAMPLING_RATE)))
    except RenderError as error:
        problems.append({"id": "", "package": font.package, "path": font.file, "reason": str(error)})
    return rows, problems


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


def rows_file(package: str, work_dir: Path) -> Path:
    """Gives the Arrow file that keeps a finished package's rows; its notes lie beside it as JSON.

    Args:
        package: the package.
        work_dir: the builder's own folder.

    Returns:
        The path.
    """
    return work_dir / "rows" / f"{package.replace('/', '-')}.arrow"


def is_finished(job: PackageJob, work_dir: Path) -> bool:
    """Tells whether the rows of a package are there and made from these very clips.

    Args:
        job: the package's clips.
        work_dir: the builder's own folder.

    Returns:
        True if the package need not be made again.
    """
    path = rows_file(job.package, work_dir)
    notes = path.with_suffix(".json")
    if not path.is_file() or not notes.is_file():
        return False
    return json.loads(notes.read_text(encoding="utf-8"))["fingerprint"] == job.fingerprint()


def build_package(job: PackageJob, work_dir: Path) -> int:
    """Makes the rows of one package and keeps them in the work folder.

    A package that cannot be fetched leaves no file, so the next run tries it again.

    Args:
        job: the package's clips.
        work_dir: the builder's own folder; fetched packages are kept in its `packages` folder.

    Returns:
        Number of rows.

    Raises:
        PackageError: the package cannot be fetched or unpacked.
    """
    path = rows_file(job.package, work_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = work_dir / "unpacked" / path.stem
    shutil.rmtree(folder, ignore_errors=True)
    try:
        unpack_package(fetch_package(job.package, work_dir / "packages"), _wanted_paths(job), folder)
        rows, problems = _recorded_rows(job, folder)
        for font, notes in job.fonts:
            more_rows, more_problems = _rendered_rows(font, notes, folder)
            rows += more_rows
            problems += more_problems
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    temporary = path.with_suffix(".arrow.part")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for start in range(0, len(rows), 256):
            writer.write_batch(pa.RecordBatch.from_pylist(rows[start : start + 256], schema=SCHEMA))
    os.replace(temporary, path)
    notes_path = path.with_suffix(".json")
    temporary = notes_path.with_suffix(".json.part")
    temporary.write_text(json.dumps({"fingerprint": job.fingerprint(), "problems": problems}), encoding="utf-8")
    os.replace(temporary, notes_path)
    return len(rows)
