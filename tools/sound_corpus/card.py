"""The dataset card, written from the build report."""

from __future__ import annotations

from typing import Any

_TEXT = """# Sounds from free software

{total:,} real and rendered sounds with captions, taken from {packages} packages of free software, in splits by source.

Built by `python -m tools.sound_corpus` of the `clap_hf` project: each package is fetched with its registry's own
client, and each sound is decoded, its channels averaged, resampled once to 44.1 kHz (soxr, HQ) and kept as 16-bit FLAC
of at most ten seconds. Notes are rendered dry from soundfonts with fluidsynth or Timidity. `build_report.json` lists
every sound left out, with the reason.

| split | rows | hours |
|---|---:|---:|
{splits}

| category | {split_names} |
|---|{split_rules}|
{categories}

## Captions and labels

`captions` holds one to five phrases, the most specific first. They are templates over labels. By `quality`, a label
was `named` by people, found by a `rule` on the file name, or is the bare file name (`weak`). Expect some wrong labels
among the last two. The captions of `openttd-opensfx` are titles that people gave to the recordings.
Where `quality` is `described`, the first caption was written for this clip alone, from its file name or title and
without a look at the sound.

## Splits

No package, drum kit or soundfont is on two sides; `hydrogen-drumkits` is split by kit. Train clips that sound like a
validation or test clip were dropped, and validation clips like a test clip ({leaks} in all), and so
were byte-equal repeats inside train and validation ({repeats}). The validation split is for choosing checkpoints; its
sources, like those of the test, are nowhere in train.

## Licenses

Every package comes from a registry of free software and allows redistribution, but under its own terms: several are
copyleft, and some state a license per file. Read a package's copyright file before you pass its sounds on.

| package | license of the sounds | {split_names} |
|---|---|{split_rules}|
{licenses}
{repositories}"""


_REPOSITORIES = """
## Git repositories

Read at the named commit; only sounds under an explicit free license. Copies between sources were dropped ({shared}).
The split `unlabelled` has no captions: music, voices and ambience for distillation.

| repository | license of the sounds | author | commit | {split_names} |
|---|---|---|---|{split_rules}|
{rows}
"""


def _repositories(report: dict[str, Any], splits: list[str]) -> str:
    entries = {name: entry for name, entry in report["packages"].items() if "commit" in entry}
    if not entries:
        return ""
    rows = []
    for name, entry in entries.items():
        counts = " | ".join(f"{entry['rows'].get(split, 0):,}" for split in splits)
        rows.append(f"| {name} | {entry['license']} | {entry.get('author', '')} | {entry['commit'][:10]} | {counts} |")
    return _REPOSITORIES.format(
        shared=len(report["shared_dropped"]),
        split_names=" | ".join(splits),
        split_rules="|".join("---:" for _ in splits),
        rows="\n".join(rows),
    )


def write_card(report: dict[str, Any]) -> str:
    """Write the dataset card.

    Args:
        report: The build report, as `assemble` makes it.

    Returns:
        Markdown with the metadata block that the Hub and `datasets` read.
    """
    splits = [split for split, count in report["rows"].items() if count]
    names = sorted({name for counts in report["categories"].values() for name in counts})
    head = ["---", "pretty_name: Sounds from free software", "license: other", "language:", "- en"]
    head += ["task_categories:", "- zero-shot-classification", "- audio-classification", "tags:", "- audio", "- clap"]
    # No `configs` here: with one, `datasets` names its cache by the patterns alone and would serve a rebuilt folder,
    # or another of the same name, from the old cache. It finds data/<split>-*.parquet by itself.
    head += ["---", ""]

    def cells(counts: dict[str, int]) -> str:
        return " | ".join(f"{counts.get(split, 0):,}" for split in splits)

    text = _TEXT.format(
        total=sum(report["rows"].values()),
        packages=len(report["packages"]),
        splits="\n".join(f"| {split} | {report['rows'][split]:,} | {report['hours'][split]} |" for split in splits),
        split_names=" | ".join(splits),
        split_rules="|".join("---:" for _ in splits),
        categories="\n".join(
            f"| {name} | {cells({split: report['categories'][split].get(name, 0) for split in splits})} |"
            for name in names
        ),
        leaks=len(report["near_duplicates_dropped"]),
        repeats=report["repeats_dropped"],
        licenses="\n".join(
            f"| {package} | {entry['license']} | {cells(entry['rows'])} |"
            for package, entry in report["packages"].items()
            if "commit" not in entry
        ),
        repositories=_repositories(report, splits),
    )
    return "\n".join(head) + text
