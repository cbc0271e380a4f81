"""Records that cards are written from: a run, an evaluation, the training data, a conversion."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from ..msclap_weights import OFFICIAL_REPO
from ..text_files import read_json, read_json_lines

RUN, RESULTS, CORPUS, CONVERSION = "run.jsonl", "results.json", "corpus.json", "conversion.json"
EARLIER, AVERAGE, BASE = "earlier.jsonl", "average.json", "base.json"
MOMENTS, CALIBRATION = "moments.json", "calibration.json"
SEALED, LOOKS, HUBS = "sealed.json", "looks.jsonl", "hubs.json"


@dataclass(frozen=True)
class Records:
    """What is known of a model beside its folder; each may be missing.

    Args:
        run: Lines of `run.jsonl`, as training writes it.
        evaluation: `results.json` of `clap-hf evaluate`.
        corpus: Rows, hours and licenses of the training data, see `corpus_facts`.
        conversion: What `clap-hf convert` wrote.
        earlier: Lines of the runs before, where a run went on from the weights, or took the audio tower, of another.
        average: What `tools.release.average_weights` wrote, where the weights are a mean.
        base: What `base_facts` found of the model whose weights the run went on from.
        moments: What `scripts/measure_moments.py` measured of the model.
        calibration: What `scripts/calibrate.py` measured of the model.
        sealed: `results.json` of `tools.release.sealed_test`.
        looks: Lines of that test's ledger.
        hubs: What `tools.release.hubs` counted.
    """

    run: Sequence[dict[str, Any]] = ()
    evaluation: dict[str, Any] | None = None
    corpus: dict[str, Any] | None = None
    conversion: dict[str, Any] | None = None
    earlier: Sequence[dict[str, Any]] = ()
    average: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
    moments: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    sealed: dict[str, Any] | None = None
    looks: Sequence[dict[str, Any]] = ()
    hubs: dict[str, Any] | None = None


def read_records(
    run: Path | None = None,
    results: Path | None = None,
    corpus: Path | None = None,
    conversion: Path | None = None,
    earlier: Path | None = None,
    average: Path | None = None,
    base: Path | None = None,
    moments: Path | None = None,
    calibration: Path | None = None,
    sealed: Path | None = None,
    looks: Path | None = None,
    hubs: Path | None = None,
) -> Records:
    """Read records from their files; None and files that do not exist are left out.

    Args:
        run: `run.jsonl`.
        results: `results.json` of an evaluation.
        corpus: JSON of `corpus_facts`.
        conversion: `conversion.json`.
        earlier: `earlier.jsonl`.
        average: `average.json`.
        base: `base.json`.
        moments: `moments.json`.
        calibration: `calibration.json`.
        sealed: `sealed.json`.
        looks: `looks.jsonl`.
        hubs: `hubs.json`.
    """

    def content(path: Path | None) -> dict[str, Any] | None:
        return read_json(path) if path is not None and os.path.lexists(path) else None

    def lines(path: Path | None) -> list[dict[str, Any]]:
        return read_json_lines(path) if path is not None and os.path.lexists(path) else []

    return Records(
        lines(run),
        content(results),
        content(corpus),
        content(conversion),
        lines(earlier),
        content(average),
        content(base),
        content(moments),
        content(calibration),
        content(sealed),
        lines(looks),
        content(hubs),
    )


def records_of_folder(folder: Path) -> Records:
    """What lies in a model's folder, or beside it (`run.jsonl` of a run is beside `best/`)."""

    def found(name: str) -> Path:
        return folder / name if os.path.lexists(folder / name) else folder.parent / name

    return read_records(
        found(RUN),
        found(RESULTS),
        found(CORPUS),
        folder / CONVERSION,
        found(EARLIER),
        folder / AVERAGE,
        found(BASE),
        folder / MOMENTS,
        folder / CALIBRATION,
    )


def base_facts(name: str, folder: str, temperature: float | None = None) -> dict[str, Any]:
    """What is known of a model whose weights a run goes on from or takes the audio tower of, for its own card.

    Args:
        name: As the recipe names it: a folder, a Hub id, `package:NAME/FOLDER`, or `embedded`.
        folder: Where it is, or its Hub id.
        temperature: Its own, the inverse of its logit scale, where that goes on to learn.

    Returns:
        `name` (no path), `hub_id` of the nearest model of its line that is on the Hub, `license` and `data` where its
        card or its conversion states them, and `temperature`.
    """
    local = Path(folder).is_dir()
    hub_id = None if local else folder
    card = _card_of(folder)
    license = card.data.get("license") if card else None
    data = _first_paragraph(card.text, "Training data") if card else None
    if local and (Path(folder) / CONVERSION).is_file():
        hub_id, license, data = OFFICIAL_REPO, "mit", "Microsoft's, as in the paper"
    elif card is not None and hub_id is None:
        base = card.data.get("base_model")
        hub_id = base if isinstance(base, str) else None
    if name == "embedded" or name.startswith("package:"):
        package = name.removeprefix("package:").partition("/")[0] if name != "embedded" else "clap_hf"
        title = f"the checkpoint embedded in {package.replace('_', '-')}"
    else:
        title = path_name(Path(name).resolve()) if local else name
    return {"name": title, "hub_id": hub_id, "license": license, "data": data, "temperature": temperature}


def path_name(path: Path) -> str:
    """Last part of a path; of a run's `best/`, that of the run."""
    return path.parent.name if path.name in ("best", "last", "newest") and path.parent.name else path.name


def _card_of(folder: str) -> ModelCard | None:
    """The card of a model in a folder, beside it, or on the Hub."""
    places = [Path(folder) / "README.md", Path(folder).parent / "README.md"]
    found = next((place for place in places if Path(folder).is_dir() and place.is_file()), None)
    try:
        text = found.read_text(encoding="utf-8") if found else None
        if text is None and not Path(folder).is_dir():
            text = Path(hf_hub_download(folder, "README.md")).read_text(encoding="utf-8")
        return None if text is None else ModelCard(text)
    except (OSError, ValueError, HfHubHTTPError, yaml.YAMLError):
        return None  # nothing is stated of a base without a card that can be read


def _first_paragraph(card: str, section: str) -> str | None:
    """The first paragraph of a section, in one line."""
    _, _, rest = card.partition(f"\n## {section}\n")
    paragraph = rest.strip().partition("\n\n")[0]
    return " ".join(paragraph.split()) if paragraph and not paragraph.startswith("#") else None


def corpus_facts(rows: Any, split: str) -> dict[str, Any]:
    """Sizes and licenses of training data, small enough to be stored beside a card.

    Args:
        rows: Dataset with the columns `license`, `source` and `duration_s`.
        split: Its name.

    Returns:
        `split`, `rows`, `hours`, and `licenses`: name -> `rows` and sorted `sources`; most rows first.
    """
    licenses: dict[str, Counter[str]] = {}
    for license, source in zip(rows["license"], rows["source"], strict=True):
        licenses.setdefault(license, Counter())[source] += 1
    ordered = sorted(licenses.items(), key=lambda item: (-item[1].total(), item[0]))
    return {
        "split": split,
        "rows": len(rows),
        "hours": round(sum(rows["duration_s"]) / 3600, 1),
        "licenses": {name: {"rows": count.total(), "sources": sorted(count)} for name, count in ordered},
    }


def starts_of(run: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a run's starts."""
    return [record for record in run if "recipe" in record]


def epochs_of(run: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a run's epochs."""
    return [record for record in run if "epoch" in record]
