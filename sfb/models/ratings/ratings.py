"""Ratings of users for items, as the ranks of a fit hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array, issparse
from sklearn.utils.validation import check_array

__all__ = ["Ratings", "expanded", "from_entries", "read", "select"]

_KINDS = (np.float64, np.float32)


@dataclass(frozen=True)
class Ratings:
    """Entries of a sparse matrix, row by row, in the order of their columns.

    Attributes:
        starts: Where the entries of each of the N rows begin, N + 1, int64.
        columns: The column of each entry, uint32.
        values: The value of each entry, float32 or float64.
        width: The number of columns.
    """

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    width: int

    @property
    def rows(self) -> np.ndarray:
        """The row of each entry, uint32."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.uint32), np.diff(self.starts))


def from_entries(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> Ratings:
    """Return ratings of given rows and columns, no pair of which occurs twice."""
    order = np.lexsort((columns, rows))
    starts = np.zeros(shape[0] + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=shape[0]), out=starts[1:])
    return Ratings(starts, columns[order].astype(np.uint32), np.ascontiguousarray(values[order]), shape[1])


def select(ratings: Ratings, chosen: np.ndarray) -> Ratings:
    """Return the chosen entries; ``chosen`` has a truth value for each."""
    counts = np.bincount(ratings.rows[chosen], minlength=len(ratings.starts) - 1)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Ratings(starts, ratings.columns[chosen], ratings.values[chosen], ratings.width)


def expanded(factors: np.ndarray, *, biased: bool, rows: bool) -> np.ndarray:
    """Return factors whose products with those of the other side are predictions, biases included.

    A row (p, b) becomes (p, b, 1), a column (q, c) becomes (q, 1, c).
    """
    if not biased:
        return factors
    ones = np.ones((len(factors), 1), factors.dtype)
    parts = [factors, ones] if rows else [factors[:, :-1], ones, factors[:, -1:]]
    return np.hstack(parts)


def read(
    x: Any, *, duplicates: str, limits: tuple[float, float] | None, implicit: bool, width: int | None = None
) -> Ratings:
    """Return the ratings that a user has passed, checked.

    Args:
        x: A SciPy sparse matrix, users by items, whose stored entries are ratings; an array of ratings; or a tuple of
            users, items and ratings.
        duplicates: What becomes of several ratings of a user for an item: "error", "mean", "sum" or "last".
        limits: The least and the largest rating; None for any.
        implicit: Whether values are strengths of feedback, ≥ 0, of which 0 is none.
        width: The number of items; None for that of ``x``, or one more than the largest item of a tuple.

    Raises:
        TypeError, ValueError: Something else was passed.
    """
    rows, columns, values, shape = _entries(x, width)
    values = values.astype(values.dtype if values.dtype in _KINDS else np.float64, copy=False)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(
            f"Input X contains NaN or infinity: user {rows[bad[0]]} has {values[bad[0]]} for item {columns[bad[0]]}; a "
            "rating must be a finite number"
        )
    if implicit:
        _within(rows, columns, values, 0.0, np.inf, "Negative values in data: strengths of feedback")
        kept = values != 0
        rows, columns, values = rows[kept], columns[kept], values[kept]
    if limits is not None:
        _within(rows, columns, values, *limits, "ratings")
    order = np.lexsort((columns, rows))  # stable: of equal pairs the last comes last
    rows, columns, values = rows[order], columns[order], values[order]
    again = (rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1])
    if again.any():
        first = int(np.flatnonzero(again)[0])
        if duplicates == "error":
            raise ValueError(
                f"{int(again.sum())} ratings are duplicates, first of user {rows[first]} for item {columns[first]}; "
                "say what becomes of them: duplicates='mean', 'sum' or 'last'"
            )
        heads = np.flatnonzero(np.concatenate([[True], ~again]))
        if duplicates == "last":
            values = values[np.concatenate([heads[1:], [len(rows)]]) - 1]
        else:
            sums = np.add.reduceat(values, heads)
            counts = np.diff(np.concatenate([heads, [len(rows)]]))
            values = sums if duplicates == "sum" else (sums / counts).astype(values.dtype)
        rows, columns = rows[heads], columns[heads]
    return from_entries(rows, columns, values, shape)


def _entries(x: Any, width: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """Return rows, columns and values of all entries, and the shape."""
    if isinstance(x, tuple):
        if len(x) != 3:
            raise ValueError(f"expected users, items and ratings, got a tuple of {len(x)}")
        users, items, values = (np.asarray(part) for part in x)
        if not users.shape == items.shape == values.shape or users.ndim != 1:
            raise ValueError(
                f"users, items and ratings must be rows of one length, got {users.shape}, {items.shape}, {values.shape}"
            )
        for name, numbers in (("users", users), ("items", items)):
            if len(numbers) and (numbers.dtype.kind not in "iu" or numbers.min() < 0):
                raise ValueError(f"{name} must be whole numbers ≥ 0, got {numbers.dtype} with {numbers.min()}")
        if values.dtype.kind not in "fiub":
            raise TypeError(f"ratings must be numbers, got {values.dtype}")
        own = int(items.max()) + 1 if len(items) else 0
        if width is not None and own > width:
            raise ValueError(f"item {own - 1} is beyond the {width} items of the model")
        shape = int(users.max()) + 1 if len(users) else 0, own if width is None else width
        return users.astype(np.int64), items.astype(np.int64), values, shape
    if issparse(x):
        entries = coo_array(x)
        return entries.coords[0].astype(np.int64), entries.coords[1].astype(np.int64), entries.data, entries.shape
    array = check_array(x, dtype=_KINDS, ensure_min_samples=0)
    rows, columns = np.indices(array.shape)
    return rows.ravel(), columns.ravel(), array.ravel(), array.shape


def _within(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, least: float, most: float, what: str) -> None:
    """Raise ValueError if a value is outside its range."""
    wrong = (values < least) | (values > most)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{what} must be from {least:g} to {most:g}, user {rows[first]} has {values[first]:g} for item "
            f"{columns[first]}; {int(wrong.sum())} values are outside"
        )
