#!/usr/bin/env python
"""Captions side by side: this package and PyPI `msclap` on the same recordings, in one process, taking turns.

Both get the same full-size seeded random weights in the official `clapcap` format (speed does not depend on what the
weights say), 5 beams, up to 67 tokens, from the file to the tokens. Needs `msclap` as the parity tests do:

    pip install --no-deps -r requirements-parity.txt
    python benchmarks/captioning.py --output benchmarks/captioning.json
"""

from __future__ import annotations

from peers import RECORDINGS, ROOT, in_bfloat16  # first, as it says

# isort: split

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import clap_hf
from clap_hf import MSClapForAudioCaptioning, MSClapProcessor, load_audio, load_clapcap_checkpoint
from clap_hf.atomic_io import write_json
from msclap_reference import (
    TOKENIZER,
    caption_tokens,
    official_state,
    random_captioner,
    reference_wrapper,
)

BEAMS = 5


@torch.no_grad()
def own_tokens(
    model: MSClapForAudioCaptioning, processor: MSClapProcessor, file: Path, max_new_tokens: int
) -> list[int]:
    """Token ids of a file's caption; the end mark is the last, if it came."""
    sound = load_audio(file)
    features = processor(audio={"array": sound.samples, "sampling_rate": sound.sampling_rate})
    tokens = model.generate(**features, num_beams=BEAMS, max_new_tokens=max_new_tokens)[0].tolist()
    end = model.generation_config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and how long it took, s."""
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def measure(files: list[Path], rounds: int, max_new_tokens: int, seed: int) -> dict[str, Any]:
    """Caption every file by both, in turns.

    Args:
        files: Recordings.
        rounds: Captions per file and implementation.
        max_new_tokens: Longest caption, tokens.
        seed: Source of the weights.

    Returns:
        Seconds per caption of both and of ours in bfloat16, ratios, and whether all tokens are equal in float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clapcap_weights_2023.pth"
        torch.save({"model": official_state(random_captioner(seed), "clapcap", "current")}, path)
        wrapper = reference_wrapper(path, "clapcap")
        model, processor = load_clapcap_checkpoint(path, TOKENIZER["clapcap"])
    clap_hf.optimize_for_cpu(model)
    small = in_bfloat16(model)
    for ours in (model, small):  # first calls set things up
        own_tokens(ours, processor, files[0], 3)
    caption_tokens(wrapper, files[:1], BEAMS, 3)
    rows = []
    for turn in range(rounds):
        for file in files:
            own, own_s = timed(lambda file=file: own_tokens(model, processor, file, max_new_tokens))
            own_small, small_s = timed(lambda file=file: own_tokens(small, processor, file, max_new_tokens))
            [reference], reference_s = timed(lambda file=file: caption_tokens(wrapper, [file], BEAMS, max_new_tokens))
            row = {
                "file": file.name,
                "round": turn,
                "tokens": len(own),
                "tokens_bfloat16": len(own_small),
                "equal": own == reference,
                "own_s": own_s,
                "own_bfloat16_s": small_s,
                "msclap_s": reference_s,
            }
            rows.append(row)
            print(row, flush=True)
    own_s, small_s, reference_s = (
        statistics.median(row[key] for row in rows) for key in ("own_s", "own_bfloat16_s", "msclap_s")
    )
    return {
        "beams": BEAMS,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "own_s": own_s,
        "own_bfloat16_s": small_s,
        "msclap_s": reference_s,
        "ratio": statistics.median(row["msclap_s"] / row["own_s"] for row in rows),
        "ratio_bfloat16": statistics.median(row["msclap_s"] / row["own_bfloat16_s"] for row in rows),
        "equal_captions": sum(row["equal"] for row in rows),
        "captions": len(rows),
        "rows": rows,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.platform()}",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "clap_hf": clap_hf.__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=len(RECORDINGS), help="recordings of examples/ to caption")
    parser.add_argument("--rounds", type=int, default=1, help="captions per recording")
    parser.add_argument("--max-new-tokens", type=int, default=67, help="longest caption, tokens")
    parser.add_argument("--seed", type=int, default=2023, help="source of the random weights")
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    args = parser.parse_args()
    files = [ROOT / "examples" / name for name in RECORDINGS[: args.files]]
    result = measure(files, args.rounds, args.max_new_tokens, args.seed)
    if args.output is not None:
        write_json(args.output, result)
    print(
        f"{result['own_s']:.2f} s here, {result['msclap_s']:.2f} s in msclap per caption: {result['ratio']:.1f} times "
        f"as fast, {result['ratio_bfloat16']:.1f} times in bfloat16; "
        f"{result['equal_captions']} of {result['captions']} captions have equal tokens."
    )


if __name__ == "__main__":
    main()
