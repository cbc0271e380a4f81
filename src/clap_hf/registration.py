"""Tells transformers' Auto classes and pipelines of CLAP, when they are first imported, and without importing a model.

Everything here hangs on modules as they finish loading (`wrapt.when_imported`, at once where they already have):
transformers' modelling modules take seconds to import, and a program may never come to use them. A model stands in
its auto class by a `Deferred` until somebody asks for it. It cannot be imported by the hook itself: transformers'
modelling modules import the auto classes in mid-file, when ours could not yet import theirs.

Classes also learn which Auto class they belong to: `save_pretrained` and `push_to_hub` then write the model code and
an `auto_map` beside the weights, so that `trust_remote_code=True` loads them without this package.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from wrapt import when_imported

MODEL = f"{__package__}.model"


class Deferred:
    """A model class that is imported when any of its attributes is first asked for.

    Args:
        config_class: Its configuration class, which transformers compares at registration.
        module: Name of its module.
        name: Its name.
    """

    def __init__(self, config_class: type, module: str, name: str):
        self.config_class = config_class
        self._home = (module, name)

    def __getattr__(self, attribute: str) -> Any:
        module, name = self._home
        return getattr(getattr(import_module(module), name), attribute)


@when_imported("transformers.models.auto.configuration_auto")
def _load_configurations(_: ModuleType) -> None:
    # By import alone: it may be under way, having asked for AutoConfig. The configurations register themselves.
    import_module(f"{MODEL}.configuration_msclap")


@when_imported(f"{MODEL}.configuration_msclap")
def _mark_configurations(module: ModuleType) -> None:
    for config in (module.MSClapConfig, module.MSClapCaptioningConfig, module.MSClapAudioTasksConfig):
        config.register_for_auto_class()


@when_imported("transformers.models.auto.modeling_auto")
def _register_models(auto: ModuleType) -> None:
    from .model.configuration_msclap import MSClapAudioTasksConfig, MSClapCaptioningConfig, MSClapConfig

    for auto_class, config, module, name in (
        (auto.AutoModel, MSClapConfig, "modeling_msclap", "MSClapModel"),
        (auto.AutoModelForAudioClassification, MSClapConfig, "modeling_msclap", "MSClapForAudioClassification"),
        (
            auto.AutoModelForMultimodalLM,
            MSClapCaptioningConfig,
            "modeling_msclap_captioning",
            "MSClapForAudioCaptioning",
        ),
        (auto.AutoModelForMultimodalLM, MSClapAudioTasksConfig, "modeling_msclap_captioning", "MSClapForAudioTasks"),
    ):
        auto_class.register(config, Deferred(config, f"{MODEL}.{module}", name), exist_ok=True)


@when_imported(f"{MODEL}.modeling_msclap")
def _mark_models(module: ModuleType) -> None:
    from transformers import AutoModel, AutoModelForAudioClassification

    for auto_class, model in (
        (AutoModel, module.MSClapModel),
        (AutoModelForAudioClassification, module.MSClapForAudioClassification),
    ):
        auto_class.register(module.MSClapConfig, model, exist_ok=True)
        model.register_for_auto_class(auto_class.__name__)


@when_imported(f"{MODEL}.modeling_msclap_captioning")
def _mark_captioners(module: ModuleType) -> None:
    from transformers import AutoModelForMultimodalLM

    for config, model in (
        (module.MSClapCaptioningConfig, module.MSClapForAudioCaptioning),
        (module.MSClapAudioTasksConfig, module.MSClapForAudioTasks),
    ):
        AutoModelForMultimodalLM.register(config, model, exist_ok=True)
        model.register_for_auto_class("AutoModelForMultimodalLM")


def _register_for_every_model(auto_class: Any, preparer: type) -> None:
    """What prepares inputs is the same for all models."""
    from .model.configuration_msclap import MSClapAudioTasksConfig, MSClapCaptioningConfig, MSClapConfig

    for config in (MSClapConfig, MSClapCaptioningConfig, MSClapAudioTasksConfig):
        auto_class.register(config, preparer, exist_ok=True)


@when_imported("transformers.models.auto.feature_extraction_auto")
def _register_feature_extractor(auto: ModuleType) -> None:
    from .model.feature_extraction_msclap import MSClapFeatureExtractor

    _register_for_every_model(auto.AutoFeatureExtractor, MSClapFeatureExtractor)


@when_imported(f"{MODEL}.feature_extraction_msclap")
def _mark_feature_extractor(module: ModuleType) -> None:
    module.MSClapFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")


@when_imported("transformers.models.auto.processing_auto")
def _register_processor(auto: ModuleType) -> None:
    from .model.processing_msclap import MSClapProcessor

    _register_for_every_model(auto.AutoProcessor, MSClapProcessor)


@when_imported(f"{MODEL}.processing_msclap")
def _mark_processor(module: ModuleType) -> None:
    module.MSClapProcessor.register_for_auto_class("AutoProcessor")


@when_imported("transformers.pipelines")
def _load_pipeline(_: ModuleType) -> None:
    # By import alone: it may be under way, having asked for Pipeline.
    import_module(f"{__package__}.pipeline_captioning")


@when_imported(f"{__package__}.pipeline_captioning")
def _register_pipeline(module: ModuleType) -> None:
    from transformers import AutoModelForMultimodalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    if module.TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        pipeline = module.MSClapAudioCaptioningPipeline
        PIPELINE_REGISTRY.register_pipeline(
            module.TASK, pipeline, pt_model=AutoModelForMultimodalLM, type="multimodal"
        )
