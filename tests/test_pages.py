"""The README and docs/ are true: snippets run and print what they show, commands exist and take the options named."""

import contextlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from typer.testing import CliRunner

from clap_hf.cli import app
from families import save_family
from msclap_reference import TOKENIZER, official_state, random_clap
from pages import PAGES, ROOT, blocks, run

BLOCKS = blocks()
# What trains on my-sounds is run by test_finetune_page.py.
SHOWN = [block for block in BLOCKS if block.output is not None and "my-sounds" not in block.code]
COMMANDS = list(dict.fromkeys(command for block in BLOCKS for command in block.commands))
SNIPPETS_WITH_STAND_INS = ("clapcap", "laion/")  # what they load is made by a test below

NUMBER = re.compile(r"\b\d+%|\b0\.\d\d\b")


@pytest.mark.parametrize("block", SHOWN, ids=[f"{block.page}-{block.code[:25]}" for block in SHOWN])
def test_printed_output_is_real(block):
    printed = run(block)
    assert NUMBER.sub("N", printed) == NUMBER.sub("N", block.output)
    # Scores may differ in their last digit between processors.
    for ours, shown in zip(NUMBER.findall(printed), NUMBER.findall(block.output), strict=True):
        assert float(ours.rstrip("%")) == pytest.approx(float(shown.rstrip("%")), abs=2 if "%" in shown else 0.02)


def test_every_snippet_is_run():
    silent = [block for block in BLOCKS if block.language == "python" and block.output is None]
    unrun = [block for block in silent if not any(word in block.code for word in SNIPPETS_WITH_STAND_INS)]
    assert not unrun, "show what it prints"


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "llms.txt"], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_page_is_in_the_lists():
    pages = {page.name for page in PAGES} - {"README.md", "index.md"}
    links = {Path(link).name for link in LINK.findall((ROOT / "llms.txt").read_text())}
    assert {name for name in links if not name.endswith(".ipynb")} - {"README.md"} == pages
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert {
        name
        for part in navigation
        if isinstance(next(iter(part.values())), list)
        for entry in next(iter(part.values()))
        for name in entry.values()
    } == pages


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    assert 'class="doc doc-heading"' in (tmp_path / "reference" / "index.html").read_text()


@cache
def help_of(is_subcommand: bool, name: str) -> str:
    """Help of a `clap-hf` command, a script or a module; several lines name the same one."""
    if is_subcommand:
        return CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout
    printed = io.StringIO()
    module = name.removeprefix("-m ")
    start = runpy.run_path if module == name else runpy.run_module
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", [name, "--help"])
        patch.setenv("COLUMNS", "200")
        patch.chdir(ROOT)
        start(module, run_name="__main__")
    return printed.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_with_their_options(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\[(\w+)\]", command):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        return
    if words[0] in ("accelerate", "torchrun"):  # whose own options come before the script
        first = next(i for i, word in enumerate(words) if word.endswith(".py") or word == "clap-hf")
        words = words[first:] if words[first] == "clap-hf" else ["python", *words[first:]]
    assert words[0] in ("clap-hf", "python")
    own = " ".join(words[1:])
    shown = help_of(words[0] == "clap-hf", " ".join(words[1:3]) if words[1] == "-m" else words[1])
    for option in re.findall(r"--[a-z][\w-]+", own):
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


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if re.match("clap-hf classify .*thunder.ogg", command)]
)
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
        [command] = [command for command in COMMANDS if f"clap-hf {word} " in command and "2023" in command]
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        # No data set of the paper is on this Hub: every task says so, and the exit code tells.
        assert result.exit_code == {"convert": 0, "evaluate": 1}[word], (result.output, result.stderr)
    tasks = json.loads((tmp_path / "results" / "results.json").read_text())["tasks"]
    assert len(tasks) == 26 and {task["status"] for task in tasks} == {"not reached"}


def test_the_captioning_snippet_runs(captioner, monkeypatch, tmp_path, capsys):
    """On a tiny captioner in place of the released one."""
    [code] = [block.code for block in BLOCKS if 'model="clapcap"' in block.code]
    (tmp_path / "clapcap").symlink_to(captioner)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "caption.md", "exec"), {"__name__": "page"})
    assert "generated_text" in capsys.readouterr().out


def test_laion_s_checkpoints_are_taken_as_they_are(hub, tmp_path, capsys):
    """A tiny one in place of the released; its window is 1 s, and its rate is the recording's."""
    [block] = [block for block in BLOCKS if 'load_model("laion/clap-htsat-unfused")' in block.code]
    hub.seed("models", "laion/clap-htsat-unfused", save_family("laion", tmp_path, rate=44_100, window_s=4))
    printed = run(block)
    assert max(map(float, printed.split())) < 1e-5


def test_the_table_of_differences_to_msclap_is_the_record(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import msclap_parity

    differences = json.loads((ROOT / "benchmarks" / "msclap_parity.json").read_text())["differences"]
    shown = msclap_parity.TABLE.search((ROOT / "docs" / "migrate.md").read_text())[0]
    assert shown == msclap_parity.table(differences)
    assert {version: max(rows.values()) <= 1e-5 for version, rows in differences.items()} == {
        "2022": True,
        "2023": True,
        "clapcap": True,
    }


def test_the_speed_section_is_made_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import report

    [shown] = report.SECTION.findall(report.PAGE.read_text())
    assert shown == report.section()
    assert report.SECTION.findall(report.README.read_text()) == [report.sentence()]
    assert shown.count("\n| audio embedding") >= 3


def test_the_section_on_cold_starts_is_made_from_its_record(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import start

    record = json.loads(start.RECORD.read_text())
    assert start.SECTION.findall(start.PAGE.read_text()) == [start.section(record)]
    assert set(record["seconds"]) == {*start.COMMANDS, start.WHOLE, start.FLOOR}


def test_searching_works(monkeypatch, tmp_path):
    [block] = [block for block in BLOCKS if block.page == "README.md" and "sound-index" in block.code]
    embed, search = (shlex.split(line)[1:] for line in block.commands)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert CliRunner().invoke(app, embed).exit_code == 0
    result = CliRunner().invoke(app, search)
    assert result.exit_code == 0 and result.stdout.count("examples/") == 10, result.stderr
