"""Which packages to work on, and working on them: each is a resumable step of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tools.sound_corpus.manifest import Clip
from tools.sound_corpus.packages import PackageError
from tools.sound_corpus.soundfonts import Font, plan_phrases
from tools.sound_corpus.sounds import PackageJob, Problem, build_package, is_finished


def plan_jobs(
    clips: Iterable[Clip],
    fonts: Iterable[Font],
    packages: Iterable[str] = (),
    skip: Iterable[str] = (),
    limit: int | None = None,
) -> list[PackageJob]:
    """Groups clips and phrases by package.

    Args:
        clips: recorded clips.
        fonts: soundfonts to render.
        packages: take only these; all if empty.
        skip: leave these out.
        limit: take at most this many clips, and phrases of each font, from a package; all if None.

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
        raise ValueError(f"packages {unknown} give no clips; use names that the manifest has")
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
) -> list[Problem]:
    """Makes the sounds of every package that is not finished yet.

    Args:
        jobs: the packages.
        work_dir: the builder's own folder.
        processes: worker processes; 1 works in this process.
        on_finished: told of each package when it is done.

    Returns:
        The packages that could not be fetched or unpacked, with the reason.
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
            finish(job, partial(build_package, job, work_dir))
    elif waiting:
        # Spawned, since a forked child of a process with torch threads may hang.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(build_package, job, work_dir): job for job in waiting}
            for future in as_completed(futures):
                finish(futures[future], future.result)
    return sorted(failed, key=lambda problem: problem["package"])
