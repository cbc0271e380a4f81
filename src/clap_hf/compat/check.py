"""Which uses of msclap in a script are covered, from its source: `python -m clap_hf.compat.msclap --check FILE.py`.

Nothing is run. Followed are names that msclap's classes are imported by, and variables and attributes that are
assigned an instance or a part of one.
"""

from __future__ import annotations

import argparse
import ast
from dataclasses import dataclass
from pathlib import Path

# What is covered: path below an instance, or below the class -> how it differs by default from msclap.
COVERED = {
    "CLAP": "",
    "model_repo": "",
    "model_name": "",
    "supported_versions": "",
    "model_fp": "",
    "use_cuda": "",
    "args": "",
    "token_keys": "",
    "tokenizer": 'padded with the end token, not with "!"',
    "default_collate": "",
    "read_audio": "",
    "load_audio_into_tensor": "the middle of a longer file, the mean of its channels",
    "preprocess_audio": "the middle of a longer file, the mean of its channels",
    "preprocess_text": "longer texts are cut before the end token",
    "get_audio_embeddings": "all windows of a longer file, the mean of its channels",
    "get_text_embeddings": 'pooled at the end token, also in texts with "!"',
    "get_audio_embeddings_per_batch": "all windows of a longer file, the mean of its channels",
    "get_text_embeddings_per_batch": 'pooled at the end token, also in texts with "!"',
    "compute_similarity": "",
    "generate_caption": "all windows of a longer file, the mean of its channels",
    "clap": "",
    "clap.logit_scale": "",
    "clap.audio_encoder": "",
    "clap.audio_encoder.base": "",
    "clap.audio_encoder.base.htsat": "",
    "clap.audio_encoder.projection": "",
    "clap.caption_encoder": 'pooled at the end token, also in texts with "!"',
    "clap.caption_encoder.base": "",
    "clap.caption_encoder.projection": "",
    "clapcap": "",
    "clapcap.clap": "",
    "clapcap.clap.base": "",
    "clapcap.clap.base.htsat": "",
    "clapcap.clap.projection": "",
    "clapcap.gpt": "",
    "clapcap.prefix_length": "",
    "clapcap.normalize_prefix": "",
}
# Below these everything is: plain data, a tokenizer, modules of torch and transformers.
OPEN = ("args.", "tokenizer.", "model_name.", "clap.caption_encoder.base.", "clapcap.gpt.", "clap.logit_scale.")
MODULE_METHODS = ("to", "cuda", "cpu", "eval", "train", "parameters", "named_parameters", "requires_grad_", "modules")


@dataclass(frozen=True)
class Use:
    """A use of msclap in a script.

    Attributes:
        line: Where it is.
        name: `"CLAP"`, or the path below an instance.
        covered: Whether this package has it.
        note: How it differs by default.
    """

    line: int
    name: str
    covered: bool
    note: str


def check(source: str) -> list[Use]:
    """Uses of msclap in a script, in the order of its lines.

    Args:
        source: Python code.

    Raises:
        SyntaxError: If it is none.
    """
    tree = ast.parse(source)
    classes: set[str] = set()  # names of the class, dotted
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("msclap", "msclap.CLAPWrapper"):
            classes.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in (alias for alias in node.names if alias.name.split(".")[0] == "msclap"):
                bound = alias.asname or "msclap"
                classes.update((f"{bound}.CLAP", f"{bound}.CLAPWrapper", f"{bound}.CLAPWrapper.CLAPWrapper"))
    own = [node for node in tree.body if isinstance(node, ast.ClassDef)]  # `self` is another one in each of them
    outside = [node for part in tree.body if part not in own for node in ast.walk(part)]
    known, uses = _uses(outside, classes, {})
    for scope in own:
        uses |= _uses(list(ast.walk(scope)), classes, known)[1]
    longest = {use for use in uses if not any(_goes_on(use, other) for other in uses)}
    return sorted(longest, key=lambda use: (use.line, use.name))


def _uses(nodes: list[ast.AST], classes: set[str], known: dict[str, str]) -> tuple[dict[str, str], set[Use]]:
    """Names of instances and of their parts, with paths below the instance, and the uses among nodes."""
    paths = dict(known)

    def path_of(node: ast.expr) -> str | None:
        """Path below an instance that an expression is, "" for the instance itself; None for anything else."""
        if isinstance(node, ast.Call):
            if _dotted(node.func) in classes:
                return ""
            if isinstance(node.func, ast.Attribute) and node.func.attr in MODULE_METHODS[:5]:
                return path_of(node.func.value)
            return None
        if (name := _dotted(node)) in paths:
            return paths[name]
        if isinstance(node, ast.Attribute) and (above := path_of(node.value)) is not None:
            return f"{above}.{node.attr}".lstrip(".")
        return None

    for node in nodes:
        if isinstance(node, ast.arg) and node.annotation is not None:
            parts = [part for part in ast.walk(node.annotation) if isinstance(part, ast.expr)]
            if any(_dotted(part) in classes for part in parts):
                paths[node.arg] = ""
    for _ in range(3):  # a part may be taken from a name that is assigned further down, as in a later method
        for assign in (node for node in nodes if isinstance(node, ast.Assign)):
            path = path_of(assign.value)
            for target in assign.targets:
                if path is not None and (name := _dotted(target)):
                    paths.setdefault(name, path)
    uses: set[Use] = set()
    for node in nodes:
        if isinstance(node, ast.Call) and _dotted(node.func) in classes:
            uses.add(_use(node.lineno, "CLAP"))
        elif isinstance(node, ast.Attribute) and (path := path_of(node)):
            uses.add(_use(node.lineno, path))
        elif isinstance(node, ast.Attribute) and _dotted(node.value) in classes:
            uses.add(_use(node.lineno, node.attr))
    return paths, uses


def _use(line: int, name: str) -> Use:
    head, _, method = name.rpartition(".")
    is_module = head in COVERED and head.split(".")[0] in ("clap", "clapcap")
    covered = name in COVERED or name.startswith(OPEN) or (is_module and method in MODULE_METHODS)
    return Use(line, name, covered, COVERED.get(name, ""))


def _goes_on(use: Use, other: Use) -> bool:
    """Whether another use on the same line is of a part of this one."""
    return other.line == use.line and other.name.startswith(f"{use.name}.")


def _dotted(node: ast.expr) -> str | None:
    """`"a.b.c"` of a name or a chain of attributes."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (above := _dotted(node.value)) is not None:
        return f"{above}.{node.attr}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Print a line for every use in a file.

    Returns:
        0 if all are covered, 1 if one is not, or the file does not use msclap.
    """
    parser = argparse.ArgumentParser("python -m clap_hf.compat.msclap", description=__doc__)
    parser.add_argument("--check", type=Path, required=True, metavar="FILE.py", help="script that imports msclap")
    file = parser.parse_args(arguments).check
    uses = check(file.read_text(encoding="utf-8"))
    for use in uses:
        note = f"; by default: {use.note}" if use.note else ""
        print(f"{file}:{use.line}: {use.name}: {'covered' if use.covered else 'NOT COVERED'}{note}")
    missing = sum(not use.covered for use in uses)
    print(f"{len(uses)} uses of msclap, {missing} not covered." if uses else f"{file} does not use msclap.")
    return int(not uses or missing > 0)
