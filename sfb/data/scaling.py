"""Scales of features: what a model subtracts from its inputs, and multiplies them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sfb.data.columns import scratch
from sfb.data.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from scipy.sparse import csr_matrix

__all__ = ["SCALES", "Scaler", "fit_scaler"]

SCALES = ("standard", "minmax", "maxabs")

_VALUES = 1 << 20  # that are worked at a time

# Combines the arrays of all ranks: "sum" or "max", element by element.
Combine = Callable[[np.ndarray, str], np.ndarray]


@dataclass(frozen=True)
class Scaler:
    """A scale of D features: x becomes (x − offset)·factor, computed in float64 and rounded to float32.

    Attributes:
        kind: "standard", "minmax" or "maxabs".
        offset: D numbers, float64; zeros for data in CSR form.
        factor: D numbers, float64; 1 for a feature that is constant.

    >>> import numpy as np
    >>> from sfb.data import Scaler
    >>> Scaler("maxabs", np.zeros(2), np.array([0.5, 1.0])).apply(np.array([[2, 1]], np.float32))
    array([[1., 1.]], dtype=float32)
    """

    kind: str
    offset: np.ndarray
    factor: np.ndarray

    def apply(self, x: np.ndarray | csr_matrix, folder: Path | None = None) -> np.ndarray | csr_matrix:
        """Return scaled features.

        Args:
            x: N×D float32; an array in memory that can be written is scaled in place.
            folder: Folder for the result, which is a memory map then; None for memory.

        >>> import numpy as np
        >>> from sfb.data import Scaler
        >>> scaler = Scaler("minmax", np.array([10.0, 0.0]), np.array([0.1, 1.0]))
        >>> scaler.apply(np.array([[15, 1], [20, 2]], np.float32))
        array([[0.5, 1. ],
               [1. , 2. ]], dtype=float32)
        """
        if isinstance(x, np.ndarray):
            out = x if x.flags.writeable else scratch(folder, np.float32, x.shape)
            for low, high in _blocks(x):
                out[low:high] = (x[low:high] - self.offset) * self.factor
            return out
        from scipy.sparse import csr_matrix

        values = x.data if x.data.flags.writeable else scratch(folder, np.float32, x.data.shape)
        for low in range(0, values.size, _VALUES):
            block = slice(low, low + _VALUES)
            values[block] = x.data[block] * self.factor[x.indices[block]]
        return csr_matrix((values, x.indices, x.indptr), shape=x.shape, copy=False)


def fit_scaler(
    kind: str, x: np.ndarray | csr_matrix, mask: np.ndarray, combine: Combine = lambda array, operation: array
) -> Scaler:
    """Return the scale of some samples.

    Variances are sums of squares about the mean, in float64, in a second pass over the samples.

    Args:
        kind: "standard" makes means 0 and variances 1; "minmax" maps to 0…1, "maxabs" to −1…1 and keeps 0. For x in CSR
            form, "standard" keeps means, so that zeros stay zeros.
        x: N×D features, float32.
        mask: The samples that count, N bools.
        combine: Combines arrays of several ranks, each of which passes its samples.

    Raises:
        DataError: The kind is unknown, or would fill in the zeros of a CSR matrix.

    >>> import numpy as np
    >>> from sfb.data import fit_scaler
    >>> x = np.array([[1, 5], [3, 5], [99, 5]], np.float32)
    >>> scaler = fit_scaler("standard", x, np.array([True, True, False]))
    >>> scaler.offset, scaler.factor
    (array([2., 5.]), array([1., 1.]))
    """
    if kind not in SCALES:
        raise DataError(f"scale must be one of {', '.join(SCALES)}, got {kind!r}")
    dense = isinstance(x, np.ndarray)
    if kind == "minmax" and not dense:
        raise DataError('scale="minmax" would fill in the zeros of sparse data; take "maxabs"')
    width = x.shape[1]
    if kind == "standard":
        totals = combine(np.concatenate([_sums(x, mask), [np.count_nonzero(mask)]]), "sum")
        count = max(totals[-1], 1.0)
        mean = totals[:-1] / count
        variance = combine(_squares(x, mask, mean), "sum") / count
        # What rounding leaves of a variance that is 0.
        constant = variance <= count * np.finfo(float).eps * variance + (count * mean * np.finfo(float).eps) ** 2
        return Scaler(kind, mean if dense else np.zeros(width), _inverse(np.sqrt(variance), constant))
    if kind == "maxabs":
        largest = combine(_largest(x, mask), "max")
        return Scaler(kind, np.zeros(width), _inverse(largest, largest <= 0))
    ends = np.full((2, width), -np.inf)  # the largest, and the largest of −x
    for block in _samples(x, mask):
        np.maximum(ends[0], block.max(axis=0), out=ends[0])
        np.maximum(ends[1], -block.min(axis=0), out=ends[1])
    high, low = combine(ends, "max") * np.array([[1.0], [-1.0]])
    return Scaler(kind, low, _inverse(high - low, high <= low))


def _inverse(sizes: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Return 1/sizes, and 1 for what is constant."""
    return 1 / np.where(constant, 1.0, sizes)


def _blocks(x: np.ndarray | csr_matrix) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows, of about `_VALUES` values each."""
    rows = x.shape[0]
    values = x.size if isinstance(x, np.ndarray) else x.nnz
    step = max(1, rows * _VALUES // max(1, values))
    yield from ((low, min(rows, low + step)) for low in range(0, rows, step))


def _samples(x: np.ndarray | csr_matrix, mask: np.ndarray) -> Iterator[np.ndarray | csr_matrix]:
    """Yield the samples that count, in blocks that are not empty."""
    for low, high in _blocks(x):
        if mask[low:high].any():
            yield x[low:high][mask[low:high]]


def _sums(x: np.ndarray | csr_matrix, mask: np.ndarray) -> np.ndarray:
    total = np.zeros(x.shape[1])
    for block in _samples(x, mask):
        if isinstance(block, np.ndarray):
            total += block.sum(axis=0, dtype=np.float64)
        else:
            total += np.bincount(block.indices, block.data, x.shape[1])
    return total


def _squares(x: np.ndarray | csr_matrix, mask: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return Σ (x − mean)² of the samples that count."""
    total = np.zeros(x.shape[1])
    for block in _samples(x, mask):
        if isinstance(block, np.ndarray):
            total += np.square(block - mean).sum(axis=0)
        else:
            away = np.square(block.data - mean[block.indices])
            zeros = block.shape[0] - np.bincount(block.indices, minlength=x.shape[1])
            total += np.bincount(block.indices, away, x.shape[1]) + zeros * np.square(mean)
    return total


def _largest(x: np.ndarray | csr_matrix, mask: np.ndarray) -> np.ndarray:
    """Return the largest magnitudes of the samples that count."""
    best = np.zeros(x.shape[1])
    for block in _samples(x, mask):
        if isinstance(block, np.ndarray):
            np.maximum(best, np.abs(block).max(axis=0), out=best)
        else:
            np.maximum.at(best, block.indices, np.abs(block.data))
    return best
