#!/usr/bin/env python
"""Count the bytes that a contrastive step keeps for its backward pass, at paper size, without a GPU.

    python scripts/count_training_memory.py --tokens 20 --precision bf16

Counts what autograd saves (two and four pairs, and their difference), which a card must hold for one chunk; weights,
gradients and Adam's two means come on top.
"""

import argparse

import torch

from clap_hf import MSClapConfig, MSClapModel
from clap_hf.training.chunking import bytes_per_pair, saved_bytes

FRAMES = 1 + 7 * 44_100 // 320
GIB, MIB = 2**30, 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20, help="tokens of the longest caption of a chunk")
    parser.add_argument("--precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--batch-size", type=int, default=1536, help="pairs of a process")
    args = parser.parse_args()
    model = MSClapModel(MSClapConfig()).train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    batch = {
        "input_features": torch.randn(4, 1, FRAMES, 64) * 20 - 40,
        "input_ids": torch.randint(0, 50_000, (4, args.tokens)),
        "attention_mask": torch.ones(4, args.tokens, dtype=torch.long),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
        pair = bytes_per_pair(model, batch)
        once = saved_bytes(model, batch, 2) - 2 * pair
    parameters = sum(parameter.numel() for parameter in model.parameters())
    state = 16 * parameters  # float32 weight, gradient and two means
    share = args.batch_size
    held = share * (FRAMES * 64 * 4 + 7 * 44_100 * 4 + 2 * 2 * 1024 * 4) + 3 * share**2 * 4
    print(f"{parameters / 1e6:.1f} M parameters, {FRAMES} frames, {args.tokens} tokens, precision {args.precision}")
    print(f"saved per pair {pair / MIB:.1f} MiB, once per chunk {once / MIB:.1f} MiB")
    print(f"weights, gradients and Adam {state / GIB:.2f} GiB")
    print(f"waveforms, log-mels, embeddings and logits of the batch {held / GIB:.2f} GiB")
    for chunk in (32, 64, 128, 256, 512, share):
        saved = chunk * pair + once
        print(f"chunk {chunk}: saved {saved / GIB:.1f} GiB, in all {(saved + state + held) / GIB:.1f} GiB")


if __name__ == "__main__":
    main()
