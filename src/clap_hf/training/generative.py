"""What the generative stages share: their language model, its texts, and reading their recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ..data.augment import Augmentation
from ..model.modeling_msclap_captioning import MSClapGenerativeModel
from ..tokenization import sentence_tokenizer
from .factory import resolve
from .settings import Settings, read_settings
from .stage import Batch, TrainingStage


@dataclass(frozen=True)
class LanguageModel:
    """The language model of a recipe.

    Args:
        pretrained: Local folder, Hub id or `package:NAME/FOLDER` of a causal language model, or None for a new one.
        config: Configuration (with `model_type`) of a new one, which knows nothing: train it along
            (`freeze_language_model: false` in the recipe's `model`).
        tokenizer: Local folder or Hub id; the pretrained model's own when None.
        max_length: Longest text, tokens, with its end token.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    max_length: int = 77

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.config is None):
            raise ValueError("language_model needs exactly one of 'pretrained' and 'config'.")
        if self.pretrained is None and self.tokenizer is None:
            raise ValueError("language_model is a new one, so its 'tokenizer' must be named.")


def build_language_model(settings: LanguageModel, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The language model, float32 on the CPU, and its tokenizer, which ends every text.

    Raises:
        ValueError: If the tokenizer has no end token of its own and is not GPT-2's, or does not fit.
    """
    if settings.pretrained is not None:
        model = AutoModelForCausalLM.from_pretrained(resolve(settings.pretrained), dtype=torch.float32)
    else:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(settings.config or {})))
    source = settings.tokenizer or resolve(str(settings.pretrained))
    tokenizer = sentence_tokenizer(source, model.config, settings.max_length)
    ids = tokenizer("a sound")["input_ids"]
    if tokenizer.eos_token_id is None or ids[-1] != tokenizer.eos_token_id:
        raise ValueError(f"The tokenizer {source} does not end texts with an end token, which captions need to stop.")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The tokenizer {source} has {len(tokenizer)} tokens, the language model {model.config.vocab_size}."
        )
    return model, tokenizer


def set_end_tokens(model: MSClapGenerativeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make generation stop at whatever the tokenizer ends a text with."""
    model.generation_config.eos_token_id = tokenizer("")["input_ids"]
    model.generation_config.pad_token_id = tokenizer.eos_token_id


def labels_of(batch: Batch) -> torch.Tensor:
    """Tokens to predict: the batch's own, -100 on padding."""
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


@torch.no_grad()
def token_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of tokens that were the likeliest; `logits[:, i]` predicts token i."""
    known = labels != -100
    return (logits[:, : labels.shape[1]].argmax(dim=-1) == labels)[known].float().mean()


class TeacherForcing(TrainingStage):
    """A stage that predicts a batch's texts token by token, each from the true ones before it (Eq. 5).

    Attributes:
        inputs: What of a batch the model takes.
    """

    inputs: tuple[str, ...] = ("input_features", "input_ids", "attention_mask")

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        labels = labels_of(batch)
        outputs = self.model(**{name: batch[name] for name in self.inputs}, labels=labels)
        return outputs.loss, {"token_accuracy": token_accuracy(outputs.logits, labels)}


def load_stage_recipe(stage: type[Settings], path: str | Path, **overrides: Any) -> Settings:
    """Read the recipe of a generative stage.

    Args:
        stage: Its class.
        path: YAML file.
        overrides: Settings that replace the file's; None values are ignored.

    Raises:
        ValueError: If a setting is unknown, missing or wrong.
    """
    values = {"language_model": {}} | yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    parts = {"language_model": LanguageModel, "augmentation": Augmentation}
    return read_settings(stage, path, values, parts, overrides)
