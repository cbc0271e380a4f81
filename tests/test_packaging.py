"""The shape of the package: file sizes, who may import whom, docstrings, examples, metadata."""

from __future__ import annotations

import ast
import csv
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tools.lowest import lowest_versions
from tools.rooms import listing

import clap_hf
from clap_hf.audio import AUDIO_EXTENSIONS, load_audio

PACKAGE = Path(clap_hf.__file__).parent
ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def imports(name: str) -> set[str]:
    """Every module that a module imports, at its top or inside a function; a name out of a package is that module."""
    package = name.split(".") if SOURCES[name].name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.update(inner if (inner := f"{base}.{alias.name}") in SOURCES else base for alias in node.names)
    return found


def test_no_source_file_is_long():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in SOURCES.values()}
    assert not {name: lines for name, lines in lengths.items() if lines > 600}


def test_no_circular_imports():
    graph = {name: imports(name) & SOURCES.keys() for name in SOURCES}
    assert graph["clap_hf.audio.reader"] >= {"clap_hf.audio.ffmpeg"}  # the graph sees imports at all
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circular import: {' <- '.join(error.args[1])}")


# From the ground; a room imports only from floors below its own.
FLOORS = (
    {"model", "_torchaudio", "atomic_io", "text_files"},
    {"audio", "fast_cpu", "pretrained", "tokenization", "registration", "_prefix_tree"},
    {"embedding", "msclap_weights"},
    {"calibration", "streaming", "adapters"},
    {"embedder"},
    {"pipelines", "search", "moments", "compat", "export"},
    {"cards", "data"},
    {"hub", "convert"},
    {"evaluation"},
    {"training"},
    {"demo"},
    {"cli"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def upward_imports(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Imports between rooms that do not lead to a lower floor."""
    rooms = [(source, target, source.split(".")[1], target.split(".")[1]) for source, target in edges]
    return [f"{s} imports {t}" for s, t, room, aim in rooms if room != aim and FLOOR_OF[aim] >= FLOOR_OF[room]]


def test_no_import_runs_up_a_floor():
    edges = [(name, target) for name in SOURCES for target in imports(name) & SOURCES.keys()]
    edges = [edge for edge in edges if "clap_hf" not in edge]  # the package itself names its public classes
    assert {name.split(".")[1] for name in SOURCES if "." in name} == FLOOR_OF.keys(), "a room has no floor"
    assert not upward_imports(edges)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("search", "evaluation.encoder"),
        ("search", "data.parquet"),
        ("cards.parts", "evaluation.report"),
        ("evaluation.command", "training.loop"),
        ("data.stream", "hub"),
        ("model.modeling_msclap", "audio"),
        ("pipelines.zero_shot", "search"),
    ],
)
def test_an_upward_import_is_seen(source, target):
    assert upward_imports([(f"clap_hf.{source}", f"clap_hf.{target}")])


def test_the_listing_of_rooms_is_the_tree():
    assert listing() in (ROOT / "docs" / "architecture.md").read_text()


def test_training_takes_no_table_from_evaluation():
    names = [target for name in SOURCES if name.startswith("clap_hf.training") for target in imports(name)]
    assert not {"clap_hf.evaluation.sound_tasks", "clap_hf.evaluation.general_midi"} & set(names)


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("clap_hf.model.")])
def test_model_files_can_ship_alone(name):
    # What save_pretrained copies to the Hub: it finds siblings only in the form `from .file import Name`.
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            outside = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside = {str(node.module).split(".")[0]}
        elif isinstance(node, ast.ImportFrom):
            outside = set()
            assert node.level == 1 and node.module and "." not in node.module, f"line {node.lineno}"
            assert f"clap_hf.model.{node.module}" in SOURCES, f"line {node.lineno}"
        else:
            continue
        allowed = sys.stdlib_module_names | {"torch", "transformers", "numpy", "huggingface_hub", "soundfile"}
        assert outside <= allowed - {"__future__"}, f"line {node.lineno}"


@pytest.mark.parametrize("name", SOURCES)
def test_public_things_have_docstrings(name):
    # Methods that override a documented one of torch or transformers may stay silent.
    silent = []
    for node in TREES[name].body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                silent.append(node.name)
    assert not silent
    assert ast.get_docstring(TREES[name]) or not TREES[name].body, "the module has no docstring"


def test_public_names_are_listed_and_exist():
    assert clap_hf.__all__ == sorted(clap_hf.__all__)
    assert all(hasattr(clap_hf, name) for name in clap_hf.__all__)


def test_every_python_that_is_claimed_can_be_had():
    """`requires-python` admits no version that a dependency refuses, and the classifiers name what it admits."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = SpecifierSet(project["requires-python"])
    versions = [f"3.{minor}" for minor in range(8, 20) if claimed.contains(f"3.{minor}.0")]
    named = [line.split(" :: ")[-1] for line in project["classifiers"] if "Python :: 3." in line]
    assert named == versions[: len(named)] and named
    if named[0] != f"{sys.version_info.major}.{sys.version_info.minor}":
        return  # pip has chosen releases for this Python, which may refuse those before it
    for line in project["dependencies"]:
        required = metadata.metadata(Requirement(line).name)["Requires-Python"] or ""
        refused = [version for version in named if not SpecifierSet(required).contains(f"{version}.9")]
        assert not refused, f"{line} needs Python {required}"


def test_lowest_versions_are_stated():
    lowest = lowest_versions(ROOT / "pyproject.toml")
    assert {"torch", "transformers", "datasets", "typer"} <= lowest.keys()
    assert all(version[0].isdigit() for version in lowest.values())


def test_version_and_types():
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE).group(1) == clap_hf.__version__
    assert f"version: {clap_hf.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{clap_hf.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert (PACKAGE / "py.typed").exists()
    assert metadata.version("clap-hf") == clap_hf.__version__
    assert metadata.entry_points(group="console_scripts")["clap-hf"].value == "clap_hf.cli:app"


def test_examples_are_labelled_short_and_credited():
    with (EXAMPLES / "labels.csv").open(newline="") as file:
        labels = {row["file"]: row["label"] for row in csv.DictReader(file)}
    sounds = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in AUDIO_EXTENSIONS)
    assert sorted(labels) == sounds and all(labels.values())
    credits = (EXAMPLES / "README.md").read_text()
    decoded = {name: load_audio(EXAMPLES / name) for name in sounds}
    for name, audio in decoded.items():
        assert re.search(rf"^\| {re.escape(name)} \|.*\| \[(CC0|CC BY|BSD)", credits, re.MULTILINE), name
        assert audio.duration_s <= 10 and not audio.truncated and abs(audio.samples).max() > 0.05, name
    # The first command meets what users bring: formats, rates and channels.
    assert {Path(name).suffix for name in sounds} == {".wav", ".flac", ".ogg", ".mp3"}
    assert len({audio.sampling_rate for audio in decoded.values()}) >= 4
    assert {audio.samples.shape[0] for audio in decoded.values()} == {1, 2}
    assert sum((EXAMPLES / name).stat().st_size for name in sounds) < 2_000_000
