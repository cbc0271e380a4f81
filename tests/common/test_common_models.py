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
    MSClapAudioModel,
    MSClapCaptioningConfig,
    MSClapConditionalGenerationConfig,
    MSClapConfig,
    MSClapForAudioCaptioning,
    MSClapForAudioClassification,
    MSClapForConditionalGeneration,
    MSClapModel,
    MSClapTextModel,
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
BERT = {
    "model_type": "bert",
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
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
    hidden_size = 32
    num_attention_heads = 4
    text = GPT2

    def get_config(self):
        return MSClapConfig(text_config=self.text, audio_config=self.audio, projection_dim=16, projection_dropout=0.0)

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"] = ids_tensor([self.batch_size, self.seq_length], 90)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["return_loss"] = True
        return config, inputs


class TextTester(DualEncoderTester):
    is_training = False

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        return config, {name: inputs[name] for name in ("input_ids", "attention_mask")}


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
    encoder_seq_length = 11  # with the prefix
    hidden_size = 32
    num_attention_heads = 4
    config_class = MSClapCaptioningConfig
    freeze_audio = True

    def get_config(self):
        return self.config_class(text_config=GPT2, audio_config=self.audio, freeze_audio=self.freeze_audio, **MAPPER)

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"] = ids_tensor([self.batch_size, self.seq_length], 90)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return config, inputs


class PromptModelTester(CaptionerTester):
    encoder_seq_length = 15
    freeze_audio = False
    config_class = MSClapConditionalGenerationConfig

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["prompt_ids"] = ids_tensor([self.batch_size, 5], 60)  # also after the vocabulary was made smaller
        return config, inputs


class BatchLabels:
    """Labels for training, which the common tests make for transformers' own classes only."""

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            tester = self.model_tester
            shape = [tester.batch_size] if model_class is MSClapForAudioClassification else inputs["input_ids"].shape
            inputs["labels"] = torch.zeros(tuple(shape), dtype=torch.long)
        return inputs


class WindowAttention:
    """HTSAT's attention maps are of windows of 4 x 4 tokens, its states of all tokens."""

    def test_attention_outputs(self):
        self.model_tester.encoder_seq_length = 16
        super().test_attention_outputs()


class NoWords:
    """Models of audio alone."""

    test_resize_embeddings = False

    @unittest.skip(reason="audio has no word embeddings")
    def test_model_get_set_embeddings(self):
        pass


class HtsatTest(NoWords, WindowAttention, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapHtsatModel,)

    def setUp(self):
        self.model_tester = AudioTester(self)
        self.config_tester = ConfigTester(self, MSClapAudioConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()


class Cnn14Test(NoWords, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapCnn14Model,)
    has_attentions = False

    def setUp(self):
        self.model_tester = AudioTester(self, CNN14)
        self.config_tester = ConfigTester(
            self, MSClapAudioConfig, has_text_modality=False, common_properties=[], architecture="cnn14"
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_hidden_states_output(self):
        """States are images `[channels, frames, mel]`, not tokens."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        states = MSClapCnn14Model(config).eval()(**inputs, output_hidden_states=True).hidden_states
        self.assertEqual([tuple(state.shape[1:]) for state in states], [(1, 40, 16), (4, 20, 8), (8, 20, 8)])


class AudioModelTest(NoWords, WindowAttention, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapAudioModel,)
    test_missing_keys = False  # the test saves the tower by itself, whose configuration is another

    def setUp(self):
        self.model_tester = ClassifierTester(self)
        self.model_tester.is_training = False


class AudioClassificationTest(NoWords, WindowAttention, BatchLabels, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapForAudioClassification,)
    test_missing_keys = False  # the test saves the tower by itself, whose configuration is another

    def setUp(self):
        self.model_tester = ClassifierTester(self)


class TextModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapTextModel,)
    test_missing_keys = False  # the test saves the tower by itself, whose configuration is another
    test_resize_embeddings = False  # a text tower has the vocabulary of its tokenizer

    def setUp(self):
        self.model_tester = TextTester(self)

    def test_can_init_all_missing_weights(self):
        self.model_tester.text = BERT
        super().test_can_init_all_missing_weights()


class DualEncoderTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MSClapModel,)
    additional_model_inputs = ["input_features"]
    test_resize_embeddings = False  # a text tower has the vocabulary of its tokenizer
    has_attentions = False  # those of the towers are within their outputs
    _is_composite = True

    def setUp(self):
        self.model_tester = DualEncoderTester(self)
        self.config_tester = ConfigTester(self, MSClapConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_can_init_all_missing_weights(self):
        # transformers leaves the scaled initialisation of GPT-2's c_proj out in classes that are not its own.
        self.model_tester.text = BERT
        super().test_can_init_all_missing_weights()

    @unittest.skip(reason="hidden states are within the towers' outputs; the towers' tests look at them")
    def test_hidden_states_output(self):
        pass

    @unittest.skip(reason="hidden states are within the towers' outputs; the towers' tests look at them")
    def test_retain_grad_hidden_states_attentions(self):
        pass


class GenerativeTests(BatchLabels, ModelTesterMixin, GenerationTesterMixin):
    _is_composite = True
    test_missing_keys = False  # the test saves the language model by itself, whose configuration is another

    @unittest.skip(reason="transformers leaves the scaled c_proj of GPT-2 out in classes that are not its own")
    def test_can_init_all_missing_weights(self):
        pass


class CaptionerTest(GenerativeTests, unittest.TestCase):
    all_model_classes = (MSClapForAudioCaptioning,)
    additional_model_inputs = ["input_ids"]

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        self.model_tester.freeze_audio = False  # its first layer is looked at, and nothing frozen is checkpointed
        super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    def setUp(self):
        self.model_tester = CaptionerTester(self)
        self.config_tester = ConfigTester(self, MSClapCaptioningConfig, has_text_modality=False, common_properties=[])

    def test_config(self):
        self.config_tester.run_common_tests()


class PromptModelTest(GenerativeTests, unittest.TestCase):
    all_model_classes = (MSClapForConditionalGeneration,)
    additional_model_inputs = ["input_ids", "prompt_ids"]

    def setUp(self):
        self.model_tester = PromptModelTester(self)
        self.config_tester = ConfigTester(
            self, MSClapConditionalGenerationConfig, has_text_modality=False, common_properties=[]
        )

    def test_config(self):
        self.config_tester.run_common_tests()
