"""Writes the manifest of the git repositories: which file of which repository has which caption.

Needs the clones. Each repository of `repositories.json` names the license of its sounds, the files to take and the
commit; a repository without a clone is one line, and its rows are left out. `described.json` has the captions that
were written for one sealed clip each.

    python -m tools.sound_corpus.scan --git-root clones
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any

import soundfile
import typer
import yaml

from tools.sound_corpus.decode import LONG_SECONDS, MAX_SECONDS
from tools.sound_corpus.manifest import MANIFESTS, Clip, load_manifest
from tools.sound_corpus.naming import NamedSound, describe_path, plain_words
from tools.sound_corpus.packages import PackageError
from tools.sound_corpus.repositories import find_repository, list_files, read_blobs

# In order of preference: a project may keep a sound in several formats.
_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aif", ".aiff", ".au")
_MUSIC_FOLDERS = {"music", "musics", "mus", "themes", "soundtrack"}
# Sounds that stay alike for minutes give several excerpts.
_STEADY = {"weather", "nature", "vehicle"}
STEADY_WINDOWS = 3
MAX_PER_LABEL = 40
UNLABELLED_WINDOWS = 12
MAX_UNLABELLED = 220
MIN_UNLABELLED_SECONDS = 3.0
# A sealed label of as many sounds becomes a class of a task; it is tested where the test and training have several
# sources of it.
MIN_CLASS = 3
MIN_SEALED_SOURCES = 2
MIN_TRAINING_SOURCES = 3
_FREE_LICENSES = (
    "CC0-",
    "CC-BY-3",
    "CC-BY-4",
    "CC-BY-SA-",
    "MIT",
    "GPL-",
    "AGPL-",
    "LGPL-",
    "OGA-BY",
    "WTFPL",
    "Unlicense",
)

Settings = dict[str, Any]


def load_repositories() -> dict[str, Settings]:
    """Read the repositories with their licenses, commits and wanted files.

    Returns:
        For each `owner/name`: `commit`, `license`, `take` (patterns of paths), and where needed `author`, `skip`,
        `unlabelled` (patterns), `prefix` and `without` (words), `titles` (names by path), `titled` (whether the file
        names are titles by people), `sealed` (whether its clips are the sealed test) and `attributions` (name of the
        YAML files that state license and author by file).
    """
    return json.loads((resources.files(__package__) / "repositories.json").read_text(encoding="utf-8"))


def load_descriptions() -> dict[str, str]:
    """Read the captions written for one clip each, from its file name or title alone.

    Returns:
        Caption by clip id.
    """
    return json.loads((resources.files(__package__) / "described.json").read_text(encoding="utf-8"))


def _matches(path: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def wanted_paths(paths: list[str], settings: Settings) -> list[str]:
    """Choose the sounds to take, one format of each.

    Args:
        paths: All paths of a repository.
        settings: Its entry in `repositories.json`.

    Returns:
        Sorted paths.
    """
    chosen: dict[str, str] = {}
    for path in sorted(paths):
        suffix = PurePosixPath(path).suffix.lower()
        if suffix not in _SUFFIXES or not _matches(path, settings["take"]) or _matches(path, settings.get("skip", [])):
            continue
        stem = path[: -len(suffix)]
        other = chosen.get(stem)
        if other is None or _SUFFIXES.index(suffix) < _SUFFIXES.index(PurePosixPath(other).suffix.lower()):
            chosen[stem] = path
    return sorted(chosen.values())


def read_attributions(git_dir: Path, commit: str, paths: list[str], name: str) -> dict[str, tuple[str, str]]:
    """Read who made which file under which license.

    Args:
        git_dir: The clone.
        commit: Commit name.
        paths: All paths of the repository.
        name: Name of the YAML files, each a list of `files`, `license` and `copyright` for its own folder.

    Returns:
        License and author of each path stated under a free license.
    """
    stated: dict[str, tuple[str, str]] = {}
    listings = [path for path in paths if PurePosixPath(path).name == name]
    for path, content in read_blobs(git_dir, commit, listings):
        for entry in yaml.safe_load(content) or []:
            license_name = str(entry.get("license", ""))
            if not license_name.startswith(_FREE_LICENSES):
                continue
            author = " ".join(str(entry.get("copyright", "")).split())[:160]
            for file in entry.get("files") or []:
                stated[str(PurePosixPath(path).parent / _stem(str(file)))] = (license_name, author)
    return stated


def _stem(path: str) -> str:
    return path.rpartition(".")[0] if PurePosixPath(path).suffix.lower() in _SUFFIXES else path


def _described(path: str, settings: Settings) -> NamedSound | None:
    folders = {folder.lower() for folder in PurePosixPath(path).parts[:-1]}
    if folders & _MUSIC_FOLDERS or _matches(path, settings.get("unlabelled", [])):
        return None
    title = settings.get("titles", {}).get(path)
    without = frozenset(settings.get("without", "").split())
    return describe_path(title or path, settings.get("prefix", ""), without)


def scan_repository(
    repository: str, settings: Settings, git_dir: Path, descriptions: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Clip]:
    """List the clips of a repository.

    Args:
        repository: `owner/name`.
        settings: Its entry in `repositories.json`.
        git_dir: Its clone.
        descriptions: Captions written for one clip each, by id.

    Yields:
        Labelled clips, at most `MAX_PER_LABEL` a label, and unlabelled ones of at least `MIN_UNLABELLED_SECONDS`.

    Raises:
        PackageError: The commit is not in the clone.
    """
    commit = settings["commit"]
    counts: Counter[str] = Counter()
    unlabelled = 0
    paths = list_files(git_dir, commit)
    attributions = settings.get("attributions")
    stated = read_attributions(git_dir, commit, paths, attributions) if attributions else None
    for path, content in read_blobs(git_dir, commit, wanted_paths(paths, settings)):
        terms = settings["license"], settings.get("author")
        if stated is not None:
            if path.rpartition(".")[0] not in stated:
                continue
            terms = stated[path.rpartition(".")[0]]
        try:
            seconds = float(soundfile.info(io.BytesIO(content)).duration)
        except soundfile.LibsndfileError:
            continue  # a Git LFS pointer or a damaged file
        known = {"package": repository, "path": path, "commit": commit, "license": terms[0]}
        known |= {"author": terms[1], "id": f"{repository}/{PurePosixPath(path).with_suffix('')}"}
        named = _described(path, settings)
        if named is None:
            windows = min(UNLABELLED_WINDOWS, max(1, int(seconds // MAX_SECONDS))) if seconds > LONG_SECONDS else 1
            too_short_or_many = seconds < MIN_UNLABELLED_SECONDS or unlabelled >= MAX_UNLABELLED
            if too_short_or_many or settings.get("sealed", False):
                continue
            unlabelled += windows
            known |= {"split": "unlabelled", "category": "other", "quality": "none", "label": "", "caption": ""}
            yield Clip(**known, raw_label=PurePosixPath(path).stem, windows=windows)
            continue
        if counts[named.label] >= MAX_PER_LABEL:
            continue
        counts[named.label] += 1
        is_titled = settings.get("titled", False) or path in settings.get("titles", {})
        words = plain_words(settings.get("titles", {}).get(path, PurePosixPath(path).stem))
        split = "sealed" if settings.get("sealed", False) else "train"
        description = descriptions.get(known["id"])
        quality = "described" if description is not None else "named" if is_titled else "rule"
        known |= {"split": split, "category": named.category, "quality": quality}
        yield Clip(
            **known,
            label=named.label,
            caption=description or named.caption,
            raw_label=words if is_titled else PurePosixPath(path).stem,
            windows=STEADY_WINDOWS if named.category in _STEADY and seconds > LONG_SECONDS else 1,
        )


def without_thin_labels(clips: Iterable[Clip], others: Iterable[Clip]) -> list[Clip]:
    """Leave sealed clips out whose label could be tested but not claimed.

    Args:
        clips: Clips of the git repositories.
        others: Clips of the packages.

    Returns:
        The clips without the sealed ones of labels that have `MIN_CLASS` sounds but fewer than `MIN_SEALED_SOURCES`
        sealed sources, or fewer than `MIN_TRAINING_SOURCES` sources in training and validation.
    """
    clips = list(clips)
    sounds: Counter[str] = Counter()
    sealed: dict[str, set[str]] = defaultdict(set)
    training: dict[str, set[str]] = defaultdict(set)
    for clip in (*clips, *others):
        if clip.split == "sealed":
            sounds[clip.label] += clip.windows
            sealed[clip.label].add(clip.package)
        elif clip.split in ("train", "validation"):
            training[clip.label].add(clip.package)
    thin = {
        label
        for label, count in sounds.items()
        if count >= MIN_CLASS
        and (len(sealed[label]) < MIN_SEALED_SOURCES or len(training[label]) < MIN_TRAINING_SOURCES)
    }
    return [clip for clip in clips if clip.split != "sealed" or clip.label not in thin]


def main(
    git_root: Annotated[Path, typer.Option(help="Folder of clones, named owner+name.")],
    output: Annotated[Path, typer.Option(help="The manifest to write.")] = Path(
        "tools/sound_corpus/manifest_git.jsonl.gz"
    ),
) -> None:
    """Write the manifest of the git repositories."""
    found: list[Clip] = []
    missing = 0
    descriptions = load_descriptions()
    for repository, settings in sorted(load_repositories().items()):
        git_dir = find_repository(git_root, repository)
        if git_dir is None:
            typer.echo(f"{repository}: no clone in {git_root}")
            missing += 1
            continue
        try:
            found += scan_repository(repository, settings, git_dir, descriptions)
        except PackageError as error:
            typer.echo(str(error))
            missing += 1
    packages = load_manifest(str(resources.files(__package__) / MANIFESTS[0]))
    lines = []
    for clip in without_thin_labels(found, packages):
        row = {key: value for key, value in dataclasses.asdict(clip).items() if value is not None}
        lines.append(json.dumps(row, ensure_ascii=False))
    # A fixed time keeps equal manifests byte-equal.
    output.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))
    typer.echo(f"{len(lines)} clips, {missing} repositories left out")


if __name__ == "__main__":
    typer.run(main)
