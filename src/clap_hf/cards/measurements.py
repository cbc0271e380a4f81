"""Parts of a model's card about what was measured of it: results, looks at the test, places in time, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .results import markdown_table, measured

_COLUMNS = ("task", "metric", "value", "95 % interval", "paper", "chance", "clips", "classes", "data")


def results(
    evaluation: dict[str, Any] | None, model: str, average: dict[str, Any] | None = None
) -> dict[str, str] | None:
    """A table of the results, how they were measured, the command that measures them, and the looks at the test.

    Args:
        evaluation: Content of `results.json`.
        model: Name of the model for the command.
        average: Why the weights are a mean, see `Records`.
    """
    if evaluation is None:
        return None
    settings, score, command = evaluation.get("settings"), evaluation["score"], "clap-hf evaluate"
    text = f"{evaluation['title']}."
    if settings is not None:
        dtype = settings["model"]["dtype"].removeprefix("torch.")
        samples = f"{settings['bootstrap']['samples']:,} bootstrap samples"
        text = f"Zero-shot, {dtype}, 95 % intervals from {samples} of the clips."
        if settings["templates"]:
            templates = ", ".join(f'"{template}"' for template in settings["templates"])
            text += (
                f" Prompts: {templates} around each class name, averaged; some classes have phrases of their own, "
                "listed in the results file."
            )
        command += f" {model} --suite {settings['suite']}"
        command += " --data-dir sound-corpus" if settings["suite"] == "sounds" else ""
    if score["score"] is not None:
        text += f" Mean of {len(score['tasks'])} values: {score['score']:.3f}."
    looks = _looks(evaluation["test_looks"], average) if "test_looks" in evaluation else ""
    return {
        "settings": text,
        "looks": looks,
        "table": _table(evaluation) + _before_relabelling(evaluation),
        "command": command,
    }


def _table(evaluation: dict[str, Any]) -> str:
    """A row for each number; columns that no row fills are left out."""
    lines = [_cells(row) for row in measured(evaluation)]
    filled = [i for i in range(len(_COLUMNS)) if i < 3 or any(line[i] for line in lines)]
    return markdown_table([_COLUMNS[i] for i in filled], [[line[i] for i in filled] for line in lines])


def _looks(count: int | None, average: dict[str, Any] | None) -> str:
    """How many sets of weights were measured on the test, since the best of many is better there than elsewhere."""
    looks = (
        "how many sets of weights were measured on it before was not recorded."
        if count is None
        else f"{count} sets of weights were measured on it in all; the best of many is better there than elsewhere."
    )
    why = f" The weights are {mean_of(average)}; {average['why']}." if average else ""
    return f"Looks at the test: {looks}{why}"


def sealed(evaluation: dict[str, Any] | None, looks: Sequence[dict[str, Any]]) -> dict[str, str] | None:
    """A table of the results on the sealed test, and how often that was read.

    Args:
        evaluation: What `tools.release.sealed_test` measured.
        looks: Its ledger; `found_later` of the last line is what is known of that look since.
    """
    if evaluation is None:
        return None
    text = (
        "Clips of repositories that no training clip comes from, compared by content with those of the last run. "
        f"Looks at it, these weights' included: {len(looks)}; each was written to `model_cards/embedded.looks.jsonl` "
        f"before the test was read. How these weights were decided on: {looks[-1]['why']}."
    )
    if "found_later" in looks[-1]:
        text += f" Found later: {looks[-1]['found_later']}."
    return {"text": text, "table": _table(evaluation)}


def hubs(record: dict[str, Any] | None) -> dict[str, str] | None:
    """The labels that come first most often beside the clips that are theirs.

    Args:
        record: What `tools.release.hubs` counted.
    """
    if record is None:
        return None
    rows = [
        [split, answer, row["label"], row["first"], row["own"], f"{row['ratio']:.1f}"]
        for split, counted in record["splits"].items()
        for answer, own in (("best", counted), ("stated", counted.get("stated", {"labels": []})))
        for row in own["labels"]
    ]
    clips = " and ".join(
        f"{counted['clips']:,} clips of the split {split}" for split, counted in record["splits"].items()
    )
    text = (
        f"{record['everyday_labels']} everyday labels were compared with {clips}. A label's share are its own clips, "
        f"or 1/{record['everyday_labels']} of all where those are fewer; the labels furthest above theirs, among the "
        'best labels of all clips, and among those that are stated: the other clips are "none of these".'
    )
    return {
        "text": text,
        "table": markdown_table(("split", "label is", "label", "clips", "own clips", "times its share"), rows),
    }


def extremes(evaluation: dict[str, Any] | None) -> str | None:
    """The classifications that a model does best and worst, in a sentence; None where fewer than two have a chance."""
    rows = [row for row in measured(evaluation) if row["metric"] == "accuracy" and row.get("chance") is not None]
    if len(rows) < 2:
        return None
    best, worst = max(rows, key=lambda row: row["value"]), min(rows, key=lambda row: row["value"])
    return (
        f"Of the classifications measured below it does best at {best['task']} ({best['value']:.1%}) and worst at "
        f"{worst['task']} ({worst['value']:.1%}, by chance {worst['chance']:.1%})."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    form = ".3f" if row["metric"] == "CIDEr-D" else ".1%"  # no share of anything: it may exceed 1
    value, low, high, paper, chance = (
        "" if row.get(name) is None else f"{row[name]:{form}}" for name in ("value", "low", "high", "paper", "chance")
    )
    corpus = (row.get("dataset") or {}).get("type") == "sound-corpus"
    data = "" if corpus else row["location"]
    interval = f"{low} – {high}" if low else ""
    classes = row.get("classes", "")
    return [row["task"], row["metric"], value, interval, paper, chance, str(row["clips"]), str(classes), data]


def _before_relabelling(evaluation: dict[str, Any]) -> str:
    """What the tasks gave by the labels that some clips had before they were corrected."""
    before = evaluation.get("before_relabelling")
    if before is None:
        return ""
    now = {row["task"]: row for row in measured(evaluation)}
    changed = [
        f"{old['task']} {old['value']:.1%} ({old['clips']} clips)"
        for old in measured(before)
        if any(old[name] != now[old["task"]][name] for name in ("value", "low", "high", "clips"))
    ]
    return (
        f"\n\nThe labels of {before['clips']} test clips were corrected where the name of the file contradicts them "
        "(`model_cards/embedded.relabelled.json` lists them with the reasons). By the labels before: "
        f"{', '.join(changed)}; the other tasks are the same."
    )


def moments(record: dict[str, Any] | None) -> dict[str, str] | None:
    """How well a model places sounds in time, by ratio to the background: a table, and what was measured.

    Args:
        record: What `scripts/measure_moments.py` wrote.
    """
    if record is None:
        return None
    found = record["results"]
    ratios = list(found["frames"]["auroc"])
    rows = [
        [
            ratio,
            *(
                _with_interval(found[m][metric][ratio])
                for metric in ("auroc", "R1@0.5")
                for m in ("windows", "frames")
            ),
        ]
        for ratio in ratios
    ]
    head = ("ratio", "AUROC, windows", "AUROC, frames", "R1@0.5, windows", "R1@0.5, frames")
    gained = found["frames - windows"]
    text = (
        f"{record['queries']} queries in {record['recordings']} recordings ({record['hours']} h), of test sounds "
        "planted in test backgrounds: area under the ROC curve over steps, and the share of first spans that overlap "
        "a planted sound by half, with 95 % intervals from drawing recordings anew. Frame scores over window scores: "
        f"AUROC {_with_interval(gained['auroc']['all'], 3)}, R1@0.5 {_with_interval(gained['R1@0.5']['all'], 3)}."
    )
    return {"text": text, "table": markdown_table(head, rows)}


def calibration(record: dict[str, Any] | None) -> dict[str, str] | None:
    """How well a model's calibration holds on sources that it was not fitted to: two tables, and what was measured.

    Args:
        record: What `scripts/calibrate.py` wrote.
    """
    if record is None:
        return None
    found, fitted = record["held_out"], record["fitted"]
    both = [found["without"], found["with"]]
    rows = [
        ["AUROC of present against absent", *(f"{own['auroc']:.3f}" for own in both)],
        ["expected calibration error, at even odds", *(f"{own['ece']:.3f}" for own in both)],
        ["absent pairs with a probability of 0.5 or more", *(f"{own['false_alarms_at_half']:.0%}" for own in both)],
    ]
    rates = list(found["false_alarms"])
    stated = [
        ["measured", *(f"{found['false_alarms'][rate]:.1%}" for rate in rates)],
        ["present pairs above the threshold", *(f"{found['detections'][rate]:.0%}" for rate in rates)],
    ]
    text = (
        f"Fitted to {fitted['sounds']:,} sounds of {len(fitted['sources'])} packages, and measured on "
        f"{found['sounds']:,} sounds of {len(found['sources'])} others with {found['labels']} labels. Without "
        "calibration the probability is the sigmoid of the logit."
    )
    if left_out := record.get("left_out"):
        text += (
            f" Of {left_out['draws']} fits without a quarter of their sources, {left_out['all_within_factor']:.0%} "
            f"kept every stated rate within a factor of {left_out['factor']} on these."
        )
    head = ["stated false-alarm rate of a pair", *(f"{float(rate):.0%}" for rate in rates)]
    return {
        "text": text,
        "scores": markdown_table(("", "without", "with"), rows),
        "rates": markdown_table(head, stated),
    }


def _with_interval(found: dict[str, Any], digits: int = 2) -> str:
    """A value with its interval."""
    low, high = found["interval"]
    return f"{found['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def examples(evaluation: dict[str, Any] | None) -> str | None:
    """A table of captions beside the clips' own, from the first captioning task."""
    tasks = [] if evaluation is None else evaluation.get("tasks", [])
    shown = next((task["examples"] for task in tasks if task.get("examples")), None)
    if shown is None:
        return None
    rows = [(example["caption"], " / ".join(example["references"][:3])) for example in shown]
    return markdown_table(("caption written by the model", "captions of the clip"), rows)


def mean_of(average: dict[str, Any]) -> str:
    """What weights are the mean of."""
    return f"the mean of {' and '.join(average['of'])}"
