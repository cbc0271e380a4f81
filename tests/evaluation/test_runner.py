"""The runner on its own: chance, cached embeddings, several processes, one's own sounds, the sound corpus."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from typer.testing import CliRunner

from clap_hf.cli import app
from clap_hf.embedding import ClapEncoder
from clap_hf.evaluation import zero_shot
from clap_hf.evaluation.benchmarks import PAPER_TASKS, Task
from clap_hf.evaluation.cache import EmbeddingCache, listen
from clap_hf.evaluation.loading import DataLocation, DataSourceError, TaskData, own_tasks
from clap_hf.evaluation.runner import Job, Options, class_texts, find_places, paper_jobs, run
from clap_hf.evaluation.sound_suite import sound_jobs
from clap_hf.evaluation.sound_tasks import RETRIEVAL_SOURCE
from clap_hf.evaluation.zero_shot_tasks import score_classification, score_retrieval
from conftest import EXAMPLES, make_model

ROOT = Path(__file__).parent.parent.parent


class Random:
    """Embeds every text, and every sound, at random."""

    key, logit_scale = "random", 30.0

    def __init__(self, seed=0, size=64):
        self.rng = torch.Generator().manual_seed(seed)
        self.size = size
        self.calls = 0

    def vectors(self, count):
        return F.normalize(torch.randn(count, self.size, generator=self.rng), dim=-1)

    def prepare(self, audio):
        return audio.samples

    def embed_audio(self, prepared):
        self.calls += 1
        return self.vectors(len(prepared))

    def embed_texts(self, texts):
        return self.vectors(len(texts))

    def settings(self):
        return {"model": "random"}


def test_random_embeddings_score_chance_on_every_task():
    """1,000 clips a task; of 20 intervals of 95 % one or two may miss, and none by more than its own width."""
    missed = []
    for number, task in enumerate(PAPER_TASKS):
        if task.kind != "classification":
            continue
        encoder, rng = Random(number), np.random.default_rng(number)
        clips = 1000 if len(task.classes) < 100 else 400
        audio = encoder.vectors(clips).numpy()
        names = tuple(task.classes)
        labels = rng.integers(0, len(names), (clips, 2 if task.multi_label else 1))
        truth = [tuple(set(own.tolist())) for own in labels]
        prompts = class_texts(task, Options())
        scores = "sigmoid" if task.multi_label else "softmax"
        result, _ = score_classification(task, audio, truth, names, prompts, encoder, scores)
        low, high, chance = result["low"], result["high"], result["chance"]
        width = high - low
        assert low - width <= chance <= high + width, (task.name, low, chance, high)
        if not low <= chance <= high:
            missed.append(task.name)
    assert len(missed) <= 2, missed


@pytest.mark.parametrize(
    "task", [t for t in PAPER_TASKS if t.kind.startswith(("audio-", "text-"))], ids=lambda task: task.name
)
def test_random_embeddings_score_chance_in_retrieval(task):
    """Too few hits a run for its interval, so 40 runs of 30 clips with five captions; chance is 1 in 30."""
    captions = [[f"{i} {j}" for j in range(5)] for i in range(30)]
    encoders = [Random(seed) for seed in range(40)]
    results = [score_retrieval(task, e.vectors(30).numpy(), captions, e)[0] for e in encoders]
    values = np.array([result["value"] for result in results])
    assert [result["chance"] for result in results] == pytest.approx([1 / 30] * 40)
    assert abs(values.mean() - 1 / 30) < 2.5 * values.std() / len(values) ** 0.5


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "raw"])
def test_scores_do_not_saturate(scores):
    """At a scale where sigmoids round to 1, clips and classes keep their order."""
    encoder = Random(1)
    encoder.logit_scale = 1000.0
    task = Task("x", "classification", "mAP", "", {"a": (), "b": ()}, ("{}",), "ours", ())
    vectors = encoder.vectors(2)
    encoder.embed_texts = lambda texts: vectors
    audio = np.stack([vectors[0].numpy()] * 2 + [vectors[1].numpy()] * 2)
    truth = [(0,), (0,), (1,), (1,)]
    result, details = score_classification(task, audio, truth, ("a", "b"), {"{}": [["a"], ["b"]]}, encoder, scores)
    assert result["value"] == 1.0 and details.similarity.shape == (2, 2)


def big_task(clips, classes=50):
    names = {f"class {i}": () for i in range(classes)}
    task = Task("big", "classification", "accuracy", "", names, ("a {}",), "ours", ())
    place = DataLocation(None, None, "big", "big")
    audio = [{"bytes": b"never decoded", "path": None}] * clips
    labels = [(i % classes,) for i in range(clips)]
    data = TaskData(audio, list(range(clips)), tuple(names), labels)
    return Job(task, lambda: iter([place]), lambda place: data), place


def test_new_prompts_on_5000_cached_clips_hear_nothing(tmp_path):
    encoder = Random()
    job, place = big_task(5000)
    cache = EmbeddingCache(tmp_path / "cache", f"{place.identity} ", encoder.key)
    for start in range(0, 5000, 500):
        cache.write(range(start, start + 500), encoder.vectors(500), [], {})
    options = Options(templates=tuple(f"prompt {n}: {{}}" for n in range(10)), plots=False)
    found = find_places([job])
    quiet = Console(quiet=True)
    outcomes = run([job], found, encoder, None, tmp_path / "out", tmp_path / "cache", options, quiet)
    assert outcomes[0].status == "done", outcomes[0].reason
    assert len(outcomes[0].result["per_prompt"]) == 10 and outcomes[0].result["clips"] == 5000
    assert encoder.calls == 0
    changed = Options(templates=("another {}",), limit=100, plots=False)
    outcomes = run([job], found, encoder, None, tmp_path / "out", tmp_path / "cache", changed, quiet)
    assert outcomes[0].result["clips"] == 100 and encoder.calls == 0


def test_damaged_parts_are_made_anew_and_limits_add_up(tmp_path):
    files = sorted(EXAMPLES.glob("*.wav")) + sorted(EXAMPLES.glob("*.ogg"))
    audio = [{"bytes": None, "path": str(file)} for file in files] + [{"bytes": b"noise", "path": None}]
    encoder = Random()
    cache = EmbeddingCache(tmp_path, "x", "y")

    def heard(positions):
        before = encoder.calls
        made = listen(audio, positions, encoder, lambda prepared: (encoder.embed_audio(prepared), []), cache)
        return made, encoder.calls - before

    some, calls = heard([0, 2])
    assert calls == 1 and set(some.vectors) == {0, 2}
    everything, calls = heard(range(len(audio)))
    assert calls == 1 and len(everything.vectors) == len(files)
    assert torch.equal(everything.vectors[2], some.vectors[2])
    assert "noise" not in everything.skipped[len(files)] and list(everything.skipped) == [len(files)]
    assert heard(range(len(audio)))[1] == 0
    part = sorted(cache.folder.glob("*.safetensors"))[0]
    lost = sorted(set(everything.vectors) - set(cache.read().vectors)) or None
    assert lost is None
    part.write_bytes(part.read_bytes()[:40])
    again, calls = heard(range(len(audio)))
    assert calls == 1 and set(again.vectors) == set(everything.vectors)


def test_options_and_own_folders_are_checked(tmp_path):
    with pytest.raises(ValueError, match="scores"):
        Options(scores="tanh")
    with pytest.raises(ValueError, match="limit"):
        Options(limit=0)
    with pytest.raises(ValueError, match="for the label"):
        Options(templates=("a sound",))
    with pytest.raises(DataSourceError, match="no CSV"):
        own_tasks(tmp_path)
    (tmp_path / "x.csv").write_text("file,label\na.wav,dog\n")
    with pytest.raises(DataSourceError, match="expected path and label"):
        own_tasks(tmp_path)


def write_csv(path, header, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


@pytest.fixture
def own_folder(tmp_path):
    """One's own sounds: labels, several labels, captions."""
    folder = tmp_path / "mine"
    folder.mkdir()
    sounds = {name: str(EXAMPLES / name) for name in ("dog.ogg", "sheep.wav", "fire.ogg", "bird.wav")}
    labels = {"dog.ogg": "dog", "sheep.wav": "sheep", "fire.ogg": "fire", "bird.wav": "bird"}
    write_csv(folder / "animals.csv", ["path", "label"], [(sounds[n], labels[n]) for n in sounds])
    many = [(sounds["dog.ogg"], "dog|animal"), (sounds["sheep.wav"], "animal"), (sounds["fire.ogg"], "fire")]
    write_csv(folder / "several.csv", ["path", "label"], many)
    spoken = [(sounds[n], f"{labels[n]} {i}") for n in ("dog.ogg", "fire.ogg") for i in range(2)]
    write_csv(folder / "said.csv", ["path", "caption"], spoken)
    return folder


