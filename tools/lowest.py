"""The lowest versions of dependencies that pyproject.toml allows, as constraints for pip: `python -m tools.lowest`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?(?:>=|==)([\w.]+)")


def lowest_versions(project: Path) -> dict[str, str]:
    """Lowest version of every dependency, and of torchaudio; other extras, for tests and tools, are left free.

    Args:
        project: pyproject.toml.

    Raises:
        ValueError: If a requirement states no lowest version.
    """
    about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = {}
    fitting = [line for line in about["optional-dependencies"]["test"] if line.startswith("torchaudio")]
    for line in (*about["dependencies"], *fitting):  # a release of torchaudio fits one of torch
        match = REQUIREMENT.match(line)
        if match is None:
            raise ValueError(f"{project}: {line!r} states no lowest version, expected name>=version.")
        found[match[1]] = match[2]
    return found


if __name__ == "__main__":
    for name, version in lowest_versions(Path(__file__).parent.parent / "pyproject.toml").items():
        print(f"{name}=={version}")
