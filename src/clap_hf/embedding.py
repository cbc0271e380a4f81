"""Sounds and texts to vectors: read ahead of the model, batch, skip and report what cannot be read.

Everything above (pipelines, search, evaluation, the command line) embeds through this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from ._prefix_tree import prefix_trees
from .audio import AHEAD, THREADS, Audio, AudioReader, open_audio, read_ahead, read_sound, read_whole
from .audio.stream import Slices, mono_blocks
from .fast_cpu import optimize_if_possible
from .model.feature_extraction_msclap import MSClapFeatureExtractor
from .model.modeling_msclap import MSClapModel, mean_over_windows
from .model.processing_msclap import MSClapProcessor

GPU_THREADS = 16  # beside a GPU, which waits for them, as far as there are cores
WINDOWS_PER_BATCH = 32
LONG_WINDOWS = 32  # a longer file is not decoded whole
# Prompts around a label, whose vectors are averaged, where users give labels alone and in the tasks on sounds.
TEMPLATES = ("this is a sound of {}", "the sound of {}", "{}")

T = TypeVar("T")
U = TypeVar("U")

TEXTS_PER_BATCH = 64
LONGEST_IN_BATCH = 1.5  # tokens over those of the batch's shortest text
NODES_PER_TREE = 512  # attention over a tree costs its square: a tenth of the layers' products at this size

# Settings of the front end that shape a vector. Others (`auto_map`, `processor_class`) change when a model is shared.
FRONT_END = (
    *("feature_size", "sampling_rate", "duration_s", "n_fft", "hop_length", "fmin", "fmax", "mel_sampling_rate"),
    *("long_audio", "short_audio", "max_windows"),
)
# Settings of the towers that act in training alone, or record where a model came from.
NO_EFFECT = {"dtype", "torch_dtype", "architectures", "transformers_version", "use_cache", "initializer_range"}


# Sounds


_in_evaluation: WeakKeyDictionary[torch.nn.Module, tuple[int, list[torch.nn.Module]]] = WeakKeyDictionary()
_in_evaluation_lock = threading.Lock()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Dropout and batch norms of a model in evaluation mode, for as long as any thread is inside; as before after it.

    Args:
        model: The model, in any mode.
    """
    with _in_evaluation_lock:
        count, training = _in_evaluation.get(model, (0, []))
        if count == 0:
            training = [module for module in model.modules() if module.training]
            for module in training:
                module.training = False
        _in_evaluation[model] = (count + 1, training)
    try:
        yield
    finally:
        with _in_evaluation_lock:
            count, training = _in_evaluation.pop(model)
            if count > 1:
                _in_evaluation[model] = (count - 1, training)
            else:
                for module in training:
                    module.training = True


def is_accelerator(device: torch.device) -> bool:
    """Whether a device works by itself while the processor goes on."""
    return device.type != "cpu"


def model_input(
    extractor: MSClapFeatureExtractor, device: torch.device, windows: Iterable[torch.Tensor]
) -> torch.Tensor:
    """What goes to a model's device: log-mels of windows; for a GPU their samples, where it can fetch them by itself.

    Args:
        extractor: The model's feature extractor.
        device: The model's device.
        windows: `[window_samples]` each, on the CPU.

    Returns:
        `[windows, frames, mel]`, dB, or `[windows, samples]`.
    """
    if not is_accelerator(device):
        return extractor.log_mels(windows)
    stacked = torch.stack(list(windows))
    return stacked.pin_memory() if device.type == "cuda" else stacked


def log_mels_on(
    extractor: MSClapFeatureExtractor, device: torch.device, inputs: Iterable[torch.Tensor]
) -> torch.Tensor:
    """Log-mels `[windows, 1, frames, mel]`, dB, on a model's device, of what `model_input` made."""
    moved = [windows.to(device, non_blocking=True) for windows in inputs]
    if is_accelerator(device):
        return extractor.log_mels(row for windows in moved for row in windows)[:, None]
    return torch.cat(moved)[:, None]


@dataclass(frozen=True)
class EmbeddedFiles:
    """Embeddings of files.

    Attributes:
        files: The files that were read, in the order given.
        vectors: Their unit vectors `[files, projection_dim]`, float32 on the CPU.
        skipped: Why the others were not.
        damaged: What is missing or damaged in those of `files` that could not be read whole.
    """

    files: list[Path]
    vectors: torch.Tensor
    skipped: dict[Path, str]
    damaged: dict[Path, str]


