"""The README is true: snippets run and print what it shows, commands exist and take the options it names."""

import re
import subprocess
import sys

import pytest
from readme import ROOT, blocks, run

SHOWN = [(language, code, output) for language, code, output in blocks() if output is not None]
COMMANDS = [line for language, code, _ in blocks() if language == "bash" for line in code.strip().splitlines()]


@pytest.mark.parametrize(("language", "code", "output"), SHOWN, ids=lambda value: str(value)[:20])
def test_printed_output_is_real(language, code, output):
    # Scores may differ in their last digit between processors.
    def rounded(text):
        return re.sub(r"\d+(\.\d+)?%|0\.\d+", lambda m: f"{float(m.group().rstrip('%')):.1f}"[:-2], text)

    assert rounded(run(language, code)) == rounded(output)


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
    if words[0].endswith("clap-hf"):
        help_command = [sys.executable, "-c", "from clap_hf.cli import app; app()", words[1], "--help"]
    else:
        help_command = [sys.executable, words[1], "--help"]
    shown = subprocess.run(help_command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for option in re.findall(r"--[\w-]+", command):
        assert option in shown
    for name in (word for word in words if word.startswith("configs/")):
        assert (ROOT / name).is_file()
