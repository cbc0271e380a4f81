"""The 20 training sets of the paper (Section 3): where they are, under which terms, and how their pairs are formed.

Numbers of pairs and licenses are what the sets' own pages and papers state, and what the Hub's cards listed; a mirror
on the Hub grants no rights that the original does not. The paper does not publish its split of the 4.6 M pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from . import source_texts as texts
from .stream import StreamSource


@dataclass(frozen=True)
class TrainingSet:
    """One of the paper's training sets.

    Args:
        title: Its name.
        original: Where it comes from.
        hub_ids: Repositories on the Hub that hold it, or parts of it; unofficial unless said otherwise.
        license: Of the audio and of the labels, where they differ.
        access: `"open"`: its license allows passing it on. `"per clip"`: each clip has its own Creative Commons
            license, which a built row carries. `"own copy"`: everybody must get it from its owner; what is built stays
            local.
        splits: Splits that may be trained on.
        columns: Metadata that the texts are formed of.
        texts: Forms the texts of a row.
        example: A row's metadata, for the worked example.
        formed: The texts of that row.
        exclude: What must be left out, because a downstream task of the paper tests on it.
        pairs: Size, as published.
        layout: What `scripts/build_dataset.py` expects below its root.
    """

    title: str
    original: str
    hub_ids: tuple[str, ...]
    license: str
    access: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    texts: Callable[[dict[str, Any]], list[str]]
    example: dict[str, Any]
    formed: list[str]
    exclude: str
    pairs: str
    layout: str


_TALK = {"transcript": "Go away."}

TRAINING_SETS: dict[str, TrainingSet] = {
    "wavcaps": TrainingSet(
        title="WavCaps",
        original="https://huggingface.co/datasets/cvssp/WavCaps",
        hub_ids=("cvssp/WavCaps", "CLAPv2/audioset_wavcaps"),
        license="captions CC BY 4.0, academic use only; audio by origin (Freesound, BBC, SoundBible, AudioSet)",
        access="own copy",
        splits=("train",),
        columns=("captions",),
        texts=texts.captions,
        example={"captions": ["A dog barks twice."]},
        formed=["A dog barks twice."],
        exclude="clips of AudioCaps, Clotho, ESC-50, UrbanSound8K, VGGSound: WavCaps' own blacklists, by id",
        pairs="403,050 (Freesound 262,300; BBC 31,201; SoundBible 1,232; AudioSet-SL 108,317)",
        layout="json_files/**/*.json (with a list `data` of id, caption) and <id>.flac anywhere",
    ),
    "audioset": TrainingSet(
        title="AudioSet",
        original="https://research.google.com/audioset",
        hub_ids=("agkphysics/AudioSet",),
        license="labels CC BY 4.0; audio of YouTube uploaders",
        access="own copy",
        splits=("balanced_train", "unbalanced_train"),
        columns=("labels",),
        texts=texts.labels,
        example={"labels": ["Dog", "Rain"]},
        formed=["the sounds of dog and rain"],
        exclude="the eval segments; ids in AudioCaps' validation and test, and in DCASE 2017 Task 4's evaluation",
        pairs="1.7 M files by the paper",
        layout="class_labels_indices.csv, *_train_segments.csv and <YouTube id>.<ending> anywhere",
    ),
    "fsd50k": TrainingSet(
        title="FSD50K",
        original="https://zenodo.org/records/4060432",
        hub_ids=("Fhrozen/FSD50k", "CLAPv2/FSD50K"),
        license="each clip its own: CC0, CC BY, CC BY-NC or CC Sampling+",
        access="per clip",
        splits=("dev",),
        columns=("title", "description"),
        texts=texts.title_and_description,
        example={"title": "door_slam.wav", "description": "A <b>heavy</b> door."},
        formed=["door slam. A heavy door."],
        exclude="the eval split; the class labels (the paper trained on descriptions, not labels)",
        pairs="51,197 clips, of which 40,966 dev",
        layout="FSD50K.metadata/dev_clips_info_FSD50K.json and FSD50K.dev_audio/<id>.wav",
    ),
    "clotho": TrainingSet(
        title="Clotho v2",
        original="https://zenodo.org/records/4783391",
        hub_ids=("CLAPv2/Clotho", "mteb/Clotho"),
        license="captions Tampere University, non-commercial; audio of Freesound, each clip its own CC license",
        access="per clip",
        splits=("development", "validation"),
        columns=("captions",),
        texts=texts.captions,
        example={"captions": ["Rain falls on a roof.", "It is raining."]},
        formed=["Rain falls on a roof.", "It is raining."],
        exclude="the evaluation split",
        pairs="6,974 clips with 5 captions, 5,929 of them outside the evaluation split",
        layout="clotho_captions_<split>.csv, clotho_metadata_<split>.csv and <split>/<file name>",
    ),
    "audiocaps": TrainingSet(
        title="AudioCaps",
        original="https://github.com/cdjkim/audiocaps",
        hub_ids=("CLAPv2/audiocaps", "d0rj/audiocaps"),
        license="captions MIT; audio of YouTube uploaders",
        access="own copy",
        splits=("train",),
        columns=("captions",),
        texts=texts.captions,
        example={"captions": ["A man talks while a car passes"]},
        formed=["A man talks while a car passes"],
        exclude="the validation and test splits",
        pairs="about 49,800 captions",
        layout="train.csv (audiocap_id, youtube_id, start_time, caption) and <youtube id>.<ending> anywhere",
    ),
    "macs": TrainingSet(
        title="MACS",
        original="https://zenodo.org/records/5114771",
        hub_ids=("mteb/MACS_a2t",),
        license="captions non-commercial; audio TAU Urban Acoustic Scenes 2019, non-commercial",
        access="own copy",
        splits=("development",),
        columns=("captions",),
        texts=texts.captions,
        example={"captions": ["People chat in a park"]},
        formed=["People chat in a park"],
        exclude="nothing of its own; TUT 2017, a downstream task, is another recording campaign",
        pairs="3,930 clips, 17,275 captions",
        layout="MACS.yaml and <file name> anywhere",
    ),
    "wavtext5k": TrainingSet(
        title="WavText5K",
        original="https://github.com/microsoft/WavText5K",
        hub_ids=(),
        license="links only; each clip its site's terms",
        access="own copy",
        splits=("train",),
        columns=("title", "description"),
        texts=texts.title_and_description,
        example={"title": "Rain", "description": "Rain on a tent"},
        formed=["Rain. Rain on a tent."],
        exclude="nothing known",
        pairs="4,525 clips, 4,348 descriptions",
        layout="WavText5K.csv (title, description, fname) and <fname> anywhere",
    ),
    "sounddescs": TrainingSet(
        title="SoundDescs",
        original="https://github.com/akoepke/audio-retrieval-benchmark",
        hub_ids=("mteb/SoundDescsA2TRetrieval",),
        license="BBC RemArc: personal, educational and research use, non-commercial",
        access="own copy",
        splits=("train",),
        columns=("captions",),
        texts=texts.captions,
        example={"captions": ["Big Ben strikes twelve"]},
        formed=["Big Ben strikes twelve"],
        exclude="its validation and test splits, where they are used for retrieval",
        pairs="32,979, of which 23,085 train",
        layout="descriptions.csv (id, description), train_list.txt and <id>.<ending> anywhere",
    ),
    "nsynth": TrainingSet(
        title="NSynth",
        original="https://magenta.tensorflow.org/datasets/nsynth",
        hub_ids=("jg583/NSynth",),
        license="CC BY 4.0",
        access="open",
        splits=("train",),
        columns=("instrument_family_str", "instrument_source_str", "pitch", "velocity", "qualities_str"),
        texts=texts.note,
        example={
            "instrument_family_str": "bass",
            "instrument_source_str": "synthetic",
            "pitch": 33,
            "velocity": 100,
            "qualities_str": ["dark"],
        },
        formed=[
            "a synthetic bass note",
            "a synthetic bass note of pitch A1 and velocity 100, with dark qualities",
        ],
        exclude="the test split (instrument family, pitch, velocity and qualities are downstream tasks)",
        pairs="289,205 train",
        layout="nsynth-train/examples.json and nsynth-train/audio/<id>.wav",
    ),
    "fma": TrainingSet(
        title="FMA",
        original="https://github.com/mdeff/fma",
        hub_ids=("benjamin-paine/free-music-archive-full", "benjamin-paine/free-music-archive-large"),
        license="each track its own, mostly Creative Commons; metadata CC BY 4.0",
        access="per clip",
        splits=("training",),
        columns=("title", "artist", "genres", "tags"),
        texts=texts.track,
        example={"title": "Food", "artist": "AWOL", "genres": ["Hip-Hop"], "tags": []},
        formed=["hip-hop music", "Food by AWOL, hip-hop music"],
        exclude="nothing known; GTZAN's tracks are commercial recordings",
        pairs="106,574 clips in fma_large",
        layout="fma_metadata/tracks.csv and <folder>/<6-digit id>.mp3",
    ),
    "mosi": TrainingSet(
        title="CMU-MOSI",
        original="http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset",
        hub_ids=(),
        license="research, by Carnegie Mellon's terms; audio of YouTube uploaders",
        access="own copy",
        splits=("train",),
        columns=("sentiment", "transcript"),
        texts=texts.sentiment,
        example={"sentiment": -1.4, "transcript": "It was dull."},
        formed=["a person speaking with negative sentiment", 'a person says with negative sentiment "It was dull."'],
        exclude="its test split",
        pairs="2,199 segments",
        layout="label.csv (video_id, clip_id, text, label, mode) and <video id>/<clip id>.wav",
    ),
    "meld": TrainingSet(
        title="MELD",
        original="https://github.com/declare-lab/MELD",
        hub_ids=("ajyy/MELD_audio", "mteb/MELD"),
        license="annotations GPL 3.0; audio of a television series",
        access="own copy",
        splits=("train",),
        columns=("emotion", "sentiment", "transcript"),
        texts=texts.emotion_and_sentiment,
        example={"emotion": "anger", "sentiment": "negative", **_TALK},
        formed=[
            "a person speaking, angry",
            'an angry person says "Go away."',
            "a person speaking with negative sentiment",
        ],
        exclude="its dev and test splits",
        pairs="9,989 train utterances",
        layout="train_sent_emo.csv and dia<dialogue>_utt<utterance>.<ending> anywhere",
    ),
    "iemocap": TrainingSet(
        title="IEMOCAP",
        original="https://sail.usc.edu/iemocap",
        hub_ids=("AbstractTTS/IEMOCAP",),
        license="University of Southern California, by a signed release form",
        access="own copy",
        splits=("train",),
        columns=("emotion", "transcript"),
        texts=texts.emotion,
        example={"emotion": "ang", **_TALK},
        formed=["a person speaking, angry", 'an angry person says "Go away."'],
        exclude="nothing; no downstream task of the paper uses it",
        pairs="10,039 utterances, those that annotators agreed on",
        layout="Session<n>/dialog/EmoEvaluation/*.txt and Session<n>/sentences/wav/**/<utterance>.wav",
    ),
    "mosei": TrainingSet(
        title="CMU-MOSEI",
        original="http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset",
        hub_ids=("tamb2203579/CMU-MOSEI",),
        license="research, by Carnegie Mellon's terms; audio of YouTube uploaders",
        access="own copy",
        splits=("train",),
        columns=("sentiment", "transcript"),
        texts=texts.sentiment,
        example={"sentiment": 2.0, "transcript": ""},
        formed=["a person speaking with positive sentiment"],
        exclude="its test split",
        pairs="about 23,000 segments",
        layout="label.csv (video_id, clip_id, text, label, mode) and <video id>/<clip id>.wav",
    ),
    "msp_podcast": TrainingSet(
        title="MSP-Podcast",
        original="https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html",
        hub_ids=("CLAPv2/MSP_podcast",),
        license="University of Texas at Dallas, academic license by agreement",
        access="own copy",
        splits=("Train",),
        columns=("emotion",),
        texts=texts.emotion,
        example={"emotion": "S"},
        formed=["a person speaking, sad"],
        exclude="its test partitions",
        pairs="45,100 with a clear label in release 1.9's train split",
        layout="Labels/labels_consensus.csv and Audios/<file name>",
    ),
    "cochlscene": TrainingSet(
        title="CochlScene",
        original="https://zenodo.org/records/7080122",
        hub_ids=(),
        license="CC BY-SA 3.0",
        access="open",
        splits=("Train",),
        columns=("scene",),
        texts=texts.scene,
        example={"scene": "SubwayStation"},
        formed=["the acoustic scene is subway station"],
        exclude="its Val and Test splits",
        pairs="60,855 train of 76,115",
        layout="Train/<scene>/*.wav",
    ),
    "ljspeech": TrainingSet(
        title="LJSpeech",
        original="https://keithito.com/LJ-Speech-Dataset",
        hub_ids=("keithito/lj_speech",),
        license="public domain",
        access="open",
        splits=("train",),
        columns=("transcript",),
        texts=texts.transcript,
        example={"transcript": "in being comparatively modern."},
        formed=['a person says "in being comparatively modern."'],
        exclude="nothing",
        pairs="13,100",
        layout="metadata.csv and wavs/<id>.wav",
    ),
    "epic_kitchens": TrainingSet(
        title="EPIC-KITCHENS-100",
        original="https://epic-kitchens.github.io",
        hub_ids=(),
        license="CC BY-NC 4.0",
        access="open",
        splits=("train",),
        columns=("action",),
        texts=texts.action,
        example={"action": "open drawer"},
        formed=["the sound of a person: open drawer"],
        exclude="its validation and test segments",
        pairs="67,217 train segments",
        layout="EPIC_100_train.csv and <video id>.<ending> anywhere",
    ),
    "kinetics700": TrainingSet(
        title="Kinetics-700-2020",
        original="https://github.com/cvdfoundation/kinetics-dataset",
        hub_ids=("mteb/kinetics-700-2020",),
        license="labels CC BY 4.0; audio of YouTube uploaders",
        access="own copy",
        splits=("train",),
        columns=("action",),
        texts=texts.action,
        example={"action": "playing drums"},
        formed=["the sound of a person playing drums"],
        exclude="its validation and test splits",
        pairs="about 0.6 M",
        layout="train.csv (label, youtube_id, time_start, time_end) and <YouTube id>*.<ending> anywhere",
    ),
    "findsounds": TrainingSet(
        title="findsounds.com",
        original="https://www.findsounds.com",
        hub_ids=(),
        license="a search engine: each sound its site's terms, no right to pass on",
        access="own copy",
        splits=("train",),
        columns=("query",),
        texts=texts.query,
        example={"query": "cow-bell"},
        formed=["the sound of cow bell"],
        exclude="nothing known",
        pairs="not published",
        layout="<query>/*.<ending>",
    ),
}


def training_set(name: str) -> TrainingSet:
    """One of the sets, by its key.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in TRAINING_SETS:
        raise ValueError(f"There is no training set {name!r}, expected one of {sorted(TRAINING_SETS)}.")
    return TRAINING_SETS[name]


def source_of(settings: dict[str, Any], split: str) -> StreamSource:
    """A stream's source from a recipe's settings.

    Args:
        settings: Settings of `StreamSource`. With `source`, the key of a training set, the texts are formed by its
            rule from its own columns, and the dataset is its first Hub repository unless one is named.
        split: The split, unless the settings name one.

    Raises:
        ValueError: If a setting is unknown, or there is no dataset.
    """
    settings = {"split": split} | settings
    if "source" in settings:
        chosen = training_set(settings.pop("source"))
        settings = {"texts": chosen.texts, "text_columns": chosen.columns} | settings
        if chosen.hub_ids:
            settings.setdefault("dataset", chosen.hub_ids[0])
    known = {field.name for field in fields(StreamSource)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"A source has unknown settings {unknown}, expected some of {sorted(known)}.")
    if "dataset" not in settings:
        raise ValueError(f"A source names no dataset: {settings}.")
    return StreamSource(**settings)
