"""The README is true: snippets run and print what it shows, commands exist and take the options it names."""

import json
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
import torch
from huggingface_hub import HfApi
from typer.testing import CliRunner

from clap_hf.cli import app
from msclap_reference import TOKENIZER, official_state, random_clap
from readme import ROOT, blocks, run

SHOWN = [(language, code, output) for language, code, output in blocks() if output is not None]
COMMANDS = [line for language, code, _ in blocks() if language == "bash" for line in code.strip().splitlines()]


NUMBER = re.compile(r"\b\d+%|\b0\.\d\d\b")


@pytest.mark.parametrize(("language", "code", "output"), SHOWN, ids=[code[:25] for _, code, _ in SHOWN])
def test_printed_output_is_real(language, code, output):
    printed = run(language, code)
    assert NUMBER.sub("N", printed) == NUMBER.sub("N", output)
    # Scores may differ in their last digit between processors.
    for ours, shown in zip(NUMBER.findall(printed), NUMBER.findall(output), strict=True):
        assert float(ours.rstrip("%")) == pytest.approx(float(shown.rstrip("%")), abs=2 if "%" in shown else 0.02)


@cache
def help_of(is_subcommand: bool, name: str) -> str:
    """Help of a `clap-hf` command or of a script; several lines of the README name the same one."""
    program = ["-c", "from clap_hf.cli import app; app()", name] if is_subcommand else name.split()
    command = [sys.executable, *program, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_with_their_options(command):
    words = command.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    assert words[0].startswith(".venv/bin/")
    if "pip" in words:
        extra = re.search(r"\[(\w+)\]", command)[1]
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        return
    shown = help_of(words[0].endswith("clap-hf"), " ".join(words[1:3]) if words[1] == "-m" else words[1])
    for option in re.findall(r"--[\w-]+", command):
        assert option in shown
    for name in (word for word in words if word.startswith("configs/")):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("command", [command for command in COMMANDS if "clap-hf push" in command])
def test_pushes_work(hub, monkeypatch, tmp_path, command):
    """On the Hub of the tests, with a small stand-in for what another command builds."""
    (tmp_path / "sound-corpus" / "data").mkdir(parents=True)
    (tmp_path / "sound-corpus" / "README.md").write_text("---\nlicense: other\n---\n# Sounds\n")
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    words = command.split()[1:]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    kind = "dataset" if "dataset" in words else "model"
    assert HfApi().repo_exists(words[2], repo_type=kind) is ("--dry-run" not in words)
    assert "README.md" in result.stdout and hub.unhandled == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if "clap-hf classify" in command])
def test_classifying_works(monkeypatch, command):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0 and "thunder.ogg" in result.stdout, result.stderr


def test_converting_and_evaluating_work(hub, monkeypatch, tmp_path):
    """The two commands one after the other, on a small checkpoint in the official format in place of the released."""
    state = official_state(random_clap("2023", seed=7, small=True), "2023", "hub")
    torch.save({"model": state}, tmp_path / "CLAP_weights_2023.pth")
    for repo_id, files in {"microsoft/msclap": tmp_path / "CLAP_weights_2023.pth", "gpt2": TOKENIZER["2023"]}.items():
        hub.seed("models", repo_id, files)
    monkeypatch.chdir(tmp_path)
    for word in ("convert", "evaluate"):
        [command] = [command for command in COMMANDS if f"clap-hf {word}" in command and "runs/" not in command]
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        # No data set of the paper is on this Hub: every task says so, and the exit code tells.
        assert result.exit_code == {"convert": 0, "evaluate": 1}[word], (result.output, result.stderr)
    tasks = json.loads((tmp_path / "results" / "results.json").read_text())["tasks"]
    assert len(tasks) == 26 and {task["status"] for task in tasks} == {"not reached"}


def test_the_captioning_snippet_runs(captioner, monkeypatch, tmp_path, capsys):
    """On a tiny captioner in place of the released one."""
    [code] = [code for _, code, _ in blocks() if 'model="clapcap"' in code]
    (tmp_path / "clapcap").symlink_to(captioner)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "generated_text" in capsys.readouterr().out


def test_the_speed_section_is_made_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import report

    [shown] = report.SECTION.findall((ROOT / "README.md").read_text())
    assert shown == report.section()
    assert shown.count("\n| audio embedding") >= 3


def test_searching_works(monkeypatch, tmp_path):
    embed, search = (shlex.split(line)[1:] for line in COMMANDS if "sound-index" in line)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert CliRunner().invoke(app, embed).exit_code == 0
    result = CliRunner().invoke(app, search)
    assert result.exit_code == 0 and result.stdout.count("examples/") == 10, result.stderr
