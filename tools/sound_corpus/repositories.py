"""Reading wanted files of public git repositories at a recorded commit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from tools.sound_corpus.packages import PackageError


def find_repository(root: Path, repository: str) -> Path | None:
    """Find the git directory of a clone, bare or with a work tree.

    Args:
        root: Folder of clones, each named `owner+name` or `owner/name`.
        repository: `owner/name`.

    Returns:
        The git directory, or None if the folder has no such clone.
    """
    for folder in (root / repository.replace("/", "+"), root / repository, root / f"{repository}.git"):
        for git_dir in (folder / ".git", folder):
            if (git_dir / "HEAD").is_file():
                return git_dir
    return None


def clone_repository(root: Path, repository: str, base: str) -> Path:
    """Clone a repository into the folder of clones, unless it is there.

    Args:
        root: Folder of clones.
        repository: `owner/name`.
        base: Address in front of `owner/name`, for example a host or a folder of bare repositories.

    Returns:
        The git directory.

    Raises:
        PackageError: git fails; with its last line of output.
    """
    found = find_repository(root, repository)
    if found is not None:
        return found
    target = root / repository.replace("/", "+")
    command = ["git", "clone", "--quiet", "--bare", f"{base.rstrip('/')}/{repository}.git", str(target)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        last_line = (outcome.stderr.strip() or "no message").splitlines()[-1]
        raise PackageError(f"{repository}: cannot be cloned: {last_line}")
    return target


def list_files(git_dir: Path, commit: str) -> list[str]:
    """List the paths of all files at a commit.

    Args:
        git_dir: The git directory.
        commit: Commit name.

    Returns:
        Paths inside the repository, in git's order.

    Raises:
        PackageError: The commit is not in the clone.
    """
    command = ["git", "-C", str(git_dir), "ls-tree", "-r", "-z", "--name-only", commit]
    outcome = subprocess.run(command, capture_output=True, check=False)
    if outcome.returncode:
        raise PackageError(f"{git_dir}: commit {commit} is not in this clone; fetch it")
    return [path for path in outcome.stdout.decode("utf-8", "replace").split("\0") if path]


def read_blobs(git_dir: Path, commit: str, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Read files at a commit with one `git cat-file --batch`.

    Args:
        git_dir: The git directory.
        commit: Commit name.
        paths: Paths inside the repository.

    Yields:
        Path and content; a path without a blob at this commit is left out.
    """
    command = ["git", "-C", str(git_dir), "cat-file", "--batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        for path in paths:
            process.stdin.write(f"{commit}:{path}\n".encode())
            process.stdin.flush()
            head = process.stdout.readline().split()
            if len(head) != 3 or not head[2].isdigit():
                continue
            content = process.stdout.read(int(head[2]))
            process.stdout.read(1)
            if head[1] == b"blob":
                yield path, content
        process.stdin.close()


def unpack_repository(git_dir: Path, commit: str, paths: Iterable[str], folder: Path) -> None:
    """Write the wanted files at a commit under their paths.

    Args:
        git_dir: The git directory.
        commit: Commit name.
        paths: Paths inside the repository.
        folder: Where the files go.

    Raises:
        PackageError: The commit is not in the clone, or a path leaves the folder.
    """
    present = set(list_files(git_dir, commit))
    wanted = [path for path in paths if path in present]
    unsafe = [path for path in wanted if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute()]
    if unsafe:
        raise PackageError(f"{git_dir}: {unsafe[0]!r} leaves the folder, expected a path inside the repository")
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in read_blobs(git_dir, commit, wanted):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
