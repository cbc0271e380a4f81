"""The commands timeline and moments: where in a recording what is."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections import defaultdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..text_files import parse_json, read_text
from .io import STDIN, Output, candidate_labels, one_line
from .models import load_dual_encoder
from .options import EVERYDAY_LABELS, Device, JsonPath, ModelName

app = typer.Typer()

THRESHOLD, RELEASE, FALSE_ALARMS = 0.35, 0.15, 0.01


class TimelineFormat(StrEnum):
    """What stdout gets of a timeline."""

    table = "table"
    json = "json"
    csv = "csv"
    audacity = "audacity"
    webvtt = "webvtt"


class MomentsFormat(StrEnum):
    """What stdout gets of moments; `jsonl` is the layout of QVHighlights and CASTELLA."""

    table = "table"
    json = "json"
    csv = "csv"
    jsonl = "jsonl"


Step = Annotated[float, typer.Option("--step", help="Length of a step of the scores, seconds.")]
Hop = Annotated[
    float | None, typer.Option("--hop", help="From a window to the next, seconds; a third of a window by default.")
]
Frames = Annotated[
    bool, typer.Option("--frames/--windows", help="Scores of the positions within windows, or of whole windows.")
]
Template = Annotated[list[str] | None, typer.Option(help="Text with {} for the label; repeat to average.")]


@app.command()
def timeline(
    file: Annotated[Path, typer.Argument(help="A recording of any length, or - for one on stdin.")],
    labels: Annotated[
        list[str] | None, typer.Option(help="Labels in any words, separated by commas; may be repeated.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="Text file with a label per line.")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Score that a segment reaches, or LABEL=SCORE; by --false-alarms or {THRESHOLD} by default."
        ),
    ] = None,
    release: Annotated[
        float, typer.Option(min=0, help="How far below the threshold a segment goes on, as a share of it.")
    ] = RELEASE,
    smooth_s: Annotated[float, typer.Option("--smooth", min=0, help="Seconds to smooth over; 0 for none.")] = 0.0,
    smoothing: Annotated[str, typer.Option(help="median or mean.")] = "median",
    false_alarms: Annotated[
        float, typer.Option(help="Share of background sounds that exceed the threshold of a label by default.")
    ] = FALSE_ALARMS,
    step_s: Step = 0.25,
    hop_s: Hop = None,
    frames: Frames = True,
    template: Template = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw spectrogram, scores and segments: a PNG file.")] = None,
    scores_path: Annotated[Path | None, typer.Option("--scores", help="Also write every step's scores: CSV.")] = None,
    model: ModelName = "embedded",
    format: Annotated[TimelineFormat, typer.Option("--format", help="What stdout gets.")] = TimelineFormat.table,
    json_path: JsonPath = None,
    device: Device = None,
) -> None:
    """Show where in a recording each label's sound is: scores over time, and segments with start, end and score.

    Without --labels, a list of everyday sounds. Memory does not grow with the recording, apart from the scores: 4
    bytes for every step and label.
    """
    import numpy as np

    from ..moments import (
        audacity_labels,
        false_alarm_thresholds,
        score_timeline,
        segments,
        smooth,
        web_vtt,
        write_scores,
    )
    from ..pipelines.zero_shot import DEFAULT_TEMPLATE

    output = Output(format, json_path)
    output.check()
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed: pip install 'clap-hf[plots]'")
    names = candidate_labels(labels, labels_file, (), EVERYDAY_LABELS)
    given = given_thresholds(threshold or [], names)
    encoder, processor, _, calibration = load_dual_encoder(model, device, calibrated="" not in given)
    found = score_timeline(
        encoder,
        processor,
        recording(file),
        names,
        step_s=step_s,
        hop_s=hop_s,
        frames=frames,
        templates=template or [DEFAULT_TEMPLATE],
    )
    default = np.full(len(names), THRESHOLD)
    if calibration is not None:
        default = false_alarm_thresholds(calibration, found.vectors, false_alarms)
    thresholds = [given.get(name, given.get("", float(own))) for name, own in zip(names, default, strict=True)]
    del encoder, processor  # a picture takes their memory
    scores = smooth(found.scores, round(smooth_s / step_s), smoothing)
    spans = segments(scores, names, step_s, thresholds, release=release, duration_s=found.duration_s)
    if plot is not None:
        from ..moments.plot import draw_timeline

        draw_timeline(found, spans, plot)
    if scores_path is not None:
        write_scores(scores, names, step_s, scores_path)
    rows = [
        {"label": span.label, "start_s": round(span.start_s, 3), "end_s": round(span.end_s, 3), "score": span.score}
        for span in spans
    ]
    report = {
        "file": str(file),
        "duration_s": found.duration_s,
        "damage": found.damage,
        "model": model,
        "labels": names,
        "thresholds": dict(zip(names, thresholds, strict=True)),
        "segments": rows,
    }

    def print_text(console: Console) -> None:
        if format is TimelineFormat.audacity:
            typer.echo(audacity_labels(spans), nl=False)
        elif format is TimelineFormat.webvtt:
            typer.echo(web_vtt(spans), nl=False)
        else:
            print_spans(console, rows)

    output.write(report, rows, print_text)
    warn_of_damage(file, found.damage)


@app.command()
def moments(
    path: Annotated[Path, typer.Argument(help="A recording, - for one on stdin; a folder of them for --queries.")],
    queries: Annotated[
        list[str] | None, typer.Argument(help="What to look for, in any words; one argument each.")
    ] = None,
    queries_file: Annotated[
        Path | None,
        typer.Option(
            "--queries", help="JSON lines with qid, query and vid, a file's name in the folder without suffix."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Spans of a query.")] = 5,
    step_s: Step = 0.25,
    hop_s: Hop = None,
    frames: Frames = True,
    model: ModelName = "embedded",
    format: Annotated[MomentsFormat, typer.Option("--format", help="What stdout gets.")] = MomentsFormat.table,
    json_path: JsonPath = None,
    device: Device = None,
) -> None:
    """Find the seconds of a recording that a text describes: spans with start, end and score, the best first."""
    from ..moments import ranked_spans, score_timeline

    output = Output(format, json_path)
    output.check()
    if bool(queries) == (queries_file is not None):
        raise ValueError(f"Queries {queries} and --queries {queries_file} were given, expected one of them.")
    asked = queries_of(path, queries or [], queries_file)
    encoder, processor, *_ = load_dual_encoder(model, device, calibrated=False)
    rows: list[dict[str, Any]] = []
    for file, own in asked.items():
        texts = list(dict.fromkeys(row["query"] for row in own))
        found = score_timeline(
            encoder,
            processor,
            recording(file),
            texts,
            step_s=step_s,
            hop_s=hop_s,
            frames=frames,
        )
        warn_of_damage(file, found.damage)
        for row in own:
            scores = found.scores[:, texts.index(row["query"])]
            spans = ranked_spans(scores, row["query"], step_s, top_k=top_k, duration_s=found.duration_s)
            windows = [[round(span.start_s, 3), round(span.end_s, 3), round(span.score, 4)] for span in spans]
            rows.append({name: row[name] for name in ("qid", "query", "vid")} | {"pred_relevant_windows": windows})
    spans_of_rows = [
        {"vid": row["vid"], "label": row["query"], "start_s": start_s, "end_s": end_s, "score": score}
        for row in rows
        for start_s, end_s, score in row["pred_relevant_windows"]
    ]

    def print_text(console: Console) -> None:
        if format is MomentsFormat.jsonl:
            typer.echo("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), nl=False)
        else:
            print_spans(console, spans_of_rows)

    output.write({"model": model, "results": rows}, spans_of_rows, print_text)


def recording(file: Path) -> Path | BinaryIO:
    """A file, or stdin for `-`."""
    return sys.stdin.buffer if file == STDIN else file


def given_thresholds(options: list[str], labels: list[str]) -> dict[str, float]:
    """Thresholds by label, of options `0.3`, which is for all and has the label "", and `dog=0.4`."""
    values: dict[str, float] = {}
    for option in options:
        label, _, number = option.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (label and label not in labels):
            raise ValueError(f"--threshold is {option!r}, expected a number, or one of {labels}, = and a number.")
        values[label] = value
    return values


def queries_of(path: Path, queries: list[str], queries_file: Path | None) -> dict[Path, list[dict[str, Any]]]:
    """Queries by the file that they are about, each with `qid`, `query` and `vid`."""
    if queries_file is None:
        return {path: [{"qid": number, "query": query, "vid": path.stem} for number, query in enumerate(queries)]}
    from ..audio import audio_files

    files = {file.stem: file for file in audio_files([path])}
    asked: dict[Path, list[dict[str, Any]]] = defaultdict(list)
    for number, line in enumerate(read_text(queries_file).splitlines(), start=1):
        try:
            row = parse_json(line, "the line")
            asked[files[row["vid"]]].append({name: row[name] for name in ("qid", "query", "vid")})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{queries_file}, line {number}: {error!r}; expected JSON with qid, query and vid, the name of a file "
                f"in {path} without its suffix."
            ) from error
    if not asked:
        raise ValueError(f"{queries_file} is empty, expected JSON with qid, query and vid, a line each.")
    return asked


def print_spans(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print a table of spans."""
    from ..streaming import clock

    several = len({row.get("vid") for row in rows}) > 1
    table = Table(*(["file"] if several else []), "start", "end", "score", "label")
    for row in rows:
        name = [escape(row["vid"])] if several else []
        table.add_row(
            *name,
            clock(row["start_s"], exact=True),
            clock(row["end_s"], exact=True),
            f"{row['score']:.2f}",
            escape(row["label"]),
        )
    console.print(table if rows else "No score reaches its threshold.")


def warn_of_damage(file: Path, damage: list[str]) -> None:
    """Print on stderr what is missing or damaged in a recording."""
    if damage:
        typer.echo(f"{file} is truncated or damaged: {one_line('; '.join(damage))}", err=True)
