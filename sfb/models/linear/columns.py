"""The columns of a matrix, divided among ranks: each has some columns of all samples."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from sfb.kernels.stages import compiled
from sfb.models.ranks import Ranks

__all__ = ["Columns", "Copies", "by_features", "by_samples"]

_PIECE = 1 << 28  # bytes that a rank sends at a time
_KEPT = 1000  # copies of columns that are always kept


class Columns:
    """The columns of one rank, centred if the model has an intercept.

    Args:
        matrix: An n×d array or CSC matrix of float32 or float64, the samples of all ranks. It may be changed.
        first: The number of the first column.
        total: The number of columns of all ranks.
        centred: Whether to subtract the mean of each column.

    Attributes:
        form: The columns as `sfb.kernels.lasso` takes them.
        samples: The number of samples n.
        first: The number of the first column.
        count: The number of columns d of this rank.
        total: The number of columns of all ranks.
        means: The mean of each column, 0 if they are not centred, float64.
        squares: ‖xⱼ‖² of each column, float64; 0 for one that is constant, or zero, but for rounding.
    """

    def __init__(self, matrix: Any, first: int, total: int, *, centred: bool) -> None:
        kernels = compiled("lasso")
        self.samples, self.count = matrix.shape
        self.first, self.total = first, total
        self.means = np.zeros(self.count)
        if centred and self.samples:
            self.means = _sums(matrix) / self.samples
        if sparse.issparse(matrix):
            rows, starts = matrix.indices.astype(np.int32, copy=False), matrix.indptr.astype(np.int64, copy=False)
            self.form = kernels.Sparse(*map(_constant, (matrix.data, rows, starts, self.means)))
        elif centred:
            values = np.empty((self.count, self.samples), matrix.dtype)
            np.subtract(matrix.T, self.means[:, np.newaxis], out=values, casting="same_kind")
            self.form = kernels.Dense(_constant(values))
        else:
            self.form = kernels.Dense(_constant(np.ascontiguousarray(matrix.T)))
        self.squares = np.empty(self.count)
        kernels.squares(self.form, self.samples, self.squares)
        rounding = 16 * np.finfo(np.float64).eps * self.means
        self.squares[self.squares <= self.samples * rounding**2] = 0

    @property
    def is_sparse(self) -> bool:
        """Whether the columns are sparse."""
        return hasattr(self.form, "starts")

    def take(self, ids: np.ndarray) -> Any:
        """Return some columns as arrays: c×n values, or values, rows and lengths of sparse ones, and means."""
        if not self.is_sparse:
            return self.form.values[ids]
        starts, stops = self.form.starts[ids], self.form.starts[ids + 1]
        places = np.concatenate([np.empty(0, np.int64), *map(np.arange, starts, stops)])
        return self.form.data[places], self.form.rows[places], stops - starts, self.means[ids]


class Copies:
    """Copies of columns of all ranks on every rank.

    Args:
        ranks: The ranks.
        columns: The columns of this rank.
    """

    def __init__(self, ranks: Ranks, columns: Columns) -> None:
        self._ranks, self._columns = ranks, columns
        self._places = np.full(columns.total, -1, np.int64)
        self._parts: list[Any] = []
        self._count = 0
        self._form: Any = None

    def of(self, ids: np.ndarray) -> tuple[Any, np.ndarray]:
        """Return columns as the kernels take them, and where among them those of ``ids`` are; collective.

        Args:
            ids: Numbers of columns in ascending order, the same on all ranks.
        """
        if self._ranks.size == 1:
            return self._columns.form, ids
        if self._count > max(_KEPT, 4 * len(ids)):
            self._places[:] = -1
            self._parts, self._count, self._form = [], 0, None
        new = ids[self._places[ids] < 0]
        if len(new):
            first = self._columns.first
            own = new[(new >= first) & (new < first + self._columns.count)] - first
            # Ranks hold consecutive columns, so the columns of all ranks arrive in ascending order.
            self._parts += self._ranks.gather(self._columns.take(own))
            self._places[new] = self._count + np.arange(len(new))
            self._count += len(new)
            self._form = None
        if self._form is None:
            self._form = self._join()
        return self._form, self._places[ids]

    def _join(self) -> Any:
        kernels = compiled("lasso")
        if not self._columns.is_sparse:
            values = np.concatenate(self._parts)
            self._parts = [values]
            return kernels.Dense(_constant(values))
        data, rows, lengths, means = (np.concatenate(each) for each in zip(*self._parts, strict=True))
        self._parts = [(data, rows, lengths, means)]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return kernels.Sparse(*map(_constant, (data, rows, starts, means)))


def by_samples(ranks: Ranks, x: Any, *, centred: bool) -> Columns:
    """Return the columns of this rank, of which each rank has passed some samples; collective.

    Args:
        ranks: The ranks.
        x: An n×D array or sparse matrix, the samples of this rank, of the same D and dtype on all ranks.
        centred: Whether to subtract the mean of each column.
    """
    if sparse.issparse(x):
        x = x.tocsc()
    total = x.shape[1]
    edges = np.linspace(0, total, ranks.size + 1).astype(int)
    first, stop = int(edges[ranks.rank]), int(edges[ranks.rank + 1])
    if ranks.size > 1:
        x = _exchange_sparse(ranks, x, edges) if sparse.issparse(x) else _exchange_dense(ranks, x, edges)
    if sparse.issparse(x):
        x.sum_duplicates()
    assert x.shape[1] == stop - first
    return Columns(x, first, total, centred=centred)


def by_features(ranks: Ranks, x: Any, *, centred: bool) -> Columns:
    """Return the columns of this rank, which passes them for the samples of all ranks; collective.

    Args:
        ranks: The ranks.
        x: An n×d array or sparse matrix, the columns of this rank, of the same n and dtype on all ranks.
        centred: Whether to subtract the mean of each column.
    """
    counts = ranks.gather(x.shape[1])
    if sparse.issparse(x):
        x = x.tocsc(copy=True)
        x.sum_duplicates()
    return Columns(x, sum(counts[: ranks.rank]), sum(counts), centred=centred)


def _exchange_dense(ranks: Ranks, x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the columns of this rank of all samples, in Fortran order; collective."""
    heights = np.array(ranks.gather(len(x)))
    ends = np.cumsum(heights)
    width = int(edges[ranks.rank + 1] - edges[ranks.rank])
    values = np.empty((width, int(ends[-1])), x.dtype)
    step = max(1, _PIECE // (x.itemsize * ranks.size * int(heights.max())))
    for start in range(0, int(np.diff(edges).max()), step):
        parts = [x[:, a:b].T for a, b in _slices(edges, start, step)]
        own = parts[ranks.rank].shape[0]
        received = np.empty(own * values.shape[1], x.dtype)
        ranks.comm.Alltoallv(
            (np.concatenate([part.ravel() for part in parts]), [part.size for part in parts]),
            (received, own * heights),
        )
        for height, end in zip(heights, ends, strict=True):
            part, received = received[: own * height], received[own * height :]
            values[start : start + own, end - height : end] = part.reshape(own, height)
    return values.T


def _exchange_sparse(ranks: Ranks, x: Any, edges: np.ndarray) -> Any:
    """Return the columns of this rank of all samples, as a CSC matrix; collective."""
    nbytes = max(ranks.gather(x.data.nbytes + x.indices.nbytes))
    widest = int(np.diff(edges).max())
    step = max(1, widest // (1 + nbytes // _PIECE))
    found = []
    for start in range(0, widest, step):
        parts = [x[:, a:b] for a, b in _slices(edges, start, step)]
        said = ranks.comm.alltoall([(part.data, part.indices, part.indptr, part.shape) for part in parts])
        found.append(
            sparse.vstack(
                [sparse.csc_array((data, rows, starts), shape) for data, rows, starts, shape in said], format="csc"
            )
        )
    return sparse.hstack(found, format="csc") if found else sparse.csc_array((0, 0), dtype=x.dtype)


def _slices(edges: np.ndarray, start: int, step: int) -> list[tuple[int, int]]:
    """Return the columns of each rank from its ``start``-th, at most ``step`` of them."""
    return [(min(a + start, b), min(a + start + step, b)) for a, b in pairwise(edges.tolist())]


def _sums(matrix: Any) -> np.ndarray:
    """Return the sums of columns, added in float64."""
    if sparse.issparse(matrix):
        columns = np.repeat(np.arange(matrix.shape[1]), np.diff(matrix.indptr))
        return np.bincount(columns, matrix.data, matrix.shape[1])
    return matrix.sum(axis=0, dtype=np.float64)


def _constant(array: np.ndarray) -> np.ndarray:
    """Return a view that kernels take as read-only."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
