"""`clap_hf.compat.msclap` beside PyPI `msclap`: values, quirks, folders, and what `--check` finds in scripts."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msclap as reference_package
import pytest
import soundfile
import torch
import torch.nn.functional as F
from side_by_side import MARKED, TEXTS, captioning_rows, contrastive_rows, quirk_rows

from clap_hf import embed_files, embedded_checkpoint
from clap_hf.compat import msclap as compat
from clap_hf.compat.check import COVERED, check, main
from conftest import sound
from msclap_reference import EXAMPLES, TOKENIZER, official_state, random_captioner, random_clap, reference_wrapper

# Mono and at most 5 s long, of three rates.
RECORDINGS = [EXAMPLES / name for name in ("bird.wav", "chainsaw.flac", "dog.ogg", "sheep.wav", "speech.wav")]
SIZES = (
    "d_proj",
    "out_emb",
    "transformer_embed_dim",
    "prefix_dim",
    "prefix_length",
    "prefix_length_clip",
    "num_layers",
)


@dataclass
class Pair:
    """One small official file in both implementations."""

    version: str
    theirs: Any
    own: compat.CLAP
    quirky: compat.CLAP


def without_sizes(args: Namespace) -> Namespace:
    """Settings that do not depend on how small the model is."""
    return Namespace(**{name: value for name, value in vars(args).items() if name not in SIZES})


SLOW = [pytest.param(version, marks=pytest.mark.slow) for version in ("2022", "clapcap")]


@pytest.fixture(scope="module", params=["2023", *SLOW])
def pair(request, tmp_path_factory):
    version = request.param
    path = tmp_path_factory.mktemp("official") / "weights.pth"
    make = (
        (lambda: random_captioner(1, True, 3.0)) if version == "clapcap" else (lambda: random_clap(version, 1, True))
    )
    torch.save({"model": official_state(make(), version, "hub")}, path)
    theirs = reference_wrapper(path, version, small=True)
    own, quirky = (
        compat.CLAP(path, version, tokenizer=TOKENIZER[version], msclap_quirks=quirks) for quirks in (False, True)
    )
    for model in (theirs, own, quirky):
        model.args = without_sizes(model.args) if version != "clapcap" else model.args
    yield Pair(version, theirs, own, quirky)
    path.unlink()


@pytest.fixture
def stereo(tmp_path) -> Path:
    """6 s of two unlike channels."""
    path = tmp_path / "stereo.wav"
    channels = torch.stack([torch.from_numpy(sound(6.0, 44_100, seed)) for seed in (1, 2)], dim=1)
    soundfile.write(path, channels.numpy(), 44_100, subtype="FLOAT")
    return path


def test_values_are_those_of_msclap(pair):
    if pair.version == "clapcap":
        sizes = {name: vars(pair.own.args)[name] for name in SIZES}
        assert sizes["prefix_length"] == 6 and sizes["d_proj"] == 96
        settings = [{"entry_length": 8}, {"beam_size": 2, "entry_length": 6, "temperature": 3.0}]
        vars(pair.theirs.args).update(sizes)
        table = captioning_rows(pair.own, pair.theirs, RECORDINGS[:3], settings)
    else:
        table = contrastive_rows(pair.own, pair.theirs, RECORDINGS)
    assert len(table) > 15
    assert {name: value for name, value in table.items() if value > 1e-5} == {}


def test_quirks_are_those_of_msclap(pair, stereo):
    if pair.version == "clapcap":
        return
    table = quirk_rows(pair.quirky, pair.theirs, stereo)
    assert {name: value for name, value in table.items() if value > 1e-5} == {}


def test_without_quirks_a_file_has_one_vector(pair, stereo, tmp_path):
    own, quirky = pair.own, pair.quirky
    first, second = own.get_audio_embeddings([stereo]), own.get_audio_embeddings([stereo, stereo])
    torch.testing.assert_close(second, first.expand(2, -1), atol=1e-5, rtol=0)
    assert not torch.equal(quirky.get_audio_embeddings([stereo]), quirky.get_audio_embeddings([stereo]))
    mono = tmp_path / "mono.wav"
    soundfile.write(mono, soundfile.read(stereo)[0].mean(axis=1), 44_100, subtype="DOUBLE")
    torch.testing.assert_close(own.get_audio_embeddings([mono]), first, atol=1e-4, rtol=0)


def test_marks_do_not_move_the_pooled_token(pair):
    if pair.version == "clapcap" or pair.own.args.text_model != "gpt2":
        return
    own = F.normalize(pair.own.get_text_embeddings(MARKED), dim=-1)
    quirky = F.normalize(pair.quirky.get_text_embeddings(MARKED), dim=-1)
    assert float((own * quirky).sum(dim=-1).max()) < 0.99
    # In msclap a text beyond the limit is an error beside others; here its end is cut, and the end token stays.
    long = "rain and " * 60
    assert torch.isfinite(pair.own.get_text_embeddings([long, TEXTS[0]])).all()
    with pytest.raises((ValueError, RuntimeError)):
        pair.theirs.get_text_embeddings([long, TEXTS[0]])


def test_a_folder_gives_the_vectors_of_embed_files():
    """Of one window and of several, but for the length that msclap leaves them."""
    files = [EXAMPLES / "dog.ogg", EXAMPLES / "thunder.ogg"]
    clap = compat.CLAP(embedded_checkpoint())
    assert clap.args.text_len == clap.processor.tokenizer.model_max_length
    vectors = clap.get_audio_embeddings(files)
    expected = embed_files(clap._model, clap.processor, files).vectors
    torch.testing.assert_close(F.normalize(vectors, dim=-1), expected, atol=1e-4, rtol=0)
    text = clap.get_text_embeddings(["a dog"])
    cosines = clap.compute_similarity(vectors, text) / clap.clap.logit_scale.exp()
    torch.testing.assert_close(cosines, F.normalize(vectors, dim=-1) @ F.normalize(text, dim=-1).T)


def test_the_example_of_msclap_s_readme(hub, tmp_path):
    """With one import changed, and the official file and the vocabulary on the Hub."""
    path = tmp_path / "CLAP_weights_2023.pth"
    torch.save({"model": official_state(random_clap("2023", 1, True), "2023", "hub")}, path)
    for repo_id, files in {"microsoft/msclap": path, "gpt2": TOKENIZER["2023"]}.items():
        hub.seed("models", repo_id, files)
    class_labels, file_paths = TEXTS, [str(file) for file in RECORDINGS]

    from clap_hf.compat.msclap import CLAP

    clap_model = CLAP(version="2023", use_cuda=False)
    text_embeddings = clap_model.get_text_embeddings(class_labels)
    audio_embeddings = clap_model.get_audio_embeddings(file_paths)
    similarities = clap_model.compute_similarity(audio_embeddings, text_embeddings)

    theirs = reference_wrapper(path, "2023", small=True)
    expected = theirs.compute_similarity(
        theirs.get_audio_embeddings(file_paths), theirs.get_text_embeddings(class_labels)
    )
    torch.testing.assert_close(similarities, expected, atol=1e-4, rtol=0)


def test_what_cannot_be_loaded(captioner, tmp_path):
    with pytest.raises(ValueError, match="version is '2024'"):
        compat.CLAP(tmp_path, "2024")
    with pytest.raises(FileNotFoundError, match=r"missing\.pth is not a file"):
        compat.CLAP(tmp_path / "missing.pth", "2023")
    with pytest.raises(ValueError, match="of type 'msclap_captioning', expected 'msclap'"):
        compat.CLAP(captioner, "2023")
    assert compat.CLAP(captioner, "clapcap").generate_caption([EXAMPLES / "dog.ogg"])[0]


def test_gradients_reach_the_waveform(pair):
    """Effects are tuned through the audio encoder, from a text's vector to the samples."""
    encoder = pair.own.clapcap.clap if pair.version == "clapcap" else pair.own.clap.audio_encoder
    waveform = torch.from_numpy(sound(1.0, 44_100))[None].requires_grad_()
    encoder(waveform)[0].square().sum().backward()
    assert waveform.grad is not None and float(waveform.grad.abs().max()) > 0


