"""Pairs of samples with the same label, and with different ones, drawn from labels."""

from __future__ import annotations

import numpy as np

__all__ = ["NOBODY", "candidates", "nearest"]

# In place of a partner that does not exist.
NOBODY = -1


def candidates(y: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return each sample with candidates for its partners, N×(1 + 2·count) indices.

    A row holds a sample, ``count`` others of its label, and ``count`` of other labels, drawn with replacement; `NOBODY`
    where there are none.

    Args:
        y: N labels.
        count: The number of candidates of either kind.
        rng: The generator that draws them.

    >>> import numpy as np
    >>> from sfb.models.metrics import pairs
    >>> pairs.candidates(np.array([0, 1, 0]), 1, np.random.default_rng(0))[:, :2]
    array([[ 0,  2],
           [ 2,  0],
           [ 1, -1]])
    """
    samples = len(y)
    order = np.argsort(y, kind="stable")
    _, start, label, counts = np.unique(y[order], return_index=True, return_inverse=True, return_counts=True)
    start, peers, place = start[label][:, np.newaxis], counts[label][:, np.newaxis], np.arange(samples)[:, np.newaxis]
    # Partners by their place in the order of labels: within the run of the label, and beyond its end.
    similar = start + (place - start + 1 + _below(peers - 1, count, rng)) % np.maximum(peers, 1)
    different = (start + peers + _below(samples - peers, count, rng)) % max(samples, 1)
    found = np.empty((samples, 1 + 2 * count), np.int64)
    found[:, 0] = order
    found[:, 1 : 1 + count] = np.where(peers > 1, order[similar], NOBODY)
    found[:, 1 + count :] = np.where(peers < samples, order[different], NOBODY)
    return found


def nearest(z: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of each sample with its nearest candidate of either kind.

    Args:
        z: The samples of ``rows`` under a metric, S×(1 + 2·count)×R.
        rows: S rows of `candidates`.

    Returns:
        M×2 indices of samples, and M truth values, whether each pair is similar: first all similar pairs.
    """
    count = rows.shape[1] // 2
    differences = z[:, 1:] - z[:, :1]
    distances = np.einsum("ijk,ijk->ij", differences, differences)
    found = []
    for low in (0, count):
        chosen = low + distances[:, low : low + count].argmin(axis=1)
        partners = rows[np.arange(len(rows)), 1 + chosen]
        there = partners != NOBODY
        found.append(np.column_stack([rows[there, 0], partners[there]]))
    return np.concatenate(found), np.repeat([True, False], [len(pairs) for pairs in found])


def _below(limits: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``count`` random integers ≥ 0 below each limit, 0 for a limit of 0."""
    limits = np.maximum(limits, 1)
    return rng.integers(0, np.broadcast_to(limits, (len(limits), count)))
