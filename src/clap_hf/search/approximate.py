"""Approximate search by FAISS for collections that are too large to compare with every vector."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

RECALL, NEIGHBOURS = 0.95, 10  # share of the 10 nearest vectors that must be found
HNSW_VECTORS = 1_000_000  # more take less memory as an inverted file
LINKS, BUILD_EFFORT = 32, 80  # of HNSW
SAMPLES = 200  # queries by which recall is measured
NOISE = 0.5  # length of the random part of such a query beside a unit vector
EFFORTS = (32, 64, 128, 256, 512, 1024)  # efSearch or nprobe, of which the first with enough recall is taken


@dataclass(frozen=True)
class Approximate:
    """An index that finds most of the nearest vectors.

    Attributes:
        index: FAISS index over all vectors.
        kind: "hnsw" or "ivf".
        effort: efSearch or nprobe.
        recall: Measured share of the 10 nearest vectors that it finds.
    """

    index: Any
    kind: str
    effort: int
    recall: float

    def nearest(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Dot products and rows of the vectors that are nearest to a query `[dim]`, each `[count]` or fewer."""
        scores, rows = self.index.search(query[None].astype(np.float32), count)
        found = rows[0] >= 0
        return scores[0][found], rows[0][found]


def approximate_index(matrix: np.ndarray, queries: np.ndarray | None = None) -> Approximate | None:
    """Build an index whose recall@10 is at least 0.95, measured on queries.

    Args:
        matrix: Unit vectors `[vectors, dim]`, float32.
        queries: Vectors like those that will be looked for, such as of texts `[queries, dim]`; perturbed vectors of
            the matrix when None.

    Returns:
        HNSW for up to a million vectors, an inverted file above; None without faiss-cpu, or where no effort is enough.
    """
    try:
        faiss: Any = import_module("faiss")
    except ImportError:
        return None
    count, dim = matrix.shape
    if count <= HNSW_VECTORS:
        kind, index = "hnsw", faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_EFFORT
    else:
        lists = int(4 * np.sqrt(count))
        kind = "ivf"
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(matrix[:: max(1, count // (40 * lists))])
    index.add(matrix)
    random = np.random.default_rng(0)
    if queries is None:
        own = matrix[random.choice(count, min(SAMPLES, count), replace=False)]
        noise = random.normal(size=own.shape).astype(np.float32)
        queries = own + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    exact = np.argpartition(-(queries @ matrix.T), NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    for effort in EFFORTS:
        if kind == "hnsw":
            index.hnsw.efSearch = effort
        else:
            index.nprobe = effort
        _, found = index.search(queries, NEIGHBOURS)
        recall = float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(exact, found, strict=True)]))
        if recall >= RECALL:
            return Approximate(index, kind, effort, recall)
    return None
