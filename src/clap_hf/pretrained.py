"""Find checkpoints: the embedded one, those that a user names, and the class of a saved one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
