# Copyright 2026 The clap_hf authors. MIT License.
"""Memory on a CPU."""

import torch


def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MB of freed memory, rather than hand it back and have it cleared at each step.

    glibc learns what to keep from the largest block that was ever freed, up to 32 MB: this is one, never written to.
    Other libraries don't mind.
    """
    torch.empty(2**25 - 2**19, dtype=torch.uint8)
