"""Grouping the clips by package, and processing the packages: each is a resumable step of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tools.sound_corpus.manifest import Clip
from tools.sound_corpus.packages import PackageError
from tools.sound_corpus.soundfonts import Font, plan_phrases
from tools.sound_corpus.sounds import GitClones, PackageJob, Problem, build_package, is_finished


def plan_jobs(
    clips: Iterable[Clip],
    fonts: Iterable[Font],
    packages: Iterable[str] = (),
    skip: Iterable[str] = (),
    limit: int | None = None,
) -> list[PackageJob]:
    """Group clips and phrases by package.

    Args:
        clips: Recorded clips.
        fonts: Soundfonts to render.
        packages: Take only these; all if empty.
        skip: Leave these out.
        limit: Take at most this many clips, and phrases of each font, from a package; all if None.

    Returns:
        One job a package, sorted by package.

    Raises:
        ValueError: `packages` or `skip` names a package without clips.
    """
    fonts = list(fonts)
    by_package: dict[str, list[Clip]] = {font.package: [] for font in fonts}
    for clip in clips:
        by_package.setdefault(clip.package, []).append(clip)
    only, without = set(packages), set(skip)
    unknown = sorted((only | without) - set(by_package))
    if unknown:
        raise ValueError(f"packages {unknown} give no clips, expected names of the manifest.")
    jobs = []
    for package in sorted(by_package):
        if package in without or (only and package not in only):
            continue
        planned = tuple((font, tuple(plan_phrases(font)[:limit])) for font in fonts if font.package == package)
        jobs.append(PackageJob(package, tuple(by_package[package][:limit]), planned))
    return jobs


def build_packages(
    jobs: list[PackageJob],
    work_dir: Path,
    processes: int = 2,
    on_finished: Callable[[PackageJob], None] | None = None,
    clones: GitClones | None = None,
) -> list[Problem]:
    """Make the sounds of every package that is not finished yet.

    Args:
        jobs: The packages.
        work_dir: The builder's own folder.
        processes: Worker processes; 1 works in this process.
        on_finished: Called with each package when it is done.
        clones: Where the git repositories are.

    Returns:
        The packages that could not be fetched, unpacked or rendered, with the reason.
    """
    waiting = []
    for job in jobs:
        if not is_finished(job, work_dir):
            waiting.append(job)
        elif on_finished is not None:
            on_finished(job)
    waiting.sort(key=lambda job: -job.size)  # largest first, so that the processes end together
    failed: list[Problem] = []

    def finish(job: PackageJob, collect: Callable[[], None]) -> None:
        try:
            collect()
        except PackageError as error:
            failed.append({"id": "", "package": job.package, "path": "", "reason": str(error)})
        if on_finished is not None:
            on_finished(job)

    if processes == 1:
        for job in waiting:
            finish(job, partial(build_package, job, work_dir, clones))
    elif waiting:
        # Spawned, since a forked child of a process with torch threads may hang.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(build_package, job, work_dir, clones): job for job in waiting}
            for future in as_completed(futures):
                finish(futures[future], future.result)
    return sorted(failed, key=lambda problem: problem["package"])
