"""docs/evaluate.md: its commands on sets of one's own run (test_pages.py runs its snippet)."""

import shlex
import sys

from typer.testing import CliRunner

from clap_hf.cli import app
from pages import ROOT, blocks
from test_scripts import run as run_script

COMMANDS = [
    shlex.split(command)[1:]
    for block in blocks()
    for command in block.commands
    if block.page == "docs/evaluate.md" and ("own" in command or "example-set" in command or "--dry-run" in command)
]


def test_the_commands_run(hub, monkeypatch, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clap-hf"])
    done = []
    for words in COMMANDS:
        if words[0].endswith(".py"):
            result = run_script(words[0].removeprefix("scripts/").removesuffix(".py"), *words[1:])
        else:
            result = CliRunner().invoke(app, [*words, "--no-plots", "--cache-dir", "cache", "--overwrite"])
        assert result.exit_code == 0, (words, result.output)
        done.append(words[0])
    assert done == ["evaluate", "scripts/reproduce.py", "scripts/build_evaluation_set.py", "evaluate"]
    table = (tmp_path / "results" / "results.md").read_text()
    assert "| example-set | accuracy |" in table and "| own data |" in table
