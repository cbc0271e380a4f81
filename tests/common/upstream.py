"""transformers' own common tests, from the source distribution of the installed version.

Importing this module makes them importable as the package `transformers_tests`. The distribution holds the files
`tests/test_*.py` alone, so that what they import beside these is a stub here; `GenerationTesterMixin` and
`ExportTesterMixin` are among it, and are empty.
"""

import subprocess
import sys
import tarfile
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

import pytest

PACKAGE = "transformers_tests"
# tests/utils/test_configuration_utils.py: settings that every configuration keeps, other than by default.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}


def cache_folder() -> Path:
    """Where the distributions are kept between runs: pytest's cache of this repository."""
    return Path(__file__).parents[2] / ".pytest_cache" / "d" / "transformers_tests"


def fetch(release: str) -> Path:
    """Folder `tests` of the source distribution of a release; downloaded once.

    Skips the tests of the module that is being imported if there is no such distribution to be had.
    """
    folder = cache_folder() / release
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", temporary]
        result = subprocess.run([*command, f"transformers=={release}"], capture_output=True, text=True)
        if result.returncode:
            last = result.stderr.strip().rsplit("\n", 1)[-1]
            pytest.skip(f"no source distribution of transformers {release}: {last}", allow_module_level=True)
        root = f"transformers-{release}"
        with tarfile.open(Path(temporary) / f"{root}.tar.gz") as archive:
            members = [member for member in archive if member.name.startswith(f"{root}/tests/") and member.isfile()]
            archive.extractall(temporary, members, filter="data")
        try:
            (Path(temporary) / root / "tests").rename(folder)
        except OSError:  # another worker was faster
            assert folder.is_dir()
    return folder


def stub(name: str, **content: object) -> None:
    """Put a module of this name and content into `sys.modules`."""
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module


def install() -> None:
    """Make the common tests importable."""
    folder = fetch(version("transformers"))
    stub(PACKAGE, __path__=[str(folder)])
    for part in ("exporters", "generation", "utils"):
        stub(f"{PACKAGE}.{part}", __path__=[])
    stub(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    stub(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    stub(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)
    # utils/fetch_hub_objects_for_ci.py, of the repository alone: it downloads samples that no test here uses.
    stub("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
    # test_configuration_common.py imports the library from the sources that it lies in.
    import transformers
    import transformers.utils

    original = transformers.utils.direct_transformers_import
    transformers.utils.direct_transformers_import = lambda path: transformers
    try:
        import transformers_tests.test_configuration_common  # noqa: F401
    finally:
        transformers.utils.direct_transformers_import = original


install()
