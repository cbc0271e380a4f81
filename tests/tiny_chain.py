"""The paper's chain in miniature: its training sets in their owners' layouts, cut from examples/, recipes and weights.

`scripts/reproduce.py --tiny` runs the chain on what `tiny_chain` leaves in a folder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from clap_hf.data.registry import training_sets
from conftest import EXAMPLES, GPT2_TOKENIZER
from evaluation.paper_hub import Cuts, served_paper
from hub_server import LoopbackHub

CONFIGS = EXAMPLES.parent / "configs"
CLIPS = 8  # of every training set
LABELS = [row["label"] for row in csv.DictReader((EXAMPLES / "labels.csv").open())]

HTSAT = {
    "num_mel_bins": 32, "num_frames": 128, "num_time_chunks": 2, "embed_dim": 16, "depths": [1, 1],
    "num_attention_heads": [2, 4], "window_size": 4, "spec_augment_time_width": 8, "spec_augment_freq_width": 4,
}  # fmt: skip
CNN14 = {"architecture": "cnn14", "num_mel_bins": 32, "conv_channels": [4, 8, 8], "hidden_size": 12,
         "spec_augment_time_width": 8, "spec_augment_freq_width": 4}  # fmt: skip
FEATURES = {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 0.5, "n_fft": 512, "hop_length": 64}
MAPPER = {"prefix_length": 4, "mapper_input_length": 2, "mapper_num_layers": 1, "mapper_num_heads": 2}
SHORT = {"batch_size": 8, "steps": None, "epochs": 1, "steps_per_epoch": 2, "precision": "no"}
PROMPTS = SHORT | {"features": FEATURES, "model": {"projection_dim": 16, **MAPPER}, "validation_clips": 1,
                   "warmup_steps": 1}  # fmt: skip
CONTRASTIVE = SHORT | {"features": FEATURES, "model": {"projection_dim": 16}, "validation_pairs": 4, "chunk_size": 4}
RECIPES: dict[str, dict[str, Any]] = {
    "htsat_22": PROMPTS | {"audio": HTSAT},
    "htsat_audioset": PROMPTS | {"audio": HTSAT},
    "cnn14_audioset": PROMPTS | {"audio": CNN14},
    "table2": CONTRASTIVE | {"audio": HTSAT},
    "captioning": SHORT | {"batch_size": 4, "model": MAPPER, "validation_clips": 2},
}


@contextmanager
def tiny_chain(folder: Path, hub: LoopbackHub) -> Iterator[None]:
    """Fill a folder with `originals/`, `configs/` and `tasks/`, and for a while the Hub with GPT-2 and the 26 tasks.

    Args:
        folder: A new folder.
        hub: Serves a GPT-2 of random weights under its own name, and the tasks' data sets.
    """
    sounds = Cuts()
    for name in training_sets():
        ORIGINALS[name](Writer(folder / "originals" / name, sounds))
    (folder / "configs").mkdir()
    for name, settings in RECIPES.items():
        recipe = {"extends": str(CONFIGS / f"{name}.yaml"), **settings}
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, n_positions=128)).save_pretrained(folder / "gpt2")
    AutoTokenizer.from_pretrained(GPT2_TOKENIZER).save_pretrained(folder / "gpt2")
    hub.seed("models", "gpt2", folder / "gpt2")
    (folder / "tasks").mkdir()
    try:
        with served_paper(hub, folder / "tasks"):
            yield
    finally:
        hub.store.delete("models", "gpt2")


class Writer:
    """Files of one training set.

    Args:
        root: Its folder.
        sounds: Where its clips are cut from.
    """

    def __init__(self, root: Path, sounds: Cuts):
        self.root, self.sounds = root, sounds

    def sound(self, path: str) -> None:
        """The next clip, under this path."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(self.sounds.wav())

    def text(self, path: str, content: str) -> None:
        """A text file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(content)

    def table(self, path: str, head: str, rows: list[tuple[object, ...]]) -> None:
        """A CSV with these columns, separated by commas."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        with (self.root / path).open("w", newline="") as file:
            csv.writer(file).writerows([head.split(","), *rows])


def label(number: int) -> str:
    """Label of a clip, by its number."""
    return LABELS[number % len(LABELS)]


def captions(number: int) -> list[str]:
    """Five captions of a clip."""
    return [f"{words} {label(number)} {number}" for words in ("a", "the sound of a", "there is a", "far", "loud")]


