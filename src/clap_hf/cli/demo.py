"""The command `clap-hf demo`: a page that classifies, searches and times sounds, and its folder for a Space."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .collections import recorded_model
from .models import checked_checkpoint, installed_version, load_dual_encoder, load_pipeline
from .options import Device

if TYPE_CHECKING:
    from ..demo import Demo

app = typer.Typer()

APP = '''"""A page that names, finds and times sounds by any words; written by `clap-hf demo --space`."""

import os

from clap_hf.cli.demo import load_demo
from clap_hf.demo import serve

demo = load_demo(model={model!r}, captioner={captioner!r}, max_mb={max_mb}, max_s={max_s})
serve(demo, host="0.0.0.0", port=int(os.environ.get("GRADIO_SERVER_PORT", 7860)))
'''
README = """---
title: Sounds and words
emoji: 🔊
colorFrom: green
colorTo: blue
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
license: mit
short_description: Name and time sounds by any words, with CLAP
{models}---

A page that names and times sounds by any words, with CLAP. Sounds that are uploaded are deleted after an hour.
"""


@app.command()
def demo(
    collection: Annotated[
        Path | None, typer.Argument(help="Collection that `clap-hf embed` made, to be searched on the page.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="'embedded', a folder, or a Hub id; the collection's by default.")
    ] = None,
    captioner: Annotated[str | None, typer.Option(help="Captioner: a folder, or a Hub id.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 for other machines, too.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; a free one from 7860 by default.")] = None,
    max_mb: Annotated[int, typer.Option(min=1, help="Largest file, MB.")] = 50,
    max_s: Annotated[float, typer.Option("--max-length", min=1, help="Longest sound, s.")] = 600.0,
    space: Annotated[
        Path | None, typer.Option(help="Write a new folder for a Space on the Hub instead of serving the page.")
    ] = None,
    device: Device = None,
) -> None:
    """Serve a page: labels of a sound, search of a collection, a timeline, captions. Needs `clap-hf[demo]`.

    Sounds are uploaded or recorded, never fetched from addresses; files of the server are not served, but for excerpts
    of the collection's sounds.
    """
    if space is not None:
        write_space(space, model or "embedded", captioner, collection, max_mb, max_s)
        typer.echo(f"Wrote {space}: push it with `hf upload --repo-type space ORG/NAME {space}`.")
        return
    from ..demo import serve

    made = load_demo(
        collection=collection, model=model, captioner=captioner, max_mb=max_mb, max_s=max_s, device=device
    )
    serve(made, host=host, port=port)


def load_demo(
    *,
    collection: Path | None = None,
    model: str | None = None,
    captioner: str | None = None,
    max_mb: int = 50,
    max_s: float = 600.0,
    device: str | None = None,
) -> Demo:
    """What the page does, with its models loaded.

    Args:
        collection: Folder that `clap-hf embed` made.
        model: `"embedded"`, a folder, or a Hub id; the collection's, or the embedded one, when None.
        captioner: Captioner: a folder, or a Hub id.
        max_mb: Largest file, MB.
        max_s: Longest sound, s.
        device: Name of a device; the first accelerator when None.

    Raises:
        OSError: There is no such model.
        ValueError: A model is of another type, or the collection was made by another one.
    """
    from ..demo import Demo
    from ..search import SoundCollection, collection_facts

    facts = {} if collection is None else collection_facts(collection)
    name = model or "embedded"
    if collection is not None:
        name = recorded_model(collection, facts, model)
    loaded, processor, name, calibration = load_dual_encoder(name, device)
    sounds = None
    if collection is not None:
        settings = {"max_windows": facts.get("max_windows"), "hop_s": facts.get("hop_s")}
        sounds = SoundCollection(collection, loaded, processor, name, calibration=calibration, **settings)
    describe = None
    if captioner is not None:
        from transformers import AutoModelForMultimodalLM

        from ..pipelines.captioning import TASK
        from ..pretrained import load_checked

        source = checked_checkpoint(captioner, ("msclap_captioning", "msclap_conditional_generation"))
        describe, _ = load_pipeline(TASK, partial(load_checked, AutoModelForMultimodalLM), source, device)
    return Demo(loaded, processor, calibration, sounds, describe, max_mb, max_s)


def write_space(
    folder: Path, model: str, captioner: str | None, collection: Path | None, max_mb: int, max_s: float
) -> None:
    """Write app.py, requirements.txt and README.md of a Space that serves the page.

    Args:
        folder: New folder.
        model: `"embedded"` or a Hub id.
        captioner: A Hub id, or None.
        collection: Must be None: a Space has none of this machine's sounds.
        max_mb: Largest file, MB.
        max_s: Longest sound, s.

    Raises:
        ValueError: The folder is there, or something is asked for that a Space cannot reach.
    """
    from ..atomic_io import write_text
    from ..pretrained import HUB_ID

    if folder.exists():
        raise ValueError(f"--space {folder} is there already, expected a new folder.")
    if collection is not None:
        raise ValueError(f"The collection {collection} was given with --space, expected none: its sounds are here.")
    named = [name for name in (model, captioner) if name not in (None, "embedded")]
    if local := [name for name in named if Path(str(name)).exists() or not HUB_ID.fullmatch(str(name))]:
        raise ValueError(f"{local[0]!r} is no Hub id, expected one that a Space can load. Push it: clap-hf push.")
    gradio = installed_version("gradio")
    if gradio == "not installed":
        raise ImportError("--space states the version of gradio: pip install 'clap-hf[demo]'")
    models = "".join(f"- {name}\n" for name in named)
    readme = README.format(gradio=gradio, models=f"models:\n{models}" if models else "")
    settings = {"model": model, "captioner": captioner, "max_mb": max_mb, "max_s": max_s}
    folder.mkdir(parents=True)
    write_text(folder / "app.py", APP.format(**settings))
    write_text(folder / "requirements.txt", f"clap-hf[demo]=={installed_version('clap-hf')}\n")
    write_text(folder / "README.md", readme)