def embed_files(
    model: MSClapModel,
    processor: MSClapProcessor,
    files: Iterable[str | os.PathLike[str]],
    *,
    max_windows: int | None = None,
    windows_per_batch: int = WINDOWS_PER_BATCH,
    threads: int | None = None,
) -> EmbeddedFiles:
    """Embed sound files, however many and long: decoding overlaps with the model; memory holds vectors and batches.

    Log-mels are made by the decoding threads, or on the model's GPU. A file of more than `LONG_WINDOWS` windows is
    decoded in blocks while the model works; where it states a wrong length, or none, it is decoded once more.

    Args:
        model: The model, on its device; in evaluation mode for the duration.
        processor: Its processor.
        files: Sound files; for folders, see `audio_files`.
        max_windows: Windows of a file at most, evenly spaced over it; the processor's own limit when None.
        windows_per_batch: Windows that go through the model together.
        threads: Threads that decode and resample; 2 when None, and beside a GPU up to 16.

    Returns:
        A vector for every file that can be read, the reason for every other, and what is damaged. Nothing is
        warned of.

    On a CPU the model is optimised in place, see `optimize_for_cpu`.
    """
    return embed_sounds(
        model,
        processor,
        map(Path, files),
        open_audio,
        max_windows=max_windows,
        windows_per_batch=windows_per_batch,
        threads=threads,
    )


