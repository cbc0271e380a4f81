"""Pipelines over many files on the command line: reading ahead, silence, Ctrl-C, and the table of results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ._cli_io import FAILED, INTERRUPTED, Format, Output, one_line
from .audio import Audio, load_audio

SILENCE_DBFS = -80.0  # a sound whose peak is below has nothing in it that a model could name


def run_over_files(
    files: list[Path], pipeline: Callable[[Audio], Any], record: Callable[[Path, Any], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]], bool]:
    """Run a pipeline over files, decoding ahead of it.

    Args:
        files: The files.
        pipeline: Called with every sound that is not silent.
        record: What to keep of a file and the pipeline's answer, which is None for a silent sound.

    Returns:
        A record of every file, the files that could not be read, and whether Ctrl-C ended it.
    """
    from .embedding import read_ahead

    results: list[dict[str, Any]] = []
    skipped: dict[Path, str] = {}
    interrupted = False
    progress = track(files, "Reading", console=Console(stderr=True), transient=True)
    try:
        for file, audio in read_ahead(progress, load_audio, skipped):
            silent = is_silent(audio)
            try:
                answer = None if silent else pipeline(audio)
            except ValueError as error:
                skipped[file] = f"{file}: {error}"
                continue
            facts = {"duration_s": audio.duration_s, "truncated": audio.truncated, "silent": silent}
            results.append({"file": str(file), **facts, **record(file, answer)})
    except KeyboardInterrupt:
        interrupted = True
    return results, [{"file": str(file), "error": reason} for file, reason in skipped.items()], interrupted


def is_silent(audio: Audio) -> bool:
    """Whether the peak is below -80 dBFS, a constant offset aside."""
    samples = audio.samples.mean(axis=0)
    return bool(np.abs(samples - samples.mean()).max() < 10 ** (SILENCE_DBFS / 20))


def finish(output: Output, total: int, results: list[Any], failures: list[dict[str, str]], interrupted: bool) -> None:
    """End a command: report on stderr what stdout does not, and set the exit code."""
    if output.format is not Format.table:
        for failure in failures:
            typer.echo(one_line(failure["error"]), err=True)
    if interrupted:
        done = len(results) + len(failures)
        typer.echo(f"Interrupted: {done} of {total} files are done.", err=True)
        raise typer.Exit(INTERRUPTED)
    if not results:
        raise typer.Exit(FAILED)


def file_columns(result: dict[str, Any]) -> dict[str, Any]:
    """Columns that every CSV of files has."""
    return {name: result[name] for name in ("file", "duration_s", "truncated", "silent")}


def length_text(result: dict[str, Any]) -> str:
    return f"{result['duration_s']:.1f} s" + (" (truncated)" if result["truncated"] else "")


def print_scores(console: Console, results: list[dict[str, Any]], failures: list[dict[str, str]], top_k: int) -> None:
    """Print a table of results, how many agree with labels.csv, and what failed."""
    compared = [result for result in results if "expected" in result]
    agreeing = [result for result in compared if best_label(result) == result["expected"]]
    if results:
        table = Table("file")
        table.add_column("length", justify="right")
        table.add_column("most likely labels")
        if compared:
            table.add_column("labels.csv")
        for result in results:
            best = ", ".join(f"{score['label']} {score['score']:.0%}" for score in result["scores"][:top_k])
            row = [escape(result["file"]), length_text(result), "silence" if result["silent"] else escape(best)]
            if compared:
                mark = "" if "expected" not in result else "[green]✓[/] " if result in agreeing else "[red]✗[/] "
                row.append(mark + escape(result.get("expected", "")))
            table.add_row(*row)
        console.print(table)
    if compared:
        console.print(f"The best label is that of labels.csv for {len(agreeing)} of {len(compared)} sounds.")
    print_failures(console, failures, len(failures) + len(results))


def best_label(result: dict[str, Any]) -> str:
    return "silence" if result["silent"] else result["scores"][0]["label"]


def print_failures(console: Console, failures: list[dict[str, str]], total: int) -> None:
    """Print how many files were skipped, and why."""
    if failures:
        console.print(f"[red]{len(failures)} of {total} files were skipped:[/]")
        for failure in failures:
            console.print(f"  {failure['error']}", markup=False, soft_wrap=True)
