"""Registers CLAP with transformers' Auto classes and pipelines when these are first imported.

`wrapt.when_imported` runs a hook as a module finishes loading, or at once where it already has: importing this package
imports no model. An Auto class holds a `Deferred` until then, since transformers' modelling modules import the Auto
classes in mid-file, when ours could not import theirs yet. Every class also learns its Auto class, so that
`save_pretrained` writes the code and an `auto_map` for `trust_remote_code=True`.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from wrapt import when_imported

MODEL = f"{__package__}.model"
AUTO = "transformers.models.auto"
CONFIGS = ("MSClapConfig", "MSClapCaptioningConfig", "MSClapConditionalGenerationConfig")
# Module and name of an Auto class; module, name and configurations of ours.
CLASSES = (
    ("modeling_auto", "AutoModel", "modeling_msclap", "MSClapModel", CONFIGS[:1]),
    (
        *("modeling_auto", "AutoModelForAudioClassification"),
        *("modeling_msclap", "MSClapForAudioClassification", CONFIGS[:1]),
    ),
    (
        *("modeling_auto", "AutoModelForMultimodalLM"),
        *("modeling_msclap_captioning", "MSClapForAudioCaptioning", CONFIGS[1:2]),
    ),
    (
        *("modeling_auto", "AutoModelForMultimodalLM"),
        *("modeling_msclap_captioning", "MSClapForConditionalGeneration", CONFIGS[2:]),
    ),
    (
        *("feature_extraction_auto", "AutoFeatureExtractor"),
        *("feature_extraction_msclap", "MSClapFeatureExtractor", CONFIGS),
    ),
    ("processing_auto", "AutoProcessor", "processing_msclap", "MSClapProcessor", CONFIGS),
)


class Deferred:
    """A class that is imported when any of its attributes is first asked for; `config_class` is known before."""

    def __init__(self, config_class: type, module: str, name: str):
        self.config_class = config_class
        self._home = (module, name)

    def __getattr__(self, attribute: str) -> Any:
        module, name = self._home
        return getattr(getattr(import_module(module), name), attribute)


def _register(auto_class: str, module: str, name: str, configs: tuple[str, ...], auto: ModuleType) -> None:
    """Hook of an Auto class' module: register our class for its configurations, without importing it."""
    ours = import_module(f"{MODEL}.configuration_msclap")
    for config in (getattr(ours, config) for config in configs):
        getattr(auto, auto_class).register(config, Deferred(config, f"{MODEL}.{module}", name), exist_ok=True)


def _mark(auto_module: str, auto_class: str, name: str, configs: tuple[str, ...], module: ModuleType) -> None:
    """Hook of our class' module: replace the `Deferred`, and tell the class where it belongs."""
    auto, ours = import_module(f"{AUTO}.{auto_module}"), import_module(f"{MODEL}.configuration_msclap")
    cls = getattr(module, name)
    cls.register_for_auto_class(auto_class)
    for config in configs:
        getattr(auto, auto_class).register(getattr(ours, config), cls, exist_ok=True)


def _mark_configs(module: ModuleType) -> None:
    for config in CONFIGS:
        getattr(module, config).register_for_auto_class()


def _register_pipeline(module: ModuleType) -> None:
    from transformers import AutoModelForMultimodalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    if module.TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        cls = module.MSClapAudioCaptioningPipeline
        PIPELINE_REGISTRY.register_pipeline(module.TASK, cls, pt_model=AutoModelForMultimodalLM, type="multimodal")


def _import(name: str, _: ModuleType) -> None:
    """Hook that imports a module of ours, which may be under way, having asked for the hooked one."""
    import_module(name)


when_imported(f"{AUTO}.configuration_auto")(partial(_import, f"{MODEL}.configuration_msclap"))
when_imported(f"{MODEL}.configuration_msclap")(_mark_configs)
for auto_module, auto_class, own_module, name, configs in CLASSES:
    when_imported(f"{AUTO}.{auto_module}")(partial(_register, auto_class, own_module, name, configs))
    when_imported(f"{MODEL}.{own_module}")(partial(_mark, auto_module, auto_class, name, configs))
# By way of the module that it stands on, which may have asked for the pipelines itself, and be half imported.
when_imported("transformers.pipelines")(partial(_import, f"{MODEL}.pipeline_msclap"))
when_imported(f"{MODEL}.pipeline_msclap")(partial(_import, f"{__package__}.pipelines.captioning"))
when_imported(f"{__package__}.pipelines.captioning")(_register_pipeline)
