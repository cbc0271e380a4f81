"""Evaluation results as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

Results = dict[str, dict[str, Any]]


def results_table(results: Results, title: str) -> Table:
    """A console table: one row a task, with its 95 % interval and chance."""
    table = Table(title=title)
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("value", "95 % interval", "chance", "clips", "classes"):
        table.add_column(name, justify="right")
    for name, result in results.items():
        interval = f"{result['low']:.1%} – {result['high']:.1%}"
        table.add_row(
            name,
            result["metric"],
            f"{result['value']:.1%}",
            interval,
            f"{result['chance']:.1%}",
            str(result["clips"]),
            str(result.get("classes", "")),
        )
    return table


def markdown_table(results: Results) -> str:
    """The same rows as Markdown, for cards."""
    lines = ["| task | metric | value | 95 % interval | chance | clips | classes |", "|---|---|---|---|---|---|---|"]
    for name, r in results.items():
        interval = f"{r['low']:.1%} – {r['high']:.1%}"
        lines.append(
            f"| {name} | {r['metric']} | {r['value']:.1%} | {interval} | {r['chance']:.1%} | {r['clips']} | "
            f"{r.get('classes', '')} |"
        )
    return "\n".join(lines)


def print_results(results: Results, title: str) -> None:
    """Print the table to the console."""
    Console().print(results_table(results, title))
