"""The card of a model, written from its records, and its check."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined

from ..atomic_io import write_text
from ..pretrained import load_config, load_processor, model_class
from . import measurements, parts
from .curves import draw_curves
from .records import Records, epochs_of, records_of_folder, starts_of

CARD, CURVES = "README.md", "curves.png"
_TEMPLATE = Path(__file__).parent / "model.md.jinja"


def write_card(
    folder: Path,
    target: Path,
    records: Records | None = None,
    *,
    repo_id: str | None = None,
    name: str | None = None,
    license: str | None = None,
) -> dict[str, Path]:
    """Write a model's card and, where there is a run, the picture of its curves (if matplotlib is installed).

    Args:
        folder: The model's folder.
        target: Folder that gets `README.md` and `curves.png`.
        records: Records of the model; those in and beside the folder when None.
        repo_id: Id that the snippets load; the package's own checkpoint when None.
        name: Title; that of the recipe, the conversion or the repository when None.
        license: License of the weights as the Hub spells it; not stated when None.

    Returns:
        File name -> file.
    """
    records = records_of_folder(folder) if records is None else records
    files = {CARD: target / CARD}
    if epochs_of(records.run) and importlib.util.find_spec("matplotlib") is not None:
        files[CURVES] = target / CURVES
        target.mkdir(parents=True, exist_ok=True)
        draw_curves(records.run, files[CURVES])
    curves = CURVES if CURVES in files else None
    write_text(files[CARD], model_card(folder, records, repo_id=repo_id, name=name, license=license, curves=curves))
    return files


def model_card(
    folder: Path,
    records: Records,
    *,
    repo_id: str | None = None,
    name: str | None = None,
    license: str | None = None,
    curves: str | None = None,
) -> str:
    """The text of a model's card; see `write_card`.

    Args:
        folder: The model's folder; its configuration and processor are read.
        records: Records of the model.
        repo_id: Id that the snippets load; the package's own checkpoint when None.
        name: Title.
        license: License of the weights.
        curves: File name of the curves' picture.
    """
    config, processor = load_config(str(folder)), load_processor(str(folder))
    architecture = (config.architectures or ["MSClapModel"])[0]
    kind = parts.KINDS[architecture]
    with torch.device("meta"):
        model = model_class(architecture)(config)
    starts = starts_of(records.run)
    recipe = starts[-1]["recipe"] if starts else None
    title = name or (recipe["name"] if recipe else str(repo_id).rsplit("/", 1)[-1])
    base, _ = parts.base_model(records)
    text_base, _ = parts.text_base(records)
    license = "mit" if records.conversion else license
    front_end = processor.feature_extractor
    facts = {
        "metadata": parts.metadata(title, kind, license, base, records).to_yaml(),
        "name": title,
        "summary": parts.summary(model, kind, text_base, records.base),
        "embedded": repo_id is None,
        "kind": kind,
        "model": repo_id,
        "labels": ", ".join(config.id2label.values()) if kind == "classifier" else "",
        "rate": front_end.sampling_rate,
        "window_s": f"{front_end.duration_s:g}",
        "mel_bins": front_end.feature_size,
        "fmin": f"{front_end.fmin:,g}",
        "fmax": f"{front_end.fmax:,.0f}",
        "designed_for": parts.designed_for(front_end),
        "hop": front_end.hop_length,
        "max_tokens": processor.tokenizer.model_max_length,
        "parameters": parts.millions(model),
        "conversion": parts.conversion(records.conversion),
        "training": parts.training(model, front_end, kind, records) if recipe else None,
        "curves": curves,
        "corpus": parts.corpus(records.corpus, embedded=repo_id is None),
        "results": measurements.results(records.evaluation, repo_id or "embedded", records.average),
        "sealed": measurements.sealed(records.sealed, records.looks),
        "hubs": measurements.hubs(records.hubs),
        "extremes": measurements.extremes(records.evaluation),
        "moments": measurements.moments(records.moments),
        "calibration": measurements.calibration(records.calibration),
        "examples": measurements.examples(records.evaluation),
        "license_text": parts.license_text(license, records),
    }
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(facts)


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