def embed_sounds(
    model: MSClapModel,
    processor: MSClapProcessor,
    items: Iterable[Any],
    open_item: Callable[[Any], AudioReader],
    *,
    max_windows: int | None = None,
    windows_per_batch: int = WINDOWS_PER_BATCH,
    threads: int | None = None,
) -> EmbeddedFiles:
    """As `embed_files`, of whatever can be opened: `files` of the result are the items, which are different ones.

    Args:
        open_item: Opens an item, called in threads; more than once for a long sound. A `ValueError` or `OSError` skips
            the item.
    """
    optimize_if_possible(model)
    extractor, device = processor.feature_extractor, model.device
    on_gpu = is_accelerator(device)
    if threads is None:
        threads = min(GPU_THREADS, os.cpu_count() or THREADS) if on_gpu else THREADS

    limit = extractor.max_windows if max_windows is None else max_windows
    longest = round(LONG_WINDOWS * extractor.duration_s * extractor.sampling_rate)  # decoded whole, samples

    def prepare(file: Any, whole: bool = False) -> tuple[torch.Tensor, Sequence[str]] | None:
        """A file's windows and its damage; None for a long file."""
        with open_item(file) as reader:
            stated = resampled_length(reader, extractor.sampling_rate)
            if not whole and extractor.long_audio != "random" and (stated is None or stated > longest):
                return None
            sound = read_whole(reader)
        (windows,) = extractor.windows([sound.samples], sound.sampling_rate, max_windows=max_windows)
        return model_input(extractor, device, windows), sound.damage

    kept: list[Any] = []
    skipped: dict[Any, str] = {}
    damaged: dict[Any, str] = {}
    vectors = bytearray()  # grows in place; a list of tensors to be joined would take the memory twice
    batch: list[torch.Tensor] = []
    embedded: deque[torch.Tensor] = deque()  # a GPU works on the last of them while the next batch comes together

    def window_vectors(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        features = log_mels_on(extractor, device, inputs)
        with evaluation_mode(model):
            return model.get_audio_features(features).pooler_output

    @torch.inference_mode()
    def embed() -> None:
        if batch:
            counts = torch.tensor([len(windows) for windows in batch]).to(device)
            embedded.append(F.normalize(mean_over_windows(window_vectors(batch), counts, len(batch)), dim=-1))
            batch.clear()

    @torch.inference_mode()
    def embed_long(file: Any) -> Sequence[str]:
        """Embed a file in blocks; its damage."""
        counted: int | None = None
        while True:
            with open_item(file) as reader:
                expected = resampled_length(reader, extractor.sampling_rate) if counted is None else counted
                starts = [] if expected is None else extractor.window_starts(expected, extractor.long_audio, limit)
                slices = Slices(mono_blocks(reader, extractor.sampling_rate), starts, extractor.window_samples)
                with closing(in_groups(slices, windows_per_batch, partial(model_input, extractor, device))) as groups:
                    sums = [window_vectors([group]).sum(dim=0, keepdim=True) for group in groups]
            if slices.total == expected:
                embedded.append(F.normalize(torch.cat(sums).sum(dim=0, keepdim=True), dim=-1))
                return reader.damage
            if counted is not None:
                raise ValueError(
                    f"{file}: {slices.total} samples, {counted} when it was read before; expected a file that nobody "
                    "writes to; try it again later"
                )
            counted = slices.total
            if counted <= longest:
                found = prepare(file, whole=True)
                assert found is not None
                batch.append(found[0])
                embed()
                return found[1]

    def fetch(waiting: int) -> None:
        while len(embedded) > waiting:
            vectors.extend(embedded.popleft().float().cpu().numpy().tobytes())

    ahead = max(AHEAD, 4 * threads)
    for file, found in read_ahead(items, prepare, skipped, threads=threads, ahead=ahead):
        if found is None:
            embed()
            try:
                damage = embed_long(file)
            except (ValueError, OSError) as error:
                skipped[file] = str(error)
                continue
        else:
            windows, damage = found
            if sum(map(len, batch)) + len(windows) > windows_per_batch:
                embed()
            batch.append(windows)
        fetch(1 if on_gpu else 0)
        kept.append(file)
        if damage:
            damaged[file] = "; ".join(damage)
    embed()
    fetch(0)
    # An empty buffer is the one thing that `frombuffer` refuses.
    flat = torch.frombuffer(vectors, dtype=torch.float32) if vectors else torch.empty(0)
    return EmbeddedFiles(kept, flat.view(-1, model.config.projection_dim), skipped, damaged)


def in_groups(items: Iterable[T], size: int, prepare: Callable[[Iterable[T]], U]) -> Generator[U, None, None]:
    """Prepare items in groups, the next ones in another thread while the caller works on the last.

    Args:
        items: The items, taken in that thread.
        size: Items of a group; fewer of the last.
        prepare: Called with an iterator over every group; takes all of it.
    """
    iterator = iter(items)

    def next_group(_: None) -> list[U]:
        first = list(islice(iterator, 1))
        return [prepare(chain(first, islice(iterator, size - 1)))] if first else []

    for _, group in read_ahead(repeat(None), next_group, threads=1, ahead=2):
        if not group:
            return
        yield from group


def resampled_length(reader: AudioReader, sampling_rate: int) -> int | None:
    """Samples of what a reader reads at another rate, as far as the file states its length."""
    return None if reader.frames is None else -(-reader.frames * sampling_rate // reader.sampling_rate)


@torch.inference_mode()
def embed_windows(model: MSClapModel, input_features: torch.Tensor) -> torch.Tensor:
    """Embed log-mel windows one by one.

    Args:
        model: The model, on its device; in evaluation mode for the duration.
        input_features: `[windows, 1, frames, mel]`, dB.

    Returns:
        Unit vectors `[windows, projection_dim]`, float32 on the CPU.
    """
    with evaluation_mode(model):
        batches = input_features.split(WINDOWS_PER_BATCH)
        vectors = [model.get_audio_features(batch.to(model.device)).pooler_output.float().cpu() for batch in batches]
    return torch.cat(vectors)


def embed_clips(model: MSClapModel, clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Embed clips of one or several log-mel windows, as the mean of their windows' vectors.

    Args:
        model: The model, on its device; in evaluation mode for the duration.
        clips: Log-mels of each clip `[windows, 1, frames, mel]`, dB.

    Returns:
        Unit vectors `[clips, projection_dim]`, float32 on the CPU.
    """
    windows = embed_windows(model, torch.cat(list(clips)))
    counts = torch.tensor([len(clip) for clip in clips])
    return F.normalize(mean_over_windows(windows, counts, len(clips)), dim=-1)


# Texts


@torch.no_grad()
def embed_texts(model: MSClapModel, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Embed texts; prompts of many labels and templates repeat themselves, begin alike, and differ in length.

    Args:
        model: The model, on its device; in evaluation mode for the duration.
        tokenizer: Its tokenizer; longer texts than it allows are cut.
        texts: At least one text.

    Returns:
        Unit vectors `[texts, projection_dim]`, float32, on the model's device.
    """
    different = list(dict.fromkeys(texts))
    ids = tokenizer(different, truncation=True)["input_ids"]
    positions: list[int] = []
    vectors: list[torch.Tensor] = []
    with evaluation_mode(model):
        for chosen, embedded in _in_trees(model, ids) if _is_causal(model) else _padded(model, tokenizer, ids):
            positions += chosen
            vectors.append(embedded)
    row = {different[i]: position for position, i in enumerate(positions)}
    return torch.cat(vectors)[[row[text] for text in texts]]


def class_vectors(vectors: torch.Tensor, texts: Sequence[Sequence[str]]) -> torch.Tensor:
    """Unit vector of every class: the mean over its texts, normalised again.

    Args:
        vectors: Unit vectors of all texts, class after class `[texts, dim]`.
        texts: The texts of every class.

    Returns:
        `[classes, dim]`.
    """
    parts = vectors.split([len(own) for own in texts])
    return F.normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=-1)


def embed_classes(model: MSClapModel, tokenizer: Any, texts: Sequence[Sequence[str]]) -> torch.Tensor:
    """Embed classes that are each described by one or several texts.

    Args:
        model: The model, on its device; in evaluation mode for the duration.
        tokenizer: Its tokenizer.
        texts: The texts of every class, such as a label in several templates.

    Returns:
        Unit vectors `[classes, projection_dim]`, float32, on the model's device.
    """
    return class_vectors(embed_texts(model, tokenizer, [text for own in texts for text in own]), texts)


def warn_of_unreadable_labels(tokenizer: Any, labels: Sequence[str]) -> None:
    """Warn of labels without a token that the tokenizer knows, and of labels whose tokens are equal.

    Such labels get equal scores for every sound, or the score of no word at all.

    Args:
        tokenizer: The model's tokenizer.
        labels: The labels.
    """
    ids = tokenizer(list(labels), add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    unread = [label for label, own in zip(labels, ids, strict=True) if own and all(token == unknown for token in own)]
    # GPT-2's unknown token is its end token, which no plain text has.
    by_ids: dict[tuple[int, ...], list[str]] = {}
    for label, own in zip(labels, ids, strict=True):
        by_ids.setdefault(tuple(own), []).append(label)
    equal = [group for group in by_ids.values() if len(group) > 1 and not set(group) <= set(unread)]
    if unread:
        warnings.warn(f"The tokenizer knows no part of the labels {unread}: their scores mean nothing.", stacklevel=2)
    if equal:
        warnings.warn(f"The tokenizer reads these labels as equal, and so are their scores: {equal}.", stacklevel=2)


def _is_causal(model: MSClapModel) -> bool:
    """Whether a token's state depends on what stands before it alone, and attention takes any mask."""
    if model.config.text_pooling != "last_token":
        return False
    tower = model.text_model.config
    return tower.model_type == "gpt2" and tower._attn_implementation in ("sdpa", "eager")


def _padded(model: MSClapModel, tokenizer: Any, ids: list[list[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Texts beside others of their length, so that little is padded."""
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    start = 0
    while start < len(ids):
        longest = LONGEST_IN_BATCH * len(ids[by_length[start]])
        chosen = [i for i in by_length[start : start + TEXTS_PER_BATCH] if len(ids[i]) <= longest]
        start += len(chosen)
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt").to(model.device)
        yield chosen, model.get_text_features(**batch).pooler_output


def _in_trees(model: MSClapModel, ids: list[list[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Texts as trees of tokens; nothing is padded, and a beginning goes through the tower once."""
    for tree in prefix_trees(ids, NODES_PER_TREE):
        mask = torch.where(tree.visible, 0.0, torch.finfo(model.dtype).min).to(model.device, model.dtype)
        states = model.text_model(
            input_ids=tree.tokens[None].to(model.device),
            position_ids=tree.depths[None].to(model.device),
            attention_mask=mask[None, None],
            use_cache=False,
        ).last_hidden_state[0]
        yield tree.texts, model.project_text(states[tree.ends.to(states.device)])


# Identity


def front_end(extractor: MSClapFeatureExtractor) -> dict[str, Any]:
    """Settings of a feature extractor that shape a vector."""
    return {name: getattr(extractor, name) for name in FRONT_END}


def tower_settings(config: Any) -> dict[str, Any]:
    """Settings of a tower that shape a vector: none of training, and none of where the model came from."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if not (name.startswith(("_", "spec_augment")) or "drop" in name or name in NO_EFFECT)
    }


def fingerprint(model: torch.nn.Module, settings: dict[str, Any], prefixes: tuple[str, ...] = ("",)) -> str:
    """Hash of weights and settings.

    Args:
        model: The model.
        settings: What else shapes a vector, such as `front_end` and `tower_settings`.
        prefixes: Beginnings of the names of the weights; all by default.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_identity(model: MSClapModel, front_end: dict[str, Any], tokenizer: Any) -> str:
    """Hash of both towers' weights and of the settings that shape a vector, 16 hexadecimal digits.

    Args:
        model: The model; its dtype counts.
        front_end: See `front_end`.
        tokenizer: Its tokenizer.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    settings = {
        **front_end,
        "audio_config": tower_settings(model.config.audio_config),
        "text_config": tower_settings(model.config.text_config),
        "text_pooling": model.config.text_pooling,
        "max_length": tokenizer.model_max_length,
        # Padding and truncation are what the last call asked for, and no property of the tokenizer.
        "tokenizer": {name: value for name, value in rules.items() if name not in ("padding", "truncation")},
    }
    return fingerprint(model, settings)[:16]


# The model as evaluation and search use it


class Encoder(Protocol):
    """Anything that embeds sounds and texts into one space."""

    key: str  # changes whenever the embeddings of sounds may change
    logit_scale: float  # what cosines are multiplied with before softmax or sigmoid

    def prepare(self, audio: Audio) -> Any:
        """The model's input for a sound; called in other threads or processes."""

    def embed_audio(self, prepared: Sequence[Any]) -> torch.Tensor:
        """Unit vectors of prepared sounds, `[clips, dim]`, float32 on the CPU."""

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of texts, `[texts, dim]`, float32 on the CPU."""

    def settings(self) -> dict[str, Any]:
        """Everything about the model that affects a score, for the record."""


class ClapEncoder:
    """CLAP with one policy for long and short sounds, and a key that identifies its vectors.

    Args:
        model: On its device; in evaluation mode whenever it embeds.
        processor: Its processor.
        name: Folder or Hub id, for the record.
        long_audio: Policy for clips longer than the window; the processor's own when None.
        short_audio: Policy for shorter ones.
        max_windows: Windows of a clip at most, evenly spaced over it; the processor's own limit when None.

    Raises:
        ValueError: If `long_audio` is "random": such embeddings are not reproducible.
    """

    def __init__(
        self,
        model: MSClapModel,
        processor: MSClapProcessor,
        name: str = "",
        long_audio: str | None = None,
        short_audio: str | None = None,
        max_windows: int | None = None,
    ):
        extractor = processor.feature_extractor
        self.model, self.processor, self.name = optimize_if_possible(model), processor, name
        self.long_audio = long_audio or extractor.long_audio
        self.short_audio = short_audio or extractor.short_audio
        self.max_windows = max_windows or extractor.max_windows
        if self.long_audio == "random":
            raise ValueError(
                "long_audio is 'random', expected 'windows' or 'center': scores would change by themselves."
            )
        self._policies: dict[str, Any] = {
            "long_audio": self.long_audio,
            "short_audio": self.short_audio,
            "max_windows": self.max_windows,
        }
        self._front_end = front_end(extractor) | self._policies
        identity = {**self._front_end, "audio_config": tower_settings(model.config.audio_config)}
        self.key = fingerprint(model, identity, ("audio_model.", "audio_projection."))
        self.logit_scale = float(model.logit_scale.detach().float().exp())

    def prepare(self, audio: Any, sampling_rate: int | None = None) -> dict[str, torch.Tensor]:
        """Log-mel windows of a sound of any kind that `read_sound` takes; `sampling_rate` in Hz where it has none."""
        return dict(self.processor.feature_extractor(read_sound(audio), sampling_rate, **self._policies))

    def embed_audio(self, prepared: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Unit vectors of prepared sounds, `[clips, projection_dim]`: their windows' mean, normalised again."""
        return embed_clips(self.model, [item["input_features"][0] for item in prepared])

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of texts, `[texts, projection_dim]`."""
        return embed_texts(self.model, self.processor.tokenizer, texts).cpu()

    def settings(self) -> dict[str, Any]:
        """Model, revision, front end and dtype."""
        return {
            "model": self.name,
            "revision": self.model.config.__dict__.get("_commit_hash"),  # only configurations from the Hub have it
            "fingerprint": model_identity(self.model, self._front_end, self.processor.tokenizer),
            "logit_scale": round(self.logit_scale, 4),
            "mono": "mean of the channels",
            "resampler": "windowed sinc (torchaudio's default kernel)",
            **self._front_end,
            "dtype": str(self.model.dtype),
        }
