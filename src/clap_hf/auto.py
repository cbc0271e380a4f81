"""Registration with transformers' Auto classes, and the marks that make saved folders carry their code."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoProcessor,
)

from .model.configuration_msclap import MSClapAudioConfig, MSClapConfig
from .model.feature_extraction_msclap import MSClapFeatureExtractor
from .model.modeling_msclap import MSClapForAudioClassification, MSClapModel
from .model.processing_msclap import MSClapProcessor

# By the name that `config.json` gives as the architecture.
MODEL_CLASSES = {cls.__name__: cls for cls in (MSClapModel, MSClapForAudioClassification)}


def register_auto_classes() -> None:
    """Make transformers' Auto classes and pipelines find CLAP by its `model_type`.

    Classes also learn which Auto class they belong to: `save_pretrained` and `push_to_hub` then write the model code
    and an `auto_map` beside the weights, so that `trust_remote_code=True` loads them without this package.
    """
    AutoConfig.register("msclap_audio", MSClapAudioConfig, exist_ok=True)
    AutoConfig.register("msclap", MSClapConfig, exist_ok=True)
    AutoModel.register(MSClapConfig, MSClapModel, exist_ok=True)
    AutoModelForAudioClassification.register(MSClapConfig, MSClapForAudioClassification, exist_ok=True)
    AutoFeatureExtractor.register(MSClapConfig, MSClapFeatureExtractor, exist_ok=True)
    AutoProcessor.register(MSClapConfig, MSClapProcessor, exist_ok=True)

    MSClapConfig.register_for_auto_class()
    MSClapModel.register_for_auto_class("AutoModel")
    MSClapForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
    MSClapFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
    MSClapProcessor.register_for_auto_class("AutoProcessor")
