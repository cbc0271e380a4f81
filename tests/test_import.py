"""What `import clap_hf` loads, and that transformers knows CLAP whatever was imported first; all in new processes."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import clap_hf

PACKAGE = Path(clap_hf.__file__).parent
EMBEDDED = str(PACKAGE / "embedded")

# Before clap_hf, transformers' processors cannot be imported beside a torchaudio that is broken.
WITHOUT_TORCHAUDIO = "import sys; sys.modules['torchaudio'] = None; "
# What a program does that never touches a name of ours.
AUTO_CLASSES = f"""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
    from transformers import AutoModelForAudioClassification
    folder = {EMBEDDED!r}
    assert type(AutoConfig.from_pretrained(folder)).__name__ == "MSClapConfig"
    assert type(AutoFeatureExtractor.from_pretrained(folder)).__name__ == "MSClapFeatureExtractor"
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "MSClapProcessor"
    model = AutoModel.from_pretrained(folder)
    assert type(model) is clap_hf.MSClapModel
    assert type(AutoModel.from_config(model.config)) is clap_hf.MSClapModel
    assert AutoModel._model_mapping[type(model.config)] is clap_hf.MSClapModel
    classifier = AutoModelForAudioClassification.from_pretrained(folder, num_labels=2)
    assert type(classifier) is clap_hf.MSClapForAudioClassification
"""


def run(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    code = textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_next_to_nothing():
    loaded = run(
        """
        import sys
        import torch, transformers
        before = set(sys.modules)
        import clap_hf
        print(*sorted(set(sys.modules) - before))
        assert set(clap_hf.__all__) <= set(dir(clap_hf))
        """
    ).split()
    own = [name for name in loaded if name.split(".")[0] == "clap_hf"]
    alone = run("import sys, clap_hf; print(*sys.modules)").split()
    assert not {"torch", "transformers", "numpy", "rich"} & set(alone)
    assert own == ["clap_hf", "clap_hf._torchaudio", "clap_hf.registration"]
    roots = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    of_torchaudio = {"torio", "soundfile", "_soundfile", "_soundfile_data", "_cffi_backend"}  # its older releases
    assert roots <= {"clap_hf", "wrapt", "torchaudio"} | of_torchaudio


def test_every_public_name_is_lazy_and_known_to_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == clap_hf._MODULE_OF
    assert sorted(typed) == clap_hf.__all__
    with pytest.raises(AttributeError, match="no attribute 'MSClap'"):
        clap_hf.MSClap  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import clap_hf",
        "import clap_hf; import transformers.models.gpt2.modeling_gpt2, transformers.models.clip.modeling_clip",
        WITHOUT_TORCHAUDIO + "from transformers import AutoModel, AutoProcessor, pipeline; import clap_hf",
        "import clap_hf; from clap_hf.model.modeling_msclap_captioning import MSClapForAudioCaptioning",
        "import clap_hf; from clap_hf.model.configuration_msclap import MSClapConfig",
        "import clap_hf; from transformers.pipelines import PIPELINE_REGISTRY",
        "import clap_hf; clap_hf.MSClapAudioCaptioningPipeline",
    ],
    ids=[
        "alone",
        "models-first",
        "transformers-first",
        "own-model-first",
        "own-configuration-first",
        "pipelines-first",
        "own-pipeline-first",
    ],
)
def test_auto_classes_know_clap(first):
    run(first + "\n" + textwrap.dedent(AUTO_CLASSES))


def rooms() -> dict[str, list[str]]:
    """Names of all modules by the folder that they lie in."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if parts[-1] != "__main__":
            found.setdefault("/".join(parts[:-1]), []).append(name)
    return found


# The hooks on transformers import these. In other rooms `tests/test_packaging.py` finds circles without running them,
# and a module for every room is enough.
HOOKED = ("clap_hf", "clap_hf/model", "clap_hf/pipelines")


@pytest.mark.slow
@pytest.mark.parametrize("room", [*HOOKED, "others"])
def test_modules_can_be_imported_first(room):
    others = [names[-1] for folder, names in rooms().items() if folder not in HOOKED]
    run(
        f"""
        import importlib, os, traceback
        import accelerate, datasets, torch, transformers  # once; every module of ours is imported in a fork of its own
        failed = []
        for name in {rooms().get(room, others)}:
            child = os.fork()
            if child == 0:
                try:
                    importlib.import_module(name)
                except BaseException:  # a fork must not go on with the loop
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                failed.append(name)
        assert not failed, failed
        """
    )


@pytest.mark.slow
@pytest.mark.parametrize("pipelines_first", [False, True])
def test_pipelines_know_clap(captioner, tmp_path, pipelines_first):
    imports = ["import clap_hf", "from transformers import pipeline"]
    lines = [
        *([WITHOUT_TORCHAUDIO, *imports[::-1]] if pipelines_first else imports),
        f"describe = pipeline('audio-captioning', model={str(captioner)!r})",
        "assert type(describe) is clap_hf.MSClapAudioCaptioningPipeline",
        "assert type(describe.model) is clap_hf.MSClapForAudioCaptioning",
        f"classify = pipeline('zero-shot-audio-classification', model={EMBEDDED!r})",
        "assert type(classify.model) is clap_hf.MSClapModel",
        # Code and auto_map go with what is saved, though no class of ours was named before it was loaded.
        f"classify.save_pretrained({str(tmp_path)!r})",
    ]
    run("\n".join(lines))
    saved = {path.name for path in tmp_path.iterdir()}
    assert {"modeling_msclap.py", "configuration_msclap.py", "feature_extraction_msclap.py"} <= saved
    assert '"auto_map"' in (tmp_path / "config.json").read_text()


def test_scikit_learn_is_for_probes_and_calibrations_alone() -> None:
    """Whoever has it pays for scipy at every start of transformers; who lacks it is told where it is needed."""
    out = run(
        f"""
        import sys
        sys.modules.update(sklearn=None, scipy=None)
        import numpy as np
        import clap_hf
        from clap_hf.calibration import Calibration
        clap_hf.MSClapModel.from_pretrained({EMBEDDED!r})
        pairs = np.eye(2, dtype=bool)
        for needs in (
            lambda: Calibration.fit(np.eye(2), np.eye(2), pairs, ~pairs, ["one", "two"], {{}}),
            lambda: __import__("clap_hf.training.classification"),
        ):
            try:
                needs()
            except ImportError as error:
                print(error)
        """
    )
    assert out.count("needs scikit-learn: pip install 'clap-hf[train]'") == 2, out
