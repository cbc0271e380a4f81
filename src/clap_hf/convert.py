"""From an official checkpoint to a folder for the Hub: fetch, convert, verify, card."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from .atomic_io import write_json
from .cards import CONVERSION, read_records, write_card
from .model.modeling_msclap import MSClapModel
from .model.modeling_msclap_captioning import MSClapForAudioCaptioning
from .model.processing_msclap import MSClapProcessor
from .msclap_weights import (
    OFFICIAL_REPO,
    load_clapcap_checkpoint,
    load_msclap_checkpoint,
    mean_text_cosine,
    official_file,
)

COLLAPSED = 0.9  # working checkpoints are at 0.2 to 0.3, a broken text tower is above 0.99


def convert_checkpoint(
    version: str,
    output: Path,
    *,
    checkpoint: Path | None = None,
    tokenizer: str | Path | None = None,
    repo_id: str | None = None,
) -> dict[str, Any]:
    """Convert an official checkpoint into a folder of `save_pretrained` with code and card, verified.

    Args:
        version: `"2022"`, `"2023"` or `"clapcap"`, the captioner.
        output: New folder.
        checkpoint: Official file; fetched from `microsoft/msclap` on the Hub when None.
        tokenizer: Local folder or Hub id of the text tower's tokenizer; its own on the Hub when None.
        repo_id: Id that the card's snippets load; the folder's name when None.

    Returns:
        What was found, as `conversion.json` in the folder has it.

    Raises:
        FileExistsError: If the folder is there already.
        ValueError: If the version or the file is not what it should be, see `load_msclap_checkpoint`.
        RuntimeError: If the written folder does not load bit-equal, or the text tower is broken; it is left beside
            `output`, ending in `.partial`, for inspection.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists, expected a new folder. Remove it or choose another.")
    name = official_file(version)
    path = Path(hf_hub_download(OFFICIAL_REPO, name)) if checkpoint is None else checkpoint
    model: MSClapModel | MSClapForAudioCaptioning
    if version == "clapcap":
        model, processor = load_clapcap_checkpoint(path, tokenizer)
    else:
        model, processor = load_msclap_checkpoint(path, version, tokenizer)

    folder = output.with_name(f"{output.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    reloaded = type(model).from_pretrained(folder).state_dict()
    front_end = MSClapProcessor.from_pretrained(folder).feature_extractor
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    report: dict[str, Any] = {
        "file": name,
        "sha256": digest.hexdigest(),
        "version": version,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mel_sampling_rate_hz": front_end.mel_sampling_rate,
        "fmin_hz": front_end.fmin,
        "fmax_hz": front_end.fmax,
        "window_s": front_end.duration_s,
        "reload_is_bit_equal": all(torch.equal(value, reloaded[key]) for key, value in model.state_dict().items()),
    }
    if isinstance(model, MSClapModel):
        report["mean_text_cosine"] = round(mean_text_cosine(model, processor), 4)
        report["temperature"] = round(float(torch.exp(-model.logit_scale.detach())), 5)
    write_json(folder / CONVERSION, report)
    if not report["reload_is_bit_equal"]:
        raise RuntimeError(f"{folder} does not load with the weights that were saved; it is left for inspection.")
    if (cosine := report.get("mean_text_cosine", 0.0)) >= COLLAPSED:
        raise RuntimeError(
            f"20 unlike texts have a mean cosine of {cosine:.3f}, expected below {COLLAPSED}: the text tower is "
            f"broken. {folder} is left for inspection."
        )
    write_card(folder, folder, read_records(conversion=folder / CONVERSION), repo_id=repo_id or output.name)
    os.replace(folder, output)
    return report
