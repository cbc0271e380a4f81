"""The listing of rooms in docs/architecture.md, made of docstrings: `python -m tools.rooms` writes it anew."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "clap_hf"
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"(?<=```text\n)src/clap_hf/\n.*?(?=```)", re.DOTALL)
WIDTH = 34


def summary(path: Path) -> str:
    """First line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0].rstrip(".")


def listing() -> str:
    """Every room of the package and every module in it, with what it is."""
    lines = ["src/clap_hf/"]
    rooms = [path for path in sorted(PACKAGE.iterdir()) if path.suffix == ".py" or (path / "__init__.py").is_file()]
    for room in rooms:
        if room.suffix == ".py":
            lines.append(f"  {room.name:{WIDTH - 2}}{summary(room)}")
            continue
        lines.append(f"  {room.name + '/':{WIDTH - 2}}{summary(room / '__init__.py')}")
        lines += [
            f"    {path.name:{WIDTH - 4}}{summary(path)}"
            for path in sorted(room.glob("*.py"))
            if path.name != "__init__.py"
        ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(lambda _: listing(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
