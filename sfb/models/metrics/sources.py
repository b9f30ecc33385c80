"""Where the pairs of metric learning come from: labels, or the user."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_array, column_or_1d

from sfb.models.finite import naming_samples
from sfb.models.metrics.dml import Metric
from sfb.models.metrics.pairs import NOBODY

__all__ = ["Given", "Labelled", "given_pairs"]


class Labelled:
    """Pairs drawn from labels.

    Args:
        metric: The metric that says which candidates are nearest.
        x: Samples of this rank, N×D.
        labels: N indices of labels.
    """

    def __init__(self, metric: Metric, x: Any, labels: np.ndarray) -> None:
        self._metric, self._x, self._labels = metric, x, labels

    def examples(self, rng: np.random.Generator) -> np.ndarray:
        """Return samples with their candidates."""
        return self._metric.examples(self._labels, rng)

    def pairs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of examples, M×2 samples, and whether each is similar."""
        return self._metric.pairs_of(self._x, rows)

    def differ(self, rows: np.ndarray) -> int:
        """Return how many examples have a dissimilar pair."""
        return int(np.sum(rows[:, -1] != NOBODY))


class Given:
    """Given pairs, M×2 samples, and whether each is similar."""

    def __init__(self, pairs: np.ndarray, similar: np.ndarray) -> None:
        self._pairs, self._similar = pairs, similar

    def examples(self, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers of the pairs."""
        return np.arange(len(self._pairs))[:, np.newaxis]

    def pairs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of examples, M×2 samples, and whether each is similar."""
        return self._pairs[rows[:, 0]], self._similar[rows[:, 0]]

    def differ(self, rows: np.ndarray) -> int:
        """Return how many examples have a dissimilar pair."""
        return int(np.sum(~self._similar[rows[:, 0]]))


def given_pairs(pairs: Any, y: Any, x: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return the indices of pairs, whether each is similar, and the samples that the indices belong to."""
    if x is None:
        with naming_samples(pairs, x_name="pairs"):
            pairs = check_array(
                pairs, allow_nd=True, dtype=(np.float64, np.float32), ensure_min_samples=0, input_name="pairs"
            )
        if pairs.ndim != 3 or pairs.shape[1] != 2:
            raise ValueError(f"pairs must be N×2×D, or N×2 indices with X, got {pairs.shape}")
        rows, x = np.arange(2 * len(pairs)).reshape(-1, 2), pairs.reshape(-1, pairs.shape[2])
    else:
        rows = check_array(pairs, dtype=None, ensure_min_samples=0)
        if rows.shape[1] != 2 or rows.dtype.kind not in "iu":
            raise ValueError(f"pairs must be N×2 indices of rows of X, got {rows.shape} {rows.dtype}")
    y = column_or_1d(y)
    if len(y) != len(rows):
        raise ValueError(f"y must have an element for each of {len(rows)} pairs, got {len(y)}")
    if not np.isin(y, (-1, 1)).all():
        raise ValueError(f"y must be 1 for a similar pair and −1 for a dissimilar one, got {np.unique(y)[:5]}")
    return rows.astype(np.int64), y == 1, x
