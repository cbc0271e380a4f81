"""transformers' common tests of processors and feature extractors."""

import unittest

import numpy as np
import pytest
import upstream  # noqa: F401
from transformers_tests.test_processing_common import ProcessorTesterMixin
from transformers_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

from clap_hf import MSClapFeatureExtractor, MSClapProcessor
from clap_hf.tokenization import sentence_tokenizer
from conftest import GPT2_TOKENIZER, make_config, make_feature_extractor

pytestmark = pytest.mark.slow


class FeatureExtractionTester:
    """Settings and inputs for `SequenceFeatureExtractionTestMixin`, which pads sequences of feature vectors."""

    batch_size = 3
    feature_size = 32
    min_seq_length = 400
    max_seq_length = 2000
    seq_length_diff = 800

    def prepare_feat_extract_dict(self):
        return {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 1.0, "n_fft": 512, "hop_length": 80}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        rng = np.random.default_rng(0)
        inputs = [
            rng.normal(size=(self.max_seq_length if equal_length else length, self.feature_size)).astype(np.float32)
            for length in [*lengths, self.max_seq_length][: self.batch_size]
        ]
        return inputs if numpify else [values.tolist() for values in inputs]


class FeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = MSClapFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractionTester()


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MSClapProcessor
    audio_text_kwargs_max_length = 60  # up to 77 tokens, which the tokenizer's own settings do not exceed

    @classmethod
    def setUpClass(cls):
        # Saved without code: the `auto_map` of a reloaded processor is not in the first one's settings.
        cls.auto_classes = MSClapProcessor._auto_class, MSClapFeatureExtractor._auto_class
        MSClapProcessor._auto_class = MSClapFeatureExtractor._auto_class = None
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        MSClapProcessor._auto_class, MSClapFeatureExtractor._auto_class = cls.auto_classes

    def prepare_audio_inputs(self, batch_size=None):
        """Clips with their rate, which is never guessed."""
        clips = super().prepare_audio_inputs(batch_size)
        return [{"array": clip, "sampling_rate": 16_000} for clip in clips]

    @classmethod
    def _setup_tokenizer(cls):
        return sentence_tokenizer(GPT2_TOKENIZER, make_config().text_config, max_length=77)

    @classmethod
    def _setup_feature_extractor(cls):
        return make_feature_extractor()
