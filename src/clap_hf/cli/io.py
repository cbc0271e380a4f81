"""Input and output of the command line: lists of files and labels, tables, JSON and CSV, errors of one line."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from ..text_files import read_text

STDIN = STDOUT = Path("-")
PROBE = 4096  # bytes that --json must have room for
USAGE, FAILED, INTERRUPTED = 2, 1, 130
# Base class of all errors in arguments; typer carries a copy of click, or needs it, depending on the release.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class OneLineErrors(TyperGroup):
    """Commands whose errors are a line on stderr and an exit code; `--traceback` shows where they were raised."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as error:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except UsageError as error:
            message = error.format_message()  # type: ignore[attr-defined]
            typer.echo(f"Error: {one_line(message)}", err=True)
            raise typer.Exit(USAGE) from error
        except Exception as error:
            if ctx.params.get("show_traceback"):
                traceback.print_exc()
            known = isinstance(error, (OSError, ValueError, RuntimeError, ImportError)) and str(error)
            message = str(error) if known else f"{type(error).__name__}: {error} (--traceback shows where)"
            typer.echo(f"Error: {one_line(message)}", err=True)
            raise typer.Exit(USAGE) from error


def one_line(message: str) -> str:
    """A message without line breaks."""
    return " ".join(message.split())


class Format(StrEnum):
    """How results are written on stdout."""

    table = "table"
    json = "json"
    csv = "csv"


