"""transformers' common tests of models on every model class."""

import unittest

import pytest
import torch
import upstream  # noqa: F401
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

from clap_hf import (
    MSClapAudioConfig,
    MSClapCaptioningConfig,
    MSClapConditionalGenerationConfig,
    MSClapConfig,
    MSClapForAudioCaptioning,
    MSClapForAudioClassification,
    MSClapForConditionalGeneration,
    MSClapModel,
)
from clap_hf.model.modeling_msclap_cnn14 import MSClapCnn14Model
from clap_hf.model.modeling_msclap_htsat import MSClapHtsatModel

pytestmark = pytest.mark.slow

HTSAT = {
    "num_mel_bins": 16,
    "num_frames": 64,
    "num_time_chunks": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "spec_augment": False,
}
CNN14 = {
    "architecture": "cnn14",
    "num_mel_bins": 16,
    "conv_channels": [4, 8],
    "hidden_size": 12,
    "conv_dropout": 0.0,
    "head_dropout": 0.0,
    "spec_augment": False,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 99,
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 98,
    "eos_token_id": 98,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
FRAMES, MEL = 40, 16


class AudioTester:
    """Configurations and inputs of an audio tower."""

    batch_size = 3
    seq_length = 64  # tokens of HTSAT's first stage: 2 * 16 / 4 rows of 64 / 2 / 4 columns
    num_hidden_layers = 2
    hidden_size = 8
    num_attention_heads = 2
    is_training = False

    def __init__(self, parent, audio=HTSAT):
        self.parent = parent
        self.audio = audio

    def get_config(self):
        return MSClapAudioConfig(**self.audio)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"input_features": floats_tensor([self.batch_size, 1, FRAMES, MEL])}


class ClassifierTester(AudioTester):
    is_training = True

    def get_config(self):
        return MSClapConfig(text_config=GPT2, audio_config=self.audio, projection_dim=16, num_labels=3)


class DualEncoderTester(AudioTester):
    is_training = True
    seq_length = 7
    text_model_tester = None

    def get_config(self):
        return MSClapConfig(text_config=GPT2, audio_config=self.audio, projection_dim=16, projection_dropout=0.0)

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"] = ids_tensor([self.batch_size, self.seq_length], 90)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["return_loss"] = True
        return config, inputs


MAPPER = {
    "projection_dim": 16,
    "projection_dropout": 0.0,
    "prefix_length": 4,
    "mapper_input_length": 4,
    "mapper_num_layers": 1,
    "mapper_num_heads": 4,
}


class CaptionerTester(AudioTester):
    is_training = True
    seq_length = 7
    config_class = MSClapCaptioningConfig

    def get_config(self):
        return self.config_class(text_config=GPT2, audio_config=self.audio, **MAPPER)

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"] = ids_tensor([self.batch_size, self.seq_length], 90)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return config, inputs


class PromptModelTester(CaptionerTester):
    config_class = MSClapConditionalGenerationConfig

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["prompt_ids"] = ids_tensor([self.batch_size, 5], 90)
        return config, inputs


class HtsatTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapHtsatModel,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = AudioTester(self)
        self.config_tester = ConfigTester(self, MSClapAudioConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()


class Cnn14Test(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapCnn14Model,)
    test_resize_embeddings = False
    has_attentions = False

    def setUp(self):
        self.model_tester = AudioTester(self, CNN14)
        self.config_tester = ConfigTester(
            self, MSClapAudioConfig, has_text_modality=False, common_properties=[], architecture="cnn14"
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class AudioClassificationTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapForAudioClassification,)
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = ClassifierTester(self)


class DualEncoderTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapModel,)
    test_resize_embeddings = False
    _is_composite = True

    def setUp(self):
        self.model_tester = DualEncoderTester(self)
        self.config_tester = ConfigTester(self, MSClapConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()


class CaptionerTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapForAudioCaptioning,)
    _is_composite = True

    def setUp(self):
        self.model_tester = CaptionerTester(self)
        self.config_tester = ConfigTester(self, MSClapCaptioningConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()


class PromptModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapForConditionalGeneration,)
    _is_composite = True

    def setUp(self):
        self.model_tester = PromptModelTester(self)
        self.config_tester = ConfigTester(
            self, MSClapConditionalGenerationConfig, has_text_modality=False, common_properties=[]
        )

    def test_config(self):
        self.config_tester.run_common_tests()
