"""The commands classify, caption, push, convert, evaluate, export and info."""

from __future__ import annotations

import atexit
import gc
import math
import platform
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .collections import app as collections_app
from .demo import app as demo_app
from .finetune import app as finetune_app
from .io import (
    Format,
    OneLineErrors,
    Output,
    candidate_labels,
    file_columns,
    finish,
    input_files,
    labels_beside,
    length_text,
    one_line,
    print_failures,
    print_scores,
)
from .models import (
    DUAL_ENCODERS,
    checked_checkpoint,
    go_offline_if_unreachable,
    installed_version,
    load_pipeline,
    model_facts,
)
from .options import EVERYDAY_LABELS, Device, JsonPath, MaxWindows, ModelName, Paths, StdoutFormat
from .timeline import app as timeline_app
from .training import app as training_app

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Microsoft CLAP: sounds and words in one space.",
)
app.add_typer(collections_app)
app.add_typer(training_app)
app.add_typer(finetune_app)
app.add_typer(timeline_app)
app.add_typer(demo_app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(installed_version("clap-hf"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error was raised, for reports of bugs.")
    ] = False,
) -> None:
    """Microsoft CLAP: sounds and words in one space."""
    # Importing torch and transformers makes 600,000 objects that stay. The collector would look through them for
    # cycles again and again, and once more at the end: a quarter of a short command's time.
    gc.set_threshold(50_000, 50, 50)
    atexit.register(gc.freeze)


@app.command()
def classify(
    paths: Paths,
    labels: Annotated[
        list[str] | None, typer.Option(help="Labels to choose from, separated by commas; may be repeated.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="Text file with a label per line.")] = None,
    model: ModelName = "embedded",
    top_k: Annotated[int, typer.Option(min=1, help="Labels shown per sound.")] = 3,
    template: Annotated[list[str] | None, typer.Option(help="Text with {} for the label; repeat to average.")] = None,
    max_windows: MaxWindows = None,
    false_alarms: Annotated[
        float,
        typer.Option(
            min=1e-6, max=0.999, help="Share of sounds that get a label though none fits; the others get none."
        ),
    ] = 0.2,
    raw: Annotated[bool, typer.Option("--raw", help="Without calibration: one of the labels always fits.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw the cosines of sounds and labels: a PNG file.")] = None,
    format: StdoutFormat = Format.table,
    json_path: JsonPath = None,
    device: Device = None,
) -> None:
    """Name the sounds in files and folders by labels in any words, without training.

    A calibrated model states the probability that the sound has the best label, and answers "none of these" where that
    is too low.

    Without --labels, the distinct labels of the labels.csv (columns file,label) beside the sounds are used, or else a
    list of everyday sounds. Where labels.csv names a sound, the best label is compared with it. JSON holds the scores
    of all labels, CSV those of the best --top-k.
    """
    from ..adapters import load_model
    from ..embedding import TEMPLATES, embed_files
    from ..pipelines.zero_shot import MSClapZeroShotAudioClassificationPipeline
    from .sounds import run_over_files

    output = Output(format, json_path)
    output.check()
    files = input_files(paths)
    expected = labels_beside(files)
    candidates = candidate_labels(labels, labels_file, expected.values(), EVERYDAY_LABELS)
    source = checked_checkpoint(model, DUAL_ENCODERS)
    classifier, processor = load_pipeline(
        "zero-shot-audio-classification",
        load_model,
        source,
        device,
        pipeline_class=MSClapZeroShotAudioClassificationPipeline,
        candidate_labels=candidates,
        hypothesis_template=template or TEMPLATES,
        max_windows=max_windows,
        calibration=not raw,
        function_to_apply="softmax" if plot is None else "none",
    )
    threshold = None
    if classifier.calibration is not None:
        threshold = classifier.calibration.threshold(false_alarms, count=len(candidates))

    def record(file: Path, scores: list[dict[str, Any]] | None) -> dict[str, Any]:
        if plot is not None and scores:
            scores = shares_of(scores, float(classifier.model.logit_scale.detach().exp()))
        known = {"expected": expected[file]} if expected.get(file) in candidates else {}
        if threshold is not None and scores:
            known["none_of_these"] = scores[0]["probability"] < threshold
        return {"scores": scores or [], **known}

    def classify_long(file: Path) -> list[dict[str, Any]]:
        found = embed_files(classifier.model, processor, [file], max_windows=max_windows)
        if found.skipped:
            raise ValueError(found.skipped[file])
        return classifier.score_vector(found.vectors[0])

    results, failures, interrupted = run_over_files(files, classifier, record, classify_long)
    if plot is not None:
        draw_similarity(results, candidates, plot)
    columns = ["label", "score"] if threshold is None else ["label", "score", "probability"]
    output.write(
        {"model": source, "labels": candidates, "results": results, "failures": failures},
        (
            file_columns(result) | {name: score.get(name, "") for name in columns}
            for result in results
            for score in (result["scores"][:top_k] or [{}])
        ),
        lambda console: print_scores(console, results, failures, top_k),
    )
    finish(output, len(files), results, failures, interrupted)


def shares_of(scores: list[dict[str, Any]], scale: float) -> list[dict[str, Any]]:
    """Scores that are logits as shares of a softmax, with the `cosine` of each: the logit over the model's scale."""
    highest = max(score["score"] for score in scores)
    total = sum(math.exp(score["score"] - highest) for score in scores)
    return [
        {**score, "score": math.exp(score["score"] - highest) / total, "cosine": score["score"] / scale}
        for score in scores
    ]


def draw_similarity(results: list[dict[str, Any]], labels: list[str], path: Path) -> None:
    """Draw the cosines of sounds and labels; silent sounds are left out.

    Raises:
        ValueError: There is no sound.
    """
    import numpy as np

    from ..evaluation.plots import draw_heatmap

    scored = {Path(result["file"]).name: result["scores"] for result in results if result["scores"]}
    if not scored:
        raise ValueError(f"No sound was classified, expected one at least to draw {path}.")
    cosines = [{score["label"]: score["cosine"] for score in scores} for scores in scored.values()]
    values = np.array([[own[label] for label in labels] for own in cosines])
    draw_heatmap(values, list(scored), labels, "Cosine of sound and label", ("sound", "label"), path)


@app.command()
def caption(
    paths: Paths,
    model: Annotated[str, typer.Option(help="Captioner: a folder, or a Hub id.")],
    beams: Annotated[int | None, typer.Option(min=1, help="Beams of the search; the model's own by default.")] = None,
    max_windows: MaxWindows = None,
    format: StdoutFormat = Format.table,
    json_path: JsonPath = None,
    device: Device = None,
) -> None:
    """Describe the sounds in files and folders in words."""
    from transformers import AutoModelForMultimodalLM

    from ..model.modeling_msclap_captioning import MSClapForAudioCaptioning
    from ..pipelines.captioning import TASK
    from ..pretrained import load_checked
    from .sounds import run_over_files

    output = Output(format, json_path)
    output.check()
    files = input_files(paths)
    source = checked_checkpoint(model, ("msclap_captioning", "msclap_conditional_generation"))
    options = {} if beams is None else {"num_beams": beams}
    load = partial(load_checked, AutoModelForMultimodalLM)
    describe, _ = load_pipeline(TASK, load, source, device, max_windows=max_windows, **options)

    def record(file: Path, answer: list[dict[str, str]] | None) -> dict[str, Any]:
        return {"caption": answer[0]["generated_text"] if answer else ""}

    def caption_long(file: Path) -> list[dict[str, str]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the record has the damage
            return describe.caption_file(file)

    for_long = caption_long if isinstance(describe.model, MSClapForAudioCaptioning) else None
    results, failures, interrupted = run_over_files(files, describe, record, for_long)

    def print_table(console: Console) -> None:
        table = Table("file", "length", "caption")
        for result in results:
            text = "silence" if result["silent"] else escape(result["caption"])
            table.add_row(escape(result["file"]), length_text(result), text)
        if results:
            console.print(table)
        print_failures(console, failures, len(results) + len(failures))

    output.write(
        {"model": model, "results": results, "failures": failures},
        ({**file_columns(result), "caption": result["caption"]} for result in results),
        print_table,
    )
    finish(output, len(files), results, failures, interrupted)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of save_pretrained, or of a dataset.")],
    repo_id: Annotated[str, typer.Argument(help="ORGANISATION/NAME; made if it does not exist.")],
    repo_type: Annotated[str, typer.Option("--type", help="model or dataset.")] = "model",
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility; as it is, or the organisation's default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; made if it does not exist.")] = None,
    pull_request: Annotated[bool, typer.Option("--pr", help="Propose a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="First line of the commit's message.")] = None,
    license: Annotated[str | None, typer.Option(help="License of the weights, for a card that is made.")] = None,
    token: Annotated[str | None, typer.Option(help="HF_TOKEN or that of `hf auth login` by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go, with sizes.")] = False,
) -> None:
    """Upload weights, configuration, processor, remote code and card to the Hub in one commit.

    Code and card are made where the folder has none. When an upload is cut, run the same command again: large files
    that arrived are not sent again.
    """
    from ..hub import push as push_folder

    if repo_type not in ("model", "dataset"):
        raise typer.BadParameter(f"--type is {repo_type!r}, expected model or dataset.")
    try:
        done = push_folder(
            folder,
            repo_id,
            repo_type=repo_type,
            private=private,
            revision=revision,
            create_pr=pull_request,
            commit_message=message,
            license=license,
            token=token,
            dry_run=dry_run,
        )
    except (OSError, ValueError, RuntimeError) as error:
        typer.echo(f"Not pushed. {one_line(str(error))}", err=True)
        raise typer.Exit(1) from error
    table = Table("file")
    table.add_column("size", justify="right")
    for file in done.files:
        table.add_row(escape(file.path), f"{file.size:,}")
    console = Console()
    console.print(table)
    console.print(f"{len(done.files)} files, {done.size / 1e6:,.1f} MB", highlight=False)
    if done.commit is None:
        console.print(f"Dry run: nothing was sent to {escape(repo_id)}.")
    else:
        console.print(f"Pushed: {done.commit.pr_url or done.commit.commit_url}")


@app.command()
def convert(
    version: Annotated[str, typer.Argument(help="Official checkpoint: 2022, 2023 or clapcap.")],
    output: Annotated[Path | None, typer.Option(help="New folder; msclap-VERSION by default.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Official .pth file; from microsoft/msclap on the Hub if not given.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or Hub id; the text tower's own on the Hub if not given.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Also push the folder, with a card, to this repository.")
    ] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Visibility of the repository.")] = None,
    token: Annotated[str | None, typer.Option(help="HF_TOKEN or that of `hf auth login` by default.")] = None,
) -> None:
    """Convert an official checkpoint to a folder that from_pretrained loads: fetch, convert, verify, card, push."""
    from ..convert import convert_checkpoint
    from ..hub import push as push_folder

    folder = output or Path(f"msclap-{version}")
    console = Console()
    try:
        report = convert_checkpoint(version, folder, checkpoint=checkpoint, tokenizer=tokenizer, repo_id=push_to_hub)
    except (OSError, ValueError, RuntimeError) as error:
        typer.echo(f"Not converted. {one_line(str(error))}", err=True)
        raise typer.Exit(1) from error
    console.print_json(data=report)
    console.print(f"Wrote {escape(str(folder))}", highlight=False)
    if push_to_hub is None:
        return
    try:
        done = push_folder(
            folder, push_to_hub, private=private, token=token, commit_message=f"CLAP {version}, converted"
        )
    except (OSError, ValueError, RuntimeError) as error:
        again = f"Push again with: clap-hf push {folder} {push_to_hub}"
        typer.echo(f"Converted, but not pushed. {one_line(str(error))} {again}", err=True)
        raise typer.Exit(1) from error
    console.print(f"Pushed: {done.commit.commit_url if done.commit else ''}", highlight=False)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="'embedded', a folder, or a Hub id.")],
    suite: Annotated[str, typer.Option(help="paper (26 tasks), table1 (16), sounds, maeb, or own.")] = "paper",
    captioner: Annotated[str | None, typer.Option(help="Captioning model, for the captioning tasks.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks of the suite, separated by commas.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with TASK.csv files; the corpus for `sounds`.")] = None,
    split: Annotated[str, typer.Option(help="Split of the corpus for `sounds`: test or validation.")] = "test",
    relabelled: Annotated[
        Path | None, typer.Option(help="JSON of clips of `sounds` with their labels before: results by those, too.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Gets the results; a later run goes on from them.")] = Path(
        "results"
    ),
    cache_dir: Annotated[Path | None, typer.Option(help="Embeddings are kept here.")] = None,
    collection: Annotated[
        Path | None, typer.Option(help="Of `clap-hf embed`, same model: its sounds are not embedded again.")
    ] = None,
    template: Annotated[list[str] | None, typer.Option(help="Prompt with {}; repeat to average and compare.")] = None,
    descriptions: Annotated[Path | None, typer.Option(help="JSON: class -> texts that describe it.")] = None,
    scores: Annotated[str | None, typer.Option(help="softmax, sigmoid or raw; the paper's by default.")] = None,
    long_audio: Annotated[str | None, typer.Option(help="windows or center; the model's by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Clips a task at most, drawn by a fixed seed.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first by default.")] = None,
    plots: Annotated[bool, typer.Option(help="Draw confusion matrix, bars and similarities.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Score what is done and try unreadable sounds again.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only list tasks, sources and sizes.")] = False,
) -> None:
    """Measure a model on the paper's tasks, on held-out tasks of the sound corpus, on MAEB, or on one's own sounds.

    Lists every task with its source and size, then embeds each sound once and scores; the paper's figures stand
    beside ours. A stopped run goes on where it was. Exit code: 0 all tasks ran, 1 one failed or none ran, 3 some had
    no source in reach. On several processes: accelerate launch scripts/evaluate.py ...
    """
    from ..evaluation.command import evaluate_model, read_descriptions
    from ..evaluation.runner import CACHE_DIR, EvaluationOptions

    if data_dir is None:
        go_offline_if_unreachable()
    options = EvaluationOptions(
        model=model,
        captioner=captioner,
        suite=suite,
        tasks=tuple(name.strip() for name in tasks.split(",")) if tasks else None,
        data_dir=data_dir,
        split=split,
        relabelled=relabelled,
        output_dir=output_dir,
        cache_dir=cache_dir or CACHE_DIR,
        collection=collection,
        templates=tuple(template) if template else None,
        descriptions=read_descriptions(descriptions) if descriptions else {},
        scores=scores,
        long_audio=long_audio,
        limit=limit,
        device=device,
        plots=plots,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    raise typer.Exit(evaluate_model(options, Console()))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="'embedded', a folder, or a Hub id.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to write: audio.onnx, text.onnx, tokenizer, onnx.json.")],
    int8: Annotated[bool, typer.Option(help="Also write graphs with 8-bit weights and activations.")] = False,
    web: Annotated[bool, typer.Option(help="Write what a web page needs instead; see docs/web.md.")] = False,
) -> None:
    """Write both towers as ONNX graphs, checked against the model."""
    import torch

    from ..calibration import Calibration
    from ..export import export_onnx, export_web
    from ..model.modeling_msclap import MSClapModel
    from ..pretrained import load_checked

    if web and int8:
        raise typer.BadParameter("--web writes graphs with 8-bit weights alone, expected no --int8 beside it.")
    source = checked_checkpoint(model, ("msclap",))
    loaded, processor = load_checked(MSClapModel, source, dtype=torch.float32)
    if web:
        parts = {"extractor": processor.feature_extractor, "tokenizer": processor.tokenizer}
        report = export_web(loaded, processor, output_dir, Calibration.beside(source, loaded, **parts))
    else:
        report = export_onnx(loaded, processor, output_dir, int8=int8)
    table = Table("graph", title=str(output_dir))
    for heading in ("size", "largest difference", "lowest cosine"):
        table.add_column(heading, justify="right")
    for graph, found in report["graphs"].items():
        size, cosine = f"{found['bytes'] / 1e6:.1f} MB", f"{found['lowest_cosine']:.6f}"
        table.add_row(graph, size, f"{found['largest_difference']:.1e}", cosine)
    Console().print(table)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="'embedded', a folder, or a Hub id.")] = "embedded",
    format: StdoutFormat = Format.table,
) -> None:
    """Print versions, devices and facts of a model."""
    import torch

    facts = {
        name: installed_version(name)
        for name in ("clap-hf", "torch", "torchaudio", "transformers", "datasets", "accelerate", "soundfile")
    }
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts["python"] = f"{platform.python_version()} on {platform.platform()}"
    facts["devices"] = ", ".join([*cuda, f"cpu ({torch.get_num_threads()} threads)"])
    facts |= model_facts(model)

    def print_table(console: Console) -> None:
        table = Table("what", "value", show_header=False, box=None)
        for name, value in facts.items():
            table.add_row(name, escape(str(value)))
        console.print(table)

    Output(format).write(facts, [facts], print_table)
