#!/usr/bin/env python
"""`clap_hf.compat.msclap` beside PyPI `msclap`: every public method and attribute, and the largest difference.

Both load the same full-size seeded random weights in the official format. Needs `msclap` as the parity tests do:

    pip install --no-deps -r requirements-parity.txt
    python benchmarks/msclap_parity.py --output benchmarks/msclap_parity.json
"""

from __future__ import annotations

from peers import ROOT  # first, as it says

# isort: split

import argparse
import re
import sys
import tempfile
from pathlib import Path

import soundfile
import torch

from clap_hf.atomic_io import write_json, write_text
from clap_hf.compat.msclap import CLAP
from msclap_reference import EXAMPLES, TOKENIZER, official_state, random_captioner, random_clap, reference_wrapper

sys.path.insert(0, str(ROOT / "tests" / "compat"))
from side_by_side import captioning_rows, contrastive_rows, quirk_rows  # noqa: E402

# Mono and at most 5 s long, of three rates: longer ones msclap crops at random, and stereo it lays end to end.
RECORDINGS = [EXAMPLES / name for name in ("bird.wav", "chainsaw.flac", "dog.ogg", "sheep.wav", "speech.wav")]
SEED = 2023
PAGE = ROOT / "docs" / "migrate.md"
TABLE = re.compile(r"(?<=\| method or attribute \| 2022 \| 2023 \| clapcap \|\n\|---\|---\|---\|---\|\n)(\|.*\n)*")


def rows(version: str, folder: Path, tokens: int) -> dict[str, float]:
    """The table of one version."""
    path = folder / "weights.pth"
    model = random_captioner(SEED) if version == "clapcap" else random_clap(version, SEED)
    torch.save({"model": official_state(model, version, "hub")}, path)
    theirs, own = reference_wrapper(path, version), CLAP(path, version, tokenizer=TOKENIZER[version])
    if version == "clapcap":
        settings = [{"entry_length": tokens}, {"beam_size": 2, "entry_length": tokens, "temperature": 2.0}]
        return captioning_rows(own, theirs, RECORDINGS[:2], settings)
    stereo = folder / "stereo.wav"
    generator = torch.Generator().manual_seed(SEED)
    soundfile.write(stereo, 0.1 * torch.randn(300_000, 2, generator=generator).numpy(), 44_100, subtype="FLOAT")
    quirky = CLAP(path, version, tokenizer=TOKENIZER[version], msclap_quirks=True)
    return contrastive_rows(own, theirs, RECORDINGS) | quirk_rows(quirky, theirs, stereo)


def table(differences: dict[str, dict[str, float]]) -> str:
    """Rows of the table in docs/migrate.md, of a record's `differences`."""
    names = dict.fromkeys(name for version in ("2023", "2022", "clapcap") for name in differences[version])

    def cell(version: str, name: str) -> str:
        value = differences[version].get(name)
        return "" if value is None else "equal" if value == 0 else f"{value:.0e}"

    return "".join(
        f"| {f'`{name}`' if 'quirks' not in name else name} | "
        + " | ".join(cell(version, name) for version in ("2022", "2023", "clapcap"))
        + " |\n"
        for name in names
    )


def main() -> None:
    """Compare the three versions; write the record, and the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--tokens", type=int, default=12, help="tokens of a caption at most; msclap takes 0.4 s for each"
    )
    options = parser.parse_args()
    tables = {}
    for version in ("2022", "2023", "clapcap"):
        with tempfile.TemporaryDirectory() as folder:
            tables[version] = rows(version, Path(folder), options.tokens)
        worst = max(tables[version], key=tables[version].__getitem__)
        print(f"{version}: {len(tables[version])} rows, largest {tables[version][worst]:.1e} ({worst})")
    write_json(options.output, {"msclap": "1.3.4", "torch": torch.__version__, "seed": SEED, "differences": tables})
    page = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, TABLE.sub(lambda _: table(tables), page))


if __name__ == "__main__":
    main()
