"""The runner on its own: chance, cached embeddings, several processes, one's own sounds, the sound corpus."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from scripts.build_evaluation_set import build_evaluation_set
from typer.testing import CliRunner

from clap_hf.cli import app
from clap_hf.embedding import ClapEncoder
from clap_hf.evaluation.benchmarks import PAPER_TASKS, Task
from clap_hf.evaluation.cache import EmbeddingCache, encode_clips
from clap_hf.evaluation.command import sound_jobs
from clap_hf.evaluation.corpus_clips import CorpusClips, zero_shot_score
from clap_hf.evaluation.loading import DataLocation, DataSourceError, TaskData
from clap_hf.evaluation.own_sets import own_jobs
from clap_hf.evaluation.report import suite_score
from clap_hf.evaluation.runner import EvaluationOptions, Job, find_locations, run
from clap_hf.evaluation.sound_tasks import RETRIEVAL_SOURCE
from clap_hf.evaluation.task_scores import class_texts, score_classification, score_retrieval
from clap_hf.hub import push
from clap_hf.model.modeling_msclap import MSClapModel
from clap_hf.pretrained import load_checked
from clap_hf.search import SoundCollection, add_in_shards
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
        data = TaskData([], list(range(clips)), names, truth)
        scores = "sigmoid" if task.multi_label else "softmax"
        result, _ = score_classification(
            task, data, audio, class_texts(task, names), encoder.embed_texts, logit_scale=30.0, scores=scores
        )
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
    data = TaskData([], list(range(30)), captions=captions)
    encoders = [Random(seed) for seed in range(40)]
    results = [score_retrieval(task, data, e.vectors(30).numpy(), e.embed_texts)[0] for e in encoders]
    values = np.array([result["value"] for result in results])
    assert [result["chance"] for result in results] == pytest.approx([1 / 30] * 40)
    assert abs(values.mean() - 1 / 30) < 2.5 * values.std() / len(values) ** 0.5


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "raw"])
def test_scores_do_not_saturate(scores):
    """At a scale where sigmoids round to 1, clips and classes keep their order."""
    encoder = Random(1)
    task = Task("x", "classification", "mAP", "", {"a": (), "b": ()}, ("{}",), "ours", ())
    vectors = encoder.vectors(2)
    audio = np.stack([vectors[0].numpy()] * 2 + [vectors[1].numpy()] * 2)
    data = TaskData([], list(range(4)), ("a", "b"), [(0,), (0,), (1,), (1,)])
    result, details = score_classification(
        task, data, audio, {"{}": [["a"], ["b"]]}, lambda texts: vectors, logit_scale=1000.0, scores=scores
    )
    assert result["value"] == 1.0 and details.similarity.shape == (2, 2)


def big_task(clips, classes=50):
    names = {f"class {i}": () for i in range(classes)}
    task = Task("big", "classification", "accuracy", "", names, ("a {}",), "ours", ())
    location = DataLocation(None, None, "big", "big")
    audio = [{"bytes": b"never decoded", "path": None}] * clips
    labels = [(i % classes,) for i in range(clips)]
    data = TaskData(audio, list(range(clips)), tuple(names), labels)
    return Job(task, lambda: iter([location]), lambda location: data), location


def test_new_prompts_on_5000_cached_clips_embed_no_sound(tmp_path):
    encoder = Random()
    job, location = big_task(5000)
    cache = EmbeddingCache(tmp_path / "cache" / "embeddings", f"{location.identity} ", encoder.key)
    for start in range(0, 5000, 500):
        cache.store.write(
            {"position": start + i, "vector": vector} for i, vector in enumerate(encoder.vectors(500).numpy())
        )
    options = EvaluationOptions(
        templates=tuple(f"prompt {n}: {{}}" for n in range(10)),
        plots=False,
        output_dir=tmp_path / "out",
        cache_dir=tmp_path / "cache",
    )
    found = find_locations([job])
    quiet = Console(quiet=True)
    outcomes = run([job], found, encoder, None, options, quiet)
    assert outcomes[0].status == "done", outcomes[0].reason
    assert len(outcomes[0].result["per_prompt"]) == 10 and outcomes[0].result["clips"] == 5000
    assert encoder.calls == 0
    changed = replace(options, templates=("another {}",), limit=100)
    outcomes = run([job], found, encoder, None, changed, quiet)
    assert outcomes[0].result["clips"] == 100 and encoder.calls == 0


def test_sounds_of_a_collection_are_not_embedded_again(checkpoint, tmp_path):
    files = sorted(EXAMPLES.glob("*.[wfo]*"))[:6]  # wav, flac, ogg
    task = Task("own", "classification", "accuracy", "", {"a": (), "b": ()}, ("a {}",), "ours", ())
    audio = [{"bytes": file.read_bytes() if i % 2 else None, "path": str(file)} for i, file in enumerate(files)]
    data = TaskData(audio, list(range(6)), ("a", "b"), [(i % 2,) for i in range(6)])
    location = DataLocation(None, None, "own", "own")
    jobs = [Job(task, lambda: iter([location]), lambda location: data)]
    model, processor = load_checked(MSClapModel, str(checkpoint))

    class Counting(ClapEncoder):
        sounds = 0

        def prepare(self, audio, sampling_rate=None):
            self.sounds += 1
            return super().prepare(audio, sampling_rate)

    def evaluated(name, **options):
        encoder = Counting(model, processor, str(checkpoint))
        options = EvaluationOptions(plots=False, output_dir=tmp_path / name, cache_dir=tmp_path / name, **options)
        (outcome,) = run(jobs, find_locations(jobs), encoder, None, options, Console(quiet=True))
        return encoder, outcome

    expected, outcome = evaluated("alone")
    assert outcome.status == "done", outcome.reason
    value = outcome.result["value"]
    assert expected.sounds == 6
    made = SoundCollection(tmp_path / "c", model, processor, str(checkpoint))
    add_in_shards(made, files[:4], files_per_part=2)
    encoder, outcome = evaluated("some", collection=tmp_path / "c")
    assert encoder.sounds == 2 and outcome.result["value"] == value
    add_in_shards(made, files, files_per_part=2)
    encoder, outcome = evaluated("all", collection=tmp_path / "c")
    assert encoder.sounds == 0 and outcome.result["value"] == value
    vectors = [
        EmbeddingCache(tmp_path / name / "embeddings", "own ", encoder.key).read().vectors for name in ("all", "alone")
    ]
    np.testing.assert_allclose(*(np.stack([own[i] for i in range(6)]) for own in vectors), atol=1e-6)
    other = SoundCollection(tmp_path / "other", model, processor, str(checkpoint), max_windows=1)
    other.add(files)
    _, outcome = evaluated("refused", collection=tmp_path / "other")
    assert outcome.status == "failed" and "holds no embeddings with the fingerprint" in outcome.reason


def test_damaged_parts_are_made_anew_and_limits_add_up(tmp_path):
    files = sorted(EXAMPLES.glob("*.wav")) + sorted(EXAMPLES.glob("*.ogg"))
    audio = [{"bytes": None, "path": str(file)} for file in files] + [{"bytes": b"noise", "path": None}]
    encoder = Random()
    cache = EmbeddingCache(tmp_path, "x", "y")

    def encode_batch(prepared):
        return [{"vector": vector} for vector in encoder.embed_audio(prepared).numpy()]

    def encoded(positions, **options):
        before = encoder.calls
        return encode_clips(audio, positions, encoder, encode_batch, cache, **options), encoder.calls - before

    some, calls = encoded([0, 2])
    assert calls == 1 and set(some.vectors) == {0, 2}
    everything, calls = encoded(range(len(audio)))
    assert calls == 1 and len(everything.vectors) == len(files)
    assert np.array_equal(everything.vectors[2], some.vectors[2])
    assert "noise" not in everything.skipped[len(files)] and list(everything.skipped) == [len(files)]
    assert encoded(range(len(audio)))[1] == 0
    part = cache.store.paths()[0]
    lost = sorted(set(everything.vectors) - set(cache.read().vectors)) or None
    assert lost is None
    part.write_bytes(part.read_bytes()[:40])
    again, calls = encoded(range(len(audio)))
    assert calls == 1 and set(again.vectors) == set(everything.vectors)
    # What could not be read is tried again on request, and then is no longer among the skipped.
    audio[-1]["path"] = str(files[0])
    audio[-1]["bytes"] = None
    assert list(encoded(range(len(audio)))[0].skipped) == [len(files)]
    mended, calls = encoded(range(len(audio)), retry_skipped=True)
    assert calls == 1 and not mended.skipped and len(mended.vectors) == len(audio)
    assert not cache.read().skipped


def test_options_and_own_folders_are_checked(tmp_path):
    for wrong, message in (
        ({"scores": "tanh"}, "scores"),
        ({"limit": 0}, "limit"),
        ({"templates": ("a sound",)}, "for the label"),
        ({"suite": "nonsense"}, "expected one of"),
        ({"suite": "own"}, "needs data_dir"),
        ({"split": "validation"}, "of the suites sounds and own"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluationOptions(**wrong)
    with pytest.raises(DataSourceError, match="holds no evaluation set, expected CSVs"):
        own_jobs(str(tmp_path), "test")
    (tmp_path / "x.csv").write_text("sound,label\na.wav,dog\n")
    with pytest.raises(DataSourceError, match="x.csv has columns .'label', 'sound'., expected path and label"):
        own_jobs(str(tmp_path), "test")


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
    write_csv(folder / "captioned.csv", ["path", "caption"], spoken)
    return folder


def test_one_s_own_sounds(own_folder, processor, tmp_path):
    jobs = own_jobs(str(own_folder), "test")
    assert [(job.task.name, job.task.metric) for job in jobs] == [
        ("animals", "accuracy"),
        ("captioned audio-to-text", "R@1"),
        ("captioned text-to-audio", "R@1"),
        ("several", "mAP"),
    ]
    encoder = ClapEncoder(make_model(), processor, "tiny")
    options = EvaluationOptions(output_dir=tmp_path / "out", cache_dir=tmp_path)
    outcomes = run(jobs, find_locations(jobs), encoder, None, options, Console(quiet=True))
    assert [o.status for o in outcomes] == ["done"] * 4, [o.reason for o in outcomes]
    by_name = {o.task.name: o.result for o in outcomes}
    assert by_name["animals"]["clips"] == 4 and by_name["animals"]["classes"] == 4
    assert set(by_name["several"]["per_class"]) == {"animal", "dog", "fire"}
    assert by_name["captioned text-to-audio"]["captions"] == 4 and by_name["captioned text-to-audio"]["clips"] == 2


def evaluate_own(checkpoint, data_dir, output, *options):
    """Results by task, and the table, of `--suite own` on the command line."""
    base = ["evaluate", str(checkpoint), "--suite", "own", "--data-dir", str(data_dir), "--device", "cpu"]
    result = CliRunner().invoke(app, [*base, "--output-dir", str(output), "--cache-dir", str(output), *options])
    assert result.exit_code == 0, result.output
    tasks = json.loads((output / "results.json").read_text())["tasks"]
    return {task["task"]: task for task in tasks}, (output / "results.md").read_text()


def test_a_folder_of_sounds_for_each_class_gets_a_confusion_matrix(checkpoint, tmp_path):
    for name in ("dog.ogg", "sheep.wav", "bird.wav"):
        (tmp_path / "pets" / Path(name).stem).mkdir(parents=True)
        for take in range(2):
            shutil.copy(EXAMPLES / name, tmp_path / "pets" / Path(name).stem / f"{take}_{name}")
    (tmp_path / "pets" / "metadata.csv").write_text("file_name,rate\ndog/0_dog.ogg,1\n")  # names no label
    results, text = evaluate_own(checkpoint, tmp_path / "pets", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "tasks" / "pets.json").read_text())
    assert list(results) == ["pets"] and record["clips"] == 6
    assert [found["clips"] for found in record["per_class"].values()] == [2, 2, 2]
    assert np.sum(record["confusion"]) == 6 and np.trace(record["confusion"]) / 6 == record["value"]
    head, _, *rows = text.split("pets: classes\n\n")[1].splitlines()[:5]
    assert head == "| true class | clips | accuracy | bird | dog | sheep |"
    for name, row, counts in zip(("bird", "dog", "sheep"), rows, record["confusion"], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells == [name, "2", f"{record['per_class'][name]['accuracy']:.1%}", *map(str, counts)]
    assert (tmp_path / "out" / "plots" / "pets" / "confusion.png").stat().st_size > 1000


def test_metadata_of_an_audiofolder_is_a_set(checkpoint, tmp_path):
    folder = tmp_path / "door sounds"
    folder.mkdir()
    rows = [
        ("dog.ogg", "dog", "a dog barks"),
        ("bird.wav", "bird", "a bird sings"),
        ("fire.ogg", "fire", "a dog barks"),
    ]
    write_csv(folder / "metadata.csv", ["file_name", "label", "text"], rows)
    for name, _, _ in rows:
        shutil.copy(EXAMPLES / name, folder)
    results, _ = evaluate_own(checkpoint, folder, tmp_path / "out", "--no-plots")
    assert list(results) == ["door sounds", "door sounds audio-to-text", "door sounds text-to-audio"]
    assert results["door sounds"]["clips"] == 3 and results["door sounds"]["paper"] is None
    # Equal texts are equal answers.
    assert results["door sounds text-to-audio"]["captions_of_several_clips"] == 2


@pytest.mark.parametrize("column", ["label", "caption"])
def test_a_built_set_evaluates_from_disk_and_from_the_hub(hub, checkpoint, tmp_path, column):
    rows = [(str(EXAMPLES / f"{name}"), Path(name).stem) for name in ("dog.ogg", "bird.wav", "sheep.wav")]
    write_csv(tmp_path / "sounds.csv", ["path", column], rows)
    build_evaluation_set(tmp_path / "sounds.csv", tmp_path / "pets", title="Pets", license="cc0-1.0")
    local, _ = evaluate_own(checkpoint, tmp_path / "pets", tmp_path / "local", "--no-plots")
    push(tmp_path / "pets", f"acme/pets-{column}", repo_type="dataset")
    remote, _ = evaluate_own(checkpoint, f"acme/pets-{column}", tmp_path / "remote", "--no-plots")
    kinds = [""] if column == "label" else [" audio-to-text", " text-to-audio"]
    assert list(local) == [f"pets{kind}" for kind in kinds]
    assert list(remote) == [f"pets-{column}{kind}" for kind in kinds]
    assert [own["value"] for own in local.values()] == [own["value"] for own in remote.values()]
    assert all(own["clips"] == 3 for own in local.values())
    with pytest.raises(DataSourceError, match="pets, split train: .*test"):
        own_jobs(str(tmp_path / "pets"), "train")
    # Built again in the same place, it is read again.
    write_csv(tmp_path / "sounds.csv", ["path", column], rows[:2])
    build_evaluation_set(tmp_path / "sounds.csv", tmp_path / "pets", title="Pets", license="cc0-1.0")
    again, _ = evaluate_own(checkpoint, tmp_path / "pets", tmp_path / "again", "--no-plots")
    assert all(own["clips"] == 2 for own in again.values())


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


def test_the_sounds_suite_gives_what_training_validates_with(processor, tmp_path):
    folder = corpus(tmp_path)
    model = make_model()
    encoder = ClapEncoder(model, processor)
    options = EvaluationOptions(plots=False, output_dir=tmp_path / "out", cache_dir=tmp_path / "cache")
    jobs = sound_jobs(folder)
    outcomes = run(jobs, find_locations(jobs), encoder, None, options, Console(quiet=True))
    results = {o.task.name: o.result for o in outcomes if o.result is not None}
    assert {o.status for o in outcomes} == {"done", "not reached"}
    clips = CorpusClips(datasets.load_dataset(folder, split="test"), processor)
    expected = clips.results(clips.embed(model), encoder.embed_texts)
    for name in ("instrument family", "animals", "sound events", "human vocal sounds"):
        for key in ("value", "low", "high", "clips", "classes", "chance", "per_class"):
            assert results[name][key] == expected[name][key], (name, key)
    for name in ("audio to text", "text to audio"):
        for k in (1, 10):
            for key in ("value", "low", "high", "chance"):
                assert results[name][f"R@{k}"][key] == expected[f"{name} R@{k}"][key]
    assert results["velocity"]["classes"] == 3 and results["velocity"]["clips"] == 63
    assert {"dog", "animal", "human"} <= set(results["sound events, several labels"]["per_class"])
    assert suite_score(outcomes)["score"] == zero_shot_score(expected)
    assert suite_score(outcomes)["tasks"] == list(expected)


def test_results_by_the_labels_before_a_correction(checkpoint, tmp_path):
    """`--relabelled`: one pass over the sounds, results by both labels."""
    (tmp_path / "corpus").mkdir()
    folder = corpus(tmp_path / "corpus")
    was = {"category": "animal", "label": "cow", "quality": "named"}
    changes = {"clips": [{"id": f"animal/dog/{i}", "was": was} for i in range(3)]}
    (tmp_path / "changes.json").write_text(json.dumps(changes))
    arguments = ["evaluate", str(checkpoint), "--suite", "sounds", "--data-dir", folder, "--device", "cpu"]
    arguments += ["--no-plots", "--tasks", "animals,text to audio", "--relabelled", str(tmp_path / "changes.json")]
    arguments += ["--cache-dir", str(tmp_path / "cache"), "--output-dir", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    before = written["before_relabelling"]
    assert before["clips"] == 3
    now, then = ({task["task"]: task for task in part["tasks"]} for part in (written, before))
    counts = [{name: own["clips"] for name, own in part["animals"]["per_class"].items()} for part in (now, then)]
    assert counts == [{"dog": 6, "cow": 6}, {"dog": 3, "cow": 9}]
    assert now["text to audio"]["R@10"] == then["text to audio"]["R@10"]
    assert written["settings"]["suite"] == "sounds" and written["settings"]["split"] == "test"
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 2, "the sounds were embedded again"


def test_equal_captions_are_equal_answers():
    """A perfect model finds a clip of an equal caption; both directions count it and report their number."""
    captions = [["rain"], ["rain"], ["a dog"], ["a dog", "a bark"]]
    axes = {"rain": 0, "a dog": 1, "a bark": 2}

    def embed(texts):
        return F.one_hot(torch.tensor([axes[text] for text in texts]), 4).float()

    audio = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0.6, 0.8, 0]], dtype=np.float32)
    data = TaskData([], [0, 1, 2, 3], captions=captions)
    for kind in ("text-to-audio", "audio-to-text"):
        task = Task("x", kind, "R@1", "")
        result, _ = score_retrieval(task, data, audio, embed)
        assert result["R@1"]["value"] == 1.0 and result["captions_of_several_clips"] == 4
    broken = audio.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2 hold NaN"):  # the query's own
        score_retrieval(Task("x", "audio-to-text", "R@1", ""), data, broken, embed)
    with pytest.raises(ValueError, match="row 0 hold NaN"):  # an item of every query
        score_retrieval(Task("x", "text-to-audio", "R@1", ""), data, broken, embed)


# The second process looks into the cache when the first has written its parts already.
LATE = """
import runpy, sys, time
from accelerate import PartialState
from clap_hf.evaluation.cache import EmbeddingCache
read, seen = EmbeddingCache.read, set()
def late(self):
    if PartialState().process_index == 1 and self.store.folder not in seen:
        seen.add(self.store.folder)
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
    arguments += ["--cache-dir", str(tmp_path / "cache"), "--output-dir"]
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
    parts = list((tmp_path / "cache").rglob("*.parquet"))
    assert len(parts) >= 6  # two a task's sounds, one of each process
    one = CliRunner().invoke(app, ["evaluate", *arguments, str(tmp_path / "one"), "--overwrite"])
    assert one.exit_code == 0, one.output
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == len(parts), "one process embedded again"
    names = sorted(path.name for path in (tmp_path / "one" / "tasks").iterdir())
    assert len(names) == 4
    for name in names:
        ours, theirs = (json.loads((tmp_path / run / "tasks" / name).read_text()) for run in ("one", "two"))
        assert ours["value"] == theirs["value"], name
