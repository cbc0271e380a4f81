"""Microsoft CLAP in the Hugging Face ecosystem.

Importing this package makes `AutoModel`, `AutoProcessor`, `AutoFeatureExtractor` and
`AutoModelForAudioClassification` know CLAP checkpoints, and survives a torchaudio that is absent or broken.

Names are imported when they are first used, and the models are registered when transformers' Auto classes are first
imported: importing the package costs next to nothing, and imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from . import registration  # noqa: F401

if TYPE_CHECKING:
    from .audio import Audio, AudioDecodeError, AudioReader, audio_files, load_audio, open_audio
    from .data.collator import MSClapDataCollator
    from .embedder import ClapEmbedder
    from .embedding import EmbeddedFiles, embed_files
    from .fast_cpu import optimize_for_cpu, restore_from_cpu
    from .model.configuration_msclap import (
        MSClapAudioConfig,
        MSClapCaptioningConfig,
        MSClapConditionalGenerationConfig,
        MSClapConfig,
    )
    from .model.feature_extraction_msclap import MSClapFeatureExtractor
    from .model.modeling_msclap import (
        MSClapAudioModel,
        MSClapForAudioClassification,
        MSClapModel,
        MSClapOutput,
        MSClapTextModel,
    )
    from .model.modeling_msclap_captioning import MSClapForAudioCaptioning, MSClapForConditionalGeneration
    from .model.processing_msclap import MSClapProcessor
    from .msclap_weights import load_clapcap_checkpoint, load_msclap_checkpoint
    from .pipelines.captioning import MSClapAudioCaptioningPipeline
    from .pipelines.zero_shot import MSClapZeroShotAudioClassificationPipeline
    from .pretrained import embedded_checkpoint
    from .search import SoundCollection

__version__ = "0.1.0"

__all__ = [
    "Audio",
    "AudioDecodeError",
    "AudioReader",
    "ClapEmbedder",
    "EmbeddedFiles",
    "MSClapAudioCaptioningPipeline",
    "MSClapAudioConfig",
    "MSClapAudioModel",
    "MSClapCaptioningConfig",
    "MSClapConditionalGenerationConfig",
    "MSClapConfig",
    "MSClapDataCollator",
    "MSClapFeatureExtractor",
    "MSClapForAudioCaptioning",
    "MSClapForAudioClassification",
    "MSClapForConditionalGeneration",
    "MSClapModel",
    "MSClapOutput",
    "MSClapProcessor",
    "MSClapTextModel",
    "MSClapZeroShotAudioClassificationPipeline",
    "SoundCollection",
    "audio_files",
    "embed_files",
    "embedded_checkpoint",
    "load_audio",
    "load_clapcap_checkpoint",
    "load_msclap_checkpoint",
    "open_audio",
    "optimize_for_cpu",
    "restore_from_cpu",
]

_MODULES = {
    "audio": (
        "Audio",
        "AudioDecodeError",
        "AudioReader",
        "audio_files",
        "load_audio",
        "open_audio",
    ),
    "data.collator": ("MSClapDataCollator",),
    "embedder": ("ClapEmbedder",),
    "embedding": (
        "EmbeddedFiles",
        "embed_files",
    ),
    "fast_cpu": (
        "optimize_for_cpu",
        "restore_from_cpu",
    ),
    "model.configuration_msclap": (
        "MSClapAudioConfig",
        "MSClapCaptioningConfig",
        "MSClapConditionalGenerationConfig",
        "MSClapConfig",
    ),
    "model.feature_extraction_msclap": ("MSClapFeatureExtractor",),
    "model.modeling_msclap": (
        "MSClapAudioModel",
        "MSClapForAudioClassification",
        "MSClapModel",
        "MSClapOutput",
        "MSClapTextModel",
    ),
    "model.modeling_msclap_captioning": (
        "MSClapForAudioCaptioning",
        "MSClapForConditionalGeneration",
    ),
    "model.processing_msclap": ("MSClapProcessor",),
    "msclap_weights": (
        "load_clapcap_checkpoint",
        "load_msclap_checkpoint",
    ),
    "pipelines.captioning": ("MSClapAudioCaptioningPipeline",),
    "pipelines.zero_shot": ("MSClapZeroShotAudioClassificationPipeline",),
    "pretrained": ("embedded_checkpoint",),
    "search": ("SoundCollection",),
}
# transformers' audio modules import torchaudio whenever it is installed, working or not: the guard comes before them.
for _name in ("torch", "transformers"):
    when_imported(_name)(lambda _: import_module("._torchaudio", __name__))
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value  # the next time it is simply there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
