"""Reads the training sets as their owners distribute them: which file, which part of it, which metadata.

Every function takes the folder that holds a set, laid out as `TrainingSet.layout` says, and gives its training clips.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from clap_hf.audio import AUDIO_EXTENSIONS


@dataclass(frozen=True)
class Original:
    """A clip as it was distributed.

    Args:
        id: Its name in its set.
        path: Its file; None where the set names a clip whose file is not there.
        metadata: What its texts are formed of.
        start_s: Start of the clip in the file, s.
        end_s: Its end, s; the file's when None.
        license: Its own license, where clips have their own.
    """

    id: str
    path: Path | None
    metadata: dict[str, Any]
    start_s: float = 0.0
    end_s: float | None = None
    license: str | None = None


@dataclass
class Files:
    """Sound files below a folder, by their name without its ending."""

    by_stem: dict[str, Path] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Path | None:
        return self.by_stem.get(name)


@lru_cache(maxsize=4)
def files_below(root: Path) -> Files:
    """Sound files at any depth; of two of one name, the first in alphabetical order of their paths."""
    found = Files()
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in AUDIO_EXTENSIONS:
            found.by_stem.setdefault(path.stem, path)
    return found


def _table(path: Path, delimiter: str = ",", **options: Any) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return list(csv.DictReader(file, delimiter=delimiter, **options))


def wavcaps(root: Path) -> Iterator[Original]:
    """WavCaps: lists of clips with a caption each."""
    for listing in sorted((root / "json_files").rglob("*.json")):
        content = json.loads(listing.read_text())
        for clip in content.get("data", []) if isinstance(content, dict) else []:  # blacklists lie there too
            name = Path(str(clip["id"])).stem
            yield Original(name, files_below(root)[name], {"captions": [clip["caption"]]})


def audioset(root: Path) -> Iterator[Original]:
    """AudioSet's training segments."""
    names = {row["mid"]: row["display_name"] for row in _table(root / "class_labels_indices.csv")}
    for listing in sorted(root.glob("*_train_segments.csv")):
        lines = [line for line in listing.read_text().splitlines() if line and not line.startswith("#")]
        for video, start, _, labels in csv.reader(lines, skipinitialspace=True):
            # Downloads are named by the video, often with a Y before it, and hold the segment alone.
            path = files_below(root)[video] or files_below(root)[f"Y{video}"]
            found = [names[mid] for mid in labels.split(",") if mid in names]
            yield Original(f"{video}_{float(start):g}", path, {"labels": found})


def fsd50k(root: Path) -> Iterator[Original]:
    """FSD50K's dev clips, with what their uploaders wrote, and their labels."""
    labels = {row["fname"]: row["labels"].split(",") for row in _table(root / "FSD50K.ground_truth" / "dev.csv")}
    clips = json.loads((root / "FSD50K.metadata" / "dev_clips_info_FSD50K.json").read_text())
    for name, about in clips.items():
        written = {"title": about["title"], "description": about["description"]}
        metadata = written | {"labels": labels.get(name, [])}
        yield Original(name, files_below(root / "FSD50K.dev_audio")[name], metadata, license=about["license"])


def clotho(root: Path) -> Iterator[Original]:
    """Clotho v2 without its evaluation split."""
    for split in ("development", "validation"):
        about = {row["file_name"]: row for row in _table(root / f"clotho_metadata_{split}.csv")}
        for row in _table(root / f"clotho_captions_{split}.csv"):
            path = root / split / row["file_name"]
            captions = [row[f"caption_{i}"] for i in range(1, 6)]
            license = about.get(row["file_name"], {}).get("license")
            yield Original(path.stem, path if path.exists() else None, {"captions": captions}, license=license)


