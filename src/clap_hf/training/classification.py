"""The classification stage (paper Section 4.2, ESC-50): a cross-validated probe, or fine-tuning of the whole tower."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from ..atomic_io import replace_folder, write_json
from ..audio import AudioDecodeError, load_stored_audio
from ..data.collator import MSClapDataCollator
from ..data.splits import load_split
from ..evaluation.scoring import bootstrap_interval
from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from ..model.modeling_msclap import MSClapForAudioClassification
from ..pretrained import check_finite, checkpoint_path
from ..text_files import read_json
from .recipe import ClassificationRecipe

try:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
except ImportError as error:
    raise ImportError("The classification stage needs scikit-learn: pip install 'clap-hf[train]'.") from error


class _Clips(Dataset):
    """Log-mel windows and labels; a random window of long clips while training, all of them otherwise."""

    def __init__(
        self,
        audio: datasets.Dataset,
        rows: Sequence[int],
        labels: np.ndarray,
        extractor: MSClapFeatureExtractor,
        training: bool,
    ):
        self.audio, self.rows, self.labels = audio, rows, labels
        self.extractor, self.training = extractor, training

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        sound = load_stored_audio(self.audio[row]["audio"])
        # The default generator: the loader seeds it in every worker, the Trainer in the main process.
        options: dict[str, Any] = (
            {"long_audio": "random", "generator": torch.default_generator} if self.training else {}
        )
        features = self.extractor([sound.samples], sound.sampling_rate, **options)
        return {**features, "labels": int(self.labels[row])}


def cross_validate(
    recipe: ClassificationRecipe, output_dir: Path, *, num_workers: int = 0, device: str | None = None
) -> dict[str, Any]:
    """Train a classifier on all folds but one and measure it on that one, for every fold.

    Args:
        recipe: The recipe.
        output_dir: Gets `fold-N/` (model, processor, `result.json`) and `result.json`; finished folds are kept.
        num_workers: Loader processes, for an unfrozen tower.
        device: Where a frozen tower runs; the Trainer chooses its own.

    Returns:
        `accuracy` (mean over folds), `std`, `pooled` accuracy of all clips with its 95 % interval, and the `folds`.

    Raises:
        ValueError: If a column is missing, there are fewer than two folds or classes, or an option has no effect.
    """
    recipe.validate()
    if device is not None and not recipe.frozen:
        raise ValueError(f"device is {device!r}, which has no effect with frozen: false. Leave it out.")
    checkpoint = checkpoint_path(recipe.model)
    data = load_split(recipe.dataset, recipe.split)
    wanted = ["audio", recipe.label, *([recipe.fold] if recipe.fold else [])]
    missing = [name for name in wanted if name not in data.column_names]
    if missing:
        raise ValueError(
            f"{recipe.dataset} has columns {data.column_names}, but not {missing}. Name them in the recipe."
        )
    names, labels = _classes(data, recipe.label)
    extractor = MSClapFeatureExtractor.from_pretrained(checkpoint)
    audio = data.select_columns(["audio"]).cast_column("audio", datasets.Audio(decode=False))
    usable, skipped = _usable(audio)
    fold_of = _folds(recipe, data, labels, usable)
    vectors = _tower_outputs(checkpoint, extractor, audio, usable, device) if recipe.frozen else None
    console = Console(stderr=True)
    results = []
    for fold in sorted(set(fold_of.values())):
        folder = output_dir / f"fold-{fold}"
        description = {"settings": recipe.to_dict(), "fold": fold, "fingerprint": data._fingerprint}
        result = _finished(folder, description)
        if result is None:
            test = [row for row in usable if fold_of[row] == fold]
            train = [row for row in usable if fold_of[row] != fold]
            torch.manual_seed(recipe.seed)  # the new head's weights
            model = MSClapForAudioClassification.from_pretrained(
                checkpoint, dtype=torch.float32, num_labels=len(names), id2label=dict(enumerate(names)),
                label2id={name: i for i, name in enumerate(names)},
            )  # fmt: skip
            if vectors is not None:
                predicted = _probe(model, vectors, labels, train=train, test=test, seed=recipe.seed)
            else:
                predicted = _fine_tune(
                    model,
                    recipe,
                    extractor,
                    audio,
                    labels,
                    train=train,
                    test=test,
                    output_dir=output_dir,
                    num_workers=num_workers,
                )
            check_finite(model, f"fold {fold} after its training")
            hits = (predicted == labels[test]).astype(int)
            result = {**description, "accuracy": float(hits.mean()), "clips": len(test), "hits": hits.tolist()}
            replace_folder(folder, partial(_save, model=model, extractor=extractor, result=result))
        console.print(f"fold {fold}: {result['accuracy']:.1%} of {result['clips']} clips")
        results.append(result)
    accuracies = np.array([result["accuracy"] for result in results])
    pooled = np.array([hit for result in results for hit in result["hits"]], dtype=float)
    low, high = bootstrap_interval(pooled)
    summary = {
        "accuracy": float(accuracies.mean()),
        "std": float(accuracies.std()),
        "pooled": float(pooled.mean()),
        "low": low,
        "high": high,
        "classes": len(names),
        "folds": [{key: result[key] for key in ("fold", "accuracy", "clips")} for result in results],
        "skipped": skipped,
        "settings": recipe.to_dict(),
    }
    write_json(output_dir / "result.json", summary)
    return summary


def _classes(data: datasets.Dataset, column: str) -> tuple[list[str], np.ndarray]:
    """Names of the classes and every row's class id."""
    values = data[column][:]
    feature = data.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), np.array(values)
    found = sorted(set(values))
    if len(found) < 2:
        raise ValueError(f"{column} has the one class {found}, expected two or more.")
    return [str(value) for value in found], np.array([found.index(value) for value in values])


