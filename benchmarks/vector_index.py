#!/usr/bin/env python
"""An inverted file with product quantisation (FAISS IVF-PQ) at a million vectors: recall@10, memory, time of a query.

    python benchmarks/vector_index.py --corpus CORPUS --output benchmarks/vector_index.json

The real vectors are those of a sound corpus (parquet files with a column `audio`) by the embedded checkpoint. The
others are drawn around them: two real ones mixed by a random share, and noise. Queries are real vectors of clips that
are not indexed, and vectors of their captions. What is found is compared with an exact search.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
from harness import machine, memory_held

from clap_hf import ClapEmbedder
from clap_hf.atomic_io import write_json

NOISE = 0.3  # length of the random part of a drawn vector beside a unit vector
QUERIES, NEIGHBOURS = 200, 10
LISTS, BYTES, TRAINED = 1024, 64, 65_536
PROBES = (1, 4, 16, 64, 256)
RERANKED = (100, 1000)  # candidates whose stored vectors are compared exactly


def real_vectors(corpus: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the clips of a corpus, and of their first captions, each `[clips, dim]`."""
    embedder = ClapEmbedder(max_windows=2)
    clips: list[np.ndarray] = []
    captions: list[str] = []
    for file in sorted(corpus.rglob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(64, columns=["audio", "captions"]):
            rows = batch.to_pydict()
            found = embedder({"audio": rows["audio"]})
            kept = [row for row, error in enumerate(found["error"]) if not error]
            clips.append(found["embedding"][kept])
            captions += [rows["captions"][row][0] for row in kept]
    return np.concatenate(clips), embedder.encoder().embed_texts(captions).numpy()


def drawn(real: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Real vectors, and others around them, `[count, dim]`, in a random order."""
    matrix = np.empty((count, real.shape[1]), np.float32)
    matrix[: len(real)] = real
    for start in range(len(real), count, 50_000):
        size = min(50_000, count - start)
        first, second = real[random.integers(len(real), size=size)], real[random.integers(len(real), size=size)]
        share = random.uniform(0, 0.5, size=(size, 1)).astype(np.float32)
        noise = random.standard_normal(first.shape, dtype=np.float32)
        noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
        rows = (1 - share) * first + share * second + noise
        matrix[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    random.shuffle(matrix)
    return matrix


def exact(matrix: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Rows of the nearest vectors of every query `[queries, NEIGHBOURS]`."""
    return faiss.knn(queries, matrix, NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)[1]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    """Share of the nearest that were found."""
    return float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(found, expected, strict=True)]))


def measure(clips: np.ndarray, captions: np.ndarray, count: int) -> dict[str, Any]:
    """Build the index and search it."""
    random = np.random.default_rng(0)
    order = random.permutation(len(clips))
    asked, rest = order[:QUERIES], order[QUERIES:]
    matrix = drawn(clips[rest], count, random)
    kinds = {"sounds": clips[asked], "words": captions[asked]}
    expected = {kind: exact(matrix, queries) for kind, queries in kinds.items()}
    dim = matrix.shape[1]
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, LISTS, BYTES, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10
    started = time.perf_counter()
    index.train(matrix[:TRAINED])
    trained_s = time.perf_counter() - started
    started = time.perf_counter()
    for start in range(0, count, 50_000):
        index.add(matrix[start : start + 50_000])
    added_s = time.perf_counter() - started
    results = []
    for probes, (kind, queries), count_best in product(PROBES, kinds.items(), RERANKED):
        index.nprobe = probes
        started = time.perf_counter()
        _, candidates = index.search(queries, count_best)
        searched_s = (time.perf_counter() - started) / QUERIES
        started = time.perf_counter()
        scores = np.stack([matrix[rows] @ query for rows, query in zip(candidates, queries, strict=True)])
        scores[candidates < 0] = -np.inf
        best = np.take_along_axis(candidates, np.argsort(-scores, axis=1)[:, :NEIGHBOURS], axis=1)
        reranked_s = (time.perf_counter() - started) / QUERIES
        results.append(
            {
                "probes": probes,
                "queries": kind,
                "candidates": count_best,
                "recall": recall(candidates[:, :NEIGHBOURS], expected[kind]),
                "recall_reranked": recall(best, expected[kind]),
                "query_s": searched_s,
                "rerank_s": reranked_s,
            }
        )
        print(json.dumps(results[-1]), flush=True)
    size = len(faiss.serialize_index(index))
    return {
        "vectors": count,
        "real": len(rest),
        "dim": dim,
        "lists": LISTS,
        "code_bytes": BYTES,
        "queries": QUERIES,
        "trained_on": TRAINED,
        "train_seconds": trained_s,
        "add_seconds": added_s,
        "vectors_bytes": matrix.nbytes,
        "index_bytes": size,
        "index_bytes_per_vector": size / count,
        "centroids_bytes": LISTS * dim * 4 + 256 * dim * 4,
        "peak_memory_mb": memory_held("VmHWM"),
        "rows": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the sound corpus")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="vectors of the index")
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    args = parser.parse_args()
    found = {"machine": machine(), **measure(*real_vectors(args.corpus), args.vectors)}
    if args.output is not None:
        write_json(args.output, found)


if __name__ == "__main__":
    main()
