"""Small real-audio copies of the paper's data sets on the loopback Hub, each in its source's own layout."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import soundfile
from huggingface_hub import HfApi

from clap_hf import load_audio
from clap_hf.evaluation.benchmarks import PAPER_TASKS, Source, Task
from clap_hf.evaluation.loading import ACTIONS_CSV
from conftest import EXAMPLES
from hub_server import LoopbackHub

RATE = 16_000
SECONDS = 0.3


class Cuts:
    """Short pieces of recordings, those in examples/ by default, no two alike."""

    def __init__(self, files: list[Path] | None = None) -> None:
        files = files or sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".wav", ".flac", ".ogg"))
        self.sounds = [load_audio(file) for file in files]
        self.made = 0

    def wav(self) -> bytes:
        """The next piece, as a WAV file at its recording's rate."""
        sound = self.sounds[self.made % len(self.sounds)]
        length = round(SECONDS * sound.sampling_rate)
        start = (self.made // len(self.sounds)) * 997 % (sound.samples.shape[1] - length)
        self.made += 1
        piece = sound.samples[0, start : start + length]
        file = io.BytesIO()
        soundfile.write(file, piece, sound.sampling_rate, format="WAV", subtype="FLOAT")
        return file.getvalue()


def key_of(samples: np.ndarray) -> str:
    """A key of a sound by its samples."""
    return hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()


class PaperHub:
    """Writes the copies and remembers what every sound is.

    Attributes:
        texts: Sound (by its samples) -> texts that describe it: filled prompts or captions, of all its tasks.
    """

    def __init__(self, hub: LoopbackHub, folder: Path):
        self.api = HfApi(token=hub.tokens["write"])
        self.folder = folder
        self.cuts = Cuts()
        self.texts: dict[str, set[str]] = {}
        self.tasks = {task.name: task for task in PAPER_TASKS}

    def sound(self, *texts: str) -> dict[str, object]:
        """A new sound as an Audio cell, remembered with the texts that describe it."""
        wav = self.cuts.wav()
        self.texts.setdefault(key_of(load_audio(wav).samples), set()).update(texts)
        return {"bytes": wav, "path": "sound.wav"}

    def of(self, name: str, *words: str) -> list[str]:
        """A task's prompt, filled in with words of its classes."""
        return [self.tasks[name].templates[0].replace("{}", word) for word in words]

    def push(self, source: Source, rows: dict[str, list], path: str, **features: object) -> None:
        """A parquet file of a repository, at the revision that the source pins."""
        typed = {"audio": datasets.Audio()} if "audio" in rows else {}
        data = datasets.Dataset.from_dict(rows)
        for name, feature in (typed | features).items():
            data = data.cast_column(name, feature)
        file = self.folder / "upload.parquet"
        data.to_parquet(file)
        self.upload(source, path, file.read_bytes())

    def upload(self, source: Source, path: str, content: bytes) -> None:
        self.api.create_repo(source.repo, repo_type="dataset", exist_ok=True)
        self.api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=source.repo, repo_type="dataset")

    def pin(self, source: Source) -> None:
        """Give the repository the revision that the source names."""
        if source.revision is not None:
            self.api.create_tag(source.repo, tag=source.revision, repo_type="dataset", exist_ok=True)

    def labelled(self, task: Task, count: int) -> list[str]:
        """Class words, every class in turn, so that a small copy has the first `count`."""
        words = list(task.classes)
        return [words[i % len(words)] for i in range(count)]

    def rows(
        self, name: str, column: str, values: dict[str, object], count: int, path: str, **features: object
    ) -> None:
        """A data set of one row a clip for a single-label task."""
        task = self.tasks[name]
        words = self.labelled(task, count)
        audio = [self.sound(*self.of(name, word)) for word in words]
        self.push(task.sources[0], {"audio": audio, column: [values[word] for word in words]}, path, **features)
        self.pin(task.sources[0])

    def files(self, name: str, tables: dict[str, int], label: dict[str, str], zipped: bool) -> None:
        """Audio files beside CSVs `path,classname`, loose or in an archive."""
        task = self.tasks[name]
        source = task.sources[0]
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as content:
            for table, count in tables.items():
                rows = []
                for i, word in enumerate(self.labelled(task, count)):
                    path = f"audios/{Path(table).stem}_{i}.wav"
                    wav = self.sound(*self.of(name, word))["bytes"]
                    rows.append((path, label.get(word, word)))
                    if zipped:
                        content.writestr(f"{name}/{path}", wav)
                    else:
                        self.upload(source, path, wav)
                text = io.StringIO()
                csv.writer(text).writerows([("path", "classname"), *rows])
                self.upload(source, f"csv_files/{table}" if len(tables) > 2 else table, text.getvalue().encode())
        if zipped:
            self.upload(source, "audios.zip", archive.getvalue())

    def captioned(self, source: Source, clips: int, captions: int, column: str, path: str) -> list[list[str]]:
        """One row a caption (with `group`) or one row a clip with a list of captions."""
        own = [[f"{source.repo} clip {i} caption {j}" for j in range(captions)] for i in range(clips)]
        sounds = [self.sound(*texts) for texts in own]
        if source.group is not None:
            flat = [(sound, f"id{i}", text) for i, sound in enumerate(sounds) for text in own[i]]
            rows = {"audio": [r[0] for r in flat], source.group: [r[1] for r in flat], column: [r[2] for r in flat]}
        else:
            rows = {"audio": sounds, column: own}
        self.push(source, rows, path)
        return own


