"""Coordinate descent for squared loss with L1 and L2 penalties, over the columns of dense and sparse matrices.

With R = y − Xβ these kernels work on ½‖R‖² + l1·‖β‖₁ + ½·l2·‖β‖². Columns are centred where the model has an intercept:
dense ones in memory, sparse ones by their means. Residuals are float64, one element longer than y: for sparse columns
they hold y − Xβ with the columns as they are, and last the sum of its elements, so that R is the residual less its
mean. All sums have an order of their own, so ranks that work the same columns get the same bits.

Importing this module imports Numba and compiles, or loads from its cache.
"""

from collections import namedtuple

import numpy as np
from numba import types
from numba.extending import overload

from sfb.kernels._compile import inner, kernel
from sfb.kernels._dots import inner_product

__all__ = ["Dense", "Sparse", "correlate", "descend", "residual", "squares"]

# The columns of X: a row of memory for each.
Dense = namedtuple("Dense", "values")
# The columns of X as a CSC matrix: values, rows, where each column begins, and the mean of each column.
Sparse = namedtuple("Sparse", "data rows starts means")

# Iterates from which one is extrapolated; Bertrand and Massias, "Anderson acceleration of coordinate descent",
# AISTATS 2021, take 5 differences.
_DIFFERENCES = 5

_OPTIONS = {"jit_options": {"nogil": True, "error_model": "numpy"}}


def _vector(t, readonly=True):
    return types.Array(t, 1, "C", readonly=readonly)


def _columns(build):
    """Return a signature for each form and type of columns."""
    found = []
    for t in (types.float32, types.float64):
        dense = types.BaseTuple.from_types([types.Array(t, 2, "C", readonly=True)], Dense)
        fields = [_vector(t), _vector(types.int32), _vector(types.int64), _vector(types.float64)]
        found += [build(dense), build(types.BaseTuple.from_types(fields, Sparse))]
    return found


_IDS, _FLOATS, _OUT = _vector(types.int64), _vector(types.float64), _vector(types.float64, readonly=False)


def _dot(columns, j, r):
    """Return xⱼᵀR."""


def _add(columns, j, factor, r):
    """Add factor·xⱼ to a residual."""


def _norm2(columns, r):
    """Return ‖R‖²."""


@overload(_dot, **_OPTIONS)
def _dot_of(columns, j, r):
    if columns.instance_class is Dense:
        return lambda columns, j, r: inner_product(columns.values[j], r, r.size - 1)

    def sparse(columns, j, r):
        data, rows, n = columns.data, columns.rows, r.size - 1
        start, stop = columns.starts[j], columns.starts[j + 1]
        a = b = c = d = 0.0
        p = start
        while p + 4 <= stop:
            a += data[p] * r[rows[p]]
            b += data[p + 1] * r[rows[p + 1]]
            c += data[p + 2] * r[rows[p + 2]]
            d += data[p + 3] * r[rows[p + 3]]
            p += 4
        while p < stop:
            a += data[p] * r[rows[p]]
            p += 1
        return ((a + b) + (c + d)) - columns.means[j] * r[n]

    return sparse


@overload(_add, **_OPTIONS)
def _add_of(columns, j, factor, r):
    if columns.instance_class is Dense:

        def dense(columns, j, factor, r):
            x = columns.values[j]
            for i in range(x.size):
                r[i] += factor * x[i]

        return dense

    def sparse(columns, j, factor, r):
        data, rows, n = columns.data, columns.rows, r.size - 1
        for p in range(columns.starts[j], columns.starts[j + 1]):
            r[rows[p]] += factor * data[p]
        r[n] += factor * (n * columns.means[j])

    return sparse


@overload(_norm2, **_OPTIONS)
def _norm2_of(columns, r):
    if columns.instance_class is Dense:
        return lambda columns, r: inner_product(r, r, r.size - 1)
    # r[n] is a sum of as many rounded numbers as there have been updates; a mean that is 0 adds nothing.
    return lambda columns, r: inner_product(r, r, r.size - 1) - r[r.size - 1] * (r[r.size - 1] / (r.size - 1))


def _square(columns, j, n):
    """Return ‖xⱼ‖²."""


@overload(_square, **_OPTIONS)
def _square_of(columns, j, n):
    if columns.instance_class is Dense:
        return lambda columns, j, n: inner_product(columns.values[j], columns.values[j], n)

    def sparse(columns, j, n):
        mean, start, stop = columns.means[j], columns.starts[j], columns.starts[j + 1]
        square = mean * mean * (n - (stop - start))
        for p in range(start, stop):
            square += (columns.data[p] - mean) ** 2
        return square

    return sparse


@inner
def _shrunk(z, l1, positive):
    """Return the z of least ½(z − z₀)² + l1·|z|."""
    if z > l1:
        return z - l1
    if z < -l1 and not positive:
        return z + l1
    return 0.0


@kernel(_columns(lambda columns: types.void(columns, types.int64, _OUT)))
def squares(columns, n, found):
    """Set ``found`` to ‖xⱼ‖² of each centred column of n elements."""
    for j in range(found.size):
        found[j] = _square(columns, j, n)


@kernel(_columns(lambda columns: types.void(columns, _IDS, _FLOATS, _OUT)))
def correlate(columns, ids, r, found):
    """Set ``found`` to xⱼᵀR of the columns of these numbers."""
    for k in range(ids.size):
        found[k] = _dot(columns, ids[k], r)


@kernel(_columns(lambda columns: types.void(columns, _IDS, _FLOATS, _OUT)))
def residual(columns, ids, beta, r):
    """Subtract Σ xⱼ·βⱼ over the columns of these numbers from a residual."""
    for k in range(ids.size):
        if beta[k] != 0:
            _add(columns, ids[k], -beta[k], r)


