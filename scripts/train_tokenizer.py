#!/usr/bin/env python
"""Train a small byte-pair tokenizer on a dataset's captions, for a language model that starts from nothing.

    python scripts/train_tokenizer.py --dataset sound-corpus --tokenizer gpt2 --size 4096 --output caption-tokenizer

A new language model has no use for GPT-2's 50,257 tokens: most never occur in captions, yet each has its row of
weights and its share of every softmax.
"""

import argparse
from pathlib import Path

import datasets
from transformers import AutoTokenizer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or Hub id of a dataset with captions")
    parser.add_argument("--column", default="captions", help="its column of texts, or of lists of texts")
    parser.add_argument("--split", default="train")
    parser.add_argument("--tokenizer", default="gpt2", help="folder or Hub id: splits texts as this one does")
    parser.add_argument("--size", type=int, default=4096, help="tokens")
    parser.add_argument("--output", type=Path, required=True, help="folder for from_pretrained")
    args = parser.parse_args(arguments)
    values = datasets.load_dataset(args.dataset, split=args.split)[args.column]
    texts = {text for value in values for text in ([value] if isinstance(value, str) else value)}
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    trained = tokenizer.train_new_from_iterator(iter([sorted(texts)]), args.size)
    trained.save_pretrained(args.output)
    words = sum(len(text.split()) for text in texts)
    tokens = sum(len(trained(text)["input_ids"]) for text in texts)
    print(f"{len(texts):,} texts, {len(trained):,} tokens, {tokens / words:.2f} tokens a word: {args.output}")


if __name__ == "__main__":
    main()
