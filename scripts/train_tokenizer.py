#!/usr/bin/env python
"""Train a small byte-pair tokenizer on a dataset's captions, for a language model that starts from nothing.

    python scripts/train_tokenizer.py --dataset sound-corpus --tokenizer gpt2 --size 4096 --output caption-tokenizer

A new language model has no use for GPT-2's 50,257 tokens: most never occur in captions, yet each has its row of
weights and its share of every softmax.
"""

from pathlib import Path
from typing import Annotated

import datasets
import typer
from transformers import AutoTokenizer


def main(
    dataset: Annotated[str, typer.Option(help="Folder or Hub id of a dataset with captions.")],
    output: Annotated[Path, typer.Option(help="Folder to write, for from_pretrained.")],
    column: Annotated[str, typer.Option(help="Its column of texts, or of lists of texts.")] = "captions",
    split: Annotated[str, typer.Option(help="Its split.")] = "train",
    tokenizer: Annotated[str, typer.Option(help="Folder or Hub id; texts are split as this one does.")] = "gpt2",
    size: Annotated[int, typer.Option(min=257, help="Tokens.")] = 4096,
) -> None:
    """Train and save the tokenizer."""
    values = datasets.load_dataset(dataset, split=split)[column]
    texts = {text for value in values for text in ([value] if isinstance(value, str) else value)}
    trained = AutoTokenizer.from_pretrained(tokenizer).train_new_from_iterator(iter([sorted(texts)]), size)
    trained.save_pretrained(output)
    words = sum(len(text.split()) for text in texts)
    tokens = sum(len(trained(text)["input_ids"]) for text in texts)
    print(f"{len(texts):,} texts, {len(trained):,} tokens, {tokens / words:.2f} tokens a word: {output}")


if __name__ == "__main__":
    typer.run(main)