@dataclass(frozen=True)
class Output:
    """Where the results of a command go.

    Args:
        format: What stdout gets.
        json_path: Also gets the results as JSON; `-` is stdout.
    """

    format: StrEnum  # `Format`, or another that has its names
    json_path: Path | None = None

    def check(self) -> None:
        """Before the work: raise `ValueError` if the JSON cannot be written."""
        path = self.json_path
        if path is None or is_stdout(path):
            return
        if path.is_dir():
            raise ValueError(f"--json {path} is a folder, expected a file, or - for stdout.")
        try:
            if path.exists() and not path.is_file():  # opening a FIFO would wait for its reader
                writable = os.access(path, os.W_OK)
            else:
                # Beside the file, where `write_through` writes first; its folder is made then, if need be.
                folder = next(parent for parent in path.resolve().parents if parent.exists())
                with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
                    writable = probe.write(bytes(PROBE)) == PROBE
                    os.fsync(probe.fileno())
        except OSError as error:
            raise ValueError(
                f"--json {path} cannot be written ({error.strerror or error}), expected a place with room."
            ) from error
        if not writable:
            raise ValueError(f"--json {path} cannot be written, expected a place that can.")

    def write(
        self, report: dict[str, Any], rows: Iterable[dict[str, Any]], print_table: Callable[[Console], None]
    ) -> None:
        """Write results.

        Args:
            report: All of them, for JSON.
            rows: Rows of the CSV, with the same columns each.
            print_table: Prints the table, and what else people read.
        """
        from ..audio.reader import printable

        # Of names that are not UTF-8, the bytes as escapes, which JSON reads back.
        text = printable(json.dumps(report, indent=1, ensure_ascii=False)) + "\n"
        on_stdout = self.json_path is not None and is_stdout(self.json_path)
        if on_stdout or self.format == Format.json:
            typer.echo(text, nl=False)
        elif self.format == Format.csv:
            typer.echo(printable(_csv(rows)), nl=False)
        else:
            print_table(Console())
        if self.json_path is not None and not on_stdout:
            write_through(self.json_path, text)


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(stream, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return stream.getvalue()


def is_stdout(path: Path) -> bool:
    """Whether a path is `-`, or the file, pipe or terminal that stdout goes to, such as /dev/stdout."""
    if path == STDOUT:
        return True
    try:
        ours, theirs = os.fstat(sys.stdout.fileno()), os.stat(path)
    except (OSError, ValueError):  # no such file, or a stdout without a descriptor
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def write_through(path: Path, text: str) -> None:
    """Write a file; a regular one is replaced whole, and a device, a FIFO or the target of a link is written into.

    Args:
        path: The file.
        text: Its content.
    """
    from ..atomic_io import write_text

    try:
        regular = stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        regular = True
    if regular:
        write_text(path, text)
    else:
        path.write_text(text, encoding="utf-8")


def input_files(paths: list[Path]) -> list[Path]:
    """Sound files of arguments: files, folders, and `-` for a list of them on stdin, a line or a NUL each."""
    from ..audio import audio_files

    return audio_files(input_names(paths))


def input_names(paths: list[Path]) -> list[Path]:
    """Arguments as they are, and what is listed on stdin where one of them is `-`."""
    named: list[Path] = []
    for path in paths:
        if path != STDIN:
            named.append(path)
            continue
        listed = sys.stdin.buffer.read()
        lines = listed.split(b"\0") if b"\0" in listed else listed.splitlines()
        names = [Path(os.fsdecode(line)) for line in lines if line.strip()]
        if not names:
            raise ValueError("No file names on stdin, expected one a line.")
        named += names
    return named


def labels_beside(files: list[Path]) -> dict[Path, str]:
    """Labels that the labels.csv beside each file gives."""
    labels: dict[Path, str] = {}
    wanted = set(files)
    for folder in dict.fromkeys(file.parent for file in files):
        table = folder / "labels.csv"
        if not os.path.lexists(table):
            continue
        try:
            rows = csv.DictReader(io.StringIO(read_text(table), newline=""), strict=True)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{table} has columns {rows.fieldnames}, expected file and label.")
            for row in rows:
                if row["file"] is None or row["label"] is None:
                    raise ValueError(f"{table}, line {rows.line_num}: {row}, expected a file and a label.")
                if row["label"] and folder / row["file"] in wanted:
                    labels[folder / row["file"]] = row["label"]
        except csv.Error as error:
            raise ValueError(f"{table} is no CSV file ({error}), expected columns file and label.") from error
    return labels


def candidate_labels(
    labels: list[str] | None, labels_file: Path | None, expected: Iterable[str], default: tuple[str, ...]
) -> list[str]:
    """Labels from the options, from labels.csv, or the default ones; each once."""
    if labels and labels_file is not None:
        raise ValueError("Both --labels and --labels-file were given, expected one of them.")
    if labels:
        names = ",".join(labels).split(",")
    elif labels_file is not None:
        names = read_text(labels_file).splitlines()
    else:
        names = list(expected) or list(default)
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise ValueError(f"No labels in {labels_file or '--labels'}, expected at least one.")
    return names


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
    """Length of a sound as the table shows it."""
    return f"{result['duration_s']:.1f} s" + (" (truncated)" if result["truncated"] else "")


LONGEST_UNBROKEN = 32  # characters of a file name
WIDE = 95  # characters of a console that has room for the next labels


def print_scores(console: Console, results: list[dict[str, Any]], failures: list[dict[str, str]], top_k: int) -> None:
    """Print a table of results, how many agree with labels.csv, and what failed."""
    compared = [result for result in results if "expected" in result]
    agreeing = [result for result in compared if best_label(result) == result["expected"]]
    if results:
        table = Table()
        short = max(len(result["file"]) for result in results) <= LONGEST_UNBROKEN
        table.add_column("file", overflow="fold", no_wrap=short)
        table.add_column("length", justify="right")
        calibrated = any("probability" in score for result in results for score in result["scores"])
        table.add_column("best label")
        table.add_column("probability" if calibrated else "score", justify="right", no_wrap=True)
        wide = console.width >= WIDE
        if wide:
            table.add_column("next")
        if compared:
            table.add_column("labels.csv")
        for result in results:
            shown = result["scores"][:top_k]
            best, value, others = "silence", "", ", ".join(score["label"] for score in shown[1:])
            if shown:
                best = f"none of these ({shown[0]['label']})" if result.get("none_of_these") else shown[0]["label"]
                value = f"{shown[0].get('probability', shown[0]['score']):.0%}"
            row = [escape(result["file"]), length_text(result), escape(best), value]
            row += [escape(others)] if wide else []
            if compared:
                wrong = f"[red]✗[/] {escape(result.get('expected', ''))}"
                row.append("" if "expected" not in result else "[green]✓[/]" if result in agreeing else wrong)
            table.add_row(*row)
        console.print(table)
    if compared:
        console.print(f"The best label is that of labels.csv for {len(agreeing)} of {len(compared)} sounds.")
    print_failures(console, failures, len(failures) + len(results))


def best_label(result: dict[str, Any]) -> str:
    """The label with the highest score, or silence."""
    return "silence" if result["silent"] else result["scores"][0]["label"]


def print_failures(console: Console, failures: list[dict[str, str]], total: int) -> None:
    """Print how many files were skipped, and why."""
    if failures:
        console.print(f"[red]{len(failures)} of {total} files were skipped:[/]")
        for failure in failures:
            console.print(f"  {failure['error']}", markup=False, soft_wrap=True)
