"""The small trained checkpoint that ships inside the package."""

from pathlib import Path


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
    """What `from_pretrained` takes for a model that a user names.

    Args:
        name: `"embedded"`, a folder, or a Hub id.

    Raises:
        FileNotFoundError: See `embedded_checkpoint`.
    """
    return str(embedded_checkpoint()) if name == "embedded" else name
