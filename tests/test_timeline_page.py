"""The page on timelines is true: its snippet and its commands run, its numbers are those of the record."""

import json
import shlex

from readme import BLOCK, ROOT, run_python
from typer.testing import CliRunner

from clap_hf.cli import app

PAGE = (ROOT / "docs" / "timeline.md").read_text()
BLOCKS = [match.groups() for match in BLOCK.finditer(PAGE)]


def test_the_snippet_runs():
    [code] = [code for language, code, _ in BLOCKS if language == "python"]
    assert run_python(code).startswith("thunder 0.0")


def test_the_commands_run(monkeypatch, tmp_path):
    import typer
    from tools.mixtures import main

    [code] = [code for language, code, _ in BLOCKS if language == "bash"]
    make, draw, find = (shlex.split(line) for line in code.strip().splitlines())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    mixtures = typer.Typer()
    mixtures.command()(main)
    for program, words in ((mixtures, make[3:]), (app, draw[1:]), (app, find[1:])):
        result = CliRunner().invoke(program, words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "timeline.png").stat().st_size > 10_000
    truth = [json.loads(line) for line in (tmp_path / "mixtures" / "moments.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["query"] for row in found] == ["a dog barks", "people clapping"]
    # Planted 20 dB above the stream, the dog is found at its second.
    [dog] = [row["relevant_windows"] for row in truth if row["label"] == "dog"]
    start_s, end_s, _ = found[0]["pred_relevant_windows"][0]
    assert any(start_s < end and start < end_s for start, end in dog)
