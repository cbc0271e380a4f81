"""The clap-hf command: a thin face over the package."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from .atomic_io import write_json
from .audio import Audio, audio_files, load_audio
from .cli_training import app as training_app

if TYPE_CHECKING:
    from .search import SoundCollection

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Microsoft CLAP: sounds and words in one space.")
app.add_typer(training_app)

# Sounds of home, street, nature and stage that a recording is likely to hold, when no labels are given.
EVERYDAY_LABELS = (
    "speech,laughter,crying baby,coughing,sneezing,footsteps,applause,crowd,singing,music,piano,guitar,drums,violin,"
    "trumpet,dog,cat,bird,rooster,cow,sheep,frog,insects,rain,thunder,wind,sea waves,running water,fire,door,glass "
    "breaking,keyboard typing,clock,telephone,bell,engine,car horn,siren,train,airplane,helicopter,chainsaw,gunshot,"
    "explosion,fireworks,silence"
).split(",")


@app.command()
def classify(
    paths: Annotated[list[Path], typer.Argument(help="Sound files, and folders of them.")],
    labels: Annotated[str | None, typer.Option(help="Labels to choose from, separated by commas.")] = None,
    labels_file: Annotated[Path | None, typer.Option(help="Text file with a label per line.")] = None,
    model: Annotated[str, typer.Option(help="'embedded', a folder, or a Hub id.")] = "embedded",
    top_k: Annotated[int, typer.Option(min=1, help="Labels shown per sound.")] = 3,
    template: Annotated[list[str] | None, typer.Option(help="Text with {} for the label; repeat to average.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write all scores here, as JSON.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first accelerator by default.")
    ] = None,
) -> None:
    """Name the sounds in files and folders by labels in any words, without training.

    Without --labels, the distinct labels of the labels.csv (columns file,label) beside the sounds are used, or else a
    list of everyday sounds. Where labels.csv names a sound, the best label is compared with it.
    """
    console = Console()
    try:
        files = audio_files(paths)
        expected = _expected_labels(files)
        candidates = _candidate_labels(labels, labels_file, expected)
        classifier, model_name = _classifier(model, device, candidates, template)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error

    results: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for file, audio, scores in _run_pipeline(classifier, files, failures):
        result = {"file": str(file), "duration_s": audio.duration_s, "truncated": audio.truncated, "scores": scores}
        if expected.get(file) in candidates:
            result["expected"] = expected[file]
        results.append(result)

    _print_results(console, results, failures, top_k)
    if json_path is not None:
        report = {"model": model_name, "labels": candidates, "results": results, "failures": failures}
        write_json(json_path, report)
    if not results:
        raise typer.Exit(1)


@app.command()
def caption(
    paths: Annotated[list[Path], typer.Argument(help="Sound files, and folders of them.")],
    model: Annotated[str, typer.Option(help="Captioner: a folder, or a Hub id.")],
    beams: Annotated[int | None, typer.Option(min=1, help="Beams of the search; the model's own by default.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the captions here, as JSON.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first accelerator by default.")
    ] = None,
) -> None:
    """Describe the sounds in files and folders in words."""
    from transformers import pipeline

    from .pipelines.captioning import TASK

    console = Console()
    options = {} if beams is None else {"num_beams": beams}
    try:
        files = audio_files(paths)
        describe = pipeline(TASK, model=model, device=device, **options)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error

    results: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    table = Table("file", "length", "caption")
    for file, audio, [found] in _run_pipeline(describe, files, failures):
        text = found["generated_text"]
        results.append({"file": str(file), "duration_s": audio.duration_s, "caption": text})
        table.add_row(escape(str(file)), f"{audio.duration_s:.1f} s", escape(text))
    if results:
        console.print(table)
    _print_failures(console, failures, len(files))
    if json_path is not None:
        write_json(json_path, {"model": model, "results": results, "failures": failures})
    if not results:
        raise typer.Exit(1)


@app.command()
def embed(
    paths: Annotated[list[Path], typer.Argument(help="Sound files, and folders of them.")],
    output: Annotated[Path, typer.Option(help="Folder of the collection; what is in it already is kept.")],
    model: Annotated[str, typer.Option(help="'embedded', a folder, or a Hub id.")] = "embedded",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first accelerator by default.")
    ] = None,
) -> None:
    """Embed the sounds in files and folders once, for `clap-hf search`; stop it at will, it goes on where it was."""
    console = Console()
    try:
        files = audio_files(paths)
        collection = _collection(output, model, device)
        added = collection.add(files)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    console.print(f"{added.embedded:,} sounds embedded, {added.known:,} known, {len(collection):,} in {output}.")
    failures = [{"file": str(file), "error": reason} for file, reason in added.skipped.items()]
    _print_failures(console, failures, len(files))
    if not len(collection):
        raise typer.Exit(1)


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(help="Collection that `clap-hf embed` made.")],
    words: Annotated[str | None, typer.Argument(help="What to look for, in any words.")] = None,
    like: Annotated[Path | None, typer.Option(help="Look for sounds like this one instead.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Sounds shown.")] = 10,
    model: Annotated[str | None, typer.Option(help="The collection's model, where it moved.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the hits here, as JSON.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first accelerator by default.")
    ] = None,
) -> None:
    """Find sounds of a collection by words, or by another sound."""
    from .search import model_of

    try:
        if words is not None and like is None:
            query: str | Audio = words
        elif like is not None and words is None:
            query = load_audio(like)
        else:
            raise ValueError(f"Words {words!r} and --like {like} were given, expected one of them.")
        collection = _collection(folder, model or model_of(folder), device)
        hits = collection.search(query, top_k)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    table = Table("similarity", "file")
    for hit in hits:
        table.add_row(f"{hit.similarity:.2f}", escape(str(hit.file)))
    Console().print(table)
    if json_path is not None:
        found = [{"file": str(hit.file), "similarity": hit.similarity} for hit in hits]
        write_json(json_path, {"words": words, "like": like and str(like), "model": collection.name, "hits": found})


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
    from .hub import push as push_folder

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
        Console(stderr=True).print(f"[red]Not pushed.[/] {escape(str(error))}")
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
    from .convert import convert_checkpoint
    from .hub import push as push_folder

    folder = output or Path(f"msclap-{version}")
    console, errors = Console(), Console(stderr=True)
    try:
        report = convert_checkpoint(version, folder, checkpoint=checkpoint, tokenizer=tokenizer, repo_id=push_to_hub)
    except (OSError, ValueError, RuntimeError) as error:
        errors.print(f"[red]Not converted.[/] {escape(str(error))}", highlight=False)
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
        errors.print(f"[red]Converted, but not pushed.[/] {escape(str(error))} {escape(again)}", highlight=False)
        raise typer.Exit(1) from error
    console.print(f"Pushed: {done.commit.commit_url if done.commit else ''}", highlight=False)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="'embedded', a folder, or a Hub id.")],
    suite: Annotated[str, typer.Option(help="paper (26 tasks), table1 (16), sounds, maeb, or own.")] = "paper",
    captioner: Annotated[str | None, typer.Option(help="Captioning model, for the captioning tasks.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks of the suite, separated by commas.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with TASK.csv files; the corpus for `sounds`.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Gets the results; a later run goes on from them.")] = Path(
        "results"
    ),
    cache_dir: Annotated[Path | None, typer.Option(help="Embeddings are kept here.")] = None,
    template: Annotated[list[str] | None, typer.Option(help="Prompt with {}; repeat to average and compare.")] = None,
    descriptions: Annotated[Path | None, typer.Option(help="JSON: class -> texts that describe it.")] = None,
    scores: Annotated[str | None, typer.Option(help="softmax, sigmoid or raw; the paper's by default.")] = None,
    long_audio: Annotated[str | None, typer.Option(help="windows or center; the model's by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Clips a task at most, drawn by a fixed seed.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first by default.")] = None,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 1,
    plots: Annotated[bool, typer.Option(help="Draw confusion matrix, bars and similarities.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Score again what is done.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only list tasks, sources and sizes.")] = False,
) -> None:
    """Measure a model on the paper's tasks, on held-out tasks of the sound corpus, on MAEB, or on one's own sounds.

    Lists every task with its source and size, then embeds each sound once and scores; the paper's figures stand
    beside ours. A stopped run goes on where it was. Exit code: 0 all tasks ran, 1 one failed or none ran, 3 some had
    no source in reach. On several processes: accelerate launch scripts/evaluate.py ...
    """
    from .evaluation.command import EvaluationRequest, evaluate_model

    request = EvaluationRequest(
        model=model,
        captioner=captioner,
        suite=suite,
        tasks=tuple(name.strip() for name in tasks.split(",")) if tasks else None,
        data_dir=data_dir,
        output_dir=output_dir,
        cache_dir=cache_dir,
        templates=tuple(template) if template else None,
        descriptions=descriptions,
        scores=scores,
        long_audio=long_audio,
        limit=limit,
        device=device,
        num_workers=num_workers,
        plots=plots,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    try:
        code = evaluate_model(request, Console())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    raise typer.Exit(code)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="'embedded', a folder, or a Hub id.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to write: audio.onnx, text.onnx, tokenizer, onnx.json.")],
    int8: Annotated[bool, typer.Option(help="Also write graphs with 8-bit weights.")] = False,
) -> None:
    """Write both towers as ONNX graphs, checked against the model."""
    import torch

    from .export import export_onnx
    from .model.modeling_msclap import MSClapModel
    from .model.processing_msclap import MSClapProcessor
    from .pretrained import checkpoint_path

    try:
        name = checkpoint_path(model)
        loaded = MSClapModel.from_pretrained(name, dtype=torch.float32)
        report = export_onnx(loaded, MSClapProcessor.from_pretrained(name), output_dir, int8=int8)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    table = Table("graph", title=str(output_dir))
    for heading in ("size", "largest difference", "lowest cosine"):
        table.add_column(heading, justify="right")
    for graph, found in report["graphs"].items():
        size, cosine = f"{found['bytes'] / 1e6:.1f} MB", f"{found['lowest_cosine']:.6f}"
        table.add_row(graph, size, f"{found['largest_difference']:.1e}", cosine)
    Console().print(table)


@app.command()
def info() -> None:
    """Print versions, devices and the embedded checkpoint."""
    import torch

    from .pretrained import embedded_checkpoint

    table = Table("what", "value", show_header=False, box=None)
    for name in ("clap-hf", "torch", "torchaudio", "transformers", "datasets", "accelerate", "soundfile"):
        table.add_row(name, _version(name))
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    table.add_row("devices", ", ".join([*cuda, f"cpu ({torch.get_num_threads()} threads)"]))
    try:
        folder = embedded_checkpoint()
    except FileNotFoundError as error:
        table.add_row("embedded checkpoint", escape(str(error)))
    else:
        size = (folder / "model.safetensors").stat().st_size / 1e6
        config = json.loads((folder / "config.json").read_text())
        towers = f"{config['audio_config']['architecture']} + {config['text_config']['model_type']}"
        table.add_row("embedded checkpoint", f"{folder} ({towers}, {size:.1f} MB)")
    Console().print(table)


def _run_pipeline(
    pipeline: Any, files: list[Path], failures: list[dict[str, str]]
) -> Iterator[tuple[Path, Audio, list[dict[str, Any]]]]:
    """Output of a pipeline for every file; files that cannot be read go into `failures`, with the reason."""
    from .embedding import read_ahead

    skipped: dict[Path, str] = {}
    progress = track(files, "Reading", console=Console(stderr=True), transient=True)
    for file, audio in read_ahead(progress, load_audio, skipped):
        yield file, audio, pipeline(audio)
    failures += [{"file": str(file), "error": reason} for file, reason in skipped.items()]


def _expected_labels(files: list[Path]) -> dict[Path, str]:
    """Labels that the labels.csv beside each file gives."""
    expected: dict[Path, str] = {}
    wanted = set(files)
    for folder in dict.fromkeys(file.parent for file in files):
        table = folder / "labels.csv"
        if not table.is_file():
            continue
        with table.open(newline="", encoding="utf-8") as stream:
            rows = csv.DictReader(stream)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{table} has columns {rows.fieldnames}, expected file and label.")
            for row in rows:
                if folder / row["file"] in wanted:
                    expected[folder / row["file"]] = row["label"]
    return expected


def _candidate_labels(labels: str | None, labels_file: Path | None, expected: dict[Path, str]) -> list[str]:
    """Labels from the options, from labels.csv, or the everyday ones; each once."""
    if labels is not None and labels_file is not None:
        raise ValueError("Both --labels and --labels-file were given, expected one of them.")
    if labels is not None:
        names = labels.split(",")
    elif labels_file is not None:
        names = labels_file.read_text(encoding="utf-8").splitlines()
    else:
        names = list(expected.values()) or list(EVERYDAY_LABELS)
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not names:
        raise ValueError(f"No labels in {labels_file or '--labels'}, expected at least one.")
    return names


def _classifier(model: str, device: str | None, labels: list[str], templates: list[str] | None) -> tuple[Any, str]:
    """The zero-shot pipeline and the model's full name."""
    from transformers import pipeline
    from transformers.utils import logging

    from .pipelines.zero_shot import DEFAULT_TEMPLATE, MSClapZeroShotAudioClassificationPipeline
    from .pretrained import checkpoint_path

    logging.disable_progress_bar()  # loading takes a moment; ours shows the sounds
    model = checkpoint_path(model)
    classifier = pipeline(
        "zero-shot-audio-classification",
        model=model,
        pipeline_class=MSClapZeroShotAudioClassificationPipeline,
        device=device,
        candidate_labels=labels,
        hypothesis_template=templates or [DEFAULT_TEMPLATE],
    )
    return classifier, model


