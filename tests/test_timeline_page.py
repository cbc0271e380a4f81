"""The commands of the page on timelines work on the recording that it makes, and its numbers are the record's."""

import json
import shlex

import typer
from tools.mixtures import main
from typer.testing import CliRunner

from clap_hf.cli import app
from pages import ROOT, blocks, workplace

PAGE = "docs/timeline.md"


def test_the_commands_find_what_was_planted():
    [block] = [block for block in blocks() if block.page == PAGE and "clap-hf moments" in block.code]
    make, draw, find = map(shlex.split, block.commands)
    mixtures = typer.Typer()
    mixtures.command()(main)
    with workplace() as folder:
        for program, words in ((mixtures, make[3:]), (app, draw[1:]), (app, find[1:])):
            result = CliRunner().invoke(program, words)
            assert result.exit_code == 0, result.output
        assert (folder / "timeline.png").stat().st_size > 10_000
        lines = (folder / "mixtures" / "moments.jsonl").read_text().splitlines()
    planted = {row["label"]: row["relevant_windows"] for row in map(json.loads, lines)}
    for row, label in zip(map(json.loads, result.stdout.splitlines()), ("dog", "glass breaking"), strict=True):
        start_s, end_s, _ = row["pred_relevant_windows"][0]
        assert any(start_s < end and start < end_s for start, end in planted[label])


def test_the_numbers_are_those_of_the_record():
    page = (ROOT / PAGE).read_text()
    results = json.loads((ROOT / "docs" / "records" / "moments.json").read_text())["results"]
    for ratio in results["frames"]["auroc"]:
        cells = [
            f"{found['value']:.2f} [{found['interval'][0]:.2f}, {found['interval'][1]:.2f}]"
            for metric in ("auroc", "R1@0.5")
            for method in ("windows", "frames")
            for found in [results[method][metric][ratio]]
        ]
        assert f"| {ratio} | {' | '.join(cells)} |" in page
