"""A fingerprint of samples that does not depend on how they are divided among ranks, or stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.sparse import issparse

from sfb.training.batches import Samples

__all__ = ["fingerprint"]

_ROWS = 4096  # samples at a time


def fingerprint(world: MPI.Intracomm, samples: Samples) -> str:
    """Return a text of 16 digits that stands for samples to learn from, in their order; collective.

    It is the same for dense and sparse samples, and for any number of ranks. It finds files that were exchanged or
    changed, not forgeries.

    Args:
        world: The ranks.
        samples: The samples of this rank.
    """
    first = 0
    if not samples.whole:
        counts = world.allgather(len(samples.rows))
        first = sum(counts[: world.rank])
    total = np.zeros(1, np.uint64)
    if world.rank == 0 or not samples.whole:
        for start in range(0, len(samples.rows), _ROWS):
            rows = samples.rows[start : start + _ROWS]
            words = _rows(samples.x[rows]) + _mixed(_rows(samples.y[rows].reshape(len(rows), -1)))
            total += _mixed(words ^ _mixed(np.arange(first + start, first + start + len(rows), dtype=np.uint64))).sum()
    world.Allreduce(MPI.IN_PLACE, total)
    return f"{int(total[0]):016x}"


def _rows(x: Any) -> np.ndarray:
    """Return a number for each row, a sum over its elements that are not 0."""
    if issparse(x):
        x = x.tocsr()
        terms = _mixed(x.indices.astype(np.uint64)) * _words(x.data)
        sums = np.concatenate([[np.uint64(0)], np.cumsum(terms, dtype=np.uint64)])
        return sums[x.indptr[1:]] - sums[x.indptr[:-1]]
    factors = _mixed(np.arange(x.shape[1], dtype=np.uint64))
    return (_words(x) * factors).sum(axis=1, dtype=np.uint64)


def _words(values: np.ndarray) -> np.ndarray:
    """Return a number for each element; 0 for 0."""
    words = np.ascontiguousarray(values, np.float64).view(np.uint64)
    return words ^ (words >> np.uint64(29))


def _mixed(words: np.ndarray) -> np.ndarray:
    """Return words whose bits all depend on all bits (the finaliser of splitmix64)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
