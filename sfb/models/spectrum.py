"""The principal directions of the samples of all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse

import sfb
from sfb.models.collective import total
from sfb.models.ranks import Ranks

__all__ = ["principal"]

# Directions beyond those asked for, and passes over the samples: what makes the randomised method accurate.
_MORE, _PASSES = 10, 5


def principal(ranks: Ranks, x: Any, count: int, seed: int, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the leading right singular vectors of the samples of all ranks, and their singular values; collective.

    Subspace iteration from random directions (Halko, Martinsson and Tropp, "Finding Structure with Randomness", SIAM
    Review 53(2), 2011, section 4.5). In each pass the ranks sum QXᵀX as the factors XQᵀ and X; rank 0 makes the
    directions orthonormal, so all ranks have the same bits.

    Args:
        ranks: The ranks.
        x: This rank's samples, N×D, dense or CSR; N may be 0.
        count: The number of directions; no more than min(N of all ranks, D) exist.
        seed: Seed of the first directions, the same on all ranks.
        centred: Whether to subtract the mean of all samples.

    Returns:
        Directions as rows, at most count×D, of the type of ``x``, and as many singular values in float64, descending.
    """
    features = x.shape[1]
    sums = np.append(np.asarray(x.sum(axis=0), np.float64), x.shape[0])
    samples = int(ranks.sum(sums)[-1])
    mean = (sums[:-1] / samples if centred else np.zeros(features)).astype(x.dtype)
    width = min(count + _MORE, features)
    basis = np.random.RandomState(seed).standard_normal((width, features)) if width < features else np.eye(features)
    passes = _PASSES if width < features else 1
    for _ in range(passes):
        basis = ranks.first(np.linalg.qr(basis.T)[0].T if ranks.rank == 0 else None).astype(x.dtype)
        basis = np.ascontiguousarray(basis)
        scores = np.ascontiguousarray(x @ basis.T - mean @ basis.T)
        if issparse(x):
            product = ranks.sum(np.ascontiguousarray((x.T @ scores).T))
        else:
            product = total(ranks, sfb.Factors(scores, np.ascontiguousarray(x)))
        last, basis = basis, product
    found = None
    if ranks.rank == 0:
        values, vectors = np.linalg.eigh((product @ last.T).astype(np.float64))
        order = np.argsort(-values)[: min(count, samples)]
        spread = np.sqrt(np.maximum(values[order], 0))
        found = np.ascontiguousarray((vectors[:, order].T @ last).astype(x.dtype)), spread
    return ranks.first(found)
