"""Pairs streamed from parquet files, local or on the Hub: read by row group, decoded by crop, resumed at any batch."""

from __future__ import annotations

import hashlib
import io
import itertools
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..audio import AudioDecodeError, load_audio
from ..model.feature_extraction_msclap import MSClapFeatureExtractor, resample
from ..model.processing_msclap import MSClapProcessor
from .augment import Augmentation, augment_samples
from .plan import Plan, RowGroup, Segment
from .source import RowError, StreamSource, number_of, resolve_columns

CROP_ONLY = Augmentation(gain_db=0.0, speeds=(1.0,), pad_probability=0.0, blend_probability=0.0)
OPEN_FILES = 32
READ_ATTEMPTS = 5


@dataclass(frozen=True)
class Example:
    """A decoded pair.

    Attributes:
        waveform: Mono crop `[samples]`, float32 at the model's rate.
        text: Its text.
        clip: Number of the clip.
        text_number: Number of the text.
        damage: What sound is missing or damaged in the crop, a sentence each.
        id: Names the row in lists.
    """

    waveform: np.ndarray
    text: str
    clip: int
    text_number: int
    damage: tuple[str, ...] = ()
    id: str = ""


def make_example(
    row: dict[str, Any],
    name: str,
    source: StreamSource,
    feature_extractor: MSClapFeatureExtractor,
    augmentation: Augmentation,
    rng: np.random.Generator,
    text_number: int | None = None,
) -> Example:
    """Choose a crop of a row, and a text where none is named, and decode that crop only.

    Args:
        row: Values of the source's columns.
        name: Names the row.
        source: Where it comes from.
        feature_extractor: Has the model's rate and window.
        augmentation: Random changes of the samples.
        rng: Source of every choice.
        text_number: Which of the row's texts; one is drawn when None.

    Raises:
        RowError: If the row has no such text, or its audio cannot be decoded.
    """
    texts, encoded = source.read(row)
    if text_number is not None and text_number >= len(texts):
        raise RowError(f"{len(texts)} texts, expected {text_number + 1}")
    text = texts[int(rng.integers(len(texts))) if text_number is None else text_number]
    try:
        total_s = row[source.duration] if source.duration else None
        total_s = total_s or _duration_s(encoded)
        wanted_s = feature_extractor.duration_s * max(augmentation.speeds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a truncated file still gives what is there; the run lists it
            if total_s is not None and total_s > wanted_s:
                clip = load_audio(encoded, start_s=rng.uniform(0, total_s - wanted_s), duration_s=wanted_s)
            else:
                clip = load_audio(encoded)
    except (AudioDecodeError, soundfile.LibsndfileError) as error:
        raise RowError(str(error)) from error
    samples = torch.from_numpy(clip.samples.mean(axis=0))
    samples = resample(samples, clip.sampling_rate, feature_extractor.sampling_rate)
    waveform = augment_samples(samples.numpy(), feature_extractor.window_samples, rng, augmentation)
    return Example(waveform, text, number_of(name), number_of(text), clip.damage, name)


def _duration_s(encoded: str | bytes) -> float | None:
    """Length by the header of a file or of its bytes, in s; None where libsndfile does not know the format."""
    try:
        return soundfile.info(encoded if isinstance(encoded, str) else io.BytesIO(encoded)).duration
    except soundfile.LibsndfileError:
        return None


class RowGroupReader:
    """Reads segments of row groups, keeping a few files open.

    Args:
        sources: The sources.
        files: Locations of the files of every source.
    """

    def __init__(self, sources: Sequence[StreamSource], files: Sequence[Sequence[str]]):
        self.sources, self.files = sources, files
        self.open: OrderedDict[tuple[int, int], pq.ParquetFile] = OrderedDict()

    def read(self, segments: Sequence[Segment]) -> list[tuple[Segment, pa.Table, int, int | None]]:
        """The pairs of segments: their row group as a table, a row of it and one of the row's texts (None: any)."""
        return [(segment, *pair) for segment in segments for pair in self._read(segment)]

    def _read(self, segment: Segment) -> list[tuple[pa.Table, int, int | None]]:
        """The pairs of a segment, retried where the network fails."""
        group = segment.group
        for attempt in itertools.count(1):
            try:
                file = self._file(group.source, group.file)
                table = file.read_row_group(group.index, columns=self.sources[group.source].columns)
                return _pairs(table, self.sources[group.source])[segment.first : segment.last]
            except OSError:
                self.open.pop((group.source, group.file), None)
                if attempt == READ_ATTEMPTS:
                    raise
                time.sleep(2.0**attempt)
        raise AssertionError("unreachable")

    def _file(self, source: int, file: int) -> pq.ParquetFile:
        key = (source, file)
        if key not in self.open:
            self.open[key] = open_parquet(self.files[source][file])
            if len(self.open) > OPEN_FILES:
                self.open.popitem(last=False)
        self.open.move_to_end(key)
        return self.open[key]


def _lists_pairs(source: StreamSource, schema: pa.Schema) -> bool:
    """Whether a row holds a pair for each text of its list."""
    kind = schema.field(source.text_side[0]).type if source.lists_pairs else None
    return kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _pairs(table: pa.Table, source: StreamSource) -> list[tuple[pa.Table, int, int | None]]:
    """Pairs of a row group; a row without texts counts as one, which is skipped when it is read."""
    if not _lists_pairs(source, table.schema):
        return [(table, row, None) for row in range(table.num_rows)]
    counts = pc.list_value_length(table[source.text_side[0]]).to_pylist()
    return [(table, row, number) for row, count in enumerate(counts) for number in range(max(count or 0, 1))]


def open_parquet(location: str) -> pq.ParquetFile:
    """Open a parquet file anywhere that fsspec reaches; only its footer is read.

    Raises:
        ValueError: If it is none.
    """
    filesystem, path = fsspec.core.url_to_fs(location)
    try:
        return pq.ParquetFile(filesystem.open(path, "rb", block_size=2**20), pre_buffer=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{location}: {str(error).splitlines()[0]} Expected a parquet file.") from error


def parquet_features(location: str) -> datasets.Features:
    """Columns of a parquet file, with what `datasets` wrote of them."""
    return datasets.Features.from_arrow_schema(open_parquet(location).schema_arrow)


class PairStream:
    """Batches of pairs by a plan; see `clap_hf.data.plan`.

    Args:
        sources: Where pairs come from.
        processor: Its feature extractor has rate and window, its tokenizer makes the tokens.
        batch_size: Pairs of a batch, over all processes.
        seed: Source of every choice.
        augmentation: Random changes of the samples; None only crops.
        num_workers: Loader processes of every process; they and the processes divide the lanes.
        lanes: See `Plan`.
        block: See `Plan`.

    Raises:
        ValueError: If a source lacks its split, its columns or parquet files.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        processor: MSClapProcessor,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
        lanes: int | None = None,
        block: int = 2,
    ):
        self.processor, self.seed, self.num_workers = processor, seed, num_workers
        self.augmentation = augmentation or CROP_ONLY
        self.files = [source.files() for source in sources]
        self.sources = [
            resolve_columns(source, parquet_features(files[0]), where=files[0])
            for source, files in zip(sources, self.files, strict=True)
        ]
        groups = [group for i in range(len(sources)) for group in _row_groups(i, self.sources[i], self.files[i])]
        self.plan = Plan(groups, [source.weight for source in sources], batch_size, seed, lanes, block)

    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.plan.steps_per_epoch

    def fingerprint(self) -> str:
        """Hash of the layout of the data: rows of all row groups of all files, wherever these lie."""
        layout = [[group.source, group.file, group.index, group.rows] for group in self.plan.groups]
        about = (layout, self.plan.lanes, self.plan.block, [float(weight) for weight in self.plan.weights])
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]

    def batches(self, epoch: int, first_step: int, process: int, processes: int) -> Iterable[dict[str, Any]]:
        """See `clap_hf.training.stage.Batches.batches`.

        Raises:
            ValueError: If processes and loaders do not divide the lanes.
        """
        loaders = max(1, self.num_workers)
        if self.plan.lanes % (processes * loaders):
            raise ValueError(
                f"{processes} processes with {loaders} loaders each cannot share {self.plan.lanes} lanes evenly. "
                "Choose numbers whose product divides them."
            )
        own = self.plan.lanes // processes
        lanes = range(process * own, (process + 1) * own)
        loader = DataLoader(
            _Parts(self, epoch, first_step, lanes),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=2 if self.num_workers else None,
        )
        parts = iter(loader)
        # Loaders are read in turn, each with its lanes' part of the batch.
        return (join_parts(turn, self.processor.tokenizer) for turn in zip(*[parts] * loaders, strict=True))


def make_part(
    examples: Sequence[Example], skipped: list[dict[str, str]], tokenizer: Any, epoch: int
) -> dict[str, Any]:
    """A loader's part of a batch: stacked crops, tokens not padded yet, numbers, ids, skipped and shortened rows."""
    return {
        "waveforms": torch.from_numpy(np.stack([example.waveform for example in examples])),
        "tokens": tokenizer([example.text for example in examples], truncation=True)["input_ids"],
        "clips": torch.tensor([example.clip for example in examples]),
        "texts": torch.tensor([example.text_number for example in examples]),
        "ids": [example.id for example in examples],
        "skipped": skipped,
        "shortened": [
            {"id": example.id, "epoch": str(epoch), "reason": " ".join(example.damage)}
            for example in examples
            if example.damage
        ],
    }


def join_parts(parts: Sequence[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """A batch of the loaders' parts, in their order; see `clap_hf.training.contrastive_stage.PairBatches`."""
    ids = [tokens for part in parts for tokens in part["tokens"]]
    tokens = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    numbers = {name: torch.cat([part[name] for part in parts]) for name in ("clips", "texts")}
    return {
        # Not joined here: at full size that copies two gigabytes. The device takes them part by part.
        "waveforms": [part["waveforms"] for part in parts],
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "groups": numbers["texts"],
        **numbers,
        **{name: [row for part in parts for row in part[name]] for name in ("ids", "skipped", "shortened")},
    }


def _row_groups(number: int, source: StreamSource, files: list[str]) -> list[RowGroup]:
    """Row groups of a source, with the number of their pairs, from the files' footers."""

    def of_file(file: int) -> list[RowGroup]:
        parquet = open_parquet(files[file])
        missing = [column for column in source.columns if column not in parquet.schema_arrow.names]
        if missing:
            raise ValueError(
                f"{files[file]} has columns {parquet.schema_arrow.names}, expected {missing} among them. Name the "
                "source's own columns."
            )
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        counts = [group.num_rows for group in groups]
        if groups and _lists_pairs(source, parquet.schema_arrow):
            # The footer counts the values of a list column; a row without any counts as one.
            paths = [groups[0].column(i).path_in_schema for i in range(groups[0].num_columns)]
            column = next(i for i, path in enumerate(paths) if path.startswith(f"{source.text_side[0]}."))
            counts = [group.column(column).num_values for group in groups]
        return [RowGroup(number, file, i, count) for i, count in enumerate(counts)]

    with ThreadPoolExecutor(16) as pool:
        return [group for groups in pool.map(of_file, range(len(files))) for group in groups if group.rows]


class _Parts(IterableDataset):
    """One loader's part of every batch: the next rows of its lanes."""

    def __init__(self, stream: PairStream, epoch: int, first_step: int, lanes: range):
        self.stream, self.epoch, self.first_step, self.lanes = stream, epoch, first_step, lanes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        number, loaders = (info.id, info.num_workers) if info else (0, 1)
        own = len(self.lanes) // loaders
        plan = self.stream.plan
        segments = plan.segments(self.epoch)
        with ThreadPoolExecutor(1) as pool:  # reads the next blocks while this thread decodes
            reader = RowGroupReader(self.stream.sources, self.stream.files)
            lanes = [
                self._lane(segments, lane, pool, reader) for lane in self.lanes[number * own : (number + 1) * own]
            ]
            for _ in range(self.first_step, plan.steps_per_epoch):
                found = [next(lane) for lane in lanes for _ in range(plan.per_lane)]
                skipped = [row for _, rows in found for row in rows]
                examples = [example for example, _ in found]
                yield make_part(examples, skipped, self.stream.processor.tokenizer, self.epoch)

    def _lane(
        self, segments: list[Segment], lane: int, pool: ThreadPoolExecutor, reader: RowGroupReader
    ) -> Iterator[tuple[Example, list[dict[str, str]]]]:
        """Examples of a lane, each with the rows that were skipped for it."""
        blocks = list(self.stream.plan.blocks(segments, self.epoch, lane, self.first_step))
        pending = pool.submit(reader.read, blocks[0].segments)
        for i, block in enumerate(blocks):
            rows = pending.result()
            if i + 1 < len(blocks):
                pending = pool.submit(reader.read, blocks[i + 1].segments)
            for place in range(block.taken, len(rows)):
                yield self._readable(rows, block.order, place)

    def _readable(
        self, rows: list[tuple[Segment, pa.Table, int, int | None]], order: np.ndarray, place: int
    ) -> tuple[Example, list[dict[str, str]]]:
        """The example at a place of a block, or, if that cannot be read, the one half a block on, and so forth.

        Where none of the block can be read, the rest of its row groups follows. What a place gives depends on the data
        alone.
        """
        skipped: list[dict[str, str]] = []
        steps = [0, *(len(order) // 2 + i for i in range(len(order) - 1))]
        near = (rows[order[(place + step) % len(order)]] for step in steps)
        tables = {id(table): (segment, table) for segment, table, _, _ in rows}.values()
        far = (
            (segment, *pair)
            for segment, table in tables
            for pair in _pairs(table, self.stream.sources[segment.group.source])
        )
        for attempt, (segment, table, row, text) in enumerate(itertools.chain(near, far)):
            source = self.stream.sources[segment.group.source]
            values = table.slice(row, 1).to_pylist()[0]
            where = f"{segment.group.file}/{segment.group.index}/{row}"
            own = values[source.id] if source.id else where
            name = f"{source.dataset}:{own}"  # for people; the choices must not depend on where the files lie
            number = number_of(f"{segment.group.source}:{own}")
            choices = [self.stream.seed, self.epoch, segment.copy, attempt, number]
            rng = np.random.default_rng(choices if text is None else [*choices, text])
            try:
                example = make_example(
                    values, own, source, self.stream.processor.feature_extractor, self.stream.augmentation, rng, text
                )
                return replace(example, id=name), skipped
            except RowError as error:
                if attempt == 0 and not text:  # once a row; a replacement that fails is listed at its own place
                    skipped.append({"id": name, "epoch": str(self.epoch), "reason": str(error)})
        raise RuntimeError(f"None of {attempt + 1} pairs around {name} can be read: {skipped[0]['reason']}")
