#!/usr/bin/env python
"""`ClapEmbedder` in Daft beside a plain call: are the ids and vectors equal?

    python benchmarks/daft_equality.py SOUNDS --output benchmarks/daft_equality.json

In an environment of its own, that has daft beside the package: the package itself does not need it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import daft
import numpy as np
import pyarrow

from clap_hf import ClapEmbedder
from clap_hf.atomic_io import write_json
from clap_hf.data.own import sound_names

KIND = daft.DataType.struct(
    {
        "id": daft.DataType.string(),
        "embedding": daft.DataType.list(daft.DataType.float32()),
        "error": daft.DataType.string(),
    }
)
EMBEDDER = ClapEmbedder()


@daft.udf(return_dtype=KIND)
def embed(path: daft.Series) -> list[dict[str, object]]:
    """The columns of `ClapEmbedder` for a batch of paths."""
    found = EMBEDDER({"path": path.to_pylist()})
    columns = (found["id"], found["embedding"].tolist(), found["error"])
    return [dict(zip(("id", "embedding", "error"), row, strict=True)) for row in zip(*columns, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path, help="sounds, as `clap-hf embed` takes them")
    parser.add_argument("--clips", type=int, default=256, help="the first of the sounds")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the result")
    args = parser.parse_args()
    paths = [*sound_names([args.sounds])[: args.clips], "none.wav"]
    expected = EMBEDDER({"path": paths})
    rows = daft.from_pydict({"path": paths}).with_column("found", embed(daft.col("path"))).to_pydict()
    found = dict(zip(rows["path"], rows["found"], strict=True))
    vectors = np.array([found[path]["embedding"] for path in paths], np.float32)
    versions = {"daft": daft.__version__, "pyarrow": pyarrow.__version__, "numpy": np.__version__}
    write_json(
        args.output,
        {
            "versions": versions,
            "clips": len(paths) - 1,
            "equal_ids": [found[path]["id"] for path in paths] == expected["id"],
            "equal_errors": [found[path]["error"] for path in paths] == expected["error"],
            "equal_vectors": bool(np.array_equal(vectors, expected["embedding"], equal_nan=True)),
            "largest_difference": float(np.nanmax(np.abs(vectors - expected["embedding"]))),
        },
    )


if __name__ == "__main__":
    main()
