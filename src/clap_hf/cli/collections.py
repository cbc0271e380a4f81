"""The commands embed, search, map, check, duplicates and upgrade: collections of sounds."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .io import FAILED, INTERRUPTED, Format, Output, input_names, one_line, print_failures
from .models import load_collection, load_dual_encoder
from .options import Device, JsonPath, MaxWindows, ModelName, StdoutFormat

app = typer.Typer()

PROBLEMS_SHOWN = 20
LAUNCHED_WAIT = timedelta(days=30)  # that a process waits at the end for those with longer sounds


@app.command()
def embed(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Sound files, .parquet, .arrow and .tar files, folders of them, Hub ids, - for a list on stdin."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the collection; what is in it already is kept.")],
    model: ModelName = "embedded",
    max_windows: MaxWindows = None,
    hop: Annotated[
        float | None,
        typer.Option(min=0.01, help="Also keep a vector for every window, this many seconds apart, to find places."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Give the sounds this tag, to filter by; repeatable.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Then drop the sounds whose files are gone.")] = False,
    engine: Annotated[str, typer.Option(help="processes of this machine, or ray.")] = "processes",
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes, or Ray's actors, that embed shards of the files.")
    ] = None,
    max_errors: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the files that may fail before the run stops.")
    ] = 1.0,
    finish: Annotated[
        bool, typer.Option("--finish", help="Then drop rows that are there twice, as where processes were killed.")
    ] = False,
    json_path: JsonPath = None,
    device: Device = None,
) -> None:
    """Embed the sounds in files and folders once, for `clap-hf search`; stop it at will, it goes on where it was.

    Sounds may also lie in parquet files, folders that `datasets` saved to disk, WebDataset tars, and datasets of the
    Hub. Changed files are embedded again, moved ones are recognised by their content.
    """
    from accelerate import PartialState

    from ..data.own import sound_names
    from ..search import add_in_shards, check_collection, collection_facts
    from ..training.distributed import launched_world_size

    launched = launched_world_size() > 1
    if launched and (num_processes is not None or engine != "processes"):
        raise ValueError(
            f"--num-processes {num_processes} and --engine {engine} were given to processes that a launcher started, "
            "expected neither: the launcher's processes divide the files."
        )
    state = PartialState(cpu=device == "cpu", timeout=LAUNCHED_WAIT)
    report = Output(Format.table, json_path)
    report.check()
    files = sound_names(input_names(paths))
    if hop is None and any(output.glob("*.parquet")):
        hop = collection_facts(output).get("hop_s")
    collection = load_collection(output, model, device, max_windows, hop_s=hop, calibrated=False)
    try:
        if num_processes is None and engine == "processes" and max_errors == 1.0 and not launched:
            added = collection.add(files, tags=tag or ())
        else:
            added = add_in_shards(
                collection,
                files,
                engine=engine,
                num_processes=num_processes or 1,
                device=device,
                tags=tag or (),
                max_errors=max_errors,
            )
        if not state.is_main_process:
            return
        if finish and any(output.glob("*.parquet")):
            check_collection(output, mend=True)
        pruned = collection.prune() if prune else 0
    except KeyboardInterrupt as error:
        typer.echo(
            f"Interrupted: {len(collection):,} sounds are in {output}. The same command again goes on.", err=True
        )
        raise typer.Exit(INTERRUPTED) from error
    failures = [{"file": str(file), "error": reason} for file, reason in added.skipped.items()]
    damaged = [{"file": str(file), "damage": reason} for file, reason in added.damaged.items()]
    counts = {
        "embedded": added.embedded,
        "known": added.known,
        "recognised": added.recognised,
        "dropped": pruned,
        "sounds": len(collection),
    }

    def print_counts(console: Console) -> None:
        recognised = f"{added.recognised:,} recognised, " if added.recognised else ""
        dropped = f"{pruned:,} dropped, " if prune else ""
        console.print(
            f"{added.embedded:,} sounds embedded, {added.known:,} known, {recognised}{dropped}{counts['sounds']:,} in "
            f"{escape(str(output))}."
        )
        if damaged:
            console.print(f"[yellow]{len(damaged)} of them are truncated or damaged:[/]")
            for found in damaged:
                console.print(f"  {found['file']}: {found['damage']}", markup=False, soft_wrap=True)
        print_failures(console, failures, len(files))

    report.write({**counts, "damaged": damaged, "failures": failures}, [counts], print_counts)
    if not len(collection):
        raise typer.Exit(FAILED)


@app.command()
def search(
    folder: Annotated[Path, typer.Argument(help="Collection that `clap-hf embed` made.")],
    words: Annotated[
        list[str] | None, typer.Argument(help='What to look for, in any words; or weighted: \'"dog":1,"rain":-0.5\'.')
    ] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="Look for sounds like this one, or its part f.wav@3.2-4.5; repeatable.")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option("--not", help="Leave out sounds that are closer to these words.")
    ] = None,
    below: Annotated[Path | None, typer.Option("--folder", help="Only sounds below this folder.")] = None,
    min_length: Annotated[float, typer.Option(min=0, help="Only sounds of at least this length, s.")] = 0.0,
    max_length: Annotated[float | None, typer.Option(min=0, help="Only sounds of at most this length, s.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only sounds with this tag; repeatable.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Sounds shown.")] = 10,
    model: Annotated[str | None, typer.Option(help="The collection's model, where it moved.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Without calibration: similarities alone.")] = False,
    format: StdoutFormat = Format.table,
    json_path: JsonPath = None,
    device: Device = None,
) -> None:
    """Find sounds of a collection by words, or by other sounds, and the seconds where they match.

    A calibrated model also states the probability of every hit, and whether anything matches, by a threshold that one
    in five searches for a sound that is not there would reach.
    """
    from ..search import Filter, WeightedQuery, collection_facts, load_part, parse_words

    output = Output(format, json_path)
    output.check()
    text = " ".join(words) if words else None
    if (text is None) == (not like):
        given = ", ".join(like or []) or None
        raise ValueError(f"Words {text!r} and --like {given} were given, expected one of them.")
    facts = collection_facts(folder)
    name = recorded_model(folder, facts, model)
    query: Any = parse_words(text) if text is not None else None
    if like:
        sounds = [load_part(sound) for sound in like]
        query = sounds[0] if len(sounds) == 1 else WeightedQuery(tuple((sound, 1 / len(sounds)) for sound in sounds))
        for sound, asked in zip(sounds, like, strict=True):
            if sound.truncated:
                typer.echo(f"{asked} is truncated or damaged: {one_line('; '.join(sound.damage))}", err=True)
    collection = load_collection(
        folder, name, device, facts.get("max_windows"), hop_s=facts.get("hop_s"), calibrated=not raw
    )
    where = Filter(below, min_length, float("inf") if max_length is None else max_length, tuple(tag or ()))
    found = collection.search(query, top_k, exclude=exclude, where=where)
    hits: list[dict[str, Any]] = [{**vars(hit), "file": str(hit.file)} for hit in found]
    matches = None
    if collection.calibration is not None and isinstance(query, str):
        threshold = collection.match_threshold()
        matches = any((hit.probability or 0.0) >= threshold for hit in found)

    def print_table(console: Console) -> None:
        if matches is False:
            console.print(f"Nothing in this collection matches {text!r}. The closest:", highlight=False)
        shown = found and found[0].probability is not None
        table = Table("similarity", *(["probability"] if shown else []), "file")
        for hit in found:
            notes = (" (changed)" if hit.changed else "") + (" (truncated)" if hit.damage else "")
            probability = [f"{hit.probability:.0%}"] if hit.probability is not None else []
            table.add_row(f"{hit.similarity:.2f}", *probability, escape(hit.place) + notes)
        console.print(table)
        if any(hit.changed for hit in found):
            console.print("Changed files were found by what they were: run `clap-hf embed` again.")

    report = {"words": text, "like": like and like[0], "model": collection.name, "matches": matches, "hits": hits}
    output.write(report, hits, print_table)


def recorded_model(folder: Path, facts: dict[str, Any], model: str | None) -> str:
    """The model that was named, or that a collection was made with; nothing is fetched from the Hub unasked."""
    name = model or facts.get("name") or ""
    if model is None and name != "embedded" and not (name and Path(name).is_dir()):
        raise ValueError(
            f"{folder} was made with the model {name!r}, which is no folder here; nothing is fetched from the Hub "
            f"unasked. Name the model: --model {name or 'MODEL'}"
        )
    return name


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Collection that `clap-hf embed` made.")],
    mend: Annotated[
        bool, typer.Option("--mend", help="Move damaged and foreign parts aside, and remove older rows of a file.")
    ] = False,
    format: StdoutFormat = Format.table,
    json_path: JsonPath = None,
) -> None:
    """Check a collection: parts that are damaged or of another model, files with two rows, files that are gone.

    Parts are moved to names ending in .damaged; their sounds are embedded again by the next `clap-hf embed`. Exit
    code 1: there is something to mend.
    """
    from ..search import check_collection

    output = Output(format, json_path)
    output.check()
    found = check_collection(folder, mend=mend)
    problems = [
        *({"problem": "damaged", "file": str(part), "reason": reason} for part, reason in found.damaged.items()),
        *({"problem": "foreign", "file": str(part), "reason": reason} for part, reason in found.foreign.items()),
        *({"problem": "repeated", "file": str(file), "reason": "more than one row"} for file in found.repeated),
        *({"problem": "missing", "file": str(file), "reason": "no such file"} for file in found.missing),
    ]
    counts = {name: len(getattr(found, name)) for name in ("damaged", "foreign", "repeated", "missing")}

    def print_line(console: Console) -> None:
        done = " Mended." if mend and counts["damaged"] + counts["foreign"] + counts["repeated"] else ""
        console.print(
            f"{folder}: {found.sounds:,} sounds in {found.parts:,} whole parts; {counts['damaged']:,} parts damaged, "
            f"{counts['foreign']:,} of another model; {counts['repeated']:,} sounds repeated, {counts['missing']:,} "
            f"missing.{done}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        for problem in problems[:PROBLEMS_SHOWN]:
            console.print(f"  {problem['problem']}: {problem['file']}", markup=False, highlight=False, soft_wrap=True)
        if len(problems) > PROBLEMS_SHOWN:
            console.print(f"  and {len(problems) - PROBLEMS_SHOWN:,} more: --json lists all.")

    facts = {"sounds": found.sounds, "parts": found.parts, **counts, "mended": found.mended}
    output.write({**facts, "problems": problems}, problems, print_line)
    if not found.whole:
        raise typer.Exit(FAILED)


@app.command()
def duplicates(
    folder: Annotated[Path, typer.Argument(help="Collection that `clap-hf embed` made.")],
    format: StdoutFormat = Format.table,
    json_path: JsonPath = None,
) -> None:
    """List files of a collection that hold the same recording: in another codec, at another level, or cut shorter."""
    from ..search import find_duplicates

    output = Output(format, json_path)
    output.check()
    found = find_duplicates(folder)
    groups = [list(map(str, group)) for group in found.groups]
    failures = [{"file": str(file), "error": reason} for file, reason in found.skipped.items()]

    def print_groups(console: Console) -> None:
        console.print(f"{len(groups):,} recordings have several files.", highlight=False)
        for group in groups:
            console.print("  " + "\n    ".join(group), markup=False, highlight=False, soft_wrap=True)
        print_failures(console, failures, len(failures) + sum(map(len, groups)))

    rows = [{"group": number, "file": file} for number, group in enumerate(groups) for file in group]
    output.write({"groups": groups, "failures": failures}, rows, print_groups)


@app.command("map")
def draw_map_of(
    folder: Annotated[Path, typer.Argument(help="Collection that `clap-hf embed` made.")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("map.html"),
    method: Annotated[
        str | None, typer.Option(help="pca or umap; the latter by default where umap-learn is installed.")
    ] = None,
    color: Annotated[str, typer.Option(help="What the color shows: folder or tag.")] = "folder",
    clips: Annotated[
        float | None, typer.Option(min=0.1, help="Put the first seconds of every sound into the file, s.")
    ] = None,
) -> None:
    """Draw a map of a collection as one HTML file, in which a point plays its sound and sounds alike are close."""
    from ..search import draw_map

    count = draw_map(folder, output, method=method, color=color, clips_s=clips)
    typer.echo(f"Wrote {output}: {count:,} sounds, {output.stat().st_size / 1e6:.1f} MB. Open it in a browser.")


@app.command()
def upgrade(
    folder: Annotated[Path, typer.Argument(help="Collection that `clap-hf embed` made.")],
    model: Annotated[str, typer.Option(help="The new model: 'embedded', a folder, or a Hub id.")],
    old_model: Annotated[str | None, typer.Option(help="The collection's model, where it moved.")] = None,
    device: Device = None,
) -> None:
    """Embed a collection by another model, beside the old embeddings, which are replaced when all is done.

    Stop it at will: searches go on in the old embeddings, and the same command goes on where it was.
    """
    from ..search import collection_facts

    facts = collection_facts(folder)
    name = recorded_model(folder, facts, old_model)
    old = load_collection(folder, name, device, facts.get("max_windows"), hop_s=facts.get("hop_s"), calibrated=False)
    loaded, processor, name, calibration = load_dual_encoder(model, device)
    new, done = old.upgrade(loaded, processor, name, calibration)
    for reason in done.skipped.values():
        typer.echo(one_line(reason), err=True)
    typer.echo(f"{len(new):,} sounds in {folder} are embedded by {name}; {len(done.skipped):,} could not be.")
