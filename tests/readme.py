"""Runs the README's Python snippets and the demo, and compares (or, as a script, writes) their printed output."""

from hub_server.session import HUB  # first: snippets that name a repository mean the Hub of the tests

# isort: split

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"```(bash|python)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def blocks() -> list[tuple[str, str, str | None]]:
    """(language, code, printed output or None) of every command and snippet."""
    return [match.groups() for match in BLOCK.finditer(README.read_text())]


def run_python(code: str) -> str:
    """Standard output of a snippet, run from the repository's root."""
    output = io.StringIO()
    before = Path.cwd()
    os.chdir(ROOT)
    os.environ["HF_TOKEN"] = HUB.tokens["write"]
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    finally:
        os.chdir(before)
        del os.environ["HF_TOKEN"]
    return output.getvalue()


def run_demo() -> str:
    """What `make demo` prints once everything is installed."""
    command = [sys.executable, "-c", "from clap_hf.cli import app; app()", "classify", "examples"]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip() + "\n"


def run(language: str, code: str) -> str:
    """Printed output of a block that shows one."""
    return run_python(code) if language == "python" else run_demo()


def update() -> None:
    """Write the real output below every block that shows one."""

    def fresh(match: re.Match) -> str:
        language, code, output = match.groups()
        if output is None:
            return match.group(0)
        return f"```{language}\n{code}```\n\n```text\n{run(language, code)}```\n"

    README.write_text(BLOCK.sub(fresh, README.read_text()))


if __name__ == "__main__":
    update()
