"""Models as the command line names, checks and loads them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import torch

    from ..calibration import Calibration
    from ..model.modeling_msclap import MSClapModel
    from ..model.processing_msclap import MSClapProcessor
    from ..search import SoundCollection


# `model_type` of the models of two towers, see `clap_hf.adapters`.
DUAL_ENCODERS = ("msclap", "clap", "pe_audio", "sentence_transformers")


def checked_checkpoint(model: str, types: tuple[str, ...]) -> str:
    """What `from_pretrained` takes for a model, which is checked to be of one of the types if any are given.

    Args:
        model: `"embedded"`, a folder, or a Hub id.
        types: `model_type` of the models that the command can use.

    Raises:
        OSError: There is no such model.
        ValueError: It is of another type.
    """
    from transformers.utils import logging

    from ..pretrained import checkpoint_path, model_type

    logging.disable_progress_bar()  # loading takes a moment; ours shows the sounds
    logging.set_verbosity_error()  # what its warnings are about is an error here, in one line
    source = checkpoint_path(model)
    if not Path(source).is_dir():
        go_offline_if_unreachable()
    found = model_type(source) if types else ""
    if types and found not in types:
        wanted = (
            "a captioner, such as the folder that `clap-hf convert clapcap` writes"
            if "msclap_captioning" in types
            else "a CLAP model of two towers, such as 'embedded'"
        )
        raise ValueError(f"The model {model!r} is of the type {found!r}, expected {wanted}.")
    return source


def go_offline_if_unreachable() -> None:
    """Where the Hub cannot be reached, use its local cache alone, instead of five tries for every file."""
    from huggingface_hub import constants

    from ..hub import unreachable_hub

    reason = unreachable_hub()
    if reason and not constants.HF_HUB_OFFLINE:
        typer.echo(f"Using the local cache: {reason}.", err=True)
        constants.HF_HUB_OFFLINE = True


def load_pipeline(
    task: str, load: Callable[..., tuple[Any, Any]], source: str, device: str | None, **options: Any
) -> tuple[Any, MSClapProcessor]:
    """A pipeline of transformers over a checked model, and the model's processor.

    Args:
        task: Name of the pipeline's task.
        load: Loads the model and its processor from `source`.
        source: Folder or Hub id, see `checked_checkpoint`.
        device: A device's name; the first accelerator by default.
        options: Further arguments of `transformers.pipeline`.
    """
    from transformers import pipeline

    model, processor = load(source, dtype="auto")
    made = pipeline(
        task,
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        device=usable_device(device),
        **options,
    )
    return made, processor


def usable_device(name: str | None) -> torch.device | None:
    """A device that works here, or None for the default."""
    import torch

    if name is None:
        return None
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device is {name!r}, expected cpu, cuda, cuda:1 or another device that this torch can use "
            f"({str(error).splitlines()[0]})."
        ) from error
    return torch.device(name)


def load_dual_encoder(
    model: str, device: str | None, calibrated: bool = True
) -> tuple[MSClapModel, MSClapProcessor, str, Calibration | None]:
    """A checked model of sounds and texts on a device, its processor, its name for records, its calibration if any."""
    from accelerate import PartialState

    from ..adapters import load_model
    from ..calibration import Calibration

    source = checked_checkpoint(model, DUAL_ENCODERS)
    # A folder is looked for from anywhere later; the embedded checkpoint is where the package is then.
    name = str(Path(model).resolve()) if source == model and Path(model).is_dir() else model
    target = usable_device(device) or PartialState().device
    loaded, processor = load_model(source)
    parts = {"extractor": processor.feature_extractor, "tokenizer": processor.tokenizer}
    calibration = Calibration.beside(source, loaded, **parts) if calibrated else None
    return loaded.to(target), processor, name, calibration


def load_collection(
    folder: Path,
    model: str,
    device: str | None,
    max_windows: int | None,
    *,
    hop_s: float | None = None,
    calibrated: bool = True,
) -> SoundCollection:
    """A collection with its model."""
    from ..search import SoundCollection

    loaded, processor, name, calibration = load_dual_encoder(model, device, calibrated)
    return SoundCollection(
        folder, loaded, processor, name, max_windows=max_windows, hop_s=hop_s, calibration=calibration
    )


def model_facts(model: str) -> dict[str, str]:
    """Facts of a model from its configuration and front end, without its weights."""
    import torch

    from ..pretrained import load_config, load_processor, model_class

    try:
        source = checked_checkpoint(model, ())
    except FileNotFoundError as error:
        if model != "embedded":
            raise
        return {"embedded checkpoint": str(error)}
    config = load_config(source)
    name = (config.architectures or ["none"])[0]
    cls = model_class(name)
    audio, text = config.audio_config, config.text_config
    with torch.device("meta"):
        parameters = sum(weights.numel() for weights in cls(config).parameters())
    extractor = load_processor(source).feature_extractor
    return {
        "embedded checkpoint" if model == "embedded" else "model": source,
        "class": name,
        "towers": f"{audio.architecture} + {text.model_type}",
        "parameters": f"{parameters:,}",
        "dtype": str(config.dtype).removeprefix("torch."),
        "vectors": f"{config.projection_dim} elements",
        "window": f"{extractor.duration_s:g} s at {extractor.sampling_rate:,} Hz, {extractor.feature_size} mel bins",
        "longer and shorter sounds": f"{extractor.long_audio}, {extractor.short_audio}",
    }


def installed_version(package: str) -> str:
    """Version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
