"""Microsoft CLAP in the Hugging Face ecosystem.

Importing this package makes `AutoModel`, `AutoProcessor`, `AutoFeatureExtractor` and
`AutoModelForAudioClassification` know CLAP checkpoints, and survives a torchaudio that is absent or broken.
"""

# First: transformers' audio modules import torchaudio whenever it is installed, working or not.
from . import _torchaudio  # noqa: F401, I001
from .audio import Audio, AudioDecodeError, audio_files, load_audio
from .auto import register_auto_classes
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
from .pipeline import MSClapZeroShotAudioClassificationPipeline
from .pipeline_captioning import MSClapAudioCaptioningPipeline
from .model.processing_msclap import MSClapProcessor
from .checkpoints import load_clapcap_checkpoint, load_msclap_checkpoint

register_auto_classes()

__version__ = "0.1.0"

__all__ = [
    "Audio",
    "AudioDecodeError",
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
    "audio_files",
    "embedded_checkpoint",
    "load_audio",
    "load_clapcap_checkpoint",
    "load_msclap_checkpoint",
]
