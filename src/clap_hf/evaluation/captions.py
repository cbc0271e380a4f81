"""Captioning metrics: BLEU, ROUGE-L and CIDEr-D here, METEOR, SPICE and FENSE by the programs that define them.

METEOR, SPICE and the Penn Treebank tokenizer are Java programs. pycocoevalcap (`pip install clap-hf[captioning]`)
brings them, except Stanford CoreNLP 3.6.0, which SPICE needs: put `spice-1.0.jar` and its `lib/`, both CoreNLP
jars in it, into a folder and name that in `CLAP_HF_SPICE_DIR`. A metric that cannot be computed is None, with the
reason: nothing stands in for another.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_N = 4
CIDER_SIGMA = 6.0
ROUGE_BETA = 1.2
SPICE_DIR = "CLAP_HF_SPICE_DIR"
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider_d", "spice", "spider", "fense")
# What the COCO evaluation drops after tokenizing.
_PUNCTUATION = {
    "''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", "-lrb-", "-rrb-", "-lcb-", "-rcb-", ".", "?", "!", ",",
    ":", "-", "--", "...", ";",
}  # fmt: skip

Tokens = list[str]


class Unavailable(RuntimeError):
    """A metric's program or weights are missing; the message names them and where they come from."""


@dataclass(frozen=True)
class CaptionScores:
    """Corpus scores of generated captions.

    Attributes:
        values: Metric -> score, None where it cannot be computed. CIDEr-D is on its scale of 0 to 10.
        unavailable: Metric -> why it is None.
        cider_d: CIDEr-D of every clip `[clips]`, for intervals.
        spider: SPIDEr of every clip `[clips]`, or None.
        tokenizer: `"ptb"`, or `"simple"` where the Java tokenizer is missing; scores differ slightly.
    """

    values: dict[str, float | None]
    unavailable: dict[str, str]
    cider_d: np.ndarray
    spider: np.ndarray | None
    tokenizer: str


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score captions against several references each.

    Args:
        candidates: One caption a clip.
        references: The clip's own captions, at least one a clip.

    Raises:
        ValueError: If the two differ in length, or a clip has no reference.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions were given for {len(references)} clips, expected one a clip.")
    bare = [i for i, own in enumerate(references) if not own]
    if bare or not candidates:
        raise ValueError(f"Clips {bare[:5]} have no reference caption, expected at least one a clip.")
    tokenizer, words = _tokenize([*candidates, *(text for own in references for text in own)])
    tested, rest = words[: len(candidates)], iter(words[len(candidates) :])
    truth = [[next(rest) for _ in own] for own in references]

    values: dict[str, float | None] = dict.fromkeys(METRICS)
    unavailable: dict[str, str] = {}
    values |= {f"bleu_{n}": score for n, score in enumerate(bleu(tested, truth), 1)}
    values["rouge_l"] = float(rouge_l(tested, truth).mean())
    cider = cider_d(tested, truth)
    values["cider_d"] = float(cider.mean())
    spider = None
    try:
        values["meteor"] = _meteor(tested, truth)
    except Unavailable as error:
        unavailable["meteor"] = str(error)
    try:
        spice = spice_scores([" ".join(text) for text in tested], [[" ".join(t) for t in own] for own in truth])
        spider = (cider + spice) / 2
        values |= {"spice": float(spice.mean()), "spider": float(spider.mean())}
    except Unavailable as error:
        unavailable["spice"] = str(error)
        unavailable["spider"] = f"SPIDEr is the mean of CIDEr-D and SPICE, and SPICE is missing: {error}"
    try:
        values["fense"] = _fense(list(candidates), [list(own) for own in references])
    except Unavailable as error:
        unavailable["fense"] = str(error)
    return CaptionScores(values, unavailable, cider, spider, tokenizer)


def _ngrams(words: Tokens) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 with the closest reference length (Papineni et al., 2002; COCO's smoothing)."""
    found, claimed = np.zeros(MAX_N), np.zeros(MAX_N)
    length = reference_length = 0
    for words, own in zip(candidates, references, strict=True):
        most: Counter[tuple[str, ...]] = Counter()
        for reference in own:
            most |= _ngrams(reference)
        for ngram, count in _ngrams(words).items():
            found[len(ngram) - 1] += min(count, most[ngram])
        claimed += [max(0, len(words) - n) for n in range(MAX_N)]
        length += len(words)
        reference_length += min((abs(len(r) - len(words)), len(r)) for r in own)[1]
    precision = np.cumprod((found + 1e-15) / (claimed + 1e-9)) ** (1 / np.arange(1, MAX_N + 1))
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    return (precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)).tolist()


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """ROUGE-L of every clip: F of the best precision and the best recall over its references (Lin, 2004)."""
    scores = []
    for words, own in zip(candidates, references, strict=True):
        common = [_common_subsequence(words, reference) for reference in own]
        precision = max(common) / max(1, len(words))
        recall = max(c / max(1, len(reference)) for c, reference in zip(common, own, strict=True))
        weight = ROUGE_BETA**2
        both = recall + weight * precision
        scores.append((1 + weight) * precision * recall / both if both else 0.0)
    return np.array(scores)


