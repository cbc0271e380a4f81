"""Find checkpoints, check what they hold, and load them: the embedded one, and those that a user names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .text_files import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from .model.processing_msclap import MSClapProcessor

MAX_LAYERS = 1000  # of any one kind; building a model takes a millisecond or so a layer
LISTED = 3  # names of weights in a message
SAVE_AGAIN = "Save the model again with save_pretrained, or fetch it again."
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def embedded_checkpoint() -> Path:
    """Folder of the embedded checkpoint (config, processor, safetensors, card), for `from_pretrained` and `pipeline`.

    Raises:
        FileNotFoundError: If the package was installed without it.
    """
    folder = Path(__file__).parent / "embedded"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"The embedded checkpoint is missing from {folder}, expected model.safetensors. Reinstall clap-hf, or "
            "pass the folder or Hub id of another checkpoint."
        )
    return folder


def checkpoint_path(name: str) -> str:
    """What `from_pretrained` takes for a model that a user names. The Hub is never asked for the name of a folder.

    Args:
        name: `"embedded"`, a folder, or a Hub id, `ORGANISATION/NAME`.

    Raises:
        FileNotFoundError: There is no such folder, and the name is no Hub id; or see `embedded_checkpoint`.
    """
    if name == "embedded":
        return str(embedded_checkpoint())
    if Path(name).is_dir():
        return name
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        found = "is a file" if Path(name).exists() else "is no folder"
        raise FileNotFoundError(
            f"The model {name!r} {found}, expected 'embedded', a folder of save_pretrained, or a Hub id such as "
            "organisation/name."
        )
    return name


def model_class(name: str) -> type[PreTrainedModel]:
    """The model class that a configuration names as its architecture.

    Args:
        name: Such as `"MSClapModel"`.

    Raises:
        ValueError: If it is none of this package's.
    """
    from .model import modeling_msclap, modeling_msclap_captioning

    modules = (modeling_msclap, modeling_msclap_captioning)
    classes = {known: getattr(module, known) for module in modules for known in module.__all__}
    if name not in classes:
        raise ValueError(f"the architecture is {name!r}, expected one of {sorted(classes)}.")
    return classes[name]


def load_config(name: str) -> PreTrainedConfig:
    """Configuration of a model, checked to be one that can be built in bounded time. No code of the folder is run.

    Args:
        name: Folder or Hub id.

    Raises:
        OSError: If there is no such model, or the folder has no `config.json`.
        ValueError: If the configuration is damaged, of an unknown type, or names more layers than `MAX_LAYERS`.
    """
    from transformers import AutoConfig

    file = Path(name) / "config.json"
    if Path(name).is_dir():
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file, expected the configuration of a model. {SAVE_AGAIN}")
        try:
            settings = read_json(file)
        except ValueError as error:
            raise ValueError(f"{error} {SAVE_AGAIN}") from error
        for setting, layers in _layers(settings):
            if layers > MAX_LAYERS:
                raise ValueError(f"{file}: {setting} is {layers:,}, expected at most {MAX_LAYERS:,}. {SAVE_AGAIN}")
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # whatever a constructor makes of values of wrong types
        raise ValueError(
            f"{name}: config.json cannot be used ({_reason(error)}), expected one of this package's models. "
            f"{SAVE_AGAIN}"
        ) from error


def model_type(name: str) -> str:
    """Type of a model by its configuration, or `"sentence_transformers"` where it has a `modules.json` of theirs.

    Args:
        name: Folder or Hub id.

    Raises:
        OSError: If there is no such model.
        ValueError: If the configuration is damaged.
    """
    from transformers.utils import cached_file

    optional = {"_raise_exceptions_for_missing_entries": False}
    modules, config = (cached_file(name, file, **optional) for file in ("modules.json", "config.json"))
    if modules is None or config is not None:
        found = load_config(name).model_type
        if modules is None or found == "msclap":
            return found
    return "sentence_transformers"


def load_checked(cls: type[PreTrainedModel], name: str, **options: Any) -> tuple[PreTrainedModel, MSClapProcessor]:
    """Load a model in evaluation mode and its processor; refuse what is damaged, missing or not finite.

    Weights are read from safetensors alone: pickles, which run code where they are loaded, are never opened.

    Args:
        cls: Class of the model, or an Auto class.
        name: Folder or Hub id.
        options: Of `cls.from_pretrained`, such as `dtype`.

    Returns:
        The model, on the CPU, and its processor.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is damaged, or the weights are not those that the configuration describes.
    """
    check_checkpoint(name)
    try:
        model = cls.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name}: the weights cannot be loaded ({_reason(error)}), expected those of config.json. {SAVE_AGAIN}"
        ) from error
    check_weights(model, name)
    return model.eval(), load_processor(name)


def check_checkpoint(name: str) -> PreTrainedConfig:
    """Check the files of a model before it is loaded: its configuration, and in a folder its weights.

    Args:
        name: Folder or Hub id.

    Returns:
        The configuration.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is damaged, or holds less than the configuration describes.
    """
    config = load_config(name)
    if Path(name).is_dir():
        if os.path.lexists(Path(name) / "generation_config.json"):
            read_json(Path(name) / "generation_config.json")
        _check_files(Path(name), config)
    return config


def load_processor(name: str) -> MSClapProcessor:
    """Processor of a model.

    Args:
        name: Folder or Hub id.

    Raises:
        OSError: If it cannot be fetched.
        ValueError: If a file of a folder is missing or damaged.
    """
    from .model.processing_msclap import MSClapProcessor

    try:
        for file in (Path(name) / part for part in ("processor_config.json", "tokenizer_config.json")):
            if os.path.lexists(file):
                read_json(file)
        processor = MSClapProcessor.from_pretrained(name)
        # Without its files a tokenizer is made all the same, and reads every text as nothing.
        known = set(processor.tokenizer("a sound", add_special_tokens=False)["input_ids"])
        if not known - {processor.tokenizer.unk_token_id}:
            raise ValueError("the tokenizer has no vocabulary")
        return processor
    except Exception as error:  # tokenizers raise Exception itself
        if isinstance(error, OSError) and not Path(name).is_dir():
            raise
        raise ValueError(
            f"{name}: the processor cannot be loaded ({_reason(error)}), expected processor_config.json, "
            "tokenizer.json and tokenizer_config.json. Save it again with processor.save_pretrained."
        ) from error


def check_weights(model: PreTrainedModel, name: str = "") -> None:
    """Refuse a model with weights that its checkpoint did not hold, or that are not finite: its answers mean nothing.

    Args:
        model: The model.
        name: What messages call it; the folder or Hub id that it was loaded from by default.

    Raises:
        ValueError: With the first of these weights.
    """
    from .model.modeling_msclap_base import MSClapPreTrainedModel

    name = name or model.name_or_path or type(model).__name__
    if isinstance(model, MSClapPreTrainedModel) and model.missing_weights:
        raise ValueError(
            f"{name} misses {len(model.missing_weights)} weights of {type(model).__name__} "
            f"({_listed(model.missing_weights)}), expected all of them. {SAVE_AGAIN}"
        )
    check_finite(model, name)


def check_finite(model: PreTrainedModel, name: str) -> None:
    """Refuse a model with NaN or infinity in its parameters or persistent buffers.

    Args:
        model: The model.
        name: What messages call it.

    Raises:
        ValueError: With the first of these weights.
    """
    import torch

    # Subclasses of tensors, such as quantised ones, know no isfinite.
    weights = ((key, value) for key, value in model.state_dict().items() if type(value) is torch.Tensor)
    wrong = [key for key, value in weights if value.is_floating_point() and not value.is_meta and not _finite(value)]
    if wrong:
        raise ValueError(
            f"{name} holds NaN or infinity in {len(wrong)} weights ({_listed(wrong)}), expected finite numbers. Take "
            "a checkpoint from before the training diverged, or fetch the model again."
        )


def _finite(value: torch.Tensor) -> bool:
    """Whether all elements are finite. A finite sum, which takes a tenth of the time, shows that they are."""
    import torch

    return bool(torch.isfinite(value.sum(dtype=torch.float32))) or bool(torch.isfinite(value).all())


def _check_files(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse a folder whose safetensors are missing, damaged or smaller than the model of its configuration."""
    import torch
    from safetensors import SafetensorError, safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not single.exists() and index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
            if [file.name for file in files] != names:
                raise ValueError(f"it names {names[0]}, expected files of the folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is damaged ({_reason(error)}), expected a weight_map. {SAVE_AGAIN}") from error
    else:
        files = [single]
    shapes: dict[str, list[int]] = {}
    for file in files:
        if not file.is_file():
            pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
            found = "is a folder" if file.is_dir() else "no such file"
            found += f" but {', '.join(pickles)}, which is never opened: pickles run code" if pickles else ""
            raise FileNotFoundError(f"{file}: {found}, expected weights in safetensors. {SAVE_AGAIN}")
        try:
            with safe_open(file, "pt") as weights:
                shapes |= {key: weights.get_slice(key).get_shape() for key in weights.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{file} is no whole safetensors file ({_reason(error)}), expected weights. {SAVE_AGAIN}"
            ) from error
    if getattr(config, "quantization_config", None) is not None:  # packed weights cannot be counted
        return
    architecture = (config.architectures or ["none"])[0]
    try:
        cls = model_class(architecture)
        with torch.device("meta"):
            model = cls(config)
    except Exception as error:
        raise ValueError(
            f"{folder / 'config.json'} describes no model that can be built ({_reason(error)}). {SAVE_AGAIN}"
        ) from error
    described = sum(parameter.numel() for parameter in model.parameters())
    held = sum(torch.Size(shape).numel() for shape in shapes.values())
    if described > held:  # whether by weights that are missing, or by others' sizes; the sum bounds the memory
        expected = {key: list(value.shape) for key, value in model.named_parameters()}
        missing = [key for key in expected if key not in shapes]
        other = [
            f"{key} is {shapes[key]} for {size}" for key, size in expected.items() if shapes.get(key, size) != size
        ]
        raise ValueError(
            f"{folder} holds {held:,} numbers, expected {described:,} parameters by its config.json (missing: "
            f"{_listed(missing) or 'none'}; of other shapes: {_listed(other) or 'none'}). {SAVE_AGAIN}"
        )


def _layers(settings: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and values of the settings that decide how many layers are built."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _layers(value)
        elif isinstance(value, int) and (name.endswith("layers") or name == "n_layer"):
            yield name, value
        elif name == "depths" and isinstance(value, list):
            yield name, sum(depth for depth in value if isinstance(depth, int))


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _reason(error: BaseException) -> str:
    """First line of an error, or of its cause, in a message of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
