"""Registration with transformers' Auto classes and pipelines; marks that make saved folders carry their code."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_msclap import (
    MSClapAudioConfig,
    MSClapAudioTasksConfig,
    MSClapCaptioningConfig,
    MSClapConfig,
)
from .model.feature_extraction_msclap import MSClapFeatureExtractor
from .model.modeling_msclap import MSClapForAudioClassification, MSClapModel
from .model.modeling_msclap_captioning import MSClapForAudioCaptioning, MSClapForAudioTasks
from .model.processing_msclap import MSClapProcessor
from .pipeline_captioning import TASK, MSClapAudioCaptioningPipeline

# By the name that `config.json` gives as the architecture.
MODEL_CLASSES = {
    cls.__name__: cls
    for cls in (MSClapModel, MSClapForAudioClassification, MSClapForAudioCaptioning, MSClapForAudioTasks)
}


def register_auto_classes() -> None:
    """Make transformers' Auto classes and pipelines find CLAP by its `model_type`.

    Classes also learn which Auto class they belong to: `save_pretrained` and `push_to_hub` then write the model code
    and an `auto_map` beside the weights, so that `trust_remote_code=True` loads them without this package.
    """
    AutoConfig.register("msclap_audio", MSClapAudioConfig, exist_ok=True)
    AutoConfig.register("msclap", MSClapConfig, exist_ok=True)
    AutoConfig.register("msclap_captioning", MSClapCaptioningConfig, exist_ok=True)
    AutoConfig.register("msclap_audio_tasks", MSClapAudioTasksConfig, exist_ok=True)
    AutoModel.register(MSClapConfig, MSClapModel, exist_ok=True)
    AutoModelForAudioClassification.register(MSClapConfig, MSClapForAudioClassification, exist_ok=True)
    AutoModelForMultimodalLM.register(MSClapCaptioningConfig, MSClapForAudioCaptioning, exist_ok=True)
    AutoModelForMultimodalLM.register(MSClapAudioTasksConfig, MSClapForAudioTasks, exist_ok=True)
    for config in (MSClapConfig, MSClapCaptioningConfig, MSClapAudioTasksConfig):
        AutoFeatureExtractor.register(config, MSClapFeatureExtractor, exist_ok=True)
        AutoProcessor.register(config, MSClapProcessor, exist_ok=True)
        config.register_for_auto_class()

    MSClapModel.register_for_auto_class("AutoModel")
    MSClapForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
    MSClapForAudioCaptioning.register_for_auto_class("AutoModelForMultimodalLM")
    MSClapForAudioTasks.register_for_auto_class("AutoModelForMultimodalLM")
    MSClapFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
    MSClapProcessor.register_for_auto_class("AutoProcessor")

    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, MSClapAudioCaptioningPipeline, pt_model=AutoModelForMultimodalLM, type="multimodal"
        )