def wavcaps(to: Writer) -> None:
    """WavCaps."""
    to.text("json_files/x.json", json.dumps({"data": [{"id": str(i), "caption": label(i)} for i in range(CLIPS)]}))
    for i in range(CLIPS):
        to.sound(f"x/{i}.wav")


def audioset(to: Writer) -> None:
    """AudioSet."""
    to.table("class_labels_indices.csv", "index,mid,display_name", [(i, f"/m/{i}", n) for i, n in enumerate(LABELS)])
    lines = [f'v{i}, 0.000, 10.000, "/m/{i % len(LABELS)},/m/{(i + 1) % len(LABELS)}"' for i in range(CLIPS)]
    to.text("balanced_train_segments.csv", "\n".join(["# head", *lines]))
    for i in range(CLIPS):
        to.sound(f"audio/Yv{i}.wav")


def fsd50k(to: Writer) -> None:
    """FSD50K."""
    about = {str(i): {"title": f"{label(i)}.wav", "description": "", "license": "CC0"} for i in range(CLIPS)}
    to.text("FSD50K.metadata/dev_clips_info_FSD50K.json", json.dumps(about))
    rows: list[tuple[object, ...]] = [(i, label(i).replace(" ", "_"), "/m/x", "train") for i in range(CLIPS)]
    to.table("FSD50K.ground_truth/dev.csv", "fname,labels,mids,split", rows)
    for i in range(CLIPS):
        to.sound(f"FSD50K.dev_audio/{i}.wav")


def clotho(to: Writer) -> None:
    """Clotho."""
    head = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    for split, count in (("development", CLIPS), ("validation", 0)):
        to.table(f"clotho_captions_{split}.csv", head, [(f"c{i}.wav", *captions(i)) for i in range(count)])
        to.table(f"clotho_metadata_{split}.csv", "file_name,license", [(f"c{i}.wav", "CC BY") for i in range(count)])
    for i in range(CLIPS):
        to.sound(f"development/c{i}.wav")


def audiocaps(to: Writer) -> None:
    """AudioCaps."""
    rows: list[tuple[object, ...]] = [(i, f"v{i}", 30, captions(i)[0]) for i in range(CLIPS)]
    to.table("train.csv", "audiocap_id,youtube_id,start_time,caption", rows)
    for i in range(CLIPS):
        to.sound(f"v{i}.wav")


def macs(to: Writer) -> None:
    """MACS."""
    files = [
        {"filename": f"m{i}.wav", "annotations": [{"sentence": text} for text in captions(i)[:3]]}
        for i in range(CLIPS)
    ]
    to.text("MACS.yaml", yaml.safe_dump({"files": files}))
    for i in range(CLIPS):
        to.sound(f"audio/m{i}.wav")


def sounddescs(to: Writer) -> None:
    """SoundDescs."""
    to.table("descriptions.csv", "id,description", [(f"s{i}", label(i)) for i in range(CLIPS)])
    to.text("train_list.txt", "\n".join(f"s{i}" for i in range(CLIPS)))
    for i in range(CLIPS):
        to.sound(f"audio/s{i}.wav")


def nsynth(to: Writer) -> None:
    """NSynth."""
    note = training_sets()["nsynth"].example
    to.text("nsynth-train/examples.json", json.dumps({f"n{i}": note | {"pitch": 30 + i} for i in range(CLIPS)}))
    for i in range(CLIPS):
        to.sound(f"nsynth-train/audio/n{i}.wav")


def fma(to: Writer) -> None:
    """FMA."""
    head = ",track,track,track,track,artist,set\n,title,genre_top,tags,license,name,split\ntrack_id,,,,,,\n"
    rows = [f"{i},Food {i},Hip-Hop,\"['lo-fi']\",CC0,AWOL,training" for i in range(CLIPS)]
    to.text("fma_metadata/tracks.csv", head + "\n".join(rows))
    for i in range(CLIPS):
        to.sound(f"fma_large/000/{i:06d}.wav")


def opinions(to: Writer) -> None:
    """CMU-MOSI and CMU-MOSEI."""
    rows: list[tuple[object, ...]] = [("v", i, f"dull {i}", i - 4, "train", "happiness") for i in range(CLIPS)]
    to.table("label.csv", "video_id,clip_id,text,label,mode,emotion", rows)
    for i in range(CLIPS):
        to.sound(f"v/{i}.wav")


