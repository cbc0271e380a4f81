#!/usr/bin/env python
"""Count the bytes that a contrastive step keeps for its backward pass, at paper size, without a GPU.

    python scripts/count_training_memory.py --tokens 20 --precision bf16

Counts what autograd saves (two and four pairs, and their difference), which a card must hold for one chunk; weights,
gradients and Adam's two means come on top.
"""

from typing import Annotated, Literal

import torch
import typer

from clap_hf import MSClapConfig, MSClapModel
from clap_hf.training.chunking import bytes_per_pair, saved_bytes

FRAMES = 1 + 7 * 44_100 // 320
GIB, MIB = 2**30, 2**20


def main(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest caption of a chunk.")] = 20,
    precision: Annotated[Literal["no", "bf16"], typer.Option(help="Of the forward pass.")] = "bf16",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute layers.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a process.")] = 1536,
) -> None:
    """Print the bytes a pair and a chunk, and what a card needs for chunks of several sizes."""
    model = MSClapModel(MSClapConfig()).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    batch = {
        "input_features": torch.randn(4, 1, FRAMES, 64) * 20 - 40,
        "input_ids": torch.randint(0, 50_000, (4, tokens)),
        "attention_mask": torch.ones(4, tokens, dtype=torch.long),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        pair = bytes_per_pair(model, batch)
        once = saved_bytes(model, batch, 2) - 2 * pair
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state = 16 * parameters  # float32 weight, gradient and two means
    held = batch_size * (FRAMES * 64 * 4 + 7 * 44_100 * 4 + 2 * 2 * 1024 * 4) + 3 * batch_size**2 * 4
    print(f"{parameters / 1e6:.1f} M parameters, {FRAMES} frames, {tokens} tokens, precision {precision}")
    print(f"saved per pair {pair / MIB:.1f} MiB, once per chunk {once / MIB:.1f} MiB")
    print(f"weights, gradients and Adam {state / GIB:.2f} GiB")
    print(f"waveforms, log-mels, embeddings and logits of the batch {held / GIB:.2f} GiB")
    for chunk in (32, 64, 128, 256, 512, batch_size):
        saved = chunk * pair + once
        print(f"chunk {chunk}: saved {saved / GIB:.1f} GiB, in all {(saved + state + held) / GIB:.1f} GiB")


if __name__ == "__main__":
    typer.run(main)