def audiocaps(root: Path) -> Iterator[Original]:
    """AudioCaps' training clips; a clip's captions are put together."""
    captions: dict[tuple[str, str], list[str]] = {}
    for row in _table(root / "train.csv"):
        captions.setdefault((row["youtube_id"], row["start_time"]), []).append(row["caption"])
    files = files_below(root)
    for (video, start), texts in captions.items():
        path = files[video] or files[f"Y{video}"] or files[f"{video}_{start}"]
        yield Original(f"{video}_{start}", path, {"captions": texts})


def macs(root: Path) -> Iterator[Original]:
    """MACS: all its clips."""
    for clip in yaml.safe_load((root / "MACS.yaml").read_text())["files"]:
        name = Path(clip["filename"]).stem
        yield Original(name, files_below(root)[name], {"captions": [a["sentence"] for a in clip["annotations"]]})


def wavtext5k(root: Path) -> Iterator[Original]:
    """WavText5K: all its clips."""
    for row in _table(root / "WavText5K.csv"):
        name = Path(row["fname"]).stem
        yield Original(name, files_below(root)[name], {"title": row["title"], "description": row["description"]})


def sounddescs(root: Path) -> Iterator[Original]:
    """SoundDescs' training clips."""
    train = set((root / "train_list.txt").read_text().split())
    for row in _table(root / "descriptions.csv"):
        if row["id"] in train:
            yield Original(row["id"], files_below(root)[row["id"]], {"captions": [row["description"]]})


def nsynth(root: Path) -> Iterator[Original]:
    """NSynth's training notes."""
    columns = ("instrument_family_str", "instrument_source_str", "pitch", "velocity", "qualities_str")
    for name, about in json.loads((root / "nsynth-train" / "examples.json").read_text()).items():
        path = files_below(root / "nsynth-train" / "audio")[name]
        yield Original(name, path, {column: about[column] for column in columns})


def fma(root: Path) -> Iterator[Original]:
    """FMA's training tracks."""
    with (root / "fma_metadata" / "tracks.csv").open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        upper, lower = next(lines), next(lines)
        next(lines)  # "track_id"
        column = {names: i for i, names in enumerate(zip(upper, lower, strict=True))}
        for row in lines:
            if row[column["set", "split"]] != "training":
                continue
            name = f"{int(row[0]):06d}"
            genre, tags = row[column["track", "genre_top"]], row[column["track", "tags"]]
            metadata = {
                "title": row[column["track", "title"]],
                "artist": row[column["artist", "name"]],
                "genres": [genre] if genre else [],
                "tags": ast.literal_eval(tags) if tags else [],
            }
            yield Original(name, files_below(root)[name], metadata, license=row[column["track", "license"]])


def opinions(root: Path) -> Iterator[Original]:
    """CMU-MOSI and CMU-MOSEI, in the common form of one table of labels and a folder of clips per video."""
    for row in _table(root / "label.csv"):
        if row["mode"] == "train":
            path = root / row["video_id"] / f"{row['clip_id']}.wav"
            metadata = {"sentiment": float(row["label"]), "transcript": row["text"], "emotion": row.get("emotion")}
            yield Original(f"{row['video_id']}_{row['clip_id']}", path if path.exists() else None, metadata)


def meld(root: Path) -> Iterator[Original]:
    """MELD's training utterances."""
    for row in _table(root / "train_sent_emo.csv"):
        name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
        metadata = {"emotion": row["Emotion"], "sentiment": row["Sentiment"], "transcript": row["Utterance"]}
        yield Original(name, files_below(root)[name], metadata)


def iemocap(root: Path) -> Iterator[Original]:
    """IEMOCAP's utterances."""
    line = re.compile(r"^\[[\d. -]+\]\t(\S+)\t(\w+)\t", re.MULTILINE)
    said = re.compile(r"^(\S+) \[[\d. -]+\]: (.*)$", re.MULTILINE)
    for session in sorted(root.glob("Session*")):
        transcripts: dict[str, str] = {}
        for path in sorted((session / "dialog" / "transcriptions").glob("*.txt")):
            transcripts |= dict(said.findall(path.read_text(errors="replace")))
        for path in sorted((session / "dialog" / "EmoEvaluation").glob("*.txt")):
            for name, emotion in line.findall(path.read_text(errors="replace")):
                metadata = {"emotion": emotion, "transcript": transcripts.get(name, "")}
                yield Original(name, files_below(session / "sentences" / "wav")[name], metadata)


