"""A collection of sounds on disk: embedded once, stopped and resumed, searched by words or by another sound.

The folder holds parquet parts with the columns `file` and `embedding`, and where windows are asked for, `windows` with
their `starts` and `ends`: `datasets.load_dataset(folder)` opens it, too. The parts are the truth; see `index` for the
database and the matrix that are made from them.

Several processes may add at once: one after the other where the system can lock a folder. Where it cannot, a file may
get two rows, of which the newest, in the last part, counts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import track

from ..atomic_io import PartStore, locked, part_facts
from ..audio import AudioReader, audio_files, open_audio, read_ahead
from ..audio.reader import open_regular, printable
from ..audio.stored import is_there, state_of
from ..calibration import FALSE_ALARMS, Calibration
from ..embedder import row_id, window_columns
from ..embedding import ClapEncoder, embed_sounds
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor
from ..pretrained import check_weights
from ..streaming import clock
from .check import BEFORE_UPGRADE, keep_rows, restore_collection, root_of
from .index import Filter, Index, Vectors
from .query import query_vector

FILES_PER_PART = 256  # what a killed run loses at most
CANDIDATES = 8  # vectors of an approximate search for every hit asked for: windows of one file stand together
EVERYTHING = Filter()


@dataclass(frozen=True)
class SearchHit:
    """A sound that a search found.

    Attributes:
        file: The sound file, as an absolute path.
        similarity: Cosine of its embedding and the query's, -1 to 1; of a weighted query, the sum.
        changed: Whether the file is another one than was embedded, by its size and time.
        damage: What was missing or damaged in the file when it was embedded; empty where it was read whole.
        start_s: Start of the window that matches best, s; None where the whole file does.
        end_s: End of it, s.
        probability: That the sound is there, for words and a calibrated model, at even odds beforehand; else None.
    """

    file: Path
    similarity: float
    changed: bool = False
    damage: str = ""
    start_s: float | None = None
    end_s: float | None = None
    probability: float | None = None

    @property
    def place(self) -> str:
        """The file, and the window in it, as `file @ 01:23–01:26`."""
        if self.start_s is None or self.end_s is None:
            return str(self.file)
        return f"{self.file} @ {clock(self.start_s)}–{clock(self.end_s)}"


@dataclass(frozen=True)
class CollectionUpdate:
    """What was done with the files that a collection was given.

    Attributes:
        embedded: How many were embedded now, new and changed ones.
        known: How many the collection had already.
        recognised: How many it had by their content: moved, copied or merely touched files.
        skipped: Why the others were not embedded; they are tried again the next time.
        damaged: What is missing or damaged in those that were embedded now.
    """

    embedded: int = 0
    known: int = 0
    recognised: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """What identifies the content of a file: size in bytes and time of change in ns, or its hash."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class _Known:
    """The parts that hold a file, the newest last, and the file's state and tags in the newest."""

    parts: tuple[Path, ...]
    state: _State
    tags: frozenset[str]


