"""`import clap_hf` beside every kind of torchaudio: absent, broken in each known way, healthy, and the one installed.

Each case runs in a process of its own. The packages named torchaudio that the tests write are test doubles: they fail
on import in the way the real ones do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import clap_hf

# What must work whatever torchaudio does: transformers' audio modules, which import it where it is installed.
COMMON = """
import clap_hf
from clap_hf._torchaudio import torchaudio
import transformers.audio_utils
from transformers import ClapProcessor, ZeroShotAudioClassificationPipeline
from transformers.utils import is_torchaudio_available
assert is_torchaudio_available() == (torchaudio is not None)
assert clap_hf.load_audio(SOUND).samples.shape[0] == 1
"""
SOUND = Path(__file__).parent.parent / "examples" / "speech.wav"
# The real package's order: the compiled library first, then modules that ask it for its flags.
PACKAGE = "from . import _extension\nfrom . import functional\n"
FUNCTIONAL = """
from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE, fail_if_no_align
def pure(): return "pure torch"
@fail_if_no_align
def forced_align(): return "compiled"
"""


def run(script: str, *first_on_path: Path) -> subprocess.CompletedProcess[str]:
    source = str(Path(clap_hf.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, first_on_path), source])}
    code = f"SOUND = {str(SOUND)!r}\n{textwrap.dedent(script)}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def double(folder: Path, extension: str, package: str = PACKAGE, functional: str = FUNCTIONAL) -> Path:
    """Write a torchaudio whose `_extension` module runs the given code."""
    (folder / "torchaudio").mkdir()
    for name, code in (("__init__", package), ("_extension", extension), ("functional", functional)):
        (folder / "torchaudio" / f"{name}.py").write_text(code)
    return folder


def test_absent():
    run(
        """
        import importlib.machinery, sys
        class AllButTorchaudio(importlib.machinery.PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name.split(".")[0] == "torchaudio" else super().find_spec(name, path, target)
        sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = AllButTorchaudio
        """
        + textwrap.indent(COMMON, " " * 8)
        + """
        assert torchaudio is None
        """
    )


def test_installed_one_is_usable_whatever_its_state():
    done = run(
        textwrap.indent(COMMON, " " * 8)
        + """
        import torch
        tone = torch.sin(torch.arange(44100) * 0.05)[None]
        low = torchaudio.functional.resample(tone, 44100, 22050)
        assert low.shape == (1, 22050)
        assert torch.allclose(low[0, 100:200], torch.sin(torch.arange(100, 200) * 0.1), atol=0.01)
        assert torchaudio.transforms.SpeedPerturbation(44100, [0.9])(tone)[0].shape[1] > 48000
        """
    )
    assert "torchaudio" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure",
    [
        'OSError("libc10_cuda.so: cannot open shared object file: No such file or directory")',
        'RuntimeError("Detected that PyTorch and TorchAudio were compiled with different CUDA versions.")',
        'ImportError("Failed to load libtorchaudio")',
    ],
    ids=["OSError", "RuntimeError", "ImportError"],
)
def test_broken_library(tmp_path, failure):
    done = run(
        textwrap.indent(COMMON, " " * 8)
        + """
        assert torchaudio.functional.pure() == "pure torch"
        assert torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE is False
        import torchaudio as again
        assert again is torchaudio
        try:
            torchaudio.functional.forced_align()
        except RuntimeError as error:
            assert "forced_align needs its compiled library" in str(error)
        else:
            raise AssertionError("forced_align ran without its library")
        """,
        double(tmp_path, f"raise {failure}"),
    )
    assert "torchaudio" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "functional",
    ["from torchaudio._extension import something_of_another_release", 'raise OSError("another library")'],
    ids=["unknown-layout", "second-library"],
)
def test_broken_beyond_repair_is_hidden(tmp_path, functional):
    done = run(
        textwrap.indent(COMMON, " " * 8)
        + """
        assert torchaudio is None
        """,
        double(tmp_path, 'raise OSError("libc10_cuda.so: cannot open")', functional=functional),
    )
    assert "going on without torchaudio" in done.stderr and "libc10_cuda.so" in done.stderr


@pytest.mark.slow
def test_healthy_one_is_left_alone(tmp_path):
    extension = "_IS_TORCHAUDIO_EXT_AVAILABLE = True\ndef fail_if_no_align(function): return function\n"
    done = run(
        textwrap.indent(COMMON, " " * 8)
        + """
        assert torchaudio.functional.forced_align() == "compiled"
        assert torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE is True
        assert torchaudio._extension.__file__
        """,
        double(tmp_path, extension),
    )
    assert "torchaudio" not in done.stderr
