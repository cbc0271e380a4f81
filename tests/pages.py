"""Runs the Python snippets of the README and of docs/, and compares (or, as a script, writes) their printed output.

A block of `bash` or `python` that is followed by a block of `text` shows what it prints; every such block is run.
"""

from hub_server.session import HUB  # first: snippets that name a repository mean the Hub of the tests

# isort: split

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(bash|python)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
FILES = ("examples", "configs", "scripts", "src", "benchmarks")  # what snippets find in their folder


@dataclass(frozen=True)
class Block:
    """A command or snippet of a page.

    Attributes:
        page: The page's path in the repository.
        language: `bash` or `python`.
        code: What it holds.
        output: What the page shows that it prints; None where it shows nothing.
    """

    page: str
    language: str
    code: str
    output: str | None

    @property
    def commands(self) -> list[str]:
        """Commands of a `bash` block, without comments, continued lines joined."""
        lines = self.code.replace("\\\n", " ").splitlines() if self.language == "bash" else []
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def blocks() -> list[Block]:
    """Every command and snippet of every page."""
    return [
        Block(page.relative_to(ROOT).as_posix(), *match.groups())
        for page in PAGES
        for match in BLOCK.finditer(page.read_text())
    ]


@contextlib.contextmanager
def workplace():
    """A new folder to run in, with the repository's folders by links."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            (Path(folder) / name).symlink_to(ROOT / name)
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def run_python(block: Block) -> str:
    """Standard output of a snippet."""
    output = io.StringIO()
    os.environ["HF_TOKEN"] = HUB.tokens["write"]
    try:
        with workplace(), contextlib.redirect_stdout(output):
            exec(compile(block.code, block.page, "exec"), {"__name__": "page"})
    finally:
        del os.environ["HF_TOKEN"]
    return output.getvalue()


def run_commands(block: Block) -> str:
    """What `clap-hf` commands print, one after the other; `make demo` is its command."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    printed = []
    with workplace():
        for command in block.commands:
            words = shlex.split("clap-hf classify examples" if command == "make demo" else command)
            assert words[0] == "clap-hf", f"{block.page}: the output of {command!r} is shown, expected clap-hf"
            program = [sys.executable, "-c", "from clap_hf.cli import app; app()", *words[1:]]
            done = subprocess.run(program, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout.strip() + "\n")
    return "".join(printed)


def run(block: Block) -> str:
    """Printed output of a block that shows one."""
    return run_python(block) if block.language == "python" else run_commands(block)


def update(names: list[str]) -> None:
    """Write the real output below every block that shows one, on the pages named, or on all."""
    for page in PAGES:
        relative = page.relative_to(ROOT).as_posix()
        if names and relative not in names:
            continue

        def fresh(match: re.Match, page: str = relative) -> str:
            block = Block(page, *match.groups())
            if block.output is None or "my-sounds" in block.code:  # test_finetune_page.py runs the latter
                return match.group(0)
            return f"```{block.language}\n{block.code}```\n\n```text\n{run(block)}```\n"

        page.write_text(BLOCK.sub(fresh, page.read_text()))


if __name__ == "__main__":
    update(sys.argv[1:])
