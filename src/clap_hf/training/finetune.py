"""Fine-tuning on sounds of one's own in one call: split, evaluate, train, evaluate again, write the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState

from ..atomic_io import write_json
from ..cards import write_card
from ..cards.records import epochs_of, read_records, starts_of
from ..convert import convert_checkpoint
from ..data.source import NoSuchSplit
from ..pretrained import checkpoint_path, load_config
from .factory import resolve
from .inputs import OpenPairs, open_pairs
from .loop import BEST, make_accelerator
from .recipe import ContrastiveRecipe, load_recipe
from .records import RECORD
from .run import train_recipe

RECIPE = Path(__file__).parent / "finetune.yaml"
REPORT = "finetune.json"
RELEASED = ("2022", "2023")
FROZEN = ("text", "audio", "both", "none")
HELD_OUT = 0.2
LORA_RATE = 1e-3  # of adapters, which begin at zero
FEWEST_STEPS = 10  # of an epoch
IN_PYTHON = "sounds"  # name of a dataset that is no folder


def finetune(
    sounds: str | Path | datasets.Dataset | Mapping[str, datasets.Dataset],
    output_dir: Path,
    *,
    model: str = "embedded",
    freeze: str = "text",
    lora: bool = False,
    held_out: float | None = None,
    steps: int | None = None,
    columns: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    num_workers: int = 1,
    trackers: Sequence[str] = (),
    license: str | None = None,
) -> dict[str, Any]:
    """Fine-tune a CLAP model and measure it before and after on pairs that are held out.

    Args:
        sounds: Folder, table, archive or Hub id (`clap_hf.data.own`), or a dataset in Python.
        output_dir: Gets `run.jsonl`, `best/` (for `from_pretrained`), `last/` (to resume from), `finetune.json` and
            the card `README.md`.
        model: `"embedded"`, `"2023"` or `"2022"` (the released weights), or the folder or Hub id of a CLAP model.
        freeze: Tower that stays as it is: `"text"`, `"audio"`, `"both"` or `"none"`; projections always learn.
        lora: Train adapters of low rank instead; they are saved in `best/adapter` beside the merged model.
        held_out: Share of the pairs that is held out; by default the set's own split `validation`, or 0.2.
        steps: Optimiser steps, rounded up to whole epochs; 10 epochs by default.
        columns: Further settings of `StreamSource`, such as `audio`, `text`, `template`, `label_names` and `group`.
        settings: Settings that replace those of `finetune.yaml`; `part.setting` replaces one of a part.
        resume: Continue the run in the folder.
        num_workers: Loader processes.
        trackers: Trackers, by the names that Accelerate knows.
        license: License of the new weights for the card, as the Hub spells it.

    Returns:
        What `finetune.json` holds: `dataset`, `pairs`, `held_out`, `skipped`, `steps`, `evaluations`, and the metrics
        `before` and `after`; empty on all ranks but the main one.

    Raises:
        ValueError: If the sounds or an option are not what they should be; the message has the remedy.
    """
    if freeze not in FROZEN:
        raise ValueError(f"freeze is {freeze!r}, expected one of {list(FROZEN)}.")
    given = None if isinstance(sounds, (str, Path)) else {IN_PYTHON: sounds}
    source = {"dataset": IN_PYTHON if given else str(sounds)} | dict(columns or {})
    chosen: dict[str, Any] = {
        "name": output_dir.name,
        "text.freeze": freeze in ("text", "both"),
        "freeze_audio": freeze in ("audio", "both"),
    }
    if lora:
        chosen |= {"lora": {}, "learning_rate": LORA_RATE}
    if steps is not None:
        chosen |= {"steps": steps, "epochs": None}
    chosen |= dict(settings or {})

    def recipe_of(more: dict[str, Any], weights: str) -> ContrastiveRecipe:
        recipe = load_recipe(RECIPE, None, chosen | more, sources=[source], weights=weights)
        assert isinstance(recipe, ContrastiveRecipe)
        return recipe

    asked = HELD_OUT if held_out is None else held_out
    draft = recipe_of({"held_out": asked}, "package:clap_hf/embedded")  # wrong settings are found before any work
    make_accelerator(draft)
    split: dict[str, Any] = {"held_out": asked}
    opened: OpenPairs | None = None
    if held_out is None:
        own = {"held_out": 0.0, "validation": source}
        try:
            draft = recipe_of(own, "package:clap_hf/embedded")
            opened, split = open_pairs(draft, given), own
        except NoSuchSplit:
            draft = recipe_of(split, "package:clap_hf/embedded")
    opened = opened or open_pairs(draft, given)
    weights = _weights(model, output_dir)
    tower = {} if "batch_norm" in chosen else {"batch_norm": _batch_norm(weights)}
    recipe = recipe_of(split | tower | _sizes(draft, opened.facts["pairs"], chosen), weights)
    train_recipe(
        recipe,
        output_dir,
        resume=resume,
        num_workers=num_workers,
        trackers=trackers,
        given=given,
        opened=opened,
    )
    if not PartialState().is_main_process:
        return {}
    report = read_report(output_dir)
    write_json(output_dir / REPORT, report)
    write_card(output_dir / BEST, output_dir, repo_id=BEST, license=license)  # beside which the card lies
    return report


def _weights(model: str, output_dir: Path) -> str:
    """What a recipe's `weights` names a model by; released ones are converted first."""
    if model not in RELEASED:
        return "package:clap_hf/embedded" if model == "embedded" else checkpoint_path(model)
    folder = output_dir / f"msclap-{model}"
    with PartialState().main_process_first():
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            convert_checkpoint(model, folder)
    return str(folder)


