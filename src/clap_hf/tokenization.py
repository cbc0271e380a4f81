"""Tokenizers that carry CLAP's sentence rules, so that every stock pipeline follows them."""

from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig

END_TOKEN = "<|endoftext|>"


def sentence_tokenizer(
    name_or_path: str | Path, text_config: PreTrainedConfig, max_length: int
) -> PreTrainedTokenizerFast:
    """Load a tokenizer and give it the rules of a CLAP text tower.

    GPT-2 towers read " <|endoftext|>" after every text and are pooled there (paper Section 2.2; the space is the
    released code's). It is baked into the post-processor: truncation keeps it, and pipelines that call the tokenizer
    directly get it. Other towers keep their own special tokens.

    Args:
        name_or_path: Local folder or Hub id.
        text_config: Configuration of the text tower.
        max_length: Longest text, tokens, special tokens included (released: 77 for GPT-2, 100 for BERT).

    Returns:
        A fast tokenizer with right padding.
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = max_length
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if text_config.model_type == "gpt2":
        tokenizer.pad_token = END_TOKEN
        end_ids = tokenizer(f" {END_TOKEN}", add_special_tokens=False)["input_ids"]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A END",
            pair="$A $B END",
            special_tokens=[{"id": "END", "ids": end_ids, "tokens": tokenizer.convert_ids_to_tokens(end_ids)}],
        )
    return tokenizer
