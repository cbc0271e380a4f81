"""Runs the code cells of docs/notebooks/, one after the other; as a script, writes their printed output into them."""

import contextlib
import io
import json
import sys
from pathlib import Path

from pages import ROOT, workplace

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def code_cells(notebook: Path) -> list[dict]:
    """Cells of code; each has its `source` and its `outputs`."""
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def shown(cell: dict) -> str:
    """What a cell shows that it prints."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


def run(notebook: Path) -> list[str]:
    """Standard output of every code cell, run in a new folder that has the repository's `examples`."""
    names: dict = {"__name__": "__main__"}
    printed = []
    with workplace():
        for number, cell in enumerate(code_cells(notebook)):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), names)
            printed.append(output.getvalue())
    return printed


def update(notebook: Path) -> None:
    """Write the output of every code cell into the notebook."""
    content = json.loads(notebook.read_text())
    printed = iter(run(notebook))
    for number, cell in enumerate((cell for cell in content["cells"] if cell["cell_type"] == "code"), 1):
        text = next(printed).splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for path in NOTEBOOKS:
        if not sys.argv[1:] or path.name in sys.argv[1:]:
            update(path)