@inner
def _objective(square, beta, l1, l2):
    norm1 = norm2 = 0.0
    for k in range(beta.size):
        norm1 += abs(beta[k])
        norm2 += beta[k] * beta[k]
    return 0.5 * square + l1 * norm1 + 0.5 * l2 * norm2


@inner
def _gap(columns, ids, beta, r, l1, l2, positive):
    """Return objective and duality gap of the problem that has these columns only.

    The dual point is s·(R, −√l2·β)/l1, with the s that is best among those which make it feasible.
    """
    square, norm1, norm2, inner_, largest = _norm2(columns, r), 0.0, 0.0, 0.0, 0.0
    for k in range(ids.size):
        c = _dot(columns, ids[k], r)
        inner_ += beta[k] * c
        norm1 += abs(beta[k])
        norm2 += beta[k] * beta[k]
        c -= l2 * beta[k]
        largest = max(largest, c if positive else abs(c))
    primal = 0.5 * square + l1 * norm1 + 0.5 * l2 * norm2
    weight = square + l2 * norm2
    if weight == 0:
        return primal, primal
    s = (square + inner_) / weight  # yᵀR = ‖R‖² + βᵀXᵀR
    if largest > 0:
        s = min(s, l1 / largest)
    s = max(s, 0.0)
    dual = s * (square + inner_) - 0.5 * s * s * weight
    return primal, primal - dual


@inner
def _combination(steps, count, gram, weights):
    """Set ``weights`` to those of the shortest affine combination of differences; return whether it exists."""
    trace = 0.0
    for a in range(count):
        for b in range(a + 1):
            gram[a, b] = gram[b, a] = inner_product(steps[a], steps[b], steps.shape[1])
        trace += gram[a, a]
    if not trace > 0:
        return False
    for a in range(count):
        gram[a, a] += 1e-12 * trace
        weights[a] = 1.0
    for a in range(count):  # Gaussian elimination; the matrix is positive definite
        if not gram[a, a] > 0:
            return False
        for b in range(a + 1, count):
            factor = gram[b, a] / gram[a, a]
            for c in range(a, count):
                gram[b, c] -= factor * gram[a, c]
            weights[b] -= factor * weights[a]
    total = 0.0
    for a in range(count - 1, -1, -1):
        for b in range(a + 1, count):
            weights[a] -= gram[a, b] * weights[b]
        weights[a] /= gram[a, a]
        total += weights[a]
    for a in range(count):
        weights[a] /= total
    return np.isfinite(total) and total != 0


@kernel(
    _columns(
        lambda columns: types.UniTuple(types.float64, 3)(
            columns,
            _IDS,
            _FLOATS,
            _OUT,
            _OUT,
            types.float64,
            types.float64,
            types.boolean,
            types.int64,
            types.float64,
            types.float64,
        )
    )
)
def descend(columns, ids, norms, beta, r, l1, l2, positive, epochs, target, part):
    """Minimise over the coefficients of some columns, the others being 0.

    Passes of coordinate descent; after every fifth an iterate is extrapolated from the last six, and taken if the
    objective is lower, and the duality gap is measured.

    Args:
        columns: The columns of X.
        ids: Numbers of the columns to work on, w.
        norms: ‖xⱼ‖² of these columns; one that is 0 leaves its coefficient alone.
        beta: Their coefficients, which change.
        r: Residual for these coefficients, which changes.
        l1: Weight of the L1 penalty, > 0.
        l2: Weight of the L2 penalty.
        positive: Whether coefficients must be ≥ 0.
        epochs: Most passes.
        target: The gap at which to stop.
        part: The gap, relative to the objective, at which to stop.

    Returns:
        The number of passes, the objective, and the gap.
    """
    kept = np.empty((_DIFFERENCES + 1, beta.size))
    residuals = np.empty((_DIFFERENCES + 1, r.size))
    steps = np.empty((_DIFFERENCES, beta.size))
    gram, weights = np.empty((_DIFFERENCES, _DIFFERENCES)), np.empty(_DIFFERENCES)
    candidate, its_residual = np.empty(beta.size), np.empty(r.size)
    done, primal, gap = 0, 0.0, 0.0
    while True:
        kept[0] = beta
        residuals[0] = r
        cycle = min(_DIFFERENCES, epochs - done)
        for epoch in range(cycle):
            for k in range(ids.size):
                norm = norms[k]
                if norm == 0:
                    continue
                old = beta[k]
                z = _dot(columns, ids[k], r) + norm * old
                new = _shrunk(z, l1, positive) / (norm + l2)
                if new != old:
                    _add(columns, ids[k], old - new, r)
                    beta[k] = new
            kept[epoch + 1] = beta
            residuals[epoch + 1] = r
            steps[epoch] = kept[epoch + 1] - kept[epoch]
        done += cycle
        if cycle == _DIFFERENCES and _combination(steps, cycle, gram, weights):
            candidate[:] = 0
            its_residual[:] = 0
            for a in range(cycle):
                for k in range(beta.size):
                    candidate[k] += weights[a] * kept[a + 1, k]
                for i in range(r.size):
                    its_residual[i] += weights[a] * residuals[a + 1, i]
            allowed = True
            if positive:
                for k in range(beta.size):
                    allowed = allowed and candidate[k] >= 0
            if allowed and _objective(_norm2(columns, its_residual), candidate, l1, l2) < _objective(
                _norm2(columns, r), beta, l1, l2
            ):
                beta[:] = candidate
                r[:] = its_residual
        primal, gap = _gap(columns, ids, beta, r, l1, l2, positive)
        if gap <= target or gap <= part * primal or done >= epochs or not np.isfinite(gap):
            return float(done), primal, gap
