"""Classification losses, and training with transformers' own Trainer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForAudioClassification, Trainer, TrainingArguments

from clap_hf import MSClapForAudioClassification
from conftest import make_config, make_feature_extractor, make_model, sound


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_classification_losses(problem, batch):
    torch.manual_seed(0)
    num_labels = 1 if problem == "regression" else 5
    model = MSClapForAudioClassification(make_config(num_labels=num_labels, problem_type=problem)).eval()
    inputs = {name: batch[name] for name in ("input_features", "num_windows")}
    labels = {
        "single_label_classification": torch.tensor([1, 0, 4]),
        "multi_label_classification": torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]),
        "regression": torch.tensor([0.5, 2.0, -1.0]),
    }[problem]
    out = model(**inputs, labels=labels)
    by_hand = {
        "single_label_classification": lambda: F.cross_entropy(out.logits, labels),
        "multi_label_classification": lambda: F.binary_cross_entropy_with_logits(out.logits, labels),
        "regression": lambda: F.mse_loss(out.logits.squeeze(), labels),
    }[problem]()
    torch.testing.assert_close(out.loss, by_hand)
    out.loss.backward()
    assert model.audio_model.patch_embed.weight.grad.abs().sum() > 0


def trainer_arguments(folder):
    return TrainingArguments(
        folder,
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def test_stock_trainer_fine_tunes_a_classifier(tmp_path, checkpoint):
    extract = make_feature_extractor()
    rows = [
        {"input_features": extract(sound(1.0, seed=i), 16_000)["input_features"][0], "labels": i % 3} for i in range(4)
    ]
    model = AutoModelForAudioClassification.from_pretrained(checkpoint, num_labels=3)
    before = model.classifier.weight.detach().clone()
    trainer = Trainer(model, trainer_arguments(tmp_path), train_dataset=rows, eval_dataset=rows)
    assert np.isfinite(trainer.train().training_loss)
    assert not torch.equal(model.classifier.weight, before)
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_stock_trainer_trains_the_dual_encoder(tmp_path, processor):
    def collate(rows):
        inputs = processor(text=[row["text"] for row in rows], audio=[row["audio"] for row in rows])
        return {**inputs, "return_loss": True}

    rows = [
        {"text": text, "audio": {"array": sound(0.8, seed=i), "sampling_rate": 16_000}}
        for i, text in enumerate(["a dog", "rain falls", "a bell rings twice", "someone laughs"])
    ]
    model = make_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(model, trainer_arguments(tmp_path), train_dataset=rows, eval_dataset=rows, data_collator=collate)
    assert np.isfinite(trainer.train().training_loss)
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []
    # Clips alone decide how many rows there are, so Trainer can neither gather logits nor guess labels.
    trainer.args.prediction_loss_only = True
    assert np.isfinite(trainer.evaluate()["eval_loss"])