def test_one_s_own_sounds(own_folder, processor, tmp_path):
    tasks = own_tasks(own_folder)
    assert [(t.name, t.metric) for t in tasks] == [
        ("animals", "accuracy"), ("said audio-to-text", "R@1"), ("said text-to-audio", "R@1"), ("several", "mAP"),
    ]  # fmt: skip
    encoder = ClapEncoder(make_model(), processor, "tiny")
    jobs = paper_jobs(tasks, own_folder, tmp_path)
    outcomes = run(jobs, find_places(jobs), encoder, None, tmp_path / "out", tmp_path, Options(), Console(quiet=True))
    assert [o.status for o in outcomes] == ["done"] * 4, [o.reason for o in outcomes]
    by_name = {o.task.name: o.result for o in outcomes}
    assert by_name["animals"]["clips"] == 4 and by_name["animals"]["classes"] == 4
    assert set(by_name["several"]["per_class"]) == {"animal", "dog", "fire"}
    assert by_name["said text-to-audio"]["captions"] == 4 and by_name["said text-to-audio"]["clips"] == 2


def test_the_encoder_s_vectors_are_the_model_s_and_its_key_knows_the_weights(processor):
    from clap_hf import load_audio

    model = make_model()
    encoder = ClapEncoder(model, processor)
    sounds = [load_audio(EXAMPLES / name) for name in ("dog.ogg", "bird.wav")]
    vectors = encoder.embed_audio([encoder.prepare(sound) for sound in sounds])
    inputs = processor(audio=[{"array": s.samples, "sampling_rate": s.sampling_rate} for s in sounds])
    with torch.inference_mode():
        torch.testing.assert_close(vectors, model.get_audio_features(**inputs).pooler_output)
    assert ClapEncoder(model, processor, long_audio="center").key != encoder.key
    other = make_model(seed=1)
    other.audio_model.load_state_dict(model.audio_model.state_dict())
    other.audio_projection.load_state_dict(model.audio_projection.state_dict())
    assert ClapEncoder(other, processor).key == encoder.key, "the text tower changes no sound's embedding"
    assert ClapEncoder(other, processor).settings()["fingerprint"] != encoder.settings()["fingerprint"]
    with pytest.raises(ValueError, match="random"):
        ClapEncoder(model, processor, long_audio="random")