def _collection(folder: Path, model: str, device: str | None) -> SoundCollection:
    """A collection with its model."""
    from accelerate import PartialState
    from transformers import AutoModel, AutoProcessor
    from transformers.utils import logging

    from .pretrained import checkpoint_path
    from .search import SoundCollection

    logging.disable_progress_bar()  # loading takes a moment; ours shows the sounds
    source = checkpoint_path(model)
    # A folder is looked for from anywhere later; the embedded checkpoint is where the package is then.
    name = str(Path(model).resolve()) if source == model and Path(model).is_dir() else model
    loaded = AutoModel.from_pretrained(source).eval().to(device or PartialState().device)
    return SoundCollection(folder, loaded, AutoProcessor.from_pretrained(source), name)


def _print_results(
    console: Console, results: list[dict[str, Any]], failures: list[dict[str, str]], top_k: int
) -> None:
    """Print a table of results, how many agree with labels.csv, and what failed."""
    compared = [result for result in results if "expected" in result]
    agreeing = [result for result in compared if result["scores"][0]["label"] == result["expected"]]
    if results:
        table = Table("file")
        table.add_column("length", justify="right")
        table.add_column("most likely labels")
        if compared:
            table.add_column("labels.csv")
        for result in results:
            best = ", ".join(f"{score['label']} {score['score']:.0%}" for score in result["scores"][:top_k])
            length = f"{result['duration_s']:.1f} s" + (" (truncated)" if result["truncated"] else "")
            row = [escape(result["file"]), length, escape(best)]
            if compared:
                mark = "" if "expected" not in result else "[green]✓[/] " if result in agreeing else "[red]✗[/] "
                row.append(mark + escape(result.get("expected", "")))
            table.add_row(*row)
        console.print(table)
    if compared:
        console.print(f"The best label is that of labels.csv for {len(agreeing)} of {len(compared)} sounds.")
    _print_failures(console, failures, len(failures) + len(results))


def _print_failures(console: Console, failures: list[dict[str, str]], total: int) -> None:
    """Print how many files were skipped, and why."""
    if failures:
        console.print(f"[red]{len(failures)} of {total} files were skipped:[/]")
        for failure in failures:
            console.print(f"  {failure['error']}", markup=False, soft_wrap=True)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
