#!/usr/bin/env python
"""Turn a CSV of your sounds (path,label or path,caption) into an evaluation set with a card, for the Hub.

    python scripts/build_evaluation_set.py sounds.csv --title "Door sounds" --license cc0-1.0 --output door-sounds
    clap-hf push door-sounds ORG/door-sounds --type dataset

The same CSV in a folder is what `clap-hf evaluate --suite own --data-dir FOLDER` reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
import yaml
from rich.progress import track

from clap_hf.atomic_io import write_json, write_parquet, write_text
from clap_hf.audio import load_audio
from clap_hf.evaluation.loading import DataSourceError, read_csv, values_by_path

SPLIT_FILE = "test-00000-of-00001.parquet"
CARD = """---
{metadata}---

# {title}

{clips:,} sounds, {hours:.2f} h, {about}; made by clap-hf from a table of your own. The sounds are the files as they
were, {rates}; nothing was resampled or cut. {skipped} files were left out as missing or unreadable.

| column | content |
|---|---|
| `audio` | the file |
| `{column}` | {content} |

License: {license}.
{classes}"""


def build_evaluation_set(table: Path, output: Path, *, title: str, license: str) -> dict[str, Any]:
    """Build a dataset folder from a CSV of sounds, for `clap-hf push FOLDER REPO --type dataset`.

    Args:
        table: CSV with the columns path and label, or path and caption, as `clap-hf evaluate --suite own` reads it;
            rows with the same path are one sound. Paths are relative to the CSV.
        output: Gets the parquet file of the split `test`, `README.md` and `build_report.json`.
        title: Name of the set, for its card.
        license: License of the sounds as the Hub spells it, such as `cc-by-4.0`.

    Returns:
        The report: `clips`, `seconds`, `column`, `counts` of the labels, `rates` (Hz), `skipped` with reasons.

    Raises:
        DataSourceError: If the CSV misses its columns, or none of its sounds can be read.
    """
    rows = read_csv(table)
    column = "caption" if "caption" in rows[0] else "label"
    values = values_by_path(rows, column)
    several = column == "caption" or any(len(own) > 1 for own in values.values())
    kind = pa.list_(pa.string()) if several else pa.string()
    audio = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    text = {"dtype": "string", "_type": "Value"}
    features = {"audio": {"_type": "Audio"}, column: {"feature": text, "_type": "List"} if several else text}
    schema = pa.schema({"audio": audio, column: kind}, {"huggingface": json.dumps({"info": {"features": features}})})
    output.mkdir(parents=True, exist_ok=True)
    seconds, rates, skipped = 0.0, Counter[int](), {}

    def readable() -> Iterator[dict[str, Any]]:
        nonlocal seconds
        for name, own in track(values.items(), description=f"Building {title}"):
            file = table.parent / name
            try:
                sound = load_audio(file)
            except (OSError, ValueError) as error:  # AudioDecodeError is a ValueError
                skipped[name] = str(error)
                continue
            seconds += sound.duration_s
            rates[sound.sampling_rate] += 1
            yield {"audio": {"bytes": file.read_bytes(), "path": file.name}, column: own if several else own[0]}
        if not rates:
            reason = next(iter(skipped.values()))
            raise DataSourceError(
                f"{table}: none of its {len(values)} sounds can be read, expected one at least; {reason}"
            )

    write_parquet(output / SPLIT_FILE, schema, readable())
    counts = Counter(value for name, own in values.items() if name not in skipped for value in own)
    report = {
        "title": title,
        "license": license,
        "column": column,
        "clips": rates.total(),
        "seconds": round(seconds, 1),
        "counts": dict(sorted(counts.items())) if column == "label" else {},
        "rates": {str(rate): count for rate, count in rates.most_common()},
        "skipped": skipped,
    }
    write_json(output / "build_report.json", report)
    write_text(output / "README.md", _card(report, several))
    return report


def _card(report: dict[str, Any], several: bool) -> str:
    """The dataset's card, from its report."""
    column, counts = report["column"], report["counts"]
    labels = f"{len(counts)} labels"
    if column == "caption":
        content, about, classes = "captions of the sound, one or more", "with captions", ""
    else:
        content = f"its label{'s' if several else ''}, of {labels}"
        about = f"with {labels}"
        lines = "\n".join(f"| {name} | {count:,} |" for name, count in counts.items())
        classes = f"\n| label | sounds |\n|---|---|\n{lines}\n"
    metadata = {
        "license": report["license"],
        "pretty_name": report["title"],
        "task_categories": ["audio-classification" if column == "label" else "zero-shot-classification"],
        "tags": ["audio", "clap", "evaluation"],
        "configs": [{"config_name": "default", "data_files": [{"split": "test", "path": SPLIT_FILE}]}],
    }
    facts = {
        **report,
        "metadata": yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        "hours": report["seconds"] / 3600,
        "about": about,
        "content": content,
        "classes": classes,
        "rates": ", ".join(f"{count:,} at {int(rate):,} Hz" for rate, count in report["rates"].items()),
        "skipped": len(report["skipped"]),
    }
    return CARD.format(**facts)


def main(
    table: Annotated[Path, typer.Argument(metavar="CSV")],
    title: Annotated[str, typer.Option(help="Name of the set.")],
    license: Annotated[str, typer.Option(help="License of the sounds, as the Hub spells it.")],
    output: Annotated[Path, typer.Option(help="Gets the parquet file and the card.")],
) -> None:
    """Build the dataset folder."""
    try:
        report = build_evaluation_set(table, output, title=title, license=license)
    except (DataSourceError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    print(f"{report['clips']:,} sounds, {report['seconds'] / 3600:.2f} h; {len(report['skipped'])} skipped")
    for name, reason in report["skipped"].items():
        print(f"  {name}: {reason}")


if __name__ == "__main__":
    typer.run(main)
