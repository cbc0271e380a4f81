"""Turn sounds and texts into vectors: decode ahead, batch, skip and report what cannot be read.

Everything above (pipelines, search, evaluation, the command line) embeds through this module.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F

from .audio import Audio, AudioDecodeError, load_audio
from .fast_cpu import optimize_if_possible
from .model.modeling_msclap import MSClapModel
from .model.processing_msclap import MSClapProcessor

THREADS = 2  # decoders release Python's lock; more of them than this wait for the model on any CPU
GPU_THREADS = 16  # beside a GPU, which waits for them, as far as there are cores
AHEAD = 16  # sounds that are ready or under way, or four a thread, so that memory stays flat
WINDOWS_PER_BATCH = 32

TEXTS_PER_BATCH = 64
LONGEST_IN_BATCH = 1.5  # tokens over those of the batch's shortest text
NODES_PER_TREE = 512  # attention over a tree costs its square: a tenth of the layers' products at this size

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_ahead(
    items: Iterable[Item], work: Callable[[Item], Result], threads: int = THREADS, ahead: int = AHEAD
) -> Iterator[tuple[Item, Future[Result]]]:
    """Do work for the items to come in other threads.

    Args:
        items: Taken one by one in the caller's thread, up to `ahead` of them before their turn.
        work: What threads do with an item.
        threads: How many.
        ahead: Items that are done or under way at most, this one counted in.

    Returns:
        Every item in order, with the future of its result, which holds what `work` returned or raised.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="clap-hf") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) >= ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:  # a caller that stops early waits for no more than what runs
            for _, future in waiting:
                future.cancel()


def is_accelerator(device: torch.device) -> bool:
    """Whether a device works by itself while the processor goes on."""
    return device.type != "cpu"


@dataclass(frozen=True)
class EmbeddedFiles:
    """Embeddings of files.

    Attributes:
        files: The files that were read, in the order given.
        vectors: Their unit vectors `[files, projection_dim]`, float32 on the CPU.
        skipped: Why the others were not.
    """

    files: list[Path]
    vectors: torch.Tensor
    skipped: dict[Path, str]


def embed_files(
    model: MSClapModel,
    processor: MSClapProcessor,
    files: Iterable[str | os.PathLike[str]],
    *,
    windows_per_batch: int = WINDOWS_PER_BATCH,
    threads: int | None = None,
) -> EmbeddedFiles:
    """Embed sound files, however many: decoding overlaps with the model; memory holds the vectors and a few batches.

    Log-mels are made by the decoding threads, or on the model's GPU.

    Args:
        model: The model, in evaluation mode, on its device.
        processor: Its processor.
        files: Sound files; for folders, see `audio_files`.
        windows_per_batch: Windows that go through the model together.
        threads: Threads that decode and resample; 2 when None, and beside a GPU up to 16.

    Returns:
        A vector for every file that can be read, and the reason for every other.

    On a CPU the model is optimised in place, see `optimize_for_cpu`.
    """
    optimize_if_possible(model)
    extractor, device = processor.feature_extractor, model.device
    on_gpu = is_accelerator(device)
    if threads is None:
        threads = min(GPU_THREADS, os.cpu_count() or THREADS) if on_gpu else THREADS

    def prepare(file: Path) -> torch.Tensor:
        """A file's log-mels; for a GPU, its samples, where the GPU can fetch them by itself."""
        sound = load_audio(file)
        (windows,) = extractor.windows([sound.samples], sound.sampling_rate)
        if not on_gpu:
            return extractor.log_mels(windows)
        stacked = torch.stack(windows)
        return stacked.pin_memory() if device.type == "cuda" else stacked

    kept: list[Path] = []
    skipped: dict[Path, str] = {}
    vectors = bytearray()  # grows in place; a list of tensors to be joined would take the memory twice
    batch: list[torch.Tensor] = []
    embedded: deque[torch.Tensor] = deque()  # a GPU works on the last of them while the next batch comes together

    @torch.inference_mode()
    def embed() -> None:
        counts = torch.tensor([len(windows) for windows in batch]).to(device)
        moved = [windows.to(device, non_blocking=True) for windows in batch]
        features = extractor.log_mels(row for windows in moved for row in windows) if on_gpu else torch.cat(moved)
        embedded.append(model.get_audio_features(features[:, None], counts).pooler_output)
        batch.clear()

    def fetch() -> None:
        vectors.extend(embedded.popleft().float().cpu().numpy().tobytes())

    for file, prepared in work_ahead(map(Path, files), prepare, threads, max(AHEAD, 4 * threads)):
        try:
            windows = prepared.result()
        except (AudioDecodeError, ValueError, OSError) as error:
            skipped[file] = str(error)
            continue
        if batch and sum(map(len, batch)) + len(windows) > windows_per_batch:
            embed()
            if not on_gpu or len(embedded) > 1:
                fetch()
        kept.append(file)
        batch.append(windows)
    if batch:
        embed()
    while embedded:
        fetch()
    # An empty buffer is the one thing that `frombuffer` refuses.
    flat = torch.frombuffer(vectors, dtype=torch.float32) if vectors else torch.empty(0)
    return EmbeddedFiles(kept, flat.view(-1, model.config.projection_dim), skipped)


