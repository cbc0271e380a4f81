"""A collection made by several processes, or by Ray on several machines: files in shards, each written as one part."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.progress import Progress

from ..atomic_io import PartStore, locked
from ..audio.reader import printable
from ..audio.stored import state_of
from ..embedder import ClapEmbedder
from .collection import FILES_PER_PART, CollectionUpdate, SoundCollection

ENGINES = ("processes", "ray")

Reports = Generator[dict[str, Any], None, None]


class ShardWriter:
    """A callable that embeds shards of files and writes a part of each; the same shard gives the same part again.

    Args:
        embedder: Embeds them.
        store: Takes the parts.
        threads: Threads that the model computes with on a CPU; as torch is set when None.
    """

    def __init__(self, embedder: ClapEmbedder, store: PartStore, threads: int | None = None):
        self.embedder, self.store = embedder, store
        if threads is not None:
            torch.set_num_threads(threads)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Reports of the shards of the column `shard`, both as JSON."""
        return {"report": [json.dumps(self.write(json.loads(shard))) for shard in batch["shard"]]}

    def write(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Embed a shard, see `SoundCollection.shards`, and write its part.

        Returns:
            `embedded`, how many of how many `files`; `skipped` and `damaged`, by file.
        """
        key = self.embedder.encoder().key
        if key != self.store.identity:
            raise ValueError(
                f"{self.embedder.model} has the fingerprint {key[:16]} in this process, expected "
                f"{self.store.identity[:16]} as in the collection. Give every machine the same model."
            )
        rows = [dict(zip(("path", "file", "tags"), row, strict=True)) for row in zip(*shard["rows"], strict=True)]
        for row in rows:
            with suppress(OSError, ValueError):  # the embedder states what is wrong with it
                # before it is read: if it changes meanwhile, the next run sees that
                row["size"], row["mtime_ns"] = state_of(row["path"])
        columns = self.embedder({"path": [row["path"] for row in rows]})
        skipped: dict[str, str] = {}
        damaged: dict[str, str] = {}
        written = []
        for number, row in enumerate(rows):
            path = row["path"]
            row |= {name: column[number] for name, column in columns.items()}
            if printable(path) != path:
                skipped[path] = f"{printable(path)}: its name is not UTF-8, expected one that parquet holds; rename it"
            elif row["error"]:
                skipped[path] = row["error"]
            else:
                damaged |= {path: row["damage"]} if row["damage"] else {}
                # As `SoundCollection.add` writes them.
                row |= {"duration_s": None} if math.isnan(row["duration_s"]) else {}
                no_windows = {"starts": None, "ends": None, "windows": None}
                row |= {"windows": list(row["windows"])} if len(row.get("windows", ())) else no_windows
                written.append(row)
        if written:
            self.store.write(written, name=shard["part"])
        return {"files": len(rows), "embedded": len(written), "skipped": skipped, "damaged": damaged}


def add_in_shards(
    collection: SoundCollection,
    files: Iterable[str | os.PathLike[str]],
    *,
    engine: str = "processes",
    num_processes: int = 1,
    device: str | None = None,
    tags: Iterable[str] = (),
    max_errors: float = 1.0,
    files_per_part: int = FILES_PER_PART,
) -> CollectionUpdate:
    """As `SoundCollection.add`, by several processes; every engine writes the same parts.

    They are equal bit by bit where a process has as many threads. Work is done at least once: where a run was killed,
    `check_collection(folder, mend=True)` drops rows that are there twice. Moved and copied files are embedded again.
    Processes that `torchrun` or `accelerate launch` started divide the shards among them.

    Args:
        collection: Whose `name` is what its model can be loaded by.
        files: Sound files.
        engine: `"processes"` of this machine, or `"ray"`: actors of the cluster at `RAY_ADDRESS`, or of this machine,
            which all see the files and the collection's folder at the same paths.
        num_processes: Processes, or actors.
        device: As for `ClapEmbedder`.
        tags: As for `SoundCollection.add`.
        max_errors: Share of the files that may fail before the run stops, 0 to 1.
        files_per_part: What a killed process loses at most.

    Raises:
        ValueError: More files failed; a process was killed; or the engine is unknown.
        ImportError: Ray is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, expected one of {ENGINES}.")
    state = PartialState()  # of `torchrun` or `accelerate launch`; else one process
    with locked(collection.folder) if state.is_main_process else nullcontext():
        listed = [collection.shards(files, tags, files_per_part) if state.is_main_process else None]
        wanted, shards = broadcast_object_list(listed)[0]
        missing = sum(len(shard["rows"][0]) for shard in shards)
        shards = shards[state.process_index :: state.num_processes]
        left = sum(len(shard["rows"][0]) for shard in shards)
        name = collection.name or "embedded"
        embedder = ClapEmbedder(name, collection.max_windows, collection.hop_s, device)
        writer = ShardWriter(embedder, collection.parts)
        run = _in_ray if engine == "ray" else _in_processes
        embedded = 0
        skipped: dict[Path, str] = {}
        damaged: dict[Path, str] = {}
        quiet = not state.is_main_process
        with Progress(console=Console(stderr=True, quiet=quiet), transient=True) as progress:
            bar = progress.add_task("Embedding", total=left)
            with closing(run(writer, shards, num_processes)) as reports:
                for report in reports:
                    embedded += report["embedded"]
                    skipped |= {Path(file): reason for file, reason in report["skipped"].items()}
                    damaged |= {Path(file): reason for file, reason in report["damaged"].items()}
                    progress.update(bar, advance=report["files"])
                    if len(skipped) > max_errors * wanted:
                        raise ValueError(
                            f"{len(skipped):,} of {wanted:,} files failed, expected at most {max_errors:.2%}; the "
                            f"first: {next(iter(skipped.values()))}. What was embedded is kept; allow more errors, or "
                            "mend the files."
                        )
        found = gather_object([(embedded, skipped, damaged)])
    return CollectionUpdate(
        sum(own[0] for own in found),
        wanted - missing,
        0,
        {file: reason for own in found for file, reason in own[1].items()},
        {file: reason for own in found for file, reason in own[2].items()},
    )


def _in_processes(writer: ShardWriter, shards: list[dict[str, Any]], count: int) -> Reports:
    """Reports of shards, written by this process, or by several new ones of this machine."""
    if count == 1:
        yield from map(writer.write, shards)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.Value("i", 0)
    waiting: set[Future[dict[str, Any]]] = set()
    coming = iter(shards)
    pool = ProcessPoolExecutor(count, context, _start_process, (numbers, _threads(count)))
    try:
        while True:
            for shard in coming:
                waiting.add(pool.submit(writer.write, shard))
                if len(waiting) >= 2 * count:
                    break
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise ValueError(
            f"One of {count} processes was killed, expected all to run to the end; as by the system where memory is "
            "short. The same command again goes on."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _threads(count: int) -> int:
    """Threads of each of some processes that share a machine's cores."""
    return max(1, (os.cpu_count() or 1) // count)


def _start_process(numbers: Any, threads: int) -> None:
    """Take the GPUs in turn, leave Ctrl-C to the parent, and end when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with numbers.get_lock():
        number = numbers.value
        numbers.value += 1
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _in_ray(writer: ShardWriter, shards: list[dict[str, Any]], count: int) -> Reports:
    """Reports of shards, written by actors of Ray, which starts those that die again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray, data = (import_module(name) for name in ("ray", "ray.data"))
    except ImportError as error:
        raise ImportError("Ray is not installed, expected ray[data]: pip install 'clap-hf[ray]'") from error
    if not shards:
        return
    if not ray.is_initialized():
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # its plans and log files
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    rows = data.from_items([{"shard": json.dumps(shard)} for shard in shards], override_num_blocks=len(shards))
    reports = rows.map_batches(
        ShardWriter,
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(count, len(shards))),
        num_cpus=min(1.0, resources["CPU"] / (count + 1)),  # reading the shards needs some, too
        num_gpus=min(1.0, resources.get("GPU", 0) / count),
        fn_constructor_args=(writer.embedder, writer.store, _threads(count)),
    )
    for row in reports.iter_rows():
        yield json.loads(row["report"])
