"""sentence-transformers on a saved folder: kinds of sound, and gradient caching over clips of several windows."""

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    util,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from conftest import make_model, sound

RATE = 16_000
SECONDS = (0.7, 2.6, 1.0, 1.6)  # of 1, 3, 1 and 2 windows


@pytest.fixture
def theirs(checkpoint):
    return SentenceTransformer(str(checkpoint), device="cpu")


def test_files_are_sounds(theirs, processor, tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(len(SECONDS))]
    for i, path in enumerate(paths):
        soundfile.write(path, sound(SECONDS[i], seed=i), RATE, subtype="FLOAT")
    with torch.no_grad():
        clips = [{"array": sound(s, seed=i), "sampling_rate": RATE} for i, s in enumerate(SECONDS)]
        expected = make_model().get_audio_features(**processor(audio=clips)).pooler_output.numpy()
    for forms in ([str(path) for path in paths], [{"audio": str(path)} for path in paths]):
        np.testing.assert_allclose(theirs.encode(forms), expected, atol=1e-5)


def test_cached_loss_is_the_loss_on_clips_of_several_windows(theirs):
    clips = [{"array": sound(s, seed=i), "sampling_rate": RATE} for i, s in enumerate(SECONDS)]
    texts = ["dog", "rain falls on a roof", "a bell", "wind"]
    features = [theirs.preprocess(clips), theirs.preprocess(texts)]
    features = [util.batch_to_device(part, theirs.device) for part in features]
    theirs.eval()  # without dropout both see the same
    whole = MultipleNegativesRankingLoss(theirs)(features, None)
    parts = CachedMultipleNegativesRankingLoss(theirs, mini_batch_size=1)(features, None)
    torch.testing.assert_close(parts, whole)


@pytest.mark.slow
def test_training_with_gradient_caching(theirs, tmp_path):
    data = Dataset.from_dict(
        {
            "audio": [{"array": sound(s, seed=i).tolist(), "sampling_rate": RATE} for i, s in enumerate(SECONDS)],
            "text": ["dog", "rain falls on a roof", "a bell", "wind"],
        }
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    loss = CachedMultipleNegativesRankingLoss(theirs, mini_batch_size=2)
    before = theirs[0].auto_model.audio_projection.linear1.weight.clone()
    SentenceTransformerTrainer(model=theirs, args=arguments, train_dataset=data, loss=loss).train()
    assert not torch.equal(before, theirs[0].auto_model.audio_projection.linear1.weight)