def results(items: Iterable[Any], work: Callable[[Any], Any]) -> Iterator[Any]:
    """What `work` makes of every item, in order, with the next ones under way; what it raises is raised here."""
    for _, future in work_ahead(items, work):
        yield future.result()


@torch.no_grad()
def embed_texts(model: MSClapModel, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Embed texts; prompts of many labels and templates repeat themselves, begin alike, and differ in length.

    Args:
        model: The model, on its device.
        tokenizer: Its tokenizer; longer texts than it allows are cut.
        texts: At least one text.

    Returns:
        Unit vectors `[texts, projection_dim]`, float32, on the model's device.
    """
    different = list(dict.fromkeys(texts))
    ids = tokenizer(different, truncation=True)["input_ids"]
    places: list[int] = []
    vectors: list[torch.Tensor] = []
    for chosen, embedded in _in_trees(model, ids) if _is_causal(model) else _padded(model, tokenizer, ids):
        places += chosen
        vectors.append(embedded)
    rank = {different[i]: place for place, i in enumerate(places)}
    return torch.cat(vectors)[[rank[text] for text in texts]]


def _is_causal(model: MSClapModel) -> bool:
    """Whether a token's state depends on what stands before it alone, and attention takes any mask."""
    tower = model.text_model.config
    causal = model.config.text_pooling == "last_token" and tower.model_type == "gpt2"
    return causal and tower._attn_implementation in ("sdpa", "eager")


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
        hidden = torch.where(tree.sees, 0.0, torch.finfo(model.dtype).min).to(model.device, model.dtype)
        states = model.text_model(
            input_ids=tree.tokens[None].to(model.device),
            position_ids=tree.depths[None].to(model.device),
            attention_mask=hidden[None, None],
            use_cache=False,
        ).last_hidden_state[0]
        yield tree.texts, model.project_text(states[tree.ends.to(states.device)])


@dataclass(frozen=True)
class PrefixTree:
    """Texts as a tree of tokens, in which texts that begin alike share that path.

    Attributes:
        texts: Which texts, `[texts]`.
        tokens: Token id of every node `[nodes]`.
        depths: Position of every node in its texts `[nodes]`.
        sees: Whether a node is another one or after it, `[nodes, nodes]`.
        ends: Node of every text's last token `[texts]`.
    """

    texts: list[int]
    tokens: torch.Tensor
    depths: torch.Tensor
    sees: torch.Tensor
    ends: torch.Tensor


def prefix_trees(ids: list[list[int]], nodes: int) -> Iterator[PrefixTree]:
    """Trees of texts.

    Args:
        ids: Token ids of every text, no two texts alike.
        nodes: Nodes of a tree at most, but for a text that is longer by itself.

    Returns:
        Trees that hold every text once between them.
    """
    tree: list[tuple[int, int, int]] = []  # token, depth, parent
    texts: list[int] = []
    ends: list[int] = []
    path: list[int] = []  # nodes of the text before: in order, no other shares a longer beginning with the next
    for i in sorted(range(len(ids)), key=ids.__getitem__):
        shared = 0
        while shared < min(len(path), len(ids[i])) and tree[path[shared]][0] == ids[i][shared]:
            shared += 1
        if tree and len(tree) + len(ids[i]) - shared > nodes:
            yield _tree(tree, texts, ends)
            tree, texts, ends, path, shared = [], [], [], [], 0
        path = path[:shared]
        for depth in range(shared, len(ids[i])):
            tree.append((ids[i][depth], depth, path[-1] if path else -1))
            path.append(len(tree) - 1)
        texts.append(i)
        ends.append(path[-1])
    if tree:
        yield _tree(tree, texts, ends)


def _tree(tree: list[tuple[int, int, int]], texts: list[int], ends: list[int]) -> PrefixTree:
    tokens, depths, parents = torch.tensor(tree).T
    sees = torch.eye(len(tree), dtype=torch.bool)
    for node, parent in enumerate(parents.tolist()):
        if parent >= 0:
            sees[node] |= sees[parent]
    return PrefixTree(texts, tokens, depths, sees, torch.tensor(ends))


class Encoder(Protocol):
    """Anything that embeds sounds and texts into one space."""

    key: str  # changes whenever the embeddings of sounds may change
    logit_scale: float  # what cosines are multiplied with before softmax or sigmoid

    def prepare(self, audio: Audio) -> Any:
        """What the model hears of a sound; runs in loader processes."""

    def embed_audio(self, prepared: Sequence[Any]) -> torch.Tensor:
        """Unit vectors of prepared sounds, `[clips, dim]`, float32 on the CPU."""

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of texts, `[texts, dim]`, float32 on the CPU."""

    def settings(self) -> dict[str, Any]:
        """Everything about the model that affects a score, for the record."""


@torch.inference_mode()
def embed_windows(model: MSClapModel, input_features: torch.Tensor) -> torch.Tensor:
    """Unit vectors of log-mel windows `[windows, 1, frames, mel]`, `[windows, projection_dim]`, float32 on the CPU."""
    batches = input_features.split(WINDOWS_PER_BATCH)
    vectors = [model.get_audio_features(batch.to(model.device)).pooler_output.float().cpu() for batch in batches]
    return torch.cat(vectors)


def fingerprint(model: MSClapModel, settings: dict[str, Any], prefixes: tuple[str, ...] = ("",)) -> str:
    """Hash of weights and front-end settings.

    Args:
        model: The model.
        settings: Of the front end.
        prefixes: Which weights; all by default.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class ClapEncoder:
    """CLAP for evaluation.

    Args:
        model: In evaluation mode, on its device.
        processor: Its processor.
        name: Folder or Hub id, for the record.
        long_audio: Policy for clips longer than the window; the processor's own when None.
        short_audio: Policy for shorter ones.

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
    ):
        extractor = processor.feature_extractor
        self.model, self.processor, self.name = optimize_if_possible(model), processor, name
        self.long_audio = long_audio or extractor.long_audio
        self.short_audio = short_audio or extractor.short_audio
        if self.long_audio == "random":
            raise ValueError(
                "long_audio is 'random', expected 'windows' or 'center': scores would change by themselves."
            )
        self._front_end = {
            **{key: value for key, value in extractor.to_dict().items() if not key.startswith(("_", "mel_filters"))},
            "long_audio": self.long_audio,
            "short_audio": self.short_audio,
            "dtype": str(model.dtype),
        }
        self.key = fingerprint(model, self._front_end, ("audio_model.", "audio_projection."))
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self._settings = self._described()

    def prepare(self, audio: Audio) -> dict[str, torch.Tensor]:
        """Log-mel windows of a sound."""
        extractor = self.processor.feature_extractor
        policies = {"long_audio": self.long_audio, "short_audio": self.short_audio}
        return dict(extractor([audio.samples], audio.sampling_rate, **policies))

    def embed_audio(self, prepared: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Unit vectors of prepared sounds, `[clips, projection_dim]`: their windows' mean, normalised again."""
        windows = embed_windows(self.model, torch.cat([item["input_features"] for item in prepared]))
        counts = [int(item["num_windows"].sum()) for item in prepared]
        return F.normalize(torch.stack([part.mean(dim=0) for part in windows.split(counts)]), dim=-1)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of texts, `[texts, projection_dim]`."""
        return embed_texts(self.model, self.processor.tokenizer, texts).cpu()

    def settings(self) -> dict[str, Any]:
        """Model, revision, front end and dtype."""
        return self._settings

    def _described(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "revision": self.model.config.__dict__.get("_commit_hash"),  # only configurations from the Hub have it
            "fingerprint": fingerprint(self.model, self._front_end)[:16],
            "logit_scale": round(self.logit_scale, 4),
            "mono": "mean of the channels",
            "resampler": "windowed sinc (torchaudio's default kernel)",
            **self._front_end,
        }
