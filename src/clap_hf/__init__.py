"""Microsoft CLAP in the Hugging Face ecosystem.

Importing this package makes `AutoModel`, `AutoProcessor`, `AutoFeatureExtractor` and
`AutoModelForAudioClassification` know CLAP checkpoints, and survives a torchaudio that is absent or broken.

Names are loaded when they are first used, and transformers is told of the models when it comes to its auto classes:
importing the package costs next to nothing beside torch and transformers.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Ask PyTorch to place large tensors on large pages of memory where the system gives them on request, as most Linux do.
# What a layer makes of a few clips spans thousands of small pages; looking these up took up to a tenth of HTSAT's time
# where other work came in between.
# PyTorch reads this at its first tensor. THP_MEM_ALLOC_ENABLE=0 keeps it off.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# First: transformers' audio modules import torchaudio whenever it is installed, working or not.
from . import _torchaudio, registration  # noqa: F401

if TYPE_CHECKING:
    from .audio import Audio, AudioDecodeError, audio_files, load_audio
    from .bulk import EmbeddedFiles, embed_files
    from .checkpoints import load_clapcap_checkpoint, load_msclap_checkpoint
    from .embedded import embedded_checkpoint
    from .model.configuration_msclap import (
        MSClapAudioConfig,
        MSClapAudioTasksConfig,
        MSClapCaptioningConfig,
        MSClapConfig,
    )
    from .model.feature_extraction_msclap import MSClapFeatureExtractor
    from .model.modeling_msclap import MSClapForAudioClassification, MSClapModel, MSClapOutput
    from .model.modeling_msclap_captioning import MSClapForAudioCaptioning, MSClapForAudioTasks
    from .model.processing_msclap import MSClapProcessor
    from .pipeline import MSClapZeroShotAudioClassificationPipeline
    from .pipeline_captioning import MSClapAudioCaptioningPipeline
    from .search import SoundCollection

__version__ = "0.1.0"

__all__ = [
    "Audio",
    "AudioDecodeError",
    "EmbeddedFiles",
    "MSClapAudioCaptioningPipeline",
    "MSClapAudioConfig",
    "MSClapAudioTasksConfig",
    "MSClapCaptioningConfig",
    "MSClapConfig",
    "MSClapFeatureExtractor",
    "MSClapForAudioCaptioning",
    "MSClapForAudioClassification",
    "MSClapForAudioTasks",
    "MSClapModel",
    "MSClapOutput",
    "MSClapProcessor",
    "MSClapZeroShotAudioClassificationPipeline",
    "SoundCollection",
    "audio_files",
    "embed_files",
    "embedded_checkpoint",
    "load_audio",
    "load_clapcap_checkpoint",
    "load_msclap_checkpoint",
]

_MODULES = {
    "audio": ("Audio", "AudioDecodeError", "audio_files", "load_audio"),
    "bulk": ("EmbeddedFiles", "embed_files"),
    "checkpoints": ("load_clapcap_checkpoint", "load_msclap_checkpoint"),
    "embedded": ("embedded_checkpoint",),
    "model.configuration_msclap": (
        "MSClapAudioConfig",
        "MSClapAudioTasksConfig",
        "MSClapCaptioningConfig",
        "MSClapConfig",
    ),
    "model.feature_extraction_msclap": ("MSClapFeatureExtractor",),
    "model.modeling_msclap": ("MSClapForAudioClassification", "MSClapModel", "MSClapOutput"),
    "model.modeling_msclap_captioning": ("MSClapForAudioCaptioning", "MSClapForAudioTasks"),
    "model.processing_msclap": ("MSClapProcessor",),
    "pipeline": ("MSClapZeroShotAudioClassificationPipeline",),
    "pipeline_captioning": ("MSClapAudioCaptioningPipeline",),
    "search": ("SoundCollection",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value  # the next time it is simply there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
