"""The captioning stage (paper Section 2.3): a mapper learns to make CLAP's audio embedding readable to a frozen LM."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.progress import track

from ..audio import AudioDecodeError, load_audio
from ..data.registry import source_of
from ..data.simple_stream import stream_rows
from ..data.stream import RowError, StreamSource
from ..evaluation.captioner import caption_examples, join_clips, write_captions
from ..evaluation.captions import caption_scores
from ..model.modeling_msclap import MSClapModel
from ..model.modeling_msclap_captioning import MSClapForAudioCaptioning
from ..model.processing_msclap import MSClapProcessor
from ..pretrained import checkpoint_path
from .generative import LanguageModel, TeacherForcing, build_language_model, labels_of, set_end_tokens
from .inputs import LOG_MELS, CorpusDraws, corpus_batches, make_log_mels, streamed_batches
from .loop import train
from .settings import StreamedSettings
from .stage import Batch, Batches, Position

CLIPS_PER_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class CaptioningRecipe(StreamedSettings):
    """Everything that decides a captioning run; see `TrainingSettings` and `StreamedSettings` for what stages share.

    Clips have one or more captions each, in `sources` or in `dataset`.

    Args:
        dataset: Folder or Hub id of a corpus in the layout of the sound corpus, drawn by class.
        split: What of it is trained on.
        balance: See `CorpusDraws`, for `dataset`; so are the source balance and the category weights.
        category_weights: Factors on the sampling weight by category.
        clap: Trained CLAP: a folder, a Hub id, or `embedded`.
        language_model: The language model.
        validation_clips: How many of the held-out clips are captioned after every epoch.
        model: Settings of `MSClapCaptioningConfig`: the mapper, and what is frozen.
    """

    clap: str
    language_model: LanguageModel
    dataset: str = ""
    split: str = "train"
    balance: float = 0.5
    source_balance: float = 0.0
    category_weights: dict[str, float] = field(default_factory=dict)
    validation: dict[str, Any]
    validation_clips: int = 200
    model: dict[str, Any] = field(default_factory=dict)
    best_metric: str = "cider_d"
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.dataset) == bool(self.sources):
            raise ValueError("expected exactly one of 'dataset' and 'sources'.")


def build_captioner(recipe: CaptioningRecipe) -> tuple[MSClapForAudioCaptioning, MSClapProcessor]:
    """The recipe's captioner with a new mapper, float32 on the CPU, and its processor."""
    clap_path = checkpoint_path(recipe.clap)
    clap = MSClapModel.from_pretrained(clap_path, dtype=torch.float32)
    extractor = MSClapProcessor.from_pretrained(clap_path).feature_extractor
    language_model, tokenizer = build_language_model(recipe.language_model, recipe.seed)
    torch.manual_seed(recipe.seed)
    model = MSClapForAudioCaptioning.from_clap(clap, language_model, **recipe.model)
    set_end_tokens(model, tokenizer)
    return model, MSClapProcessor(extractor, tokenizer)


class CaptionValidation:
    """Captions of held-out clips, scored against all of their own, and the loss of the first of these.

    Args:
        source: Where the clips are; the first ones that can be read are kept as log-mel windows of the whole clip.
        processor: The model's processor.
        clips: How many.

    Raises:
        ValueError: If no clip can be read.
    """

    def __init__(self, source: StreamSource, processor: MSClapProcessor, clips: int):
        self.processor = processor
        self.features: list[dict[str, torch.Tensor]] = []
        self.references: list[list[str]] = []
        for row in itertools.islice(stream_rows(source), clips):
            try:
                texts, encoded = source.read(row)
                sound = load_audio(encoded)
            except (RowError, AudioDecodeError):
                continue
            self.features.append(dict(processor.feature_extractor([sound.samples], sound.sampling_rate)))
            self.references.append(texts)
        if not self.features:
            raise ValueError(f"{source.dataset}, {source.split}: no readable clips with captions, expected some.")

    @torch.inference_mode()
    def __call__(self, model: MSClapForAudioCaptioning) -> dict[str, Any]:
        tokenizer, captions, losses = self.processor.tokenizer, [], []
        for start in track(
            range(0, len(self.features), CLIPS_PER_BATCH),
            "Captioning",
            transient=True,
            disable=len(self.features) < 64,
        ):
            rows = slice(start, start + CLIPS_PER_BATCH)
            inputs = join_clips(self.features[rows], model.device)
            captions += write_captions(model, tokenizer, inputs)
            first = tokenizer([own[0] for own in self.references[rows]], padding=True, truncation=True)
            batch = {name: torch.tensor(first[name]).to(model.device) for name in ("input_ids", "attention_mask")}
            losses.append(model(**inputs, **batch, labels=labels_of(batch)).loss.item() * len(self.references[rows]))
        scores = caption_scores(captions, self.references)
        return {
            "cider_d": scores.values["cider_d"],
            "validation_loss": sum(losses) / len(self.references),
            "validation": {name: value for name, value in scores.values.items() if value is not None},
            "captions": caption_examples(captions, self.references),
        }


class CaptioningStage(TeacherForcing):
    """Teacher forcing on one caption per clip and visit (Eq. 5).

    Args:
        model: The captioner.
        processor: Its processor.
        data: Batches with `waveforms` or `input_features`, `input_ids` and `attention_mask`.
        evaluation: Judges a model after every epoch.
    """

    def prepare_batch(self, batch: Batch, position: Position, device: torch.device) -> Batch:
        """Log-mels where the batch holds waveforms."""
        batch = super().prepare_batch(batch, position, device)
        make_log_mels(batch, self.processor.feature_extractor, device)
        return batch


def train_captioning(
    recipe: CaptioningRecipe,
    output_dir: Path,
    *,
    resume: bool = False,
    num_workers: int = 1,
    trackers: Sequence[str] = (),
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Train a captioner by a recipe; see `clap_hf.training.loop.train` for the folder, resuming and errors.

    Args:
        recipe: What to train.
        output_dir: The run's folder.
        resume: Continue the run that is there.
        num_workers: Loader processes.
        trackers: Trackers, by the names that Accelerate knows.
        cache_dir: Where the log-mels of a corpus' clips are kept, for several runs to share; `log-mels/` of the run's
            folder when None.

    Returns:
        The record of the best epoch.
    """
    model, processor = build_captioner(recipe)
    data: Batches
    if recipe.dataset:
        rows = datasets.load_dataset(recipe.dataset, split=recipe.split)
        draws = CorpusDraws(recipe.balance, recipe.category_weights, recipe.source_balance, template_probability=0.0)
        data = corpus_batches(rows, processor, recipe, draws, num_workers, cache_dir or output_dir / LOG_MELS)
    else:
        data = streamed_batches(recipe, processor, num_workers)
    judge = CaptionValidation(source_of(recipe.validation, "validation"), processor, recipe.validation_clips)
    return train(CaptioningStage(model, processor, data, judge), recipe, output_dir, resume=resume, trackers=trackers)