def corpus(folder):
    """A sound corpus of cuts of the recordings in examples/, in the corpus' columns."""
    from evaluation.paper_hub import Cuts

    cuts, rows = Cuts(), []

    def add(number, category, label, **values):
        row = {
            "id": f"{category}/{label}/{number}",
            "audio": {"bytes": cuts.wav(), "path": None},
            "category": category,
        }
        row |= {"label": label, "quality": "named", "source": "x", "captions": [f"{label} {number}"]}
        row |= dict.fromkeys(("family", "register", "lang"), None) | {"velocity": None}
        rows.append(row | values)

    for i in range(6):
        for name in ("dog", "cow"):
            add(i, "animal", name)
        for name in ("scream", "cough"):
            add(i, "human", name)
    for i in range(63):
        loudness = (35, 80, 120)[i % 3]
        add(i, "instrument", "note", family=("piano", "organ", "bass")[i // 21], velocity=loudness, register="low")
    for i in range(6):
        add(i, "vehicle", f"train {i}", source=RETRIEVAL_SOURCE)
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio())
    table.to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder)


def test_the_sounds_suite_gives_what_training_s_evaluation_gives(processor, tmp_path):
    folder = corpus(tmp_path)
    model = make_model()
    jobs = sound_jobs(folder)
    outcomes = run(
        jobs, find_places(jobs), ClapEncoder(model, processor), None, tmp_path / "out", tmp_path / "cache",
        Options(plots=False), Console(quiet=True),
    )  # fmt: skip
    results = {o.task.name: o.result for o in outcomes if o.result is not None}
    assert {o.status for o in outcomes} == {"done", "not reached"}
    split = datasets.load_dataset(folder, split="test")
    expected = zero_shot.evaluate(model, processor, zero_shot.load_clips(split, processor))
    for name in ("instrument family", "animals", "sound events", "human vocal sounds"):
        for key in ("value", "low", "high", "clips", "classes", "chance"):
            assert results[name][key] == pytest.approx(expected[name][key], abs=1e-6), (name, key)
    for name, key in (
        ("audio to text R@1", "retrieval audio-to-text"),
        ("text to audio R@1", "retrieval text-to-audio"),
    ):
        assert results[key]["value"] == pytest.approx(expected[name]["value"])
    assert results["velocity"]["classes"] == 3 and results["velocity"]["clips"] == 63
    assert {"dog", "animal", "human"} <= set(results["sound events, several labels"]["per_class"])


# The second process looks into the cache when the first has written its parts already.
LATE = """
import runpy, sys, time
from accelerate import PartialState
from clap_hf.evaluation.cache import EmbeddingCache
read, seen = EmbeddingCache.read, set()
def late(self):
    if PartialState().process_index == 1 and self.folder not in seen:
        seen.add(self.folder)
        time.sleep(3)
    return read(self)
EmbeddingCache.read = late
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_two_processes_share_the_work(own_folder, checkpoint, tmp_path, late):
    """torchrun and gloo: the same scores as one process, from parts of both."""
    arguments = [str(checkpoint), "--suite", "own", "--data-dir", str(own_folder), "--device", "cpu", "--no-plots"]
    arguments += ["--num-workers", "0", "--cache-dir", str(tmp_path / "cache"), "--output-dir"]
    script = str(ROOT / "scripts" / "evaluate.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    if late:
        (tmp_path / "late.py").write_text(LATE)
        launch.append(str(tmp_path / "late.py"))
    done = subprocess.run(
        [*launch, script, *arguments, str(tmp_path / "two")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(parts) >= 6  # two a task's sounds, one of each process
    one = CliRunner().invoke(app, ["evaluate", *arguments, str(tmp_path / "one"), "--overwrite"])
    assert one.exit_code == 0, one.output
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == len(parts), "one process embedded again"
    names = sorted(path.name for path in (tmp_path / "one" / "tasks").iterdir())
    assert len(names) == 4
    for name in names:
        ours, theirs = (json.loads((tmp_path / run / "tasks" / name).read_text()) for run in ("one", "two"))
        assert ours["value"] == theirs["value"], name