def _common_subsequence(a: Tokens, b: Tokens) -> int:
    lengths = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if word == other else max(lengths[j], lengths[j - 1])
    return lengths[-1]


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """CIDEr-D of every clip, 0 to 10 (Vedantam et al., 2015); document frequencies come from these references.

    With one clip alone every n-gram is in every document, so that the score is 0 by its definition.
    """
    counted = [[_ngrams(reference) for reference in own] for own in references]
    documents: Counter[tuple[str, ...]] = Counter()
    for own in counted:
        documents.update({ngram for reference in own for ngram in reference})
    log_clips = math.log(len(candidates))

    def vectors(counts: Counter[tuple[str, ...]]) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        weighted: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        for ngram, count in counts.items():
            weighted[len(ngram) - 1][ngram] = count * (log_clips - math.log(max(1, documents[ngram])))
        norms = [math.sqrt(sum(value * value for value in part.values())) for part in weighted]
        return weighted, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

    scores = []
    for words, own in zip(candidates, counted, strict=True):
        mine, my_norms, my_length = vectors(_ngrams(words))
        total = 0.0
        for reference in own:
            other, norms, length = vectors(reference)
            penalty = math.exp(-((my_length - length) ** 2) / (2 * CIDER_SIGMA**2))
            for n in range(MAX_N):
                shared = (min(value, other[n][ngram]) * other[n][ngram] for ngram, value in mine[n].items()
                          if ngram in other[n])  # fmt: skip
                scale = my_norms[n] * norms[n]
                total += penalty * sum(shared) / (scale or 1.0)
        scores.append(10 * total / (MAX_N * len(own)))
    return np.array(scores)


def _java(metric: str) -> str:
    java = shutil.which("java")
    if java is None:
        raise Unavailable(f"{metric} is a Java program and there is no java on the PATH. Install a Java runtime.")
    return java


def _pycocoevalcap(metric: str) -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(
            f"{metric} comes with pycocoevalcap, which is not installed: pip install clap-hf[captioning]"
        )
    return Path(spec.submodule_search_locations[0])


def _tokenize(texts: list[str]) -> tuple[str, list[Tokens]]:
    """Penn Treebank tokens in lower case without punctuation, as in the COCO evaluation."""
    lines = [" ".join(text.split()) for text in texts]
    try:
        jar = _pycocoevalcap("the tokenizer") / "tokenizer" / "stanford-corenlp-3.4.1.jar"
        command = [_java("the tokenizer"), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        run = subprocess.run(
            [*command, "-preserveLines", "-lowerCase"], input="\n".join(lines), capture_output=True, text=True
        )
        tokens = run.stdout.split("\n")[: len(lines)]
        if run.returncode == 0 and len(tokens) == len(lines):
            return "ptb", [[word for word in line.split() if word not in _PUNCTUATION] for line in tokens]
    except Unavailable:
        pass
    return "simple", [re.findall(r"[\w]+(?:'\w+)?", line.lower()) for line in lines]


def _meteor(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    _java("METEOR")
    _pycocoevalcap("METEOR")
    from pycocoevalcap.meteor.meteor import Meteor

    tested = {i: [" ".join(words)] for i, words in enumerate(candidates)}
    truth = {i: [" ".join(words) for words in own] for i, own in enumerate(references)}
    return float(Meteor().compute_score(truth, tested)[0])


def spice_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """SPICE F of every clip (Anderson et al., 2016), by its Java program.

    Args:
        candidates: One caption a clip.
        references: Captions of the clip.

    Raises:
        Unavailable: If Java, the program or Stanford CoreNLP is missing, or the program fails.
    """
    java = _java("SPICE")
    given = os.environ.get(SPICE_DIR)
    folder = Path(given) if given else _pycocoevalcap("SPICE") / "spice"
    needed = ["spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise Unavailable(
            f"SPICE needs {', '.join(missing)} in {folder}: take them from panderson.me/spice and nlp.stanford.edu "
            f"(CoreNLP 3.6.0), and name their folder in {SPICE_DIR}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "in.json"), Path(scratch, "out.json")
        items = zip(candidates, references, strict=True)
        asked.write_text(json.dumps([{"image_id": i, "test": c, "refs": list(r)} for i, (c, r) in enumerate(items)]))
        # Without -cache: its database breaks on Java 17.
        command = [java, "-Xmx8G", "-jar", str(folder / "spice-1.0.jar"), str(asked), "-out", str(answered), "-silent"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0 or not answered.is_file():
            tail = " ".join(run.stderr.split())[-300:]
            raise Unavailable(f"SPICE failed with exit code {run.returncode}: {tail}")
        scores = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(answered.read_text())}
    return np.array([float(scores[i]) for i in range(len(candidates))])


def _fense(candidates: list[str], references: list[list[str]]) -> float:
    if importlib.util.find_spec("aac_metrics") is None:
        raise Unavailable("FENSE comes with aac-metrics, which is not installed: pip install aac-metrics")
    try:
        from aac_metrics.functional import fense

        return float(fense(candidates, references)[0]["fense"])
    except Exception as error:  # anything: imports of its own dependencies, downloads of its weights
        raise Unavailable(f"aac-metrics could not compute FENSE: {error}") from error
