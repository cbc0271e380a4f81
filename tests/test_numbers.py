"""Numbers in README, docs and cards: each is in a record that its page declares, is a stated fact, or is marked.

`docs/records.yaml` lists pages with their `records` (JSON and JSON lines) and its `stated` numbers, which nobody
measured: settings, definitions, what the paper says. A section that says that no record was kept, and a paragraph that
says that it is computed, are left out: the reader sees it there.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PATTERNS = ("README.md", "docs/*.md", "model_cards/**/README.md", "src/clap_hf/embedded/README.md")
PAGES = [str(path.relative_to(ROOT)) for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
DECLARED = yaml.safe_load((ROOT / "docs" / "records.yaml").read_text())

# Not sentences: front matter, code, blocks that a test compares with their source, links, headings.
SKIPPED = re.compile(
    r"\A---\n.*?\n---\n|```.*?```|<!-- (\w+):.*?<!-- /\1 -->|<details>.*?</details>|`[^`\n]*`|\]\([^)]*\)"
    r"|https?://\S+|^#+ .*?$",
    re.DOTALL | re.MULTILINE,
)
UNRECORDED = "No record of these"  # in a section: its figures have no record, and it says so
COMPUTED = "*computed*"  # in a paragraph or table: its figures were not measured
TIME, SIZE = r"second|hours|time|_s\b|ms\b|median|low|high", r"byte|size|memory|kB|MiB|_mb\b"
UNITS: dict[str, tuple[tuple[float, ...], str]] = {  # unit -> factors of a record's number, and what its key holds
    "%": ((100, 1), ""), "×": ((1,), ""), "times": ((1,), ""), "points": ((100, 1), ""),
    "ms": ((1000, 1), TIME), "s": ((1,), TIME), "min": ((1 / 60,), TIME), "minutes": ((1 / 60,), TIME),
    "h": ((1 / 3600, 1), TIME), "hours": ((1 / 3600, 1), TIME),
    "kB": ((1e-3, 1), SIZE), "MB": ((1e-6, 1), SIZE), "GB": ((1e-9, 1), SIZE), "TB": ((1e-12,), SIZE),
    "MiB": ((2**-20, 1), SIZE), "GiB": ((2**-30, 1), SIZE), "M": ((1e-6,), ""),
    "GFLOP": ((1, 1e-9), "flop"), "TFLOP": ((1e-3, 1e-12), "flop"),
    **{unit: ((1,), "") for unit in ("clips/s", "TFLOP/s", "GFLOP/s", "clips", "files", "captions", "pairs", "steps")},
    "": ((1, 100), ""),
}  # fmt: skip
NUMBER = re.compile(
    r"(?<![\w.,/-])(?P<value>\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)"
    rf"(?:[ -]?(?P<unit>{'|'.join(sorted(map(re.escape, filter(None, UNITS)), key=len, reverse=True))})(?![\w/]))?"
    r"(?![\w.]*\d)"
)


def numbers(page: str) -> Iterator[str]:
    """Numbers of a page that have a unit or two decimals, as they stand there, but for marked sections and blocks."""
    text = SKIPPED.sub(lambda match: "\n\n# \n\n" if match[0].startswith("#") else " ", (ROOT / page).read_text())
    for section in text.split("\n\n# \n\n"):
        if UNRECORDED in section:
            continue
        for block in re.split(r"\n\s*\n(?!\|)", section):  # a table belongs to the paragraph before it
            for match in () if COMPUTED in block.lower() else NUMBER.finditer(block):
                if match["unit"] or re.search(r"\.\d\d|e-", match["value"]):
                    yield " ".join(match[0].split())


@cache
def recorded(name: str) -> frozenset[tuple[str, float]]:
    """Numbers of a record with their keys, those in its texts too; of runs in JSON lines also what they come to."""
    found: set[tuple[str, float]] = set()

    def collect(key: str, value: object) -> None:
        if isinstance(value, dict):
            for own, part in value.items():
                collect(f"{key}/{own}", part)
        elif isinstance(value, list):
            found.add((key, float(len(value))))
            for part in value:
                collect(key, part)
        elif isinstance(value, str):
            numbers_in = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", value)
            found.update((key, float(number.replace(",", ""))) for number in numbers_in)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.add((key, float(value)))

    text = (ROOT / name).read_text()
    if not name.endswith(".jsonl"):
        collect("", json.loads(text))
        return frozenset(found)
    lines = [json.loads(line) for line in text.splitlines()]
    if not any("recipe" in line for line in lines):  # no run's record
        collect("", lines)
        return frozenset(found)
    runs: list[dict[str, float]] = []  # of every run, its seconds, steps and clips
    for line in lines:
        if line.get("from_step") == 0:
            runs.append({"batch": line["recipe"]["batch_size"], "seconds": 0.0, "steps": 0.0})
        runs[-1]["seconds"] += line.pop("seconds", 0.0)
        runs[-1]["steps"] = line.get("step", runs[-1]["steps"])
        collect("", line)
    for run in runs:
        run["clips"] = run["steps"] * run.pop("batch")
    found.update((key, value) for run in runs for key, value in run.items())
    found.update((f"all/{key}", sum(run[key] for run in runs)) for key in runs[0])
    return frozenset(found)


def is_recorded(shown: str, records: list[str]) -> bool:
    """Whether a number of one of the records rounds to what is shown."""
    match = NUMBER.fullmatch(shown)
    assert match, shown
    text, (factors, keys) = match["value"].replace(",", ""), UNITS[match["unit"] or ""]
    values = [value for name in records for key, value in recorded(name) if re.search(keys, key)]
    runs = [dict(recorded(name)) for name in records if name.endswith(".jsonl")]
    values += [sum(run.get("all/seconds", 0.0) for run in runs)] if re.search(keys, "seconds") else []
    if "e" in text:
        digits = len(text.partition("e")[0].partition(".")[2])
        return any(float(f"{value:.{digits}e}") == float(text) for value in values)
    half = 0.5 * 10.0 ** -len(text.partition(".")[2]) * (1 + 1e-9)
    return any(abs(value * factor - float(text)) <= half for value in values for factor in factors)


def test_declared_records_are_there():
    assert set(DECLARED) <= set(PAGES)
    for page, entry in DECLARED.items():
        assert set(entry) == {"records", "stated"}, page
        assert all((ROOT / name).is_file() for name in entry["records"]), page


@pytest.mark.parametrize("page", PAGES)
def test_numbers_rest_on_records(page):
    entry = DECLARED.get(page, {"records": [], "stated": {}})
    stated = {number for group in entry["stated"].values() for number in group}
    shown = list(dict.fromkeys(numbers(page)))
    unbacked = [number for number in shown if number not in stated and not is_recorded(number, entry["records"])]
    assert not unbacked, (
        f"{page}: {unbacked} are in no record of {entry['records']}. Name one, or say that none is kept"
    )
    assert stated <= set(shown), f"{page} no longer states {sorted(stated - set(shown))}"


def test_made_up_numbers_are_found():
    """Changing a measured figure is noticed; prose, code, versions and licenses are no figures."""
    records = ["model_cards/small_htsat_gpt2/results.json"]
    assert is_recorded("20 %", records) and is_recorded("39 %", records) and is_recorded("0.388", records)
    assert not is_recorded("0.389", records) and not is_recorded("77.7 %", records)
    text = "transformers 5.24.0, CC BY 4.0, 7.5 %, 3,000 files, 1e-3, 12 of 14, 95 % and 2-D"
    found = [match[0] for match in NUMBER.finditer(text)]
    assert [text for text in found if re.search(r"[%a-z]|\.\d\d", text)] == ["7.5 %", "3,000 files", "1e-3", "95 %"]
