"""Samples to predict from, dense or in CSR form, and products with them, by NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CSR", "Scaler", "check_rows", "product"]

_FLOATS = (np.float32, np.float64)
# Elements of the intermediate result of a product with CSR rows.
_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class CSR:
    """Sparse rows: row i holds data[indptr[i]:indptr[i + 1]] in the columns indices[indptr[i]:indptr[i + 1]].

    Attributes:
        data: Values, float32 or float64.
        indices: Their columns.
        indptr: N + 1 positions where rows begin, and where the last one ends.
        shape: (N, D).
    """

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> CSR:
        start, stop, _ = rows.indices(self.shape[0])
        pointers = self.indptr[start : stop + 1]
        part = slice(pointers[0], pointers[-1])
        return CSR(self.data[part], self.indices[part], pointers - pointers[0], (stop - start, self.shape[1]))


@dataclass(frozen=True)
class Scaler:
    """What is done to the features of a sample before a model sees them: x ↦ (x − offset)·factor.

    Attributes:
        offset: D numbers.
        factor: D numbers.
    """

    offset: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, scaler: Any) -> Scaler:
        """Return the scaler that a pair of arrays, or a fitted scaler of scikit-learn, stands for.

        Raises:
            TypeError: It is no scaler.
        """
        if isinstance(scaler, (tuple, list)) and len(scaler) == 2:
            return cls(*(np.array(part, np.float64) for part in scaler))
        if hasattr(scaler, "offset") and hasattr(scaler, "factor"):
            return cls(scaler.offset, scaler.factor)
        if hasattr(scaler, "data_min_") and getattr(scaler, "clip", False) is False:  # MinMaxScaler: x·scale_ + min_
            return cls(-scaler.min_ / scaler.scale_, scaler.scale_)
        kind = type(scaler).__name__
        if kind in ("StandardScaler", "MaxAbsScaler") and hasattr(scaler, "n_features_in_"):
            count = scaler.n_features_in_
            mean = scaler.mean_ if getattr(scaler, "with_mean", False) else None
            return cls(
                np.zeros(count) if mean is None else np.asarray(mean, np.float64),
                np.ones(count) if scaler.scale_ is None else 1 / np.asarray(scaler.scale_, np.float64),
            )
        raise TypeError(
            "a scaler is a pair (offset, factor), or a fitted StandardScaler, MinMaxScaler without clip or "
            f"MaxAbsScaler, got {scaler!r}"
        )


def check_rows(X: Any, features: int) -> np.ndarray | CSR:
    """Return samples as an array or as `CSR`, of float32 or float64.

    Args:
        X: N×D numbers: what NumPy makes an array of, or a CSR matrix, which is what has ``indptr``, ``indices`` and
            ``data``; sparse matrices of SciPy in other formats are converted.
        features: The D that is needed.

    Raises:
        ValueError: The shape is another one, or a value is no finite number.
    """
    if hasattr(X, "tocsr"):
        X = X.tocsr()
    rows: np.ndarray | CSR
    if all(hasattr(X, name) for name in ("indptr", "indices", "data")):
        rows = _check_csr(X)
        values = rows.data
    else:
        rows = values = _floats(np.asarray(X))
        if rows.ndim != 2:
            raise ValueError(f"Expected a 2D array of N samples, each with {features} features, got {rows.ndim}D")
    if rows.shape[1] != features:
        raise ValueError(f"X has {rows.shape[1]} features, but the model is expecting {features} features as input")
    bad = ~np.isfinite(values)
    if bad.any():
        if isinstance(rows, CSR):
            at = int(np.flatnonzero(bad)[0])
            sample, feature = int(np.searchsorted(rows.indptr, at, side="right")) - 1, int(rows.indices[at])
            value = values[at]
        else:
            sample, feature = (int(i) for i in np.argwhere(bad)[0])
            value = rows[sample, feature]
        raise ValueError(
            f"X contains {value} in sample {sample} (from 0), feature {feature}; finite numbers are needed"
        )
    return rows


def _check_csr(X: Any) -> CSR:
    """Return a CSR matrix whose arrays go together."""
    indptr, indices, data = (np.asarray(getattr(X, name)) for name in ("indptr", "indices", "data"))
    data = _floats(data)
    count, width = (int(n) for n in X.shape)
    right = (
        indptr.ndim == indices.ndim == data.ndim == 1
        and indptr.dtype.kind in "iu"
        and indices.dtype.kind in "iu"
        and len(indptr) == count + 1
        and indptr[0] == 0
        and (indptr[1:] >= indptr[:-1]).all()
        and indptr[-1] <= min(len(indices), len(data))
    )
    if not right:
        raise ValueError(f"indptr, indices and data are not those of a CSR matrix of shape ({count}, {width})")
    filled = int(indptr[-1])
    indices, data = indices[:filled], data[:filled]
    if filled and not (indices.min() >= 0 and indices.max() < width):
        raise ValueError(f"a CSR matrix with {width} features has the indices {indices.min()} to {indices.max()}")
    return CSR(data, indices, indptr, (count, width))


def _floats(values: np.ndarray) -> np.ndarray:
    """Return numbers as float32 or float64."""
    if values.dtype.kind == "O":  # a data frame's, maybe
        values = values.astype(np.float64)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"X must hold numbers, got {values.dtype}")
    return values if values.dtype in _FLOATS else values.astype(np.float64)


def product(rows: np.ndarray | CSR, columns: np.ndarray, scaler: Scaler | None = None) -> np.ndarray:
    """Return N×D samples, scaled, times D×K.

    Args:
        rows: The samples, as `check_rows` returns them.
        columns: D×K.
        scaler: What to do to the samples before.

    Returns:
        N×K, of the wider type of both; float64 inside where samples are scaled.
    """
    dtype = np.result_type(rows if isinstance(rows, np.ndarray) else rows.data, columns)
    if isinstance(rows, np.ndarray):
        if scaler is not None:
            rows = ((rows - scaler.offset) * scaler.factor).astype(dtype)
        return rows @ columns
    if scaler is None:
        return _sparse_product(rows, columns.astype(dtype, copy=False))
    # (x − o)·f times W is x times f·W, minus o·f times W; the terms may nearly cancel.
    scaled = columns.astype(np.float64) * scaler.factor[:, np.newaxis]
    found = _sparse_product(rows, scaled) - scaler.offset @ scaled
    return found.astype(dtype)


def _sparse_product(rows: CSR, columns: np.ndarray) -> np.ndarray:
    """Return CSR rows times D×K, of the type of ``columns``."""
    columns = np.ascontiguousarray(columns)
    found = np.zeros((rows.shape[0], columns.shape[1]), columns.dtype)
    most = max(1, _ELEMENTS // columns.shape[1])
    start = 0
    while start < rows.shape[0]:
        # As many rows as have ``most`` values together, or one that has more.
        stop = int(np.searchsorted(rows.indptr, rows.indptr[start] + most, side="right")) - 1
        stop = min(max(stop, start + 1), rows.shape[0])
        part = slice(rows.indptr[start], rows.indptr[stop])
        filled = start + np.flatnonzero(np.diff(rows.indptr[start : stop + 1]))
        if filled.size:
            terms = columns[rows.indices[part]]
            terms *= rows.data[part, np.newaxis]
            found[filled] = np.add.reduceat(terms, rows.indptr[filled] - rows.indptr[start], axis=0)
        start = stop
    return found
