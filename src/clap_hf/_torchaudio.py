"""The one place that imports torchaudio, so that a build that does not match torch harms nothing else.

torchaudio loads its compiled library on import and fails with `OSError` beside a CPU build of torch and with
`RuntimeError` beside another CUDA version. transformers imports it wherever it is installed, so that its processors
and pipelines fail with it. Import this module before transformers: it leaves torchaudio usable or out of sight.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch


def _fail_without_library(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    @functools.wraps(function)
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"torchaudio's {function.__name__} needs its compiled library, which does not match torch "
            f"{torch.__version__}; install the build of torchaudio made for it"
        )

    return fail


def _without_library() -> ModuleType:
    """Stand-in for `torchaudio._extension` that reports no compiled library: what is pure torch works on."""
    extension = ModuleType("torchaudio._extension")
    extension.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        _load_lib=lambda name: False,
        fail_if_no_align=_fail_without_library,
    )
    return extension


def _forget_torchaudio() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]


def _import_torchaudio() -> ModuleType | None:
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError as error:
        if error.name == "torchaudio":
            return None
        reason: Exception = error
    except (ImportError, OSError, RuntimeError) as error:
        reason = error
    _forget_torchaudio()
    extension = _without_library()
    sys.modules["torchaudio._extension"] = extension
    try:
        module = importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError, AttributeError):
        # Another layout than the stand-in knows: to every later import, transformers' too, it is not installed.
        _forget_torchaudio()
        sys.modules["torchaudio"] = None  # type: ignore[assignment]
        warnings.warn(
            f"going on without torchaudio, which does not import beside torch {torch.__version__} ({reason}); "
            "install the build made for this torch, or uninstall it",
            stacklevel=2,
        )
        return None
    module._extension = extension  # type: ignore[attr-defined]
    return module


torchaudio: ModuleType | None = _import_torchaudio()