def _batch_norm(weights: str) -> str:
    """How a model's BatchNorm layers are treated: CNN14's stay as they are, HTSAT has none but its first.

    Raises:
        ValueError: If it is no CLAP model of two towers.
    """
    config = load_config(resolve(weights))
    if config.model_type != "msclap":
        raise ValueError(
            f"The model {weights!r} is of the type {config.model_type!r}, expected a CLAP model of two towers, such "
            "as 'embedded'."
        )
    return "frozen" if config.audio_config.architecture == "cnn14" else "exact"


def _sizes(draft: ContrastiveRecipe, pairs: int | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that fit the number of pairs, where they were not chosen.

    A batch is a quarter of the pairs at most, in whole eighths; an epoch passes over few pairs several times, so that
    it has some steps; a run is at least an epoch.

    Raises:
        ValueError: If there are fewer pairs than a batch.
    """
    if pairs is None:  # parquet files that are streamed: the plan counts their rows
        return {}
    batch = min(draft.batch_size, max(8, pairs // 4 // 8 * 8), pairs)
    batch = int(chosen.get("batch_size", batch))
    if batch > pairs:
        raise ValueError(f"batch_size is {batch}, expected at most the number of pairs for training, {pairs}.")
    steps = chosen.get("steps")
    epoch = max(pairs // batch, FEWEST_STEPS) if steps is None else min(max(pairs // batch, FEWEST_STEPS), steps)
    passes = max(1.0, -(-epoch * batch // pairs))
    total = steps or epoch * (draft.epochs or 1)
    fitting = {
        "batch_size": batch,
        "steps_per_epoch": epoch,
        "sources": [draft.sources[0] | {"weight": passes}],
        "warmup_steps": min(draft.warmup_steps, total // 5),
    }
    return {name: value for name, value in fitting.items() if name not in chosen}


def read_report(output_dir: Path) -> dict[str, Any]:
    """What a run on held-out pairs measured before its first step and at the epoch that was kept.

    Args:
        output_dir: The run's folder.

    Raises:
        ValueError: If the run did not get as far as that.
    """
    run = read_records(output_dir / RECORD).run
    starts, epochs = starts_of(run), epochs_of(run)
    kept = next((epoch for epoch in reversed(epochs) if epoch.get("best")), None)
    before = next((start["before"] for start in starts if "before" in start), None)
    if kept is None or before is None:
        raise ValueError(
            f"{output_dir / RECORD} has no epoch that was kept, or nothing was measured before the first."
        )
    data = starts[-1].get("data", {})
    return {
        "dataset": [Path(source["dataset"]).name for source in starts[-1]["recipe"]["sources"]],
        "pairs": data.get("pairs"),
        "held_out": kept["held_out_clips"],
        "skipped": data.get("skipped"),
        "steps": kept["step"],
        "evaluations": len(epochs),
        "before": metrics_of(before),
        "after": metrics_of(kept),
    }


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of held-out pairs from an evaluation or an epoch's record: accuracy first, the loss last."""
    found = dict(record["validation"])
    accuracy = {"accuracy": found.pop("accuracy")} if "accuracy" in found else {}
    return accuracy | found | {"validation_loss": record["validation_loss"]}
