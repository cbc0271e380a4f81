"""The commands `clap-hf train` and `clap-hf compare`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..training.recipe import ClassificationRecipe

app = typer.Typer()

Workers = Annotated[int, typer.Option(min=0, help="Loader processes.")]
CacheDir = Annotated[Path | None, typer.Option(help="Keep the clips' log-mels here, for several runs to share.")]
DataDir = Annotated[Path | None, typer.Option(help="CSVs and sounds of the paper's tasks, see evaluate.")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe of any stage, see configs/.")],
    output_dir: Annotated[Path, typer.Option(help="Gets run.jsonl, last/ and best/; folds of a classifier.")],
    combination: Annotated[str | None, typer.Option(help="Pair of encoders, where the recipe lists several.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Sound corpus: folder or Hub id, instead of the data.")] = None,
    sources: Annotated[
        list[str] | None, typer.Option(help="Sounds of your own instead, as finetune takes them; by commas.")
    ] = None,
    validation: Annotated[str | None, typer.Option(help="Dataset with a split validation, with --sources.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of the sources held out instead.")] = None,
    audio_tower: Annotated[str | None, typer.Option(help="Model whose trained audio tower is taken.")] = None,
    weights: Annotated[str | None, typer.Option(help="Trained model to go on from.")] = None,
    clap: Annotated[str | None, typer.Option(help="CLAP of a captioner: 'embedded', a folder, or a Hub id.")] = None,
    model: Annotated[str | None, typer.Option(help="CLAP of a classifier: 'embedded', a folder, or a Hub id.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, instead of the recipe's.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate, instead of the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the recipe's.")] = None,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints within an epoch.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SETTING=VALUE", help="Any setting of the recipe; repeatable.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder, at its step.")
    ] = False,
    num_workers: Workers = 1,
    cache_dir: CacheDir = None,
    data_dir: DataDir = None,
    trackers: Annotated[str, typer.Option(help="As Accelerate names them, separated by commas.")] = "tensorboard",
    push_to_hub: Annotated[str | None, typer.Option(help="Repository for the best and the newest epoch.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    device: Annotated[str | None, typer.Option(help="Of a classifier's frozen tower: cpu, cuda, cuda:1 ...")] = None,
) -> None:
    """Train by a recipe: contrastive, captioning, prompt pretraining or classification, by its `stage`.

    On several processes: torchrun or accelerate launch, with scripts/train.py and the same arguments.
    """
    from ..training.recipe import ClassificationRecipe, load_recipe

    overrides = {
        "dataset": dataset,
        **_own_data(sources, validation, held_out),
        "audio_tower": audio_tower,
        "weights": weights,
        "clap": clap,
        "model": model,
        "steps": steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "checkpoint_steps": checkpoint_steps,
    }
    try:
        if sources is None and (validation or held_out is not None):
            raise ValueError("--validation and --held-out have no effect without --sources. Leave them out.")
        loaded = load_recipe(recipe, combination, settings_of(settings or []), **overrides)
        if isinstance(loaded, ClassificationRecipe):
            unused = {
                "--resume": resume,
                "--cache-dir": cache_dir,
                "--data-dir": data_dir,
                "--push-to-hub": push_to_hub,
            }
            for option, value in unused.items():
                if value:
                    raise ValueError(f"{option} has no effect in the classification stage. Leave it out.")
            _cross_validate(loaded, output_dir, num_workers, device)
            return
        if device is not None:
            raise ValueError(f"--device has no effect in the {loaded.stage} stage. Leave it out.")
        if private and push_to_hub is None:
            raise ValueError("--private has no effect without --push-to-hub. Leave it out.")

        from ..hub import BackgroundPush
        from ..training.run import train_recipe

        train_recipe(
            loaded,
            output_dir,
            resume=resume,
            num_workers=num_workers,
            trackers=split_commas([trackers]) or [],
            cache_dir=cache_dir,
            data_dir=data_dir,
            push=BackgroundPush(push_to_hub, private=private or None) if push_to_hub else None,
        )
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def compare(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe with combinations, see configs/table1.yaml.")],
    output_dir: Annotated[Path, typer.Option(help="Gets a run per combination and seed, and the table.")],
    combinations: Annotated[list[str] | None, typer.Option(help="Some of the recipe's, separated by commas.")] = None,
    seeds: Annotated[
        list[str] | None, typer.Option(help="A run of each, separated by commas [default: 2023].")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Corpus to train on, instead of the recipe's data.")] = None,
    sources: Annotated[list[str] | None, typer.Option(help="Datasets of pairs instead, separated by commas.")] = None,
    validation: Annotated[str | None, typer.Option(help="Dataset with a validation split, with --sources.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, instead of the recipe's.")] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs per step, instead of the recipe's.")] = None,
    audio_tower: Annotated[str | None, typer.Option(help="Trained audio tower for all combinations.")] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Take no trained audio tower.")] = False,
    num_workers: Workers = 1,
    cache_dir: CacheDir = None,
    data_dir: DataDir = None,
    only_compare: Annotated[bool, typer.Option("--only-compare", help="Train nothing.")] = False,
) -> None:
    """Compare pairs of encoders as in the paper's Table 1, on any data, beside the paper's scores.

    A comparison that was stopped goes on where it was. On several processes, train the combinations one by one
    (--combination of train, --output-dir OUTPUT/NAME-SEED), then compare with --only-compare.
    """
    from rich.console import Console

    from ..training.comparison import as_table, compare_encoders
    from ..training.recipe import combinations_of

    overrides: dict[str, Any] = {
        "dataset": dataset,
        "steps": steps,
        "steps_per_epoch": steps_per_epoch,
        "batch_size": batch_size,
        "audio_tower": "" if from_scratch else audio_tower,
    }
    overrides |= _own_data(sources, validation, None)
    try:
        results = compare_encoders(
            recipe,
            output_dir,
            split_commas(combinations) or combinations_of(recipe),
            [int(seed) for seed in split_commas(seeds) or ["2023"]],
            overrides=overrides,
            num_workers=num_workers,
            cache_dir=cache_dir,
            data_dir=data_dir,
            train=not only_compare,
        )
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    Console().print(as_table(results))


def _cross_validate(recipe: ClassificationRecipe, output_dir: Path, num_workers: int, device: str | None) -> None:
    from ..training.classification import cross_validate

    found = cross_validate(recipe, output_dir, num_workers=num_workers, device=device)
    print(f"accuracy {found['accuracy']:.2%} ± {found['std']:.2%} over {len(found['folds'])} folds;", end=" ")
    print(f"all clips {found['pooled']:.2%} (95 % interval {found['low']:.1%} – {found['high']:.1%})")
    print(f"skipped: {len(found['skipped'])}; results and models in {output_dir}")


def _own_data(sources: list[str] | None, validation: str | None, held_out: float | None) -> dict[str, Any]:
    """Settings of a recipe for sounds that are named on the command line."""
    names = split_commas(sources)
    if not names:
        return {}
    data: dict[str, Any] = {"sources": [{"dataset": name} for name in names]}
    if held_out is not None:
        return data | {"held_out": held_out, "validation": {}}
    return data | {"validation": {"dataset": validation or names[0]}, "held_out": 0.0}


def settings_of(assignments: list[str]) -> dict[str, Any]:
    """Settings of `--set`, their values read as YAML; 5e-4, a text for YAML, is a number here."""
    import yaml

    settings = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set is {assignment!r}, expected SETTING=VALUE.")
        found = yaml.safe_load(value)
        if isinstance(found, str):
            with suppress(ValueError):
                found = float(found)
        settings[name.strip()] = found
    return settings


def split_commas(values: list[str] | None) -> list[str] | None:
    """Parts of a repeatable option whose values are separated by commas."""
    if values is None:
        return None
    return [part.strip() for value in values for part in value.split(",") if part.strip()]
