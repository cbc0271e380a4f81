"""Every training set in its owner's layout, in miniature: built, streamed, shared or refused."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import load_dataset
from tools.training_sets import prepare
from tools.training_sets.originals import ORIGINALS
from tools.training_sets.prepare import build_dataset, read_ids, refuse_to_share

from clap_hf.atomic_io import part_facts
from clap_hf.data.registry import training_sets
from clap_hf.data.stream import PairStream, StreamSource
from clap_hf.hub import push
from conftest import EXAMPLES

TRACKS = """,track,track,track,track,artist,set
,title,genre_top,tags,license,name,split
track_id,,,,,,
2,Food,Hip-Hop,"['lo-fi']",CC BY-NC-SA 3.0,AWOL,training
5,Other,,[],CC0,AWOL,test
"""
EVALUATION = "% header\n[6.2 - 8.2]\tSes01F_impro01_F000\tang\t[2.5, 2.5, 2.5]\nC-E2:\tAnger;\t()\n"
NOTE = training_sets()["nsynth"].example

# By set: the files of its listing, the sound files, and the first text of the first row that must come of it.
LAYOUTS = {
    "wavcaps": (
        {
            "json_files/FreeSound/fsd.json": json.dumps({"data": [{"id": 17, "caption": "A dog barks."}]}),
            "json_files/blacklist/blacklist.json": json.dumps({"FreeSound": ["17"]}),
        },
        ["FreeSound_flac/17.flac"],
        "A dog barks.",
    ),
    "audioset": (
        {
            "class_labels_indices.csv": 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/0bt9lr,"Dog"\n',
            "balanced_train_segments.csv": '# head\n--4gqARaEJE, 0.000, 10.000, "/m/0bt9lr,/m/09x0r"\n',
        },
        ["audio/Y--4gqARaEJE.flac"],
        "the sounds of dog and speech",
    ),
    "fsd50k": (
        {
            "FSD50K.metadata/dev_clips_info_FSD50K.json": json.dumps(
                {"64760": {"title": "bark.wav", "description": "My dog", "license": "CC0", "tags": []}}
            ),
            "FSD50K.ground_truth/dev.csv": 'fname,labels,mids,split\n64760,"Bark,Dog","/m/05tny_,/m/0bt9lr",train\n',
        },
        ["FSD50K.dev_audio/64760.wav"],
        "bark. My dog.",
    ),
    "clotho": (
        {
            f"clotho_{kind}_{split}.csv": text
            for split in ("development", "validation")
            for kind, text in {
                "captions": "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
                + ("a dog.wav,One,Two,Three,Four,Five\n" if split == "development" else ""),
                "metadata": "file_name,keywords,license\n" + ("a dog.wav,x,CC BY\n" if split == "development" else ""),
            }.items()
        },
        ["development/a dog.wav"],
        "One",
    ),
    "audiocaps": (
        {"train.csv": "audiocap_id,youtube_id,start_time,caption\n1,-abc,30,A dog\n2,-abc,30,Dogs\n"},
        ["x/-abc.flac"],
        "A dog",
    ),
    "macs": (
        {"MACS.yaml": "files:\n- filename: airport-1.wav\n  annotations:\n  - {sentence: People, tags: [x]}\n"},
        ["audio/airport-1.wav"],
        "People",
    ),
    "wavtext5k": (
        {"WavText5K.csv": "title,description,fname\nRain,On a tent,r1.wav\n"},
        ["r1.wav"],
        "Rain. On a tent.",
    ),
    "sounddescs": (
        {"descriptions.csv": "id,description\n07,Big Ben\n08,Test clip\n", "train_list.txt": "07\n"},
        ["audio/07.wav", "audio/08.wav"],
        "Big Ben",
    ),
    "nsynth": (
        {"nsynth-train/examples.json": json.dumps({"bass_1": NOTE})},
        ["nsynth-train/audio/bass_1.wav"],
        "a synthetic bass note",
    ),
    "fma": (
        {"fma_metadata/tracks.csv": TRACKS},
        ["fma_large/000/000002.flac", "fma_large/000/000005.flac"],
        "hip-hop music",
    ),
    "mosi": (
        {"label.csv": "video_id,clip_id,text,label,mode\nv,1,IT WAS DULL,-1.4,train\nv,2,x,1,test\n"},
        ["v/1.wav", "v/2.wav"],
        "a person speaking with negative sentiment",
    ),
    "meld": (
        {
            "train_sent_emo.csv": "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
            "1,Go away.,X,anger,negative,0,3\n"
        },
        ["splits/dia0_utt3.flac"],
        "a person speaking, angry",
    ),
    "iemocap": (
        {
            "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt": EVALUATION,
            "Session1/dialog/transcriptions/Ses01F_impro01.txt": "Ses01F_impro01_F000 [006.2-008.2]: Go away.\n",
        },
        ["Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"],
        "a person speaking, angry",
    ),
    "msp_podcast": (
        {"Labels/labels_consensus.csv": "FileName,EmoClass,Split_Set\nM_1.wav,S,Train\nM_2.wav,S,Test1\n"},
        ["Audios/M_1.wav", "Audios/M_2.wav"],
        "a person speaking, sad",
    ),
    "cochlscene": (
        {},
        ["Train/SubwayStation/S_1.wav", "Test/Bus/B_1.wav"],
        "the acoustic scene is subway station",
    ),
    "ljspeech": ({"metadata.csv": "LJ001|Dr. X|Doctor X\n"}, ["wavs/LJ001.wav"], 'a person says "Doctor X"'),
    "epic_kitchens": (
        {
            "EPIC_100_train.csv": "narration_id,video_id,start_timestamp,stop_timestamp,narration\n"
            "P01_1,P01,00:00:00.20,00:00:00.70,open drawer\n"
        },
        ["P01/P01.flac"],
        "the sound of a person: open drawer",
    ),
    "kinetics700": (
        {"train.csv": "label,youtube_id,time_start,time_end,split\nplaying drums,xyz,4,14,train\n"},
        ["train/xyz_000004_000014.flac"],
        "the sound of a person playing drums",
    ),
    "findsounds": ({}, ["cow-bell/1.wav"], "the sound of cow bell"),
    "clotho_aqa": (
        {"clotho_aqa_train.csv": "file_name,QuestionText,answer,confidence\nr.wav,Is it raining?,yes,yes\n"},
        ["audio_files/r.wav"],
        "Is it raining? yes",
    ),
    "freesound": (
        {"freesound.csv": "id,title,description,license\n7,rain.wav,On a tent,CC BY-NC\n"},
        ["7/7.flac"],
        "rain. On a tent.",
    ),
}  # fmt: skip
LAYOUTS["mosei"] = LAYOUTS["mosi"]
# What prompts of pretraining ask for, in the rows that are built of these layouts.
KEPT = {
    "audioset": {"labels": ["Dog", "Speech"]},
    "fsd50k": {"labels": ["Bark", "Dog"]},
    "nsynth": NOTE,
    "fma": {"genres": ["Hip-Hop"]},
    "mosi": {"sentiment": -1.4},
    "mosei": {"sentiment": -1.4, "emotion": None},
    "meld": {"emotion": "anger", "sentiment": "negative"},
    "msp_podcast": {"emotion": "S"},
    "cochlscene": {"scene": "SubwayStation"},
    "clotho_aqa": {"question": "Is it raining?", "answer": "yes"},
}


def lay_out(name: str, root: Path) -> Path:
    listings, sounds, _ = LAYOUTS[name]
    for path, text in listings.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path in sounds:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLES / ("bird.wav" if path.endswith("wav") else "piano.flac"), root / path)
    return root


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_set_is_built_from_its_owners_layout(name, tmp_path):
    report = build_dataset(name, lay_out(name, tmp_path / "root"), tmp_path / "out")
    assert (report["clips"], report["rows"], report["skipped"]) == (1, 1, {})  # and no test clip among them
    row = rows_of(tmp_path / "out")[0]
    assert row["text"][0] == LAYOUTS[name][2] and row["source"] == name and row["license"]
    assert {key: row[key] for key in training_sets()[name].keep} == KEPT.get(name, {})
    assert training_sets()[name].original in row["provenance"]
    (tmp_path / "one.flac").write_bytes(row["audio"]["bytes"])
    info = soundfile.info(tmp_path / "one.flac")
    assert (info.samplerate, info.channels, info.format) == (44_100, 1, "FLAC")
    assert info.duration == pytest.approx(row["duration"], abs=1e-4)
    if name == "epic_kitchens":
        assert info.duration == pytest.approx(0.5, abs=1e-3)
    licenses = {"fsd50k": "CC0", "clotho": "CC BY", "fma": "CC BY-NC-SA 3.0", "freesound": "CC BY-NC"}
    assert row["license"] == licenses.get(name, training_sets()[name].license)


def test_long_clips_are_cut_and_bad_ones_listed(tmp_path):
    root = lay_out("fsd50k", tmp_path / "root")
    about = {name: {"title": f"t{name}", "description": "", "license": "CC0"} for name in ("1", "2", "3", "4")}
    about["4"]["title"] = ".wav"
    (root / "FSD50K.metadata" / "dev_clips_info_FSD50K.json").write_text(json.dumps(about))
    soundfile.write(root / "FSD50K.dev_audio" / "1.wav", np.sin(np.arange(8000 * 61) / 9), 8000)
    (root / "FSD50K.dev_audio" / "2.wav").write_bytes(b"RIFF damaged")
    soundfile.write(root / "FSD50K.dev_audio" / "4.wav", np.ones(800), 8000)
    report = build_dataset("fsd50k", root, tmp_path / "out")
    assert (report["listed"], report["clips"], report["rows"]) == (4, 1, 3)
    assert "not there" in report["skipped"]["3"] and "2.wav" in report["skipped"]["2"]
    assert "no text" in report["skipped"]["4"]
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == ["1-0", "1-1", "1-2"]
    assert [row["duration"] for row in rows] == pytest.approx([30, 30, 1], abs=1e-3)


def test_a_build_goes_on_after_the_last_whole_file(tmp_path, monkeypatch):
    root = tmp_path / "root"
    for i in range(6):
        (root / "bell").mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLES / "bird.wav", root / "bell" / f"{i}.wav")
    monkeypatch.setattr(prepare, "CLIPS_PER_FILE", 2)
    real, done = prepare._write_part, []

    def stop_at_the_third(store, stem, *arguments):
        if len(done) == 2:
            store.path(stem).with_suffix(".new").write_bytes(b"torn")
            raise KeyboardInterrupt
        done.append(stem)
        return real(store, stem, *arguments)

    monkeypatch.setattr(prepare, "_write_part", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build_dataset("findsounds", root, tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert [part_facts(path)["clips"] for path in sorted(written)] == [2, 2]
    monkeypatch.setattr(prepare, "_write_part", real)
    assert build_dataset("findsounds", root, tmp_path / "out")["rows"] == 6
    assert len(written) == 2 and all(path.stat().st_mtime_ns == time for path, time in written.items())
    damaged = sorted(written)[1]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert build_dataset("findsounds", root, tmp_path / "out")["rows"] == 6
    assert len(load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")) == 6


def test_files_of_another_build_are_never_mixed_in(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "bell").mkdir(parents=True)
    for i in range(6):
        shutil.copy(EXAMPLES / "bird.wav", root / "bell" / f"{i}.wav")
    monkeypatch.setattr(prepare, "CLIPS_PER_FILE", 2)
    build_dataset("findsounds", root, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert build_dataset("findsounds", root, tmp_path / "out", frozenset({"bell/0"}))["rows"] == 5
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == names
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [f"bell/{i}" for i in range(1, 6)]
    with pytest.raises(ValueError, match="train-00000-of-00003.parquet: a file of another build.*Remove it"):
        build_dataset("findsounds", root, tmp_path / "out", hold_out=2)


def test_ids_to_leave_out_are_read_from_text_and_json(tmp_path):
    (tmp_path / "ids.txt").write_text("a\nb\n")
    (tmp_path / "list.json").write_text('["c.wav", 4]')
    (tmp_path / "blacklist.json").write_text('{"FreeSound": ["5.flac"], "BBC": ["x/e.wav"]}')
    assert read_ids(tmp_path / "ids.txt") == {"a", "b"}
    assert read_ids(tmp_path / "list.json") == {"c", "4"}
    assert read_ids(tmp_path / "blacklist.json") == {"5", "e"}


def test_excluded_clips_stay_out(tmp_path):
    root = lay_out("audioset", tmp_path / "root")
    with pytest.raises(ValueError, match="lists no clips"):
        build_dataset("audioset", root, tmp_path / "out", frozenset({"--4gqARaEJE"}))


def test_a_missing_listing_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="metadata.csv.*keithito.com"):
        build_dataset("ljspeech", tmp_path, tmp_path / "out")


def test_what_is_built_can_be_streamed_and_shared(hub, processor, tmp_path):
    root = lay_out("ljspeech", tmp_path / "root")
    lines = "".join(f"LJ{i:03d}|x|sentence {i}\n" for i in range(8))
    (root / "metadata.csv").write_text(lines)
    for i in range(8):
        shutil.copy(EXAMPLES / "speech.wav", root / "wavs" / f"LJ{i:03d}.wav")
    build_dataset("ljspeech", root, tmp_path / "out", hold_out=2)
    push(tmp_path / "out", "acme/ljspeech-pairs", repo_type="dataset", private=True)
    assert len(load_dataset("acme/ljspeech-pairs", split="train")) == 6
    assert len(load_dataset("acme/ljspeech-pairs", split="validation")) == 2
    source = StreamSource("acme/ljspeech-pairs", id="id", duration="duration")
    (batch, *_) = PairStream([source], processor, 4, seed=0).batches(0, 0, 0, 1)
    assert sum(len(part) for part in batch["waveforms"]) == 4 and not batch["skipped"]


def test_sets_that_may_not_be_passed_on_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(PermissionError, match="signed release form.*stays on your machines"):
        refuse_to_share("iemocap")
    arguments = ["meld", "--root", str(tmp_path), "--output", str(tmp_path / "out"), "--push-to-hub", "acme/meld"]
    monkeypatch.setattr(sys, "argv", ["tools.training_sets", *arguments])
    with pytest.raises(SystemExit):
        runpy.run_module("tools.training_sets", run_name="__main__")
    assert "may not be passed on" in capsys.readouterr().err and not (tmp_path / "out").exists()
