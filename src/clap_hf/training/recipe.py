"""The recipes of the four training stages: everything that decides a run, in one YAML file."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import yaml

from ..data.augment import Augmentation
from ..model.configuration_msclap import (
    MSClapAudioConfig,
    MSClapCaptioningConfig,
    MSClapConditionalGenerationConfig,
    MSClapConfig,
)
from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from ..text_files import read_text
from .settings import DATASET_ONLY, SOURCES_ONLY, PairSettings, TrainingSettings, check_limits, refuse_unused
from .teacher import Teacher

T = TypeVar("T")
LOSSES = ("multi_positive", "contrastive", "sigmoid")
BATCH_NORMS = ("exact", "frozen", "per_chunk")
FRONT_END = tuple(inspect.signature(MSClapFeatureExtractor.__init__).parameters)[1:-1]
EVALUATION_TASKS = (None, "table1", "paper")


@dataclass(frozen=True)
class TextTower:
    """The text tower of a contrastive recipe.

    Args:
        pretrained: Local folder, Hub id or `package:NAME/FOLDER` of a pretrained model, or None to train from scratch.
        config: Configuration (with `model_type`) of a text tower trained from scratch.
        tokenizer: Local folder or Hub id; the pretrained model's own when None.
        pooling: `MSClapConfig.text_pooling`; by model type when None.
        max_length: Longest text, tokens.
        freeze: Whether the tower's weights stay as they are.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    pooling: str | None = None
    max_length: int = 77
    freeze: bool = False

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class Lora:
    """Adapters of low rank on the linear layers of the towers that are not frozen, instead of their own weights.

    Args:
        rank: Rank of an adapter.
        alpha: Its scale, times the rank.
        dropout: Dropout of its input.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class LanguageModel:
    """The language model of a captioning or prompt recipe.

    Args:
        pretrained: Local folder, Hub id or `package:NAME/FOLDER` of a causal language model, or None for a new one.
        config: Configuration (with `model_type`) of a new one, which is untrained: train it along
            (`freeze_language_model: false` in the recipe's `model`).
        tokenizer: Local folder or Hub id; the pretrained model's own when None.
        max_length: Longest text, tokens, with its end token.
    """

    pretrained: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    max_length: int = 77

    def __post_init__(self) -> None:
        check_limits(self)
        if (self.pretrained is None) == (self.config is None):
            raise ValueError("language_model needs exactly one of 'pretrained' and 'config'.")
        if self.pretrained is None and self.tokenizer is None:
            raise ValueError("language_model is a new one, so its 'tokenizer' must be named.")


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(PairSettings):
    """Recipe of a contrastive run (paper Section 2.1); see `TrainingSettings` and `PairSettings` for shared settings.

    Args:
        validation_pairs: How many of the held-out pairs of `validation` are used, with `sources`; a `dataset` has its
            own split.
        evaluation_tasks: Zero-shot tasks of the paper that every epoch is evaluated on: `"table1"` (16, the paper's
            score), `"paper"` (26) or None.
        audio: Settings of `MSClapAudioConfig`.
        audio_tower: Folder or Hub id of a model whose trained audio tower is taken, such as one that prompt
            pretraining left (HTSAT-22, paper Section 2.2); of the sizes in `audio`, and of the front end in
            `features`.
        weights: Folder, Hub id or `package:NAME/FOLDER` of a trained model to go on from: a longer run, or fine-tuning
            on other sounds. It brings its sizes and its processor, so that `audio`, `features` and `model` may be left
            out; of `text`, only `freeze` may be set.
        features: Settings of `MSClapFeatureExtractor`.
        text: The text tower.
        freeze_audio: Whether the audio tower's weights stay as they are; its projection still learns.
        lora: Adapters instead of the towers' weights; with `weights`. They are saved beside the merged model.
        model: Settings of `MSClapConfig` itself (projection, logit scale).
        loss: `"contrastive"` (paper Eq. 4), `"multi_positive"` or `"sigmoid"`.
        mask_shared: Whether pairs that share a clip or a text are taken out of the negatives; needs `sources`.
        text_bank: Whether clips are compared with all texts of the training set instead of the batch's; needs a frozen
            text tower, a `dataset` and one process.
        logit_adjustment: With `text_bank`, factor on the log of every text's share of the draws, which is added to its
            logits in training alone: 1 keeps labels that are drawn often from lying near all sounds.
        teacher: Another audio network whose features of the clips the audio tower learns to predict besides; needs
            `text_bank`.
        chunk_size: Pairs that go through the towers at once, with the loss still over the whole batch (gradient
            caching); `"auto"` chooses by the free memory, None keeps the activations of this rank's whole share.
        batch_norm: Statistics of CNN14's BatchNorm layers where a batch has several chunks; see `prepare_batch_norm`.
        template: Zero-shot template with `{}` for the label of a clip of `dataset`.
        template_probability: How often a clip's label in the template replaces its caption.
    """

    stage: ClassVar[str] = "contrastive"

    validation_pairs: int = 1000
    evaluation_tasks: str | None = None
    audio: dict[str, Any] = field(default_factory=dict)
    audio_tower: str | None = None
    weights: str | None = None
    features: dict[str, Any] = field(default_factory=dict)
    text: TextTower = field(default_factory=TextTower)
    freeze_audio: bool = False
    lora: Lora | None = None
    model: dict[str, Any] = field(default_factory=dict)
    loss: str = "multi_positive"
    mask_shared: bool = False
    text_bank: bool = False
    logit_adjustment: float = 0.0
    teacher: Teacher | None = None
    chunk_size: int | str | None = None
    batch_norm: str = "exact"
    template: str = "this is a sound of {}"
    template_probability: float = 0.3
    augmentation: Augmentation | None = field(default_factory=Augmentation)

    def validate(self) -> None:
        super().validate()
        _refuse_unknown("audio", self.audio, MSClapAudioConfig.__annotations__)
        _refuse_unknown("features", self.features, FRONT_END)
        _refuse_unknown("model", self.model, MSClapConfig.__annotations__)
        for name, allowed in (("loss", LOSSES), ("batch_norm", BATCH_NORMS), ("evaluation_tasks", EVALUATION_TASKS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {allowed}.")
        if self.weights is not None:
            if self.audio_tower:
                raise ValueError(
                    "expected at most one of 'audio_tower' and 'weights', which holds an audio tower too."
                )
            names = ("pretrained", "config", "tokenizer", "pooling", "max_length")
            refuse_unused(self.text, names, "weights", "text.")
        elif self.lora is not None:
            raise ValueError("lora needs 'weights', the trained model that is adapted.")
        elif (self.text.pretrained is None) == (self.text.config is None):
            raise ValueError("text needs exactly one of 'pretrained' and 'config'.")
        if self.sources:
            if not self.validation and not self.held_out:
                raise ValueError(
                    "training on 'sources' needs 'validation', a dataset of held-out pairs, or 'held_out', the share "
                    "of the pairs to hold out, such as 0.1."
                )
            refuse_unused(self, ("template", "template_probability"), "sources")
        else:
            refuse_unused(self, ("validation", "validation_pairs"), "dataset")
        if self.mask_shared and self.dataset:
            raise ValueError("mask_shared needs 'sources'; with 'dataset', use loss: multi_positive.")
        if self.mask_shared and self.loss == "multi_positive":
            raise ValueError(
                "mask_shared takes pairs of one text out of the negatives, which loss: multi_positive counts as "
                "positives. Set loss to contrastive or sigmoid, or mask_shared to false."
            )
        if not self.template_probability and not self.text_bank:
            refuse_unused(self, ("template",), "template_probability: 0")
        if self.text_bank:
            if not self.text.freeze:
                raise ValueError("text_bank needs text.freeze: the texts are encoded once.")
            if self.sources:
                raise ValueError("text_bank needs 'dataset', in the layout of the sound corpus, instead of 'sources'.")
            refuse_unused(self, ("loss", "chunk_size"), "text_bank: true")
        else:
            refuse_unused(self, ("logit_adjustment",), "text_bank: false")
        if self.teacher is not None and not self.text_bank:
            raise ValueError("teacher needs text_bank, and with it one process and a dataset in the corpus' layout.")
        if self.batch_norm != "exact" and self.weights is None and self.audio.get("architecture") != "cnn14":
            refuse_unused(self, ("batch_norm",), f"audio.architecture: {self.audio.get('architecture', 'htsat')}")
        if self.batch_norm == "per_chunk" and self.chunk_size is None:
            refuse_unused(self, ("batch_norm",), "chunk_size: null")


@dataclass(frozen=True, kw_only=True)
class CaptioningRecipe(PairSettings):
    """Recipe of a captioning run (paper Section 2.3); see `TrainingSettings` and `PairSettings` for shared settings.

    Clips have one or more captions each.

    Args:
        clap: Trained CLAP: a folder, a Hub id, or `embedded`.
        language_model: The language model.
        validation_clips: How many of the held-out clips of `validation` are captioned after every epoch.
        model: Settings of `MSClapCaptioningConfig`: the mapper, and what is frozen.
    """

    stage: ClassVar[str] = "captioning"

    clap: str
    language_model: LanguageModel
    validation: dict[str, Any]
    validation_clips: int = 200
    model: dict[str, Any] = field(default_factory=dict)
    best_metric: str = "cider_d"
    ema_decay: float = 0.0

    def validate(self) -> None:
        super().validate()
        _refuse_unknown("model", self.model, MSClapCaptioningConfig.__annotations__)
        batchwise = ("mix_probability", "mix_snr_db", "filter_db", "lowpass_probability", "noise_floor_db")
        self.refuse_in_augmentation(batchwise, "stage: captioning")


@dataclass(frozen=True, kw_only=True)
class PromptRecipe(TrainingSettings):
    """Recipe of prompt pretraining (paper Section 2.2); see `TrainingSettings` for what all stages share.

    Args:
        streams: What is trained on: `prompts` (a name of `clap_hf.data.prompts.PROMPT_STREAMS`), `dataset` (folder or
            Hub id), and optionally `split`, `validation_split`, `config`, `revision`, `weight` (for their own).
        audio: Settings of `MSClapAudioConfig`.
        features: Settings of `MSClapFeatureExtractor`.
        language_model: The language model.
        model: Settings of `MSClapConditionalGenerationConfig`: mappers, projection, and what is frozen.
        balance: 1 draws streams by their weights, 0 by their sizes too; see `PromptDataset.weights`.
        validation_clips: Clips of every stream that are evaluated after every epoch.
    """

    stage: ClassVar[str] = "prompts"

    streams: list[dict[str, Any]]
    audio: dict[str, Any]
    features: dict[str, Any]
    language_model: LanguageModel
    model: dict[str, Any] = field(default_factory=dict)
    balance: float = 0.5
    validation_clips: int = 50
    best_metric: str = "validation_loss"
    best_mode: str = "min"
    ema_decay: float = 0.0

    def validate(self) -> None:
        super().validate()
        _refuse_unknown("audio", self.audio, MSClapAudioConfig.__annotations__)
        _refuse_unknown("features", self.features, FRONT_END)
        captioning = MSClapCaptioningConfig.__annotations__
        _refuse_unknown("model", self.model, captioning | MSClapConditionalGenerationConfig.__annotations__)
        if not self.streams:
            raise ValueError(
                "streams is [], expected at least one, such as {prompts: corpus_events, dataset: FOLDER}."
            )


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe:
    """Recipe of a cross-validated classifier (paper Section 4.2, ESC-50).

    Args:
        model: `embedded`, or folder or Hub id of a CLAP checkpoint.
        dataset: Folder or Hub id of an audio-classification dataset with a column `audio`.
        split: The split that is divided into folds.
        label: Column of the labels, numbers or names.
        fold: Column that divides the clips; stratified folds by the seed when None.
        folds: Number of folds where there is no column.
        frozen: Keep the audio tower as it is and fit a linear probe (logistic regression) on its output.
        epochs: Passes over the training clips, for an unfrozen tower.
        learning_rate: Its largest learning rate; warmed up over a tenth of the steps, then a cosine to zero.
        batch_size: Clips a step.
        seed: Of folds, head and order.
    """

    stage: ClassVar[str] = "classification"

    model: str
    dataset: str
    split: str = "train"
    label: str = "label"
    fold: str | None = None
    folds: int = 5
    frozen: bool = False
    epochs: float = 20
    learning_rate: float = 1e-4
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_limits(self)

    def validate(self) -> None:
        """Check that each setting takes effect.

        Raises:
            ValueError: If one has no effect beside another.
        """
        if self.fold is not None:
            refuse_unused(self, ("folds",), f"fold: {self.fold}")
        if self.frozen:
            refuse_unused(self, ("epochs", "learning_rate", "batch_size"), "frozen: true")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, for results."""
        return asdict(self)


Recipe = ContrastiveRecipe | CaptioningRecipe | PromptRecipe | ClassificationRecipe
RECIPES: dict[str, type[Recipe]] = {
    kind.stage: kind for kind in (ContrastiveRecipe, CaptioningRecipe, PromptRecipe, ClassificationRecipe)
}
PARTS = {
    "text": TextTower,
    "lora": Lora,
    "language_model": LanguageModel,
    "augmentation": Augmentation,
    "teacher": Teacher,
}


def load_recipe(
    path: str | Path, combination: str | None = None, settings: dict[str, Any] | None = None, **overrides: Any
) -> Recipe:
    """Read a recipe; its `stage` names which.

    Args:
        path: YAML file. Where it names another under `extends`, it replaces top-level settings of that one.
        combination: Where the file lists several pairs of encoders under `combinations`, which of them: its settings
            replace the file's.
        settings: Settings that replace the file's; `part.setting` replaces one of a part.
        overrides: The same, but None values are ignored. `dataset` replaces `sources`
            with all that belongs to them, and the other way round; `weights` replaces the towers; `steps` replaces
            `epochs`; an empty `audio_tower` trains it from scratch.

    Raises:
        ValueError: If the stage, the combination or a setting is unknown, missing, wrong or without effect.
    """
    values = _read(path)
    stage = values.pop("stage", None)
    if stage not in RECIPES:
        raise ValueError(f"{path}: stage is {stage!r}, expected one of {sorted(RECIPES)}.")
    kind = RECIPES[stage]
    combinations = _combinations(values, path)
    if combinations or combination is not None:
        if combination is None or combination not in combinations:
            raise ValueError(f"{path}: combination is {combination!r}, expected one of {list(combinations)}.")
        values |= combinations[combination]
        values["name"] = f"{values.get('name', '')}-{combination.lower().replace('+', '-')}"
    chosen = {name: value for name, value in overrides.items() if value is not None}
    dotted = {name: value for name, value in (settings or {}).items() if "." in name}
    _override(kind, values, chosen | {name: value for name, value in (settings or {}).items() if name not in dotted})
    for name, value in dotted.items():
        _set_part(values, name, value)
    if issubclass(kind, TrainingSettings) and values.get("epochs") is not None:
        values.setdefault("steps", None)
    if values.get("audio_tower") == "":
        del values["audio_tower"]
    for name, part in PARTS.items():
        if values.get(name) is not None:
            values[name] = _build(part, values[name], f"{path}: {name}")
    recipe = _build(kind, values, str(path))
    try:
        recipe.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe


def combinations_of(path: str | Path) -> list[str]:
    """Names of the combinations of encoders that a recipe lists; empty if it is a recipe of one."""
    return list(_combinations(_read(path), path))


def _combinations(values: dict[str, Any], path: str | Path) -> dict[str, dict[str, Any]]:
    """Take the combinations of encoders out of a recipe's settings."""
    combinations = values.pop("combinations", {})
    if not isinstance(combinations, dict) or not all(isinstance(value, dict) for value in combinations.values()):
        raise ValueError(f"{path}: combinations is {combinations!r}, expected settings by name.")
    return combinations


def _read(path: str | Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Settings of a YAML file, with those of the file that it extends; `extending` are the files that led to it."""
    file = Path(os.path.realpath(path))  # of a loop of links, too
    if file in extending:
        raise ValueError(f"{path} extends itself, expected another file under 'extends'.")
    try:
        values = yaml.safe_load(read_text(Path(path)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not YAML in UTF-8 ({reason}), expected settings, one 'name: value' a line."
        ) from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path}: expected settings, one 'name: value' a line.")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: extends is {base!r}, expected the name of a file.")
    return _read(Path(path).parent / base, (*extending, file)) | values


def _refuse_unknown(part: str, values: dict[str, Any], known: Collection[str]) -> None:
    """Refuse settings of a model's part that it would ignore."""
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{part} has unknown settings {unknown}, expected some of {sorted(known)}.")


def _set_part(values: dict[str, Any], name: str, value: Any) -> None:
    """Replace one setting of a part, such as `text.freeze`; parts that the recipe lacks are begun."""
    *parts, last = name.split(".")
    for part in parts:
        inner = values.get(part) or {}
        if not isinstance(inner, dict):
            raise ValueError(f"{name}: {part} is {inner!r}, expected settings by name.")
        values[part] = dict(inner)
        values = values[part]
    values[last] = value


def _override(kind: type, values: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Replace settings, and drop those that the new ones make void."""
    void: list[str] = []
    if overrides.get("dataset") and values.get("sources"):
        void = ["sources", *SOURCES_ONLY, *(["validation", "validation_pairs"] if kind is ContrastiveRecipe else [])]
    elif overrides.get("sources") and values.get("dataset"):
        void = ["dataset", *DATASET_ONLY, "template", "template_probability"]
    for name in void:
        values.pop(name, None)
    if overrides.get("weights"):
        values.pop("audio_tower", None)
        values["text"] = {name: value for name, value in values.get("text", {}).items() if name == "freeze"}
    if overrides.get("steps") is not None:
        values["epochs"] = None
    values |= overrides


def _build(kind: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}, expected settings, one 'name: value' a line.")
    known = [setting.name for setting in fields(kind)]  # type: ignore[arg-type]  # all are dataclasses
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown settings {unknown}, expected some of {known}.")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            found = f"{value!r}, a text for YAML" if isinstance(value, str) else f"{value!r}"
            raise ValueError(f"{where}: {name} is {found}, expected {_words(hints[name])}.")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of a setting's type; whole numbers are numbers too, lists are tuples too."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(_fits(value, part) for part in parts)
    if kind is Any:
        return True
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (kind is float and isinstance(value, float) and math.isfinite(value))
    if kind is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        same = parts[1:] == (...,)
        return (same or len(value) == len(parts)) and all(
            _fits(item, parts[0] if same else part)
            for item, part in zip(value, [parts[0]] * len(value) if same else parts, strict=True)
        )
    if not isinstance(value, kind):
        return False
    if kind is list and parts:
        return all(_fits(item, parts[0]) for item in value)
    if kind is dict and parts:
        return all(_fits(name, parts[0]) and _fits(item, parts[1]) for name, item in value.items())
    return True


def _words(hint: Any) -> str:
    """A type in words, for messages."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return " or ".join(_words(part) for part in parts)
    if kind is tuple:
        return f"a list of {'numbers' if parts[1:] == (...,) else f'{len(parts)} numbers'}"
    names = {
        int: "a whole number",
        float: "a number, such as 0.001 or 1.0e-3",
        bool: "true or false",
        str: "a text",
        list: "a list",
        NoneType: "null",
    }
    return names.get(kind, "settings by name")
