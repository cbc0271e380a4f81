"""Fetching packages with the registries' own clients, and unpacking the wanted files."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

# Packages that Debian bookworm lacks, or has without the sounds, by the suite of Debian or Ubuntu to take them from.
SUITES = {
    "trixie": ("adarkroom", "bespokesynth-data", "blupimania-common", "boulder-game", "libsfml-doc"),
    "sid": ("cdogs-sdl-data", "drum-machine", "gnome-clocks", "ultrastardx-data"),
    "bullseye": ("lix-data", "wx3.0-examples"),
    "focal": (
        "bve-train-br-class-323",
        "childsplay",
        "ember-media",
        "kiki-the-nano-bot-data",
        "pysycache-sounds",
    ),
    "bionic": (
        "bubbros",
        "bve-route-cross-city-south",
        "minetest-mod-animalmaterials",
        "minetest-mod-animals",
        "xpilot-ng-common",
    ),
    "xenial": ("flightgear-data-aircrafts", "fofix", "gcompris-data"),
}
_SUITE_OF = {package: suite for suite, packages in SUITES.items() for package in packages}


class PackageError(RuntimeError):
    """A package could not be fetched or unpacked."""


def _is_npm(package: str) -> bool:
    return "@" in package


def archive_prefix(package: str) -> str:
    """Return the beginning of the file name under which a client saves a package.

    Args:
        package: A Debian package name or `@scope/name@version`.

    Returns:
        For example `fillets-ng-data_` or `scope-name-1.0.5`.
    """
    if _is_npm(package):
        name, _, version = package.removeprefix("@").rpartition("@")
        return f"{name.replace('/', '-')}-{version}"
    return f"{package}_"


def fetch_package(package: str, folder: Path) -> Path:
    """Download a package with `apt-get download` or `npm pack`, unless the folder already holds it.

    Args:
        package: A Debian package name or `@scope/name@version`.
        folder: Where packages are kept.

    Returns:
        The `.deb` or `.tgz` file.

    Raises:
        PackageError: The client is missing or fails; with its last line of output and the suite that apt needs.
    """
    pattern = archive_prefix(package) + ("*.tgz" if _is_npm(package) else "*.deb")
    found = sorted(folder.glob(pattern))
    if found:
        return found[-1]
    folder.mkdir(parents=True, exist_ok=True)
    suite = _SUITE_OF.get(package)
    wanted = package if suite is None else f"{package}/{suite}"
    command = ["npm", "pack", package] if _is_npm(package) else ["apt-get", "download", "-q", wanted]
    try:
        outcome = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PackageError(f"{package}: cannot be fetched, the command {command[0]} is not installed") from error
    found = sorted(folder.glob(pattern))
    if outcome.returncode or not found:
        last_line = (outcome.stderr.strip() or outcome.stdout.strip() or "no message").splitlines()[-1]
        remedy = "" if suite is None else f"; it is in the suite {suite}: add that to apt's sources"
        raise PackageError(f"{package}: {' '.join(command)} failed: {last_line}{remedy}")
    return found[-1]


def _unpack_stream(stream: IO[bytes], wanted: Callable[[str], bool], folder: Path) -> None:
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not member.isfile() or ".." in PurePosixPath(name).parts or not wanted(name):
                continue
            content = archive.extractfile(member)
            if content is None:
                continue
            target = folder / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


def unpack_package(archive: Path, wanted: Callable[[str], bool], folder: Path) -> None:
    """Unpack the wanted regular files of a package; links are left out.

    Args:
        archive: A `.deb` or a tar file.
        wanted: Whether to unpack a file, by its path inside the package.
        folder: Where the files go, under their paths inside the package.

    Raises:
        PackageError: The file is damaged or no package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if archive.suffix == ".deb":
            command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                assert process.stdout is not None and process.stderr is not None
                _unpack_stream(process.stdout, wanted, folder)
                process.stdout.read()
                message = process.stderr.read().decode("utf-8", "replace").strip()
            if process.returncode:
                raise PackageError(f"{archive.name}: dpkg-deb failed: {message}")
        else:
            with archive.open("rb") as stream:
                _unpack_stream(stream, wanted, folder)
    except FileNotFoundError as error:
        raise PackageError(f"{archive.name}: cannot be unpacked, {error.filename} is not installed") from error
    except (tarfile.TarError, EOFError) as error:
        raise PackageError(f"{archive.name}: damaged package: {error}") from error