def meld(to: Writer) -> None:
    """MELD."""
    rows: list[tuple[object, ...]] = [(f"Go {i}", "anger", "negative", 0, i) for i in range(CLIPS)]
    to.table("train_sent_emo.csv", "Utterance,Emotion,Sentiment,Dialogue_ID,Utterance_ID", rows)
    for i in range(CLIPS):
        to.sound(f"dia0_utt{i}.wav")


def iemocap(to: Writer) -> None:
    """IEMOCAP."""
    names = [f"Ses01F_impro01_F{i:03d}" for i in range(CLIPS)]
    lines = [f"[6.2 - 8.2]\t{name}\tang\t[2.5, 2.5, 2.5]" for name in names]
    to.text("Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", "\n".join(lines) + "\n")
    for name in names:
        to.sound(f"Session1/sentences/wav/Ses01F_impro01/{name}.wav")


def msp_podcast(to: Writer) -> None:
    """MSP-Podcast."""
    rows: list[tuple[object, ...]] = [(f"M{i}.wav", "ASHN"[i % 4], "Train") for i in range(CLIPS)]
    to.table("Labels/labels_consensus.csv", "FileName,EmoClass,Split_Set", rows)
    for i in range(CLIPS):
        to.sound(f"Audios/M{i}.wav")


def cochlscene(to: Writer) -> None:
    """CochlScene."""
    for i in range(CLIPS):
        to.sound(f"Train/{('SubwayStation', 'Bus')[i % 2]}/s{i}.wav")


def ljspeech(to: Writer) -> None:
    """LJSpeech."""
    to.text("metadata.csv", "".join(f"LJ{i}|x|sentence {i}\n" for i in range(CLIPS)))
    for i in range(CLIPS):
        to.sound(f"wavs/LJ{i}.wav")


def epic_kitchens(to: Writer) -> None:
    """EPIC-KITCHENS: segments of one video a clip."""
    rows: list[tuple[object, ...]] = [
        (f"P{i}_1", f"P{i}", "00:00:00.00", "00:00:00.20", "open drawer") for i in range(CLIPS)
    ]
    to.table("EPIC_100_train.csv", "narration_id,video_id,start_timestamp,stop_timestamp,narration", rows)
    for i in range(CLIPS):
        to.sound(f"P{i}.wav")


def kinetics700(to: Writer) -> None:
    """Kinetics-700."""
    rows: list[tuple[object, ...]] = [("playing drums", f"k{i}", 4, 14, "train") for i in range(CLIPS)]
    to.table("train.csv", "label,youtube_id,time_start,time_end,split", rows)
    for i in range(CLIPS):
        to.sound(f"train/k{i}_000004_000014.wav")


def findsounds(to: Writer) -> None:
    """findsounds.com."""
    for i in range(CLIPS):
        to.sound(f"{label(i)}/f{i}.wav")


def uploads(to: Writer) -> None:
    """WavText5K and Freesound, each with its own table."""
    rows: list[tuple[object, ...]] = [(str(i), label(i), "loud", "CC0", f"{i}.wav") for i in range(CLIPS)]
    for name in ("WavText5K.csv", "freesound.csv"):
        to.table(name, "id,title,description,license,fname", rows)
    for i in range(CLIPS):
        to.sound(f"{i}.wav")


def clotho_aqa(to: Writer) -> None:
    """ClothoAQA."""
    rows: list[tuple[object, ...]] = [(f"q{i}.wav", f"Is it a {label(i)}?", "yes", "yes") for i in range(CLIPS)]
    to.table("clotho_aqa_train.csv", "file_name,QuestionText,answer,confidence", rows)
    for i in range(CLIPS):
        to.sound(f"audio_files/q{i}.wav")


ORIGINALS: dict[str, Callable[[Writer], None]] = {
    "wavcaps": wavcaps, "audioset": audioset, "fsd50k": fsd50k, "clotho": clotho, "audiocaps": audiocaps,
    "macs": macs, "wavtext5k": uploads, "sounddescs": sounddescs, "nsynth": nsynth, "fma": fma, "mosi": opinions,
    "meld": meld, "iemocap": iemocap, "mosei": opinions, "msp_podcast": msp_podcast, "cochlscene": cochlscene,
    "ljspeech": ljspeech, "epic_kitchens": epic_kitchens, "kinetics700": kinetics700, "findsounds": findsounds,
    "clotho_aqa": clotho_aqa, "freesound": uploads,
}  # fmt: skip
