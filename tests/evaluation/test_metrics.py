"""Metrics against scikit-learn, trec_eval and the COCO caption code, on random and adversarial inputs."""

import json
import stat

import numpy as np
import pytest
import pytrec_eval
import torch
import torch.nn.functional as F
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, f1_score

from clap_hf.evaluation import captions, scoring
from clap_hf.evaluation.benchmarks import Task
from clap_hf.evaluation.captioner import score_captions
from clap_hf.evaluation.loading import TaskData
from clap_hf.evaluation.metrics import (
    Accuracy,
    AudioCaptioning,
    AudioTextRetrieval,
    MacroMeanAveragePrecision,
    MicroF1,
)
from clap_hf.evaluation.task_scores import score_classification, score_retrieval

RNG = np.random.default_rng


def in_batches(metric, predictions, references, size=7):
    for start in range(0, len(predictions), size):
        metric.add_batch(predictions=predictions[start : start + size], references=references[start : start + size])
    return metric.compute()


def multilabel_cases():
    """Scores and truth: random, with ties, empty classes, full classes, one class, one clip, all the same."""
    for seed in range(4):
        rng = RNG(seed)
        scores, truth = rng.normal(size=(40, 6)), rng.random((40, 6)) < 0.25
        yield f"random {seed}", scores, truth
        yield f"ties {seed}", np.round(scores), truth
    empty = truth.copy()
    empty[:, [0, 3]] = False
    yield "empty classes", scores, empty
    full = truth.copy()
    full[:, 2] = True
    yield "a class of all", np.round(scores), full
    yield "one class", scores[:, :1], truth[:, :1] | (np.arange(40)[:, None] == 3)
    yield "one clip", scores[:1], np.array([[True, False, True, False, False, False]])
    yield "all the same", np.zeros((40, 6)), truth


CASES = list(multilabel_cases())