@contextmanager
def served_paper(hub: LoopbackHub, folder: Path) -> Iterator[tuple[PaperHub, Path]]:
    """What `serve_paper` gives, and gone from the Hub afterwards: other tests need the paper's sets out of reach."""
    owners = {source.repo.split("/")[0] for task in PAPER_TASKS for source in task.sources}
    members = hub.members
    hub.members = members | {"tester": (*members["tester"], *owners)}
    try:
        yield serve_paper(hub, folder)
    finally:
        hub.members = members
        for repo in hub.store.repos("datasets"):
            if repo.id.split("/")[0] in owners:
                hub.store.delete("datasets", repo.id)


def serve_paper(hub: LoopbackHub, folder: Path) -> tuple[PaperHub, Path]:
    """Serve all sources that come first for a task, and write a data folder for what has none on the Hub."""
    paper = PaperHub(hub, folder)
    tasks = paper.tasks
    parquet = "data/{}-00000-of-00001.parquet"
    action_names, families, qualities = (
        list(tasks[name].classes) for name in ("ESC50_Actions", "NS_Instr_family", "NS_Qualities")
    )

    # ESC-50, whose clips are those of the actions too.
    words = paper.labelled(tasks["ESC50"], 60)
    names = [f"1-{i}-A-0.wav" for i in range(60)]
    actions = [[action_names[i % 20], action_names[(3 * i + 7) % 20]] for i in range(60)]
    audio = [
        paper.sound(*paper.of("ESC50", word), *paper.of("ESC50_Actions", *own))
        for word, own in zip(words, actions, strict=True)
    ]
    rows = {
        "filename": names,
        "fold": [1] * 60,
        "category": [word.replace(" ", "_") for word in words],
        "audio": audio,
    }
    paper.push(tasks["ESC50"].sources[0], rows, parquet.format("train"))
    with (folder / ACTIONS_CSV).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["filename", "fold", "target", "category", *action_names])
        for name, own in zip(names, actions, strict=True):
            counts = [float(7 + len(a) % 5 if a in own else len(a) % 6) for a in action_names]
            writer.writerow([name, 1, 0, "x", *counts])

    # FSD50K and AudioSet: lists of labels.
    fsd = [[label for (label,) in list(tasks["FSD50K"].classes.values())[i : i + 2]] for i in range(0, 24, 2)]
    by_label = {others[0]: word for word, others in tasks["FSD50K"].classes.items()}
    audio = [paper.sound(*paper.of("FSD50K", *(by_label[label] for label in own))) for own in fsd]
    paper.push(tasks["FSD50K"].sources[0], {"audio": audio, "labels": fsd}, parquet.format("test"))
    paper.push(tasks["FSD50K"].sources[0], {"audio": audio[:1], "labels": fsd[:1]}, parquet.format("train"))
    source = tasks["AudioSet"].sources[0]
    displayed = [["Speech", "Male speech, man speaking"], ["Dog", "Bark"], ["Music"], ["Rain", "Thunder"]] * 3
    audio = [paper.sound(*paper.of("AudioSet", *(name.lower() for name in own))) for own in displayed]
    rows = {
        "video_id": [str(i) for i in range(12)],
        "audio": audio,
        "labels": [["/m/x"]] * 12,
        "human_labels": displayed,
    }
    paper.push(source, rows, "data/eval/00.parquet")
    paper.push(source, {name: values[:1] for name, values in rows.items()}, "data/bal_train/00.parquet")
    splits = "  - split: train\n    path: data/bal_train/*.parquet\n  - split: test\n    path: data/eval/*.parquet\n"
    paper.upload(source, "README.md", f"---\nconfigs:\n- config_name: balanced\n  data_files:\n{splits}---\n".encode())
    paper.pin(source)

    # One label a row.
    us8k = {word: word.replace(" ", "_") for word in tasks["US8K"].classes}
    paper.rows("US8K", "class", us8k, 20, parquet.format("train"))
    vocal = {word: word.capitalize() for word in tasks["VocalSound"].classes}
    paper.rows("VocalSound", "answer", vocal, 12, parquet.format("test"))
    genres = datasets.ClassLabel(names=["blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop",
                                        "reggae", "rock"])  # fmt: skip
    numbers = {word: i for i, word in enumerate(tasks["GTZAN_Genres"].classes)}
    paper.rows("GTZAN_Genres", "label", numbers, 20, parquet.format("train"), label=genres)
    for name in ("BeijingOpera", "CREMA-D", "LibriCount10"):
        order = {word: i for i, word in enumerate(tasks[name].sources[0].names)}
        paper.rows(name, "label", order, 22, parquet.format("train"))
    keywords = datasets.ClassLabel(names=[*"yes no up down left right on off stop go zero bed _silence_".split()])
    spoken = {word: keywords.str2int({"unknown": "bed", "silence": "_silence_"}.get(word, word))
              for word in tasks["SpeechCommands"].classes}  # fmt: skip
    paper.rows("SpeechCommands", "label", spoken, 24, "v0.02/test/0000.parquet", label=keywords)

    # NSynth: one repository for four tasks.
    pitches, velocities = list(tasks["NS_Pitch"].classes), list(tasks["NS_Velocity"].classes)
    notes: dict[str, list] = {"audio": [], "pitch": [], "velocity": [], "qualities": [], "instrument_family_str": []}
    for i in range(30):
        family = families[i % 11]
        flags = [int(k in (i % 10, (i + 3) % 10)) for k in range(10)]
        own = [quality for quality, flag in zip(qualities, flags, strict=True) if flag]
        texts = [*paper.of("NS_Pitch", pitches[i * 2]), *paper.of("NS_Velocity", velocities[i % 5])]
        texts += [*paper.of("NS_Instr_family", family), *paper.of("NS_Qualities", *own)]
        notes["audio"].append(paper.sound(*texts))
        notes["pitch"].append(int(pitches[i * 2]))
        notes["velocity"].append(int(velocities[i % 5]))
        notes["qualities"].append(flags)
        notes["instrument_family_str"].append(family.replace(" ", "_"))
    paper.push(tasks["NS_Pitch"].sources[0], notes, "default/test/0000.parquet")
    paper.pin(tasks["NS_Pitch"].sources[0])

    # Files and CSVs.
    paper.files("SESA", {"train.csv": 8, "test.csv": 8}, {"siren": "Sirens"}, zipped=False)
    paper.files("RAVDESS", {"train.csv": 8, "test.csv": 8}, {}, zipped=True)
    scenes = {"cafe or restaurant": "cafe/restaurant", "city center": "city_center"}
    paper.files("TUT2017", {f"test_{i}.csv": 15 for i in range(1, 5)}, scenes, zipped=True)

    # Captions; the Clotho copy has them as a list, AudioCaps one a row.
    paper.captioned(tasks["AudioCaps audio-to-text"].sources[0], 12, 5, "caption", parquet.format("test"))
    paper.captioned(tasks["Clotho audio-to-text"].sources[0], 10, 5, "text", parquet.format("test"))

    # No copy on the Hub: CSVs beside the sounds.
    for name in ("DCASE17_Task4", "GTZAN_MusicSpeech"):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "label"])
            classes = list(tasks[name].classes)
            for i in range(24):
                own = [classes[i % len(classes)]] + ([classes[(i + 4) % len(classes)]] if len(classes) > 2 else [])
                (folder / f"{name}_{i}.wav").write_bytes(paper.sound(*paper.of(name, *own))["bytes"])
                writer.writerow([f"{name}_{i}.wav", "|".join(own)])
    return paper, folder
