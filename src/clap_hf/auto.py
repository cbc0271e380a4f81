"""The model classes by name."""

from .model.modeling_msclap import MSClapForAudioClassification, MSClapModel
from .model.modeling_msclap_captioning import MSClapForAudioCaptioning, MSClapForConditionalGeneration

# By the name that `config.json` gives as the architecture.
MODEL_CLASSES = {
    cls.__name__: cls
    for cls in (MSClapModel, MSClapForAudioClassification, MSClapForAudioCaptioning, MSClapForConditionalGeneration)
}
