"""Scores of generated sounds from embeddings: CLAP score, Fréchet and kernel audio distance, as plain functions."""

from __future__ import annotations

import numpy as np

KERNEL_SCALE = 100.0  # what kadtk multiplies its distance with


def clap_scores(audio: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of every sound and its own text.

    Args:
        audio: Embeddings of sounds `[clips, dim]`.
        texts: Embeddings of their texts, in the same order.

    Returns:
        `[clips]`, -1 to 1.
    """
    lengths = np.linalg.norm(audio, axis=1) * np.linalg.norm(texts, axis=1)
    return (audio * texts).sum(axis=1) / np.maximum(lengths, 1e-12)


def frechet_distance(generated: np.ndarray, reference: np.ndarray) -> float:
    """Squared Fréchet distance between the normal distributions of two sets of embeddings.

    The trace of the root of the covariances' product is the sum of the singular values of the product of their
    factors, which is exact also where there are fewer sounds than elements, and needs no root of a matrix.

    Args:
        generated: Embeddings `[clips, dim]`.
        reference: Embeddings `[clips, dim]`.

    Raises:
        ValueError: If a set has fewer than two sounds, or they have vectors of different sizes.
    """
    sets = _checked_sets(generated, reference)
    means = [vectors.mean(axis=0) for vectors in sets]
    factors: list[np.ndarray] = [
        np.linalg.qr((vectors - mean) / np.sqrt(len(vectors) - 1))[1]
        for vectors, mean in zip(sets, means, strict=True)
    ]
    root = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    traces = sum((factor**2).sum() for factor in factors)
    return float(((means[0] - means[1]) ** 2).sum() + traces - 2 * root)


def kernel_distance(generated: np.ndarray, reference: np.ndarray, bandwidth: float | None = None) -> float:
    """Kernel audio distance: unbiased squared maximum mean discrepancy under a Gaussian kernel, times 100.

    Args:
        generated: Embeddings `[clips, dim]`.
        reference: Embeddings `[clips, dim]`.
        bandwidth: Of the kernel; the lower median of the distances within `generated` when None, as in kadtk.

    Raises:
        ValueError: As `frechet_distance`.
    """
    generated, reference = _checked_sets(generated, reference)
    if bandwidth is None:
        within = np.sqrt(_squared_distances(generated, generated)[np.triu_indices(len(generated), 1)])
        bandwidth = float(np.partition(within, (len(within) - 1) // 2)[(len(within) - 1) // 2])
    gamma = 1.0 / (2.0 * bandwidth**2 + 1e-8)

    def mean_within(vectors: np.ndarray) -> float:
        kernel = np.exp(-gamma * _squared_distances(vectors, vectors))
        return float((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)))

    between = float(np.exp(-gamma * _squared_distances(generated, reference)).mean())
    return KERNEL_SCALE * (mean_within(generated) + mean_within(reference) - 2.0 * between)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2.0 * first @ second.T
    return np.maximum(squares, 0.0)


def _checked_sets(generated: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for name, vectors in {"generated": generated, "reference": reference}.items():
        if vectors.ndim != 2 or len(vectors) < 2:
            raise ValueError(f"{name} has shape {vectors.shape}, expected vectors [clips, dim] of 2 clips or more.")
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"generated has vectors of {generated.shape[1]} elements and reference of {reference.shape[1]}, expected "
            "those of one model."
        )
    return generated.astype(np.float64), reference.astype(np.float64)