class SoundCollection:
    """Embeddings of sound files in a folder.

    Files are known by path, size and time of change, and in doubt by their content. Paths below the folder that the
    collection lies in are stored relative to it, so that both may move together.

    Args:
        folder: Where they are kept; made when the first are added. Threads and processes may share it.
        model: The model, on its device; in evaluation mode whenever it embeds.
        processor: Its processor.
        name: Folder or Hub id of the model, kept for the record.
        max_windows: Windows of a file at most, evenly spaced over it, in its whole vector; the processor's own limit
            when None.
        hop_s: Also keep a vector for every window of the model's length, this far apart, s; none when None.
        calibration: Of the model, for probabilities and thresholds.

    Raises:
        ValueError: The folder holds embeddings of another model or front end, of windows with another hop, or a
            damaged part; or weights of the model are missing or not finite.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: MSClapModel,
        processor: MSClapProcessor,
        name: str = "",
        max_windows: int | None = None,
        hop_s: float | None = None,
        calibration: Calibration | None = None,
    ):
        check_weights(model, name)
        self.folder, self.model, self.processor, self.name = Path(folder), model, processor, name
        self.max_windows, self.hop_s, self.calibration = max_windows, hop_s, calibration
        self._root = root_of(folder)
        restore_collection(self.folder)
        self._encoder = ClapEncoder(model, processor, name, max_windows=max_windows)
        vector = pa.list_(pa.float32(), model.config.projection_dim)
        schema = pa.schema(
            {
                "id": pa.string(),  # see `embedder.row_id`
                "file": pa.string(),
                "embedding": vector,
                "size": pa.int64(),
                "mtime_ns": pa.int64(),
                "sha256": pa.string(),
                "damage": pa.string(),
                "duration_s": pa.float64(),
                "tags": pa.list_(pa.string()),
                "starts": pa.list_(pa.float32()),
                "ends": pa.list_(pa.float32()),
                "windows": pa.list_(vector),
            }
        )
        facts = {"name": name, "max_windows": max_windows, "hop_s": hop_s}
        self.parts = PartStore(self.folder, self._encoder.key, schema, about=facts)
        self._index = Index(self.parts)
        self._check_identity()

    def _check_identity(self) -> None:
        name = self.name
        for part in self.parts.paths():
            found = part_facts(part)
            if found.get("hop_s") != self.hop_s and found["identity"] == self._encoder.key:
                raise ValueError(
                    f"{part}: its windows have the hop {found.get('hop_s')} s, expected {self.hop_s} s. Use that "
                    "hop, or another folder."
                )
            if found["identity"] != self._encoder.key:
                raise ValueError(
                    f"{part}: holds embeddings of the model {found.get('name')!r} with fingerprint "
                    f"{found['identity'][:16]}, expected those of {name!r} with {self._encoder.key[:16]}. Use that "
                    "model and its settings, or another folder; `clap-hf check --mend` moves stray parts aside."
                )

    def __len__(self) -> int:
        return self._index.count()

    def add(
        self, files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, tags: Iterable[str] = ()
    ) -> CollectionUpdate:
        """Embed the files that the collection does not have, or has in another state; a stopped run can go on.

        Args:
            files: Sound files and folders of them; one or several.
            tags: Words by which searches can filter, added to those that the files have.

        Returns:
            How many were embedded, known and recognised, and what was skipped.

        Raises:
            ValueError: A tag is empty or has a line break; or the folder holds another model's embeddings by now.
        """
        wanted, new_tags = _wanted(files), _checked(tags)
        with locked(self.folder):
            self._check_identity()
            known = self._known()
            missing = [file for file in wanted if not self._is_known(file, known, new_tags)]
            by_content = {entry.state.sha256: stored for stored, entry in known.items()}
            skipped: dict[Path, str] = {}
            damaged: dict[Path, str] = {}
            durations: dict[str, float | None] = {}
            embedded = recognised = 0

            def open_file(file: str) -> AudioReader:
                reader = open_audio(file)
                durations[file] = reader.duration_s
                return reader

            starts = range(0, len(missing), FILES_PER_PART)
            for start in track(starts, "Embedding", console=Console(stderr=True), transient=True):
                failed: dict[str, str] = {}
                states = dict(read_ahead(missing[start : start + FILES_PER_PART], _state_of, failed))
                skipped |= {Path(file): reason for file, reason in failed.items()}
                equal = {
                    file: by_content[state.sha256]
                    for file, state in states.items()
                    if by_content.get(state.sha256) in known
                }
                old = self._rows(equal.values(), known)
                own_tags = {
                    file: new_tags | known[stored].tags if (stored := self._stored(file)) in known else new_tags
                    for file in states
                }
                # Before a changed file is embedded: a run that stops here embeds it the next time.
                self._drop({self._stored(file) for file in states} & known.keys(), known)
                fresh = [file for file in states if file not in equal]
                windows = self._encoder.max_windows
                new = embed_sounds(self.model, self.processor, fresh, open_file, max_windows=windows)
                skipped |= {Path(file): reason for file, reason in new.skipped.items()}
                damaged |= {Path(file): reason for file, reason in new.damaged.items()}
                rows = {file: old[stored] for file, stored in equal.items()}
                for file, vector in zip(map(str, new.files), new.vectors.numpy(), strict=True):
                    row = {"embedding": vector, "duration_s": durations[file]}
                    row["damage"] = damaged.get(Path(file), "")
                    try:
                        row |= window_columns(self._encoder, file, self.hop_s, durations[file] or float("nan"))
                    except (ValueError, OSError) as error:  # written to since it was read
                        skipped[Path(file)] = str(error)
                        continue
                    rows[file] = row
                    embedded += 1
                durations.clear()
                if rows:
                    self.parts.write(
                        row
                        | {"file": self._stored(file), "tags": sorted(own_tags[file] | set(row.get("tags") or ()))}
                        | {"id": row_id(states[file].sha256, self._encoder.key, self.hop_s)}
                        | vars(states[file])
                        for file, row in rows.items()
                    )
                gone = {stored for stored in equal.values() if not is_there(self._path(stored))}
                self._drop(gone & known.keys(), known)
                recognised += len(equal)
        return CollectionUpdate(embedded, len(wanted) - len(missing), recognised, skipped, damaged)

    def shards(
        self, files: Iterable[str | os.PathLike[str]], tags: Iterable[str], files_per_part: int
    ) -> tuple[int, list[dict[str, Any]]]:
        """The files that the collection does not have, in shards that are cut the same whatever is there already.

        Args:
            files: As for `add`, and so are the tags.
            tags: Words that the files get.
            files_per_part: Files of a shard at most.

        Returns:
            How many files were asked for; and of every shard with missing files the name of its `part`, and as `rows`
            the lists of their paths, of these as the collection stores them, and of their tags.
        """
        wanted, new_tags = _wanted(files), _checked(tags)
        self._check_identity()
        known = self._known()
        number = self.parts.next_number()
        shards: list[dict[str, Any]] = []
        for start in range(0, len(wanted), files_per_part):
            whole = wanted[start : start + files_per_part]
            missing = [file for file in whole if not self._is_known(file, known, new_tags)]
            if not missing:
                continue
            stored = [self._stored(file) for file in missing]
            own = [known[name].tags | new_tags if name in known else new_tags for name in stored]
            digest = hashlib.sha256("\0".join(stored).encode(errors="surrogateescape")).hexdigest()[:8]
            part = f"part-{number + len(shards):06d}-{digest}"
            shards.append({"part": part, "rows": [missing, stored, [sorted(tags) for tags in own]]})
        return len(wanted), shards

    def prune(self) -> int:
        """Drop the embeddings of files that are no longer there.

        Returns:
            How many were dropped.

        Raises:
            ValueError: None of the files is there, as where a drive is not mounted.
        """
        with locked(self.folder):
            known = self._known()
            gone = {stored for stored in known if not is_there(self._path(stored))}
            if known and len(gone) == len(known):
                raise self._all_missing(min(gone))
            self._drop(gone, known)
        return len(gone)

    def upgrade(
        self,
        model: MSClapModel,
        processor: MSClapProcessor,
        name: str = "",
        calibration: Calibration | None = None,
    ) -> tuple[SoundCollection, CollectionUpdate]:
        """Embed every sound by another model, in a folder beside this one, and swap the two when all is done.

        Searches go on meanwhile, in the old embeddings. A stopped upgrade goes on where it was. Sounds whose files are
        gone cannot be embedded again and are dropped; other settings and tags stay.

        Args:
            model: The other model, on its device.
            processor: Its processor.
            name: Folder or Hub id of it, kept for the record.
            calibration: Of it.

        Returns:
            The collection with the other model, in place of this one, and what was done.

        Raises:
            ValueError: None of the files is there, as where a drive is not mounted.
        """
        fresh, before = (self.folder.with_name(self.folder.name + end) for end in (".upgrade", BEFORE_UPGRADE))
        settings = (model, processor, name, self.max_windows, self.hop_s, calibration)
        done = CollectionUpdate()
        with locked(self.folder):
            self._check_identity()
            by_tags: dict[frozenset[str], list[Path]] = {}
            known = self._known()
            for stored, entry in known.items():
                if is_there(self._path(stored)):
                    by_tags.setdefault(entry.tags, []).append(self._path(stored))
            if known and not by_tags:
                raise self._all_missing(min(known))
            beside = SoundCollection(fresh, *settings)
            for tags, files in by_tags.items():
                added = beside.add(files, tags=tags)
                done = CollectionUpdate(
                    done.embedded + added.embedded,
                    done.known + added.known,
                    done.recognised + added.recognised,
                    done.skipped | added.skipped,
                    done.damaged | added.damaged,
                )
            shutil.rmtree(before, ignore_errors=True)
            os.replace(self.folder, before)
            os.replace(fresh, self.folder)
            shutil.rmtree(before, ignore_errors=True)
        return SoundCollection(self.folder, *settings), done

    def search(
        self,
        query: Any,
        top_k: int = 10,
        *,
        sampling_rate: int | None = None,
        exclude: Any = None,
        where: Filter = EVERYTHING,
        false_alarm_rate: float | None = None,
    ) -> list[SearchHit]:
        """Find the sounds that a text or another sound is closest to. Deleted files are left out.

        Args:
            query: Words as a `str`; a sound: a `Path`, or whatever else `docs/inputs.md` lists; or a `WeightedQuery`.
            top_k: Hits at most, one a file.
            sampling_rate: Rate of samples that do not carry their own, Hz.
            exclude: Words or a sound; files that are closer to it than to the query are left out.
            where: Which files take part.
            false_alarm_rate: Leave out hits below the probability that some sound reaches in this share of searches
                for a sound that is not there, see `match_threshold`.

        Returns:
            Hits, the best first.

        Raises:
            ValueError: The collection is empty, the words are, or they name a file; none of the files is there; a
                false-alarm rate is asked of a model without calibration, or for a query that is not words.
        """
        calibration = self.calibration if isinstance(query, str) else None
        if false_alarm_rate is not None and calibration is None:
            raise ValueError(
                f"false_alarm_rate is {false_alarm_rate} for {'words' if isinstance(query, str) else 'no words'} and "
                f"{'a' if self.calibration else 'no'} calibration of the model, expected words and a calibration. "
                "Make one by scripts/calibrate.py, or leave the rate out."
            )
        vector = query_vector(self._encoder, query, sampling_rate)
        against = None if exclude is None else query_vector(self._encoder, exclude, sampling_rate)
        vectors = self._index.vectors()
        if not vectors.files:
            raise ValueError(f"{self.folder}: no sounds in this collection, expected some. Add files first.")
        hits: list[SearchHit] = []
        missing = ""
        for number, row, score in self._ranked(vectors, vector, against, where, top_k):
            path = self._path(vectors.files[number])
            try:
                found = state_of(str(path))
            except OSError:
                missing = missing or vectors.files[number]
                continue
            probability = None
            if calibration is not None:
                probability = float(calibration.probabilities(vectors.matrix[row : row + 1], vector[None])[0, 0])
            hits.append(
                SearchHit(
                    file=path,
                    similarity=score,
                    changed=found != (vectors.sizes[number], vectors.times[number]),
                    damage=vectors.damage[number],
                    start_s=None if np.isnan(vectors.starts[row]) else round(float(vectors.starts[row]), 3),
                    end_s=None if np.isnan(vectors.ends[row]) else round(float(vectors.ends[row]), 3),
                    probability=probability,
                )
            )
            if len(hits) == top_k:
                break
        if missing and not hits:
            raise self._all_missing(missing)
        if false_alarm_rate is not None and calibration is not None:
            threshold = self.match_threshold(false_alarm_rate)
            hits = [hit for hit in hits if hit.probability is not None and hit.probability >= threshold]
        return hits

    def match_threshold(self, false_alarm_rate: float = FALSE_ALARMS) -> float:
        """The probability from which a hit counts as a match: the more sounds and windows, the higher.

        Args:
            false_alarm_rate: Share of searches for a sound that is not there in which a hit reaches it, 0 to 1.

        Raises:
            ValueError: The model has no calibration, or the rate is no share.
        """
        if self.calibration is None:
            raise ValueError(
                f"{self.folder}: its model has no calibration, expected one. Make one by scripts/calibrate.py."
            )
        return self.calibration.threshold(false_alarm_rate, count=max(1, len(self._index.vectors().matrix)))

    def _ranked(
        self, vectors: Vectors, query: np.ndarray, against: np.ndarray | None, where: Filter, top_k: int
    ) -> Iterator[tuple[int, int, float]]:
        """Numbers of files, the rows of their best vectors and these vectors' scores, the best first."""
        seen: set[int] = set()
        texts = None if self.calibration is None else self.calibration.texts
        index = self._index.approximate(vectors, texts) if against is None and where == EVERYTHING else None
        if index is not None:
            scores, rows = index.nearest(query, CANDIDATES * top_k)
            owners = np.searchsorted(vectors.first, rows, side="right") - 1
            for number, row, score in zip(owners.tolist(), rows.tolist(), scores.tolist(), strict=True):
                if number not in seen:
                    seen.add(number)
                    yield number, row, score
        best, rows = vectors.best(query)
        kept = np.ones(len(best), dtype=bool)
        if where != EVERYTHING:
            folder = None if where.folder is None else os.path.abspath(where.folder)
            below = folder is not None and self._root.is_relative_to(folder)
            chosen = self._index.chosen(where, folder and self._stored(folder), below)
            kept = np.array([file in chosen for file in vectors.files], dtype=bool)
        if against is not None:
            kept &= vectors.best(against)[0] < best
        numbers = np.flatnonzero(kept)
        # Files are numbered by name: of equal scores the first name comes first.
        for number in numbers[np.argsort(-best[numbers], kind="stable")].tolist():
            if number not in seen:
                yield number, int(rows[number]), float(best[number])

    def _stored(self, file: str) -> str:
        """An absolute path as the collection stores it."""
        path = Path(file)
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else file

    def _path(self, stored: str) -> Path:
        return self._root / stored

    def _known(self) -> dict[str, _Known]:
        """Parts and state of every file, by its stored path."""
        known: dict[str, _Known] = {}
        for row in self._index.sounds():
            earlier = known[row["file"]].parts if row["file"] in known else ()
            state = _State(row["size"], row["mtime_ns"], row["sha256"])
            tags = frozenset(row["tags"].split("\n")) - {""}
            known[row["file"]] = _Known((*earlier, self.folder / row["part"]), state, tags)
        return known

    def _is_known(self, file: str, known: dict[str, _Known], tags: frozenset[str]) -> bool:
        """Whether a file's embedding is here, by path, size and time, with these tags."""
        entry = known.get(self._stored(file))
        if entry is None or not tags <= entry.tags:
            return False
        try:
            return state_of(file) == (entry.state.size, entry.state.mtime_ns)
        except OSError:
            return False

    def _rows(self, stored: Iterable[str], known: dict[str, _Known]) -> dict[str, dict[str, Any]]:
        """Newest rows of known files."""
        wanted = set(stored)
        rows: dict[str, dict[str, Any]] = {}
        for part in sorted({known[name].parts[-1] for name in wanted}):
            table = self.parts.read(part)
            chosen = pa.array([name in wanted for name in table["file"].to_pylist()], pa.bool_())
            rows |= {row["file"]: row for row in table.filter(chosen).to_pylist()}
        return rows

    def _drop(self, stored: set[str], known: dict[str, _Known]) -> None:
        """Take known files out of their parts."""
        for part in {part for name in stored for part in known[name].parts}:
            table = self.parts.read(part)
            keep_rows(self.parts, part, table, [name not in stored for name in table["file"].to_pylist()])
        for name in stored:
            del known[name]

    def _all_missing(self, stored: str) -> ValueError:
        return ValueError(
            f"{self.folder}: none of its sounds is there, such as {self._path(stored)}. Mount or restore their "
            "folder, or embed them again where they are now."
        )


def _wanted(files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Absolute paths of files, and of those in folders, each once."""
    paths = [files] if isinstance(files, (str, os.PathLike)) else files
    found = (file for path in paths for file in (audio_files([path]) if os.path.isdir(path) else [path]))
    return list(dict.fromkeys(os.path.abspath(file) for file in found))


def _checked(tags: Iterable[str]) -> frozenset[str]:
    """Tags, each of them a text of one line."""
    found = frozenset(tags)
    if wrong := [tag for tag in found if not tag.strip() or "\n" in tag]:
        raise ValueError(f"A tag is {wrong[0]!r}, expected a text without line breaks.")
    return found


def _state_of(file: str) -> _State:
    """State of a file, which is read whole."""
    if printable(file) != file:
        raise ValueError(f"{printable(file)}: its name is not UTF-8, expected one that parquet holds; rename the file")
    try:
        with open_regular(file, printable(file)) as content:
            size, mtime_ns = state_of(file)
            digest = hashlib.file_digest(content, "sha256")
    except OSError as error:
        raise ValueError(
            f"{printable(file)}: {error.strerror or error}; expected a readable file; check the path"
        ) from error
    return _State(size, mtime_ns, digest.hexdigest())
