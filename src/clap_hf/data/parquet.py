"""Writing parquet files of sounds, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import replacing

ROWS_PER_GROUP = 100  # what a streaming reader fetches at once


def write_parquet(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as they come, so that memory holds one group of them.

    Args:
        path: The file; there is none, or the old one, if the rows raise an error. Its folder is made if need be.
        schema: Columns of the rows.
        rows: The rows.
    """
    iterator = iter(rows)
    # Without compression: sound files do not get smaller.
    with replacing(path) as fresh, pq.ParquetWriter(fresh, schema, compression="none") as writer:
        while group := list(islice(iterator, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