def _usable(audio: datasets.Dataset) -> tuple[list[int], dict[str, str]]:
    """Rows that decode, and why the others do not."""
    usable, skipped = [], {}
    for row in track(range(len(audio)), "Reading sounds", console=Console(stderr=True), transient=True):
        try:
            load_stored_audio(audio[row]["audio"])
            usable.append(row)
        except (AudioDecodeError, OSError) as error:
            skipped[str(row)] = str(error)
    return usable, skipped


def _folds(
    recipe: ClassificationRecipe, data: datasets.Dataset, labels: np.ndarray, usable: list[int]
) -> dict[int, Any]:
    """Fold of every usable row."""
    if recipe.fold is not None:
        column = data[recipe.fold][:]
        fold_of = {row: column[row] for row in usable}
    else:
        divided = StratifiedKFold(recipe.folds, shuffle=True, random_state=recipe.seed)
        tests = divided.split(np.zeros(len(usable)), labels[usable])
        fold_of = {usable[i]: number for number, (_, test) in enumerate(tests, 1) for i in test}
    if len(set(fold_of.values())) < 2:
        raise ValueError(f"There is one fold, {set(fold_of.values())}, expected two or more.")
    return fold_of


def _finished(folder: Path, description: dict[str, Any]) -> dict[str, Any] | None:
    """Result of a fold that an earlier run finished with the same recipe."""
    file = folder / "result.json"
    if not file.is_file():
        return None
    try:
        result = read_json(file)
    except ValueError:
        return None
    return result if all(result.get(key) == value for key, value in description.items()) else None


@torch.inference_mode()
def _tower_outputs(
    checkpoint: str,
    extractor: MSClapFeatureExtractor,
    audio: datasets.Dataset,
    rows: list[int],
    device: str | None,
) -> np.ndarray:
    """Output of the frozen tower for every clip, the mean over its windows, `[rows of the data set, hidden]`."""
    model = MSClapForAudioClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    vectors = np.zeros((len(audio), model.config.audio_config.hidden_size), dtype=np.float32)
    for row in track(rows, "Embedding", console=Console(stderr=True), transient=True):
        sound = load_stored_audio(audio[row]["audio"])
        features = extractor([sound.samples], sound.sampling_rate)
        states = model.audio_model(features["input_features"][0].to(model.device)).pooler_output
        vectors[row] = states.mean(dim=0).cpu().numpy()
    return vectors


def _probe(
    model: MSClapForAudioClassification,
    vectors: np.ndarray,
    labels: np.ndarray,
    *,
    train: list[int],
    test: list[int],
    seed: int,
) -> np.ndarray:
    """Fit the head by logistic regression on standardised vectors, and write it into the model."""
    mean, scale = vectors[train].mean(axis=0), vectors[train].std(axis=0) + 1e-6
    regression = LogisticRegression(max_iter=1000, random_state=seed)
    regression.fit((vectors[train] - mean) / scale, labels[train])
    weights, bias = regression.coef_ / scale, regression.intercept_ - (regression.coef_ / scale) @ mean
    if len(regression.classes_) == 2:  # scikit-learn keeps one row for two classes
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.fill_(-1e4)  # a class without training clips is never predicted
        model.classifier.weight[regression.classes_] = torch.from_numpy(weights).float()
        model.classifier.bias[regression.classes_] = torch.from_numpy(bias).float()
        return model.classifier(torch.from_numpy(vectors[test])).argmax(dim=1).numpy()


def _fine_tune(
    model: MSClapForAudioClassification,
    recipe: ClassificationRecipe,
    extractor: MSClapFeatureExtractor,
    audio: datasets.Dataset,
    labels: np.ndarray,
    *,
    train: list[int],
    test: list[int],
    output_dir: Path,
    num_workers: int,
) -> np.ndarray:
    """Train tower and head together; returns the predicted classes of the test clips."""
    arguments = TrainingArguments(
        str(output_dir / "trainer"),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        seed=recipe.seed,
        dataloader_num_workers=num_workers,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=_Clips(audio, train, labels, extractor, training=True),
        data_collator=MSClapDataCollator(),
    )
    trainer.train()
    # Clips of several windows: batches are not as long as their features, which Trainer.predict relies on.
    model.eval()
    predicted = []
    clips = _Clips(audio, test, labels, extractor, training=False)
    for start in range(0, len(clips), recipe.batch_size):
        batch = MSClapDataCollator()([clips[i] for i in range(start, min(start + recipe.batch_size, len(clips)))])
        with torch.inference_mode():
            logits = model(batch["input_features"].to(model.device), batch["num_windows"].to(model.device)).logits
        predicted.append(logits.argmax(dim=1).cpu().numpy())
    return np.concatenate(predicted)


def _save(
    folder: Path, model: MSClapForAudioClassification, extractor: MSClapFeatureExtractor, result: dict[str, Any]
) -> None:
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    write_json(folder / "result.json", result)
