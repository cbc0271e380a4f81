"""The notebooks run as they stand, print what they show, and what they fine-tune learns."""

import json
import re

import pytest

from notebooks import NOTEBOOKS, code_cells, run, shown
from pages import ROOT

NUMBER = re.compile(r"\d+(?:\.\d+)?")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_prints_what_it_shows(notebook):
    printed, expected = "".join(run(notebook)), "".join(map(shown, code_cells(notebook)))
    assert NUMBER.sub("N", printed) == NUMBER.sub("N", expected)
    # Scores differ in their last digit between processors, and two of 22 clips may be named otherwise.
    for ours, theirs in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True):
        assert float(ours) == pytest.approx(float(theirs), abs=10 if float(theirs) > 1 else 0.05)
    if before := re.search(r"accuracy: (\d+)% before, (\d+)% after", printed):
        assert 100 - int(before[2]) <= (100 - int(before[1])) / 2  # half of the mistakes, at least, are gone


def test_notebooks_are_whole_and_linked():
    assert [notebook.stem for notebook in NOTEBOOKS] == ["finetune_on_your_sounds", "search_your_folder"]
    pages = [ROOT / name for name in ("README.md", "llms.txt", "docs/index.md")]
    for notebook in NOTEBOOKS:
        content = json.loads(notebook.read_text())
        assert (content["nbformat"], content["metadata"]["kernelspec"]["name"]) == (4, "python3")
        assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
        assert all(f"notebooks/{notebook.name}" in page.read_text() for page in pages)