@pytest.fixture
def installed(monkeypatch):
    """This package as `msclap`, for a test."""
    for name in [name for name in sys.modules if name.split(".")[0] == "msclap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "msclap", None)  # so that what install puts there is taken away again
    monkeypatch.setitem(sys.modules, "msclap.CLAPWrapper", None)
    compat.install()


def test_install(installed):
    import msclap
    import msclap.CLAPWrapper as module
    from msclap import CLAP
    from msclap.CLAPWrapper import CLAPWrapper

    assert CLAP is CLAPWrapper is msclap.CLAP is msclap.CLAPWrapper.CLAPWrapper is module.CLAPWrapper is compat.CLAP
    compat.install()


def test_install_comes_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "msclap", reference_package)
    with pytest.raises(RuntimeError, match="imported already"):
        compat.install()


SCRIPT = """
import msclap
from msclap import CLAP as Model

class Scores:
    def __init__(self):
        self.model = Model(version="2023", use_cuda=False)
        self.encoder = self.model.clap.audio_encoder.to("cpu")

    def run(self, x, files):
        audio = self.model.get_audio_embeddings(files)
        return self.encoder.base(x)["embedding"], self.model.classify_audio_files_per_batch(files, ["a"], 2), audio

class Other:
    def __init__(self):
        self.model = make()

    def run(self):
        return self.model.anything

wrapper = msclap.CLAP()
print(wrapper.args.sampling_rate, wrapper.clapcap.clap_project, msclap.CLAP.model_name)
"""


def test_check_finds_every_use(tmp_path, capsys):
    found = [(use.line, use.name, use.covered) for use in check(SCRIPT)]
    assert found == [
        (7, "CLAP", True),
        (8, "clap.audio_encoder.to", True),
        (11, "get_audio_embeddings", True),
        (12, "clap.audio_encoder.base", True),
        (12, "classify_audio_files_per_batch", False),
        (21, "CLAP", True),
        (22, "args.sampling_rate", True),
        (22, "clapcap.clap_project", False),
        (22, "model_name", True),
    ]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert main(["--check", str(script)]) == 1
    assert "script.py:12: classify_audio_files_per_batch: NOT COVERED" in capsys.readouterr().out
    script.write_text("from msclap import CLAP\nprint(CLAP().get_text_embeddings(['a']))\n")
    assert main(["--check", str(script)]) == 0
    assert "2 uses of msclap, 0 not covered." in capsys.readouterr().out


def test_covered_names_exist(pair):
    """And no public name of msclap is left out but those that do not work there, or only prepare what it loads."""
    other = "clap" if pair.version == "clapcap" else "clapcap"
    for path in COVERED:
        if path == "CLAP" or path.split(".")[0] == other:
            continue
        if path.endswith("htsat") and pair.own.args.audioenc_name != "HTSAT":
            continue
        part: Any = pair.own
        for name in path.split("."):
            part = getattr(part, name)
    missing = {name for name in dir(pair.theirs) if not name.startswith("_")} - COVERED.keys()
    assert missing == {
        *("classify_audio_files_per_batch", "config_as_str", "default_collate_err_msg_format", "file_path"),
        *("load_clap", "load_clapcap", "np_str_obj_array_pattern", "read_config_as_args"),
    }