def msp_podcast(root: Path) -> Iterator[Original]:
    """MSP-Podcast's training turns."""
    for row in _table(root / "Labels" / "labels_consensus.csv"):
        if row["Split_Set"] == "Train":
            path = root / "Audios" / row["FileName"]
            yield Original(path.stem, path if path.exists() else None, {"emotion": row["EmoClass"]})


def cochlscene(root: Path) -> Iterator[Original]:
    """CochlScene's training clips."""
    for path in files_below(root / "Train").by_stem.values():
        yield Original(path.stem, path, {"scene": path.parent.name})


def ljspeech(root: Path) -> Iterator[Original]:
    """LJSpeech: all its sentences."""
    for line in (root / "metadata.csv").read_text(encoding="utf-8").splitlines():
        name, _, normalised = line.split("|")
        yield Original(name, files_below(root / "wavs")[name], {"transcript": normalised})


def epic_kitchens(root: Path) -> Iterator[Original]:
    """EPIC-KITCHENS-100's training segments."""

    def seconds(stamp: str) -> float:
        hours, minutes, rest = stamp.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(rest)

    for row in _table(root / "EPIC_100_train.csv"):
        path, start, end = files_below(root)[row["video_id"]], row["start_timestamp"], row["stop_timestamp"]
        yield Original(row["narration_id"], path, {"action": row["narration"]}, seconds(start), seconds(end))


def kinetics700(root: Path) -> Iterator[Original]:
    """Kinetics-700's training clips."""
    files = files_below(root)
    for row in _table(root / "train.csv"):
        video, start, end = row["youtube_id"], int(row["time_start"]), int(row["time_end"])
        path = files[f"{video}_{start:06d}_{end:06d}"] or files[video]  # downloads hold the clip alone
        yield Original(f"{video}_{start}", path, {"action": row["label"]})


def findsounds(root: Path) -> Iterator[Original]:
    """Sounds in a folder per query."""
    for path in files_below(root).by_stem.values():
        yield Original(f"{path.parent.name}/{path.stem}", path, {"query": path.parent.name})


def clotho_aqa(root: Path) -> Iterator[Original]:
    """ClothoAQA's training questions, each with an answer; a clip comes once for each."""
    for number, row in enumerate(_table(root / "clotho_aqa_train.csv")):
        path = root / "audio_files" / row["file_name"]
        metadata = {"question": row["QuestionText"], "answer": row["answer"]}
        yield Original(f"{path.stem}_{number}", path if path.exists() else None, metadata)


def freesound(root: Path) -> Iterator[Original]:
    """Freesound clips in a table, with what their uploaders wrote."""
    for row in _table(root / "freesound.csv"):
        metadata = {"title": row["title"], "description": row["description"]}
        yield Original(row["id"], files_below(root)[row["id"]], metadata, license=row["license"])


ORIGINALS: dict[str, Callable[[Path], Iterator[Original]]] = {
    "wavcaps": wavcaps,
    "audioset": audioset,
    "fsd50k": fsd50k,
    "clotho": clotho,
    "audiocaps": audiocaps,
    "macs": macs,
    "wavtext5k": wavtext5k,
    "sounddescs": sounddescs,
    "nsynth": nsynth,
    "fma": fma,
    "mosi": opinions,
    "meld": meld,
    "iemocap": iemocap,
    "mosei": opinions,
    "msp_podcast": msp_podcast,
    "cochlscene": cochlscene,
    "ljspeech": ljspeech,
    "epic_kitchens": epic_kitchens,
    "kinetics700": kinetics700,
    "findsounds": findsounds,
    "clotho_aqa": clotho_aqa,
    "freesound": freesound,
}
