"""Convert an official Microsoft CLAP checkpoint into a folder that `from_pretrained` loads, with its code inside.

python scripts/convert_msclap_checkpoint.py --version 2023 --output msclap-2023
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download

from clap_hf import (
    MSClapForAudioCaptioning,
    MSClapModel,
    MSClapProcessor,
    load_clapcap_checkpoint,
    load_msclap_checkpoint,
)
from clap_hf.checkpoints import OFFICIAL_REPO, mean_text_cosine, official_file

COLLAPSED = 0.9  # working checkpoints are at 0.2 to 0.3, a broken text tower is above 0.99


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, choices=["2022", "2023", "clapcap"])
    parser.add_argument(
        "--checkpoint", type=Path, help=f"official .pth file; from {OFFICIAL_REPO} on the Hub if not given"
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--tokenizer", help="folder or Hub id; the text tower's own on the Hub if not given")
    parser.add_argument("--push-to-hub", metavar="ID", help="model repository to upload the folder to")
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"--output {options.output} exists, expected a new folder. Remove it or choose another.")
    try:
        name = official_file(options.version)
        checkpoint = options.checkpoint or hf_hub_download(OFFICIAL_REPO, name)
        model: MSClapModel | MSClapForAudioCaptioning
        if options.version == "clapcap":
            model, processor = load_clapcap_checkpoint(checkpoint, options.tokenizer)
        else:
            model, processor = load_msclap_checkpoint(checkpoint, options.version, options.tokenizer)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    folder = options.output.with_name(f"{options.output.name}.partial")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    reloaded = type(model).from_pretrained(folder).state_dict()
    front_end = MSClapProcessor.from_pretrained(folder).feature_extractor
    report = {
        "checkpoint": str(checkpoint),
        "version": options.version,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mel_sampling_rate_hz": front_end.mel_sampling_rate,
        "fmin_hz": front_end.fmin,
        "fmax_hz": front_end.fmax,
        "window_s": front_end.duration_s,
        "reload_is_bit_equal": all(torch.equal(value, reloaded[key]) for key, value in model.state_dict().items()),
    }
    if isinstance(model, MSClapModel):
        report["mean_text_cosine"] = round(mean_text_cosine(model, processor), 4)
    (folder / "conversion.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    if not report["reload_is_bit_equal"]:
        parser.exit(1, f"{folder} does not load with the weights that were saved; it is left there for inspection.\n")
    if not report.get("mean_text_cosine", 0.0) < COLLAPSED:
        parser.exit(
            1,
            f"20 unlike texts have a mean cosine of {report['mean_text_cosine']:.3f}, expected below {COLLAPSED}: "
            f"the text tower is broken. {folder} is left there for inspection.\n",
        )
    os.replace(folder, options.output)
    print(f"Wrote {options.output}")
    if options.push_to_hub:
        api = HfApi()
        api.create_repo(options.push_to_hub, exist_ok=True)
        print(api.upload_folder(repo_id=options.push_to_hub, folder_path=options.output))


if __name__ == "__main__":
    main()