@pytest.mark.parametrize(("scores", "truth"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_macro_map_and_micro_f1_are_scikit_learn_s(scores, truth):
    there = truth.any(axis=0)
    expected = [average_precision_score(truth[:, k], scores[:, k]) for k in np.flatnonzero(there)]
    found = in_batches(MacroMeanAveragePrecision(), scores.tolist(), truth.astype(int).tolist())
    assert found["map"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert (found["classes"], found["empty_classes"]) == (there.sum(), (~there).sum())

    f1 = in_batches(MicroF1(), scores.tolist(), truth.astype(int).tolist())
    claims = [scores >= t for t in np.unique(scores)]
    best = max(2 * (claimed & truth).sum() / (claimed.sum() + truth.sum()) for claimed in claims)
    assert f1["f1_best_threshold"] == pytest.approx(best, abs=1e-6)
    at_threshold = f1_score(truth.ravel(), (scores >= f1["threshold"]).ravel())
    assert at_threshold == pytest.approx(f1["f1_best_threshold"], abs=1e-6)
    top = np.zeros_like(truth)
    top[np.arange(len(scores)), scores.argmax(axis=1)] = True
    assert f1["f1_top1"] == pytest.approx(f1_score(truth.ravel(), top.ravel()), abs=1e-6)
    chosen = MicroF1().compute(predictions=scores.tolist(), references=truth.astype(int).tolist(), threshold=0.3)
    assert chosen["f1"] == pytest.approx(f1_score(truth.ravel(), (scores >= 0.3).ravel(), zero_division=0), abs=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 9])
def test_accuracy_is_scikit_learn_s(classes):
    rng = RNG(classes)
    truth, predicted = rng.integers(0, classes, 50), rng.integers(0, max(classes, 2), 50)
    found = in_batches(Accuracy(), predicted.tolist(), truth.tolist())
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-6)


@pytest.mark.parametrize("kind", ["accuracy", "mAP", "F1"])
def test_the_runner_s_numbers_are_the_metrics(kind):
    rng = RNG(3)
    audio, words = (F.normalize(torch.from_numpy(rng.normal(size=(n, 6))), dim=-1).float() for n in (40, 6))
    truth = [tuple(rng.choice(6, 1 + (kind != "accuracy"), replace=False).tolist()) for _ in range(40)]
    data = TaskData([], list(range(40)), tuple("abcdef"), truth)
    task, prompts = Task("x", "classification", kind, ""), {"{}": [[name] for name in data.classes]}
    result, _ = score_classification(task, data, audio.numpy(), prompts, lambda texts: words, scores="raw")
    cosines = audio.numpy() @ F.normalize(words, dim=-1).numpy().T
    flags = scoring.multi_hot(truth, 6).astype(int).tolist()
    if kind == "accuracy":
        found = Accuracy().compute(predictions=cosines.argmax(axis=1), references=[own[0] for own in truth])
        assert result["value"] == found["accuracy"] and result["balanced"] == found["balanced_accuracy"]
        return
    metric = MacroMeanAveragePrecision() if kind == "mAP" else MicroF1()
    found = metric.compute(predictions=cosines.tolist(), references=flags)
    if kind == "mAP":
        assert result["value"] == found["map"] and result["empty_classes"] == found["empty_classes"]
    else:
        assert result["value"] == found["f1_best_threshold"] and result["f1_top1"] == found["f1_top1"]
        assert result["threshold"] == found["threshold"]


@pytest.mark.parametrize("direction", ["text-to-audio", "audio-to-text"])
def test_the_runner_s_recalls_are_the_metric_s(direction):
    rng = RNG(4)
    audio, words = (F.normalize(torch.from_numpy(rng.normal(size=(n, 6))), dim=-1).float() for n in (20, 40))
    own = [(f"a {i}", f"the {i}") for i in range(20)]
    data = TaskData([], list(range(20)), captions=own)
    result, _ = score_retrieval(Task("x", direction, "R@1", ""), data, audio.numpy(), lambda texts: words)
    queries, items = (words, audio) if direction == "text-to-audio" else (audio, words)
    relevant = (
        [[i // 2] for i in range(40)] if direction == "text-to-audio" else [[2 * i, 2 * i + 1] for i in range(20)]
    )
    found = AudioTextRetrieval().compute(predictions=(queries.numpy() @ items.numpy().T).tolist(), references=relevant)
    assert {name: result[name]["value"] for name in found} == found


def test_the_runner_s_caption_scores_are_the_metric_s():
    said, references = ["a dog barks", "rain falls"], [["a dog is barking"], ["rain", "rain falls on a roof"]]
    result, found = (
        score_captions(said, references),
        AudioCaptioning().compute(predictions=said, references=references),
    )
    assert found.pop("unavailable") == result["unavailable"]
    assert {name: result["scores"][name] for name in found} == found


def test_average_precision_of_resampled_clips():
    rng = RNG(5)
    scores, truth = np.round(rng.normal(size=(30, 4)), 1), rng.random((30, 4)) < 0.3
    draw = rng.integers(0, 30, 30)
    ranked = scoring.RankedScores(scores, truth)
    weighted = ranked.average_precisions(np.bincount(draw, minlength=30))
    expected = [average_precision_score(truth[draw, k], scores[draw, k]) for k in range(4)]
    np.testing.assert_allclose(weighted, expected, atol=1e-9)


def test_chance_average_precision_is_the_mean_over_all_orders():
    orders = RNG(0).random((20, 4000))
    truth = np.repeat(np.arange(20)[:, None] < 3, 4000, axis=1)
    measured = scoring.average_precisions(orders, truth).mean()
    assert scoring.chance_average_precision(3, 20) == pytest.approx(measured, abs=0.01)
    assert scoring.chance_average_precision(20, 20) == pytest.approx(1.0)


# Retrieval


def trec(similarity, relevant, k_values=(1, 5, 10)):
    """R@k as the hit rate, and map_cut_10, by trec_eval; relevant items lose ties there too, by a hair taken off."""
    run, qrels = {}, {}
    for q, (row, own) in enumerate(zip(similarity, relevant, strict=True)):
        levels = {value: place for place, value in enumerate(sorted(set(row.tolist())))}
        loses = {d: 2.0 * levels[value] - (d in own) for d, value in enumerate(row.tolist())}
        run[f"q{q}"] = {f"d{d}": score for d, score in loses.items()}
        qrels[f"q{q}"] = {f"d{d}": 1 for d in own}
    measures = pytrec_eval.RelevanceEvaluator(qrels, {"map_cut.10", "success.1,5,10"}).evaluate(run)
    mean = {name: np.mean([m[name] for m in measures.values()]) for name in ("map_cut_10", "success_1", "success_5")}
    mean["success_10"] = np.mean([m["success_10"] for m in measures.values()])
    return {f"R@{k}": mean[f"success_{k}"] for k in k_values} | {"mAP@10": mean["map_cut_10"]}


def retrieval_cases():
    for seed in range(3):
        rng = RNG(seed)
        similarity = rng.normal(size=(30, 150))
        five = [list(range(5 * i, 5 * i + 5)) for i in range(30)]
        yield f"five captions a clip {seed}", similarity + 1.5 * np.repeat(np.eye(30), 5, axis=1), five
        yield f"ties {seed}", np.round(similarity), five
        yield f"one clip a caption {seed}", similarity.T, [[i // 5] for i in range(150)]
    yield "all the same", np.zeros((30, 150)), five
    yield "uneven", similarity, [list(range(i % 7 + 1)) for i in range(30)]
    yield "more relevant than ten", similarity, [list(range(14))] * 30


RETRIEVAL = list(retrieval_cases())


@pytest.mark.parametrize(("similarity", "relevant"), [c[1:] for c in RETRIEVAL], ids=[c[0] for c in RETRIEVAL])
def test_retrieval_is_trec_eval_s(similarity, relevant):
    found = in_batches(AudioTextRetrieval(), similarity.tolist(), relevant)
    for name, value in trec(similarity, relevant).items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    ranks = scoring.rank_all(lambda a, b: similarity[a:b], relevant, block=4)
    assert scoring.retrieval(ranks).average_precision.mean() == pytest.approx(found["mAP@10"], abs=1e-12)


def test_a_constant_similarity_finds_nothing():
    found = AudioTextRetrieval().compute(predictions=[[0.5] * 20] * 20, references=[[i] for i in range(20)])
    assert found == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "mAP@10": 0.0}


# Captions

PAIR = (
    ["a man is speaking", "rain falls"],
    [
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ],
)
WORDS = "a dog barks loudly while rain falls on the roof and birds sing in the far background".split()


def random_captions(seed, clips=12):
    rng = RNG(seed)

    def sentence():
        return " ".join(rng.choice(WORDS, rng.integers(1, 12)))

    return [sentence() for _ in range(clips)], [[sentence() for _ in range(rng.integers(1, 6))] for _ in range(clips)]


@pytest.mark.parametrize("seed", range(4))
def test_bleu_rouge_and_cider_are_those_of_coco(seed):
    tested, truth = random_captions(seed)
    tested[0] = truth[0][0]
    if seed == 3:
        tested[1], tested[2] = "", "zebra"
    hypotheses, references = {i: [t] for i, t in enumerate(tested)}, dict(enumerate(truth))
    words = [t.split() for t in tested], [[t.split() for t in own] for own in truth]
    np.testing.assert_allclose(captions.bleu(*words), Bleu(4).compute_score(references, hypotheses, 0)[0], atol=1e-6)
    np.testing.assert_allclose(captions.rouge_l(*words), Rouge().compute_score(references, hypotheses)[1], atol=1e-6)
    np.testing.assert_allclose(captions.cider_d(*words), Cider().compute_score(references, hypotheses)[1], atol=1e-6)


def test_cider_of_the_documented_pair(monkeypatch):
    """0.9614: the value that aac-metrics documents for this pair; 1.3641 and 0.5587 by clip."""
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    scores = captions.caption_scores(*PAIR)
    assert scores.tokenizer == "simple"
    assert scores.values["cider_d"] == pytest.approx(0.9614, abs=5e-5)
    np.testing.assert_allclose(scores.cider_d, [1.3641, 0.5587], atol=5e-5)


def test_what_is_missing_is_none_with_the_reason(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    found = in_batches(AudioCaptioning(), *PAIR)
    missing = {name for name in captions.METRICS if found[name] is None}
    assert missing == set(found["unavailable"]) == {"meteor", "spice", "spider", "fense"}
    assert "Java" in found["unavailable"]["meteor"] and "SPICE is missing" in found["unavailable"]["spider"]
    assert "aac-metrics" in found["unavailable"]["fense"]


def test_bad_captions_are_refused():
    with pytest.raises(ValueError, match="one a clip"):
        captions.caption_scores(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no reference"):
        captions.caption_scores(["a", "b"], [["a"], []])


def test_spice_runs_the_program_it_is_pointed_at(monkeypatch, tmp_path):
    """The call and the answer's form, with a stand-in for the Java program; SPIDEr is the mean with CIDEr-D."""
    folder = tmp_path / "spice"
    (folder / "lib").mkdir(parents=True)
    for name in ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar"):
        (folder / name).write_text("")
    program = tmp_path / "java"
    program.write_text(
        "#!/usr/bin/env python3\n"
        "import json, sys\n"
        "if '-jar' not in sys.argv: sys.exit(1)\n"
        "asked = json.load(open(sys.argv[sys.argv.index('-jar') + 2]))\n"
        "assert '-cache' not in sys.argv and all(set(i) == {'image_id', 'test', 'refs'} for i in asked)\n"
        "scores = [{'image_id': i['image_id'], 'scores': {'All': {'f': 0.25 + n / 4}}} for n, i in enumerate(asked)]\n"
        "json.dump(scores[::-1], open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(captions.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(captions, "_meteor", lambda *arguments: 0.5)
    monkeypatch.setenv(captions.SPICE_DIR, str(folder))
    scores = captions.caption_scores(*PAIR)
    assert scores.values["spice"] == pytest.approx(0.375)
    assert scores.values["spider"] == pytest.approx((0.375 + scores.values["cider_d"]) / 2)
    np.testing.assert_allclose(scores.spider, (scores.cider_d + [0.25, 0.5]) / 2)
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    scores = captions.caption_scores(*PAIR)
    assert scores.values["spider"] is None and "exit code 3: no memory" in scores.unavailable["spice"]
    json.dumps(scores.values)


@pytest.mark.slow  # METEOR takes half a minute to load its paraphrases
@pytest.mark.skipif(captions.shutil.which("java") is None, reason="METEOR and the tokenizer are Java programs")
def test_meteor_and_the_penn_treebank_tokenizer():
    scores = captions.caption_scores(*PAIR)
    assert scores.tokenizer == "ptb"
    assert scores.values["cider_d"] == pytest.approx(0.9614, abs=5e-5)
    assert scores.values["meteor"] == pytest.approx(0.2634, abs=5e-5)


# Intervals


def test_interval_of_clips_with_several_queries():
    values = np.array([2.0, 0.0] * 100)
    low, high = scoring.bootstrap_interval(values, np.full(200, 4.0))
    mean_low, mean_high = scoring.bootstrap_interval(values / 4)
    assert (low, high) == pytest.approx((mean_low, mean_high))
    assert low < 0.25 < high


def test_map_interval_holds_the_value_where_classes_are_small():
    rng = RNG(1)
    truth = np.eye(12, dtype=bool)[np.arange(48) % 12]
    scores = truth + rng.normal(size=truth.shape)
    value = np.nanmean(scoring.average_precisions(scores, truth))
    low, high = scoring.mean_average_precision_interval(scores, truth)
    assert low < value < high < low + 0.5


def test_draws_do_not_depend_on_the_blocks(monkeypatch):
    whole = np.concatenate(scoring.bootstrap_draws(50, 40))
    monkeypatch.setattr(scoring, "_DRAWS", 333)
    blocks = scoring.bootstrap_draws(50, 40)
    assert len(blocks) > 1 and (np.concatenate(blocks) == whole).all()
