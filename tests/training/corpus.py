"""A corpus of a few dozen real clips in the layout of the sound corpus, cut from the recordings in examples/."""

import csv
import io
from pathlib import Path

import soundfile
from datasets import Audio, Dataset, Features, List, Value

from clap_hf import load_audio

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CATEGORIES = {"dog": "animal", "sheep": "animal", "bird": "animal", "speech": "speech", "music": "music"}
TEXT_COLUMNS = ("label", "category", "quality", "source", "family", "register", "lang")


def write_corpus(folder: Path) -> Path:
    """Write `train` and `validation` splits; every recording gives four half-second clips to each, the dog two."""
    features = Features(
        {"id": Value("string"), "audio": {"bytes": Value("binary"), "path": Value("string")}}
        | {"captions": List(Value("string"))}
        | {name: Value("string") for name in TEXT_COLUMNS}
        | {"velocity": Value("int32")}
    )
    splits = {"train": [], "validation": []}
    for line in csv.DictReader((EXAMPLES / "labels.csv").open()):
        audio = load_audio(EXAMPLES / line["file"])
        mono = audio.samples.mean(axis=0)
        for k in range(4 if line["label"] == "dog" else 8):
            start = k * (len(mono) - 1) // 16
            buffer = io.BytesIO()
            soundfile.write(buffer, mono[start : start + audio.sampling_rate // 2], audio.sampling_rate, format="FLAC")
            stem = Path(line["file"]).stem
            row = {name: None for name in TEXT_COLUMNS} | {"velocity": None}
            row |= {
                "id": f"{stem}-{k}",
                "audio": {"bytes": buffer.getvalue(), "path": None},
                "captions": [f"the sound of {line['label']}", line["label"]],
                "label": line["label"],
                "category": CATEGORIES.get(stem, "nature"),
                "quality": "named",
                "source": "examples" if k < 6 else "elsewhere",
                "lang": "English" if stem == "speech" else None,
            }
            splits["train" if k % 2 else "validation"].append(row)
    (folder / "data").mkdir(parents=True)
    for name, rows in splits.items():
        split = Dataset.from_list(rows, features=features).cast_column("audio", Audio(decode=False))
        split.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder
