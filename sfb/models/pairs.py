"""Pairs of samples with the same label, and with different ones, drawn from labels."""

from __future__ import annotations

import numpy as np

__all__ = ["near", "random"]

# Candidates among which neighbours are looked for, and samples that look at once.
_CANDIDATES, _BLOCK = 4096, 256


def random(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return pairs of each sample with another of its label, and with one of another label, M×2 indices.

    A sample whose label no other has, or all others, is in one pair only.

    Args:
        y: N labels.
        rng: The generator that draws the partners.

    >>> import numpy as np
    >>> from sfb.models import pairs
    >>> pairs.random(np.array([0, 1, 0]), np.random.default_rng(0))[:2]  # the similar pairs
    array([[0, 2],
           [2, 0]])
    """
    order = np.argsort(y, kind="stable")
    _, start, label, count = np.unique(y[order], return_index=True, return_inverse=True, return_counts=True)
    start, count = start[label], count[label]
    place, samples = np.arange(len(y)), len(y)
    # Partners by their place in the order of labels: within the run of the label, and beyond its end.
    similar = start + (place - start + 1 + _below(count - 1, rng)) % np.maximum(count, 1)
    different = (start + count + _below(samples - count, rng)) % max(samples, 1)
    first = np.column_stack([order, order[similar]])[count > 1]
    second = np.column_stack([order, order[different]])[count < samples]
    return np.concatenate([first, second]).astype(np.int64).reshape(-1, 2)


def near(z: np.ndarray, y: np.ndarray, neighbours: int, rng: np.random.Generator) -> np.ndarray:
    """Return pairs of each sample with a near one of its label, and with a near one of another, M×2 indices.

    Partners are drawn among the nearest samples of either kind, as Weinberger and Saul choose "target neighbors" and
    "impostors" ("Distance Metric Learning for Large Margin Nearest Neighbor Classification", JMLR 10, 2009, section
    3). Where there are more than 4096 samples, neighbours are the nearest of as many, drawn anew in each call.

    Args:
        z: N samples, N×R, under the metric that says what is near.
        y: N labels.
        neighbours: The number of nearest samples among which a partner is drawn.
        rng: The generator that draws the partners.
    """
    samples = len(y)
    if samples < 2:
        return np.empty((0, 2), np.int64)
    candidates = np.arange(samples)
    if samples > _CANDIDATES:
        candidates = np.sort(rng.choice(samples, _CANDIDATES, replace=False))
    among, labels = z[candidates], y[candidates]
    squares = np.einsum("ij,ij->i", among, among)
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    for low in range(0, samples, _BLOCK):
        mine = np.arange(low, min(low + _BLOCK, samples))
        distances = squares - 2 * (z[mine] @ among.T)  # but for ‖z‖² of the sample itself
        distances[mine[:, np.newaxis] == candidates] = np.inf
        same = y[mine, np.newaxis] == labels
        for wanted, found in ((same, first), (~same, second)):
            chosen = _draw(np.where(wanted, distances, np.inf), neighbours, rng)
            there = chosen >= 0
            found.append(np.column_stack([mine[there], candidates[chosen[there]]]))
    return np.concatenate([*first, *second]).astype(np.int64)


def _draw(distances: np.ndarray, neighbours: int, rng: np.random.Generator) -> np.ndarray:
    """Return the column of one of the least finite distances of each row, −1 where there is none."""
    count = min(neighbours, distances.shape[1])
    least = np.argpartition(distances, count - 1, axis=1)[:, :count]
    rows = np.arange(len(distances))
    finite = np.isfinite(distances[rows[:, np.newaxis], least])
    order = np.argsort(~finite, axis=1, kind="stable")  # those that exist first
    there = finite.sum(axis=1)
    chosen = least[rows, order[rows, _below(there, rng)]]
    return np.where(there > 0, chosen, -1)


def _below(limits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random integer ≥ 0 below each limit, 0 for a limit of 0."""
    return rng.integers(0, np.maximum(limits, 1))
