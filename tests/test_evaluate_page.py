"""docs/evaluate.md: its snippet prints what it shows, its commands run."""

import shlex
import sys

from typer.testing import CliRunner

from clap_hf.cli import app
from readme import BLOCK, ROOT, run_python
from test_scripts import run as run_script

PAGE = ROOT / "docs" / "evaluate.md"
BLOCKS = [match.groups() for match in BLOCK.finditer(PAGE.read_text())]
COMMANDS = [shlex.split(line)[1:] for kind, code, _ in BLOCKS if kind == "bash" for line in code.strip().splitlines()]


def test_the_snippet_prints_what_it_shows():
    [(code, shown)] = [(code, output) for kind, code, output in BLOCKS if kind == "python"]
    assert run_python(code) == shown


def test_the_commands_run(hub, monkeypatch, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clap-hf"])
    done = []
    for words in COMMANDS:
        if "--tiny" in words:  # tests/test_reproduce.py runs it
            continue
        if words[0].endswith(".py"):
            result = run_script(words[0].removeprefix("scripts/").removesuffix(".py"), *words[1:])
        else:
            result = CliRunner().invoke(app, [*words, "--no-plots", "--cache-dir", "cache", "--overwrite"])
        assert result.exit_code == 0, (words, result.output)
        done.append(words[0])
    assert done == ["evaluate", "scripts/build_evaluation_set.py", "evaluate", "scripts/reproduce.py"]
    table = (tmp_path / "results" / "results.md").read_text()
    assert "| example-set | accuracy |" in table and "| own data |" in table
