"""A set of one's own: pieces of the recordings in examples/ with their labels, in the forms that people have."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import soundfile

from clap_hf import load_audio

EXAMPLES = Path(__file__).parent.parent / "examples"
LABELS = tuple((line["file"], line["label"]) for line in csv.DictReader((EXAMPLES / "labels.csv").open()))


def write_clips(folder: Path, pieces: int = 8, recordings: int = 14, seconds: float = 1.0) -> list[tuple[str, str]]:
    """Write pieces of recordings as WAV files and `metadata.csv`; returns (file, label) of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for file, label in LABELS[:recordings]:
        audio = load_audio(EXAMPLES / file)
        mono = audio.samples.mean(axis=0)
        length = min(len(mono), int(seconds * audio.sampling_rate))
        for i in range(pieces):
            start = (len(mono) - length) * i // max(1, pieces - 1)
            name = f"{Path(file).stem}_{i}.wav"
            soundfile.write(folder / name, np.roll(mono, i)[start : start + length], audio.sampling_rate)
            rows.append((name, label))
    write_csv(folder / "metadata.csv", ("file_name", "label"), rows)
    return rows


def write_csv(path: Path, head: tuple[str, ...], rows: list[tuple[str, ...]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([head, *rows])


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


def as_dataset(folder: Path, rows: list[tuple[str, str]], stored: str = "bytes") -> datasets.Dataset:
    """A dataset with an audio column of `bytes`, of `path`s, or of decoded `array`s, and a `text` column."""
    column: list = []
    for name, _ in rows:
        audio = load_audio(folder / name)
        column.append(
            {
                "bytes": lambda name=name: {"bytes": (folder / name).read_bytes(), "path": name},
                "path": lambda name=name: {"bytes": None, "path": str(folder / name)},
                "array": lambda audio=audio: {
                    "array": audio.samples[0].tolist(),
                    "sampling_rate": audio.sampling_rate,
                },
            }[stored]()
        )
    found = datasets.Dataset.from_dict({"audio": column, "text": [f"the sound of {label}" for _, label in rows]})
    return found if stored == "array" else found.cast_column("audio", datasets.Audio(decode=False))


def write_form(form: str, folder: Path) -> tuple[str, dict | None]:
    """Write a small set in one of the forms of `FORMS`.

    Returns:
        What a recipe names it by, and datasets in Python by their name, where it is one.
    """
    sounds = folder / "sounds"
    rows = write_clips(sounds, pieces=4, recordings=3, seconds=0.4)
    if form != "metadata.csv":
        (sounds / "metadata.csv").unlink()
    if form == "metadata.jsonl":
        lines = [json.dumps({"file_name": name, "text": f"the sound of {label}"}) for name, label in rows]
        (sounds / "metadata.jsonl").write_text("\n".join(lines))
    elif form == "class folders":
        for name, label in rows:
            (sounds / label).mkdir(exist_ok=True)
            shutil.move(sounds / name, sounds / label / name)
    elif form.startswith("table"):
        text = form.split()[1]
        write_csv(folder / "mine.csv", ("path", text), [(f"sounds/{name}", label) for name, label in rows])
        return str(folder / "mine.csv"), None
    elif form == "tsv":
        write_csv(folder / "mine.tsv", ("file", "caption"), [(f"sounds/{name}", f"a {x}") for name, x in rows], "\t")
        return str(folder / "mine.tsv"), None
    elif form == "save_to_disk":
        as_dataset(sounds, rows).save_to_disk(folder / "saved")
        return str(folder / "saved"), None
    elif form.startswith("parquet"):
        (folder / "parquet").mkdir()
        as_dataset(sounds, rows, form.split()[1]).to_parquet(folder / "parquet" / "train-0.parquet")
        return str(folder / "parquet"), None
    elif form.startswith("tar"):
        ending = form.split()[1]
        members: dict[str, bytes] = {}
        for name, label in rows:
            flac = io.BytesIO()
            audio = load_audio(sounds / name)
            soundfile.write(flac, audio.samples.T, audio.sampling_rate, format="FLAC")
            text = json.dumps({"caption": f"a {label}"}) if ending == "json" else label
            members |= {name.replace(".wav", ".flac"): flac.getvalue(), name.replace("wav", ending): text.encode()}
        (folder / "tars").mkdir()
        write_tar(folder / "tars" / "shard-000.tar", members)
        return str(folder / "tars"), None
    elif form.startswith("Dataset"):
        return "mine", {"mine": as_dataset(sounds, rows, form.split()[1])}
    return str(sounds), None


FORMS = (
    "metadata.csv",
    "metadata.jsonl",
    "class folders",
    "table text",
    "table label",
    "table caption",
    "tsv",
    "save_to_disk",
    "parquet bytes",
    "parquet path",
    "tar txt",
    "tar json",
    "tar cls",
    "Dataset bytes",
    "Dataset path",
    "Dataset array",
)
