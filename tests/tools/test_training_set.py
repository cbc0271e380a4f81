"""The embedded checkpoint's training set: thinned, captioned weakly, and a validation split of sources held out."""

import datasets
import pytest
import typer
from onnx import save
from tools.release import training_set
from tools.sound_corpus.soundfonts import Font, plan_phrases

from training.corpus import write_corpus
from yamnet_graph import graph


def test_a_share_of_the_clips_is_kept_whatever_their_order():
    names = [f"package/sound-{number}" for number in range(2000)]
    kept = [name for name in names if training_set.is_kept(name, 0.11)]
    assert 0.08 < len(kept) / len(names) < 0.14
    assert kept == [name for name in names if training_set.is_kept(name, 0.11)]
    assert all(training_set.is_kept(name, 0.5) for name in kept) and not any(
        training_set.is_kept(name, 0.0) for name in names
    )


def test_notes_of_dense_soundfonts_are_thinned():
    """By pitch and velocity; chords, melodies and the notes of other fonts stay."""
    font = Font("fluid-soundfont-gm", "FluidR3_GM.sf2", "train", "MIT", dense=True, velocities=(35, 60, 90, 120))
    clips = [phrase.clip for phrase in plan_phrases(font)]
    kept = [clip for clip in clips if not training_set.is_spare_note(clip.id)]
    assert {clip.velocity for clip in kept} == {None, 50, 60, 120}
    assert {clip.midi % 2 for clip in kept if clip.midi and clip.category == "instrument"} == {0}
    assert {clip.id for clip in clips if "chord" in clip.id or "melody" in clip.id} <= {clip.id for clip in kept}
    assert not training_set.is_spare_note("opl3-soundfont/OPL-3_FM_128M-program000-note061-velocity090")


def test_a_set_from_a_corpus(tmp_path, monkeypatch):
    """Sources held out are no training clips; unlabelled clips have the classes that YAMNet finds as captions."""
    corpus = write_corpus(tmp_path / "corpus")
    parts = {
        split: datasets.load_dataset(str(corpus), split=split).cast_column("audio", datasets.Audio(decode=False))
        for split in ("train", "validation")
    }
    unlabelled = parts["train"].select(range(4)).map(lambda row: {"id": f"{row['id']}-window", "label": ""})
    unlabelled.to_parquet(corpus / "data" / "unlabelled-00000-of-00001.parquet")
    save(graph(quantized=True), tmp_path / "model.onnx")
    classes = ["Dog", "Rain", "Whip", "Bell", "Hum"]
    (tmp_path / "classes.csv").write_text("index,mid,display_name\n" + "".join(f"0,/m,{name}\n" for name in classes))
    monkeypatch.setattr(training_set, "SHARES", {"music": 0.0})
    arguments = (corpus, tmp_path / "set", tmp_path / "model.onnx", tmp_path / "classes.csv")
    training_set.main(*arguments, held_out="elsewhere", seed=0, processes=1)
    made = {
        split: rows.remove_columns("audio") for split, rows in datasets.load_dataset(str(tmp_path / "set")).items()
    }
    sources = {split: set(rows["source"]) for split, rows in made.items()}
    assert sources == {"train": {"examples"}, "validation": {"elsewhere"}}
    weak = made["train"].filter(lambda row: row["category"] == training_set.WEAK)
    plain = made["train"].filter(lambda row: row["category"] != training_set.WEAK)
    assert len(plain) and "music" not in plain["category"][:]
    assert set(weak["id"][:]) <= set(unlabelled["id"][:]) and set(weak["quality"][:]) <= {"weak"}
    known = {f"the sound of {name.lower()}" for name in classes}
    assert len(weak) and all(set(captions) <= known and captions for captions in weak["captions"])
    with pytest.raises(typer.BadParameter, match="nowhere"):
        training_set.main(*arguments, held_out="nowhere")
