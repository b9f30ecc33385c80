"""Factors of a sparse matrix: gradient steps, and least squares a row at a time.

Sums over factors are formed in the order that the machine's vectors suggest, so their bits depend on the processor.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import njit, types

from sfb.kernels._compile import inner, kernel
from sfb.kernels._random import bits

__all__ = ["conjugate_gradient", "descend", "least_squares", "residuals"]

# Rows of factors that are copied side by side before they are read several times.
_GATHERED = 1024

_U32 = types.Array(types.uint32, 1, "C", readonly=True)
_I64 = types.Array(types.int64, 1, "C", readonly=True)
_ORDER = types.Array(types.uint32, 1, "C")
_STATE = types.Array(types.uint64, 1, "C")

# Sums in any order: LLVM does not use vectors for them otherwise.
_summing = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, fastmath={"reassoc", "nsz", "contract"})


def _signatures(build):
    """Return the signatures for float32 and float64 that ``build`` makes of types: element, vector, matrix, result."""
    return [
        build(t, types.Array(t, 1, "C", readonly=True), types.Array(t, 2, "C", readonly=True), types.Array(t, 2, "C"))
        for t in (types.float32, types.float64)
    ]


@_summing
def _dot(a, b, size):
    total = a.dtype.type(0)
    for k in range(size):
        total += a[k] * b[k]
    return total


@_summing
def _add(factor, a, b, size):
    """B ← b + factor·a."""
    for k in range(size):
        b[k] += factor * a[k]


@_summing
def _add_products(rows, weights, size, a):
    """Add Σ weight·xᵀx over four rows x to the upper triangle of a."""
    x, y, z, t = rows
    for i in range(np.uint64(0), np.uint64(size)):
        p, q, r, s = weights[0] * x[i], weights[1] * y[i], weights[2] * z[i], weights[3] * t[i]
        line = a[i]
        for j in range(i, np.uint64(size)):
            line[j] += p * x[j] + q * y[j] + r * z[j] + s * t[j]


@_summing
def _add_product(x, weight, size, a):
    for i in range(np.uint64(0), np.uint64(size)):
        factor, line = weight * x[i], a[i]
        for j in range(i, np.uint64(size)):
            line[j] += factor * x[j]


@_summing
def _solve(a, b, size):
    """Set b to the solution x of a·x = b, and return whether a, of which the upper triangle is read, is definite.

    Unsigned indices spare Numba the question of whether they count from the end, and so let LLVM use vectors.
    """
    end, one = np.uint64(size), np.uint64(1)
    for i in range(np.uint64(0), end):
        line = a[i]
        if not line[i] > 0:
            return False
        scale = a.dtype.type(1) / np.sqrt(line[i])
        for j in range(i, end):
            line[j] *= scale
        for k in range(i + one, end):
            factor, below = line[k], a[k]
            for j in range(k, end):
                below[j] -= factor * line[j]
    for i in range(np.uint64(0), end):
        line = a[i]
        b[i] /= line[i]
        factor = b[i]
        for j in range(i + one, end):
            b[j] -= factor * line[j]
    for back in range(np.uint64(0), end):
        i = end - one - back
        line, total = a[i], b[i]
        for j in range(i + one, end):
            total -= line[j] * b[j]
        b[i] = total / line[i]
    return True


@_summing
def _step(x, y, rate, error, strength, other_strength, size):
    for k in range(size):
        a, b = x[k], y[k]
        x[k] = a + rate * (error * b - strength * a)
        y[k] = b + rate * (error * a - other_strength * b)


@inner
def _weight(value, shift, confidence, one):
    """Return the weight of an entry in the normal equations, and what its row counts for on their right side.

    With ``confidence`` 0 an entry is a rating. Otherwise its weight is that above 1, which all entries have, and the
    preference is 1 if the entry is above 0: Hu, Koren and Volinsky, ICDM 2008, section 4. ``one`` is 1 of the type of
    the factors; a literal would turn float32 into float64.
    """
    if confidence == 0:
        return one, value - shift
    weight = confidence * value
    return weight, (one + weight if value > 0 else one - one)


@kernel(
    _signatures(
        lambda t, vector, matrix, result: types.int64(
            _I64, _U32, vector, matrix, vector, matrix, t, t, types.boolean, result
        )
    )
)
def least_squares(starts, columns, values, features, shifts, base, confidence, strength, weighted, found):
    """Set each row of ``found`` to the least-squares fit of a row of a sparse matrix, by Cholesky's decomposition.

    The row x minimises Σ w·(t − x·f)² + xᵀ·base·x + λ‖x‖², with the f, w and t of its entries.

    Args:
        starts: Where the entries of each of the N rows begin, N + 1.
        columns: The column of each entry.
        values: Its value.
        features: M×K, the f of each column.
        shifts: M numbers to subtract from values, if they are ratings.
        base: K×K, added to all normal equations.
        confidence: 0 for ratings; else the factor of values in weights.
        strength: λ, > 0.
        weighted: Whether λ is multiplied by the entries of the row.
        found: N×K, receives the result; 0 for a row without entries.

    Returns:
        −1, or the number of the first row whose equations cannot be solved.
    """
    size, one = features.shape[1], features.dtype.type(1)
    a, b = np.empty((size, size), features.dtype), np.empty(size, features.dtype)
    for row in range(starts.size - 1):
        start, end = starts[row], starts[row + 1]
        if start == end:
            found[row] = 0
            continue
        a[:] = base
        b[:] = 0
        entry = start
        while entry + 4 <= end:
            x, y = features[columns[entry]], features[columns[entry + 1]]
            z, t = features[columns[entry + 2]], features[columns[entry + 3]]
            w0, t0 = _weight(values[entry], shifts[columns[entry]], confidence, one)
            w1, t1 = _weight(values[entry + 1], shifts[columns[entry + 1]], confidence, one)
            w2, t2 = _weight(values[entry + 2], shifts[columns[entry + 2]], confidence, one)
            w3, t3 = _weight(values[entry + 3], shifts[columns[entry + 3]], confidence, one)
            _add_products((x, y, z, t), (w0, w1, w2, w3), size, a)
            for k in range(size):
                b[k] += t0 * x[k] + t1 * y[k] + t2 * z[k] + t3 * t[k]
            entry += 4
        while entry < end:
            x = features[columns[entry]]
            w0, t0 = _weight(values[entry], shifts[columns[entry]], confidence, one)
            _add_product(x, w0, size, a)
            _add(t0, x, b, size)
            entry += 1
        penalty = strength * (end - start) if weighted else strength
        for k in range(size):
            a[k, k] += features.dtype.type(penalty)
        if not _solve(a, b, size):
            return row
        found[row] = b
    return -1


@kernel(
    _signatures(
        lambda t, vector, matrix, result: types.void(
            _I64, _U32, vector, matrix, vector, matrix, t, t, types.boolean, types.int64, result
        )
    )
)
def conjugate_gradient(starts, columns, values, features, shifts, base, confidence, strength, weighted, steps, found):
    """Take steps of the method of conjugate gradients from each row of ``found`` to that of `least_squares`.

    Takács, Pilászy and Tikk, "Applications of the Conjugate Gradient Method for Implicit Feedback Collaborative
    Filtering", RecSys 2011.

    Args:
        starts: Where the entries of each of the N rows begin, N + 1.
        columns: The column of each entry.
        values: Its value.
        features: M×K, the f of each column.
        shifts: M numbers to subtract from values, if they are ratings.
        base: K×K, added to all normal equations.
        confidence: 0 for ratings; else the factor of values in weights.
        strength: λ, > 0.
        weighted: Whether λ is multiplied by the entries of the row.
        steps: Steps of each row.
        found: N×K, changes; a row without entries becomes 0.
    """
    size, one, longest = features.shape[1], features.dtype.type(1), 0
    for row in range(starts.size - 1):
        longest = max(longest, starts[row + 1] - starts[row])
    near = np.empty((min(longest, _GATHERED), size), features.dtype)
    weights = np.empty(longest, features.dtype)
    r, p, q = np.empty(size, features.dtype), np.empty(size, features.dtype), np.empty(size, features.dtype)
    for row in range(starts.size - 1):
        start, entries = starts[row], starts[row + 1] - starts[row]
        x = found[row]
        if entries == 0:
            x[:] = 0
            continue
        penalty = features.dtype.type(strength * entries if weighted else strength)
        gathered = entries <= _GATHERED
        for k in range(size):
            r[k] = -penalty * x[k] - _dot(base[k], x, size)
        for i in range(entries):
            column = columns[start + i]
            line = features[column]
            if gathered:
                near[i] = line
            weight, target = _weight(values[start + i], shifts[column], confidence, one)
            weights[i] = weight
            _add(target - weight * _dot(line, x, size), line, r, size)
        p[:] = r
        square = _dot(r, r, size)
        for _ in range(steps):
            if not square > 1e-20:
                break
            for k in range(size):
                q[k] = penalty * p[k] + _dot(base[k], p, size)
            if gathered:
                for i in range(entries):
                    line = near[i]
                    _add(weights[i] * _dot(line, p, size), line, q, size)
            else:
                for i in range(entries):
                    line = features[columns[start + i]]
                    _add(weights[i] * _dot(line, p, size), line, q, size)
            step = square / _dot(p, q, size)
            _add(step, p, x, size)
            _add(-step, q, r, size)
            before = square
            square = _dot(r, r, size)
            for k in range(size):
                p[k] = r[k] + square / before * p[k]


@kernel(
    _signatures(
        lambda t, vector, matrix, result: types.UniTuple(types.float64, 2)(
            _I64, _U32, vector, matrix, matrix, types.float64, types.float64
        )
    )
)
def residuals(starts, columns, values, rows, features, mean, confidence):
    """Return sums over the entries of a sparse matrix: of squared errors, and of squared products.

    With ``confidence`` 0 the error of an entry is value − mean − x·f, and the second sum is 0. Otherwise the first sum
    is that of (1 + confidence·value)·(preference − x·f)², and the second that of (x·f)².

    Args:
        starts: Where the entries of each of the N rows begin, N + 1.
        columns: The column of each entry.
        values: Its value.
        rows: N×K, the x of each row.
        features: M×K, the f of each column.
        mean: A number to subtract from ratings.
        confidence: 0 for ratings; else the factor of values in weights.
    """
    size = features.shape[1]
    errors, squares = 0.0, 0.0
    for row in range(starts.size - 1):
        x = rows[row]
        for entry in range(starts[row], starts[row + 1]):
            product, value = float(_dot(x, features[columns[entry]], size)), float(values[entry])
            if confidence == 0:
                errors += (value - mean - product) ** 2
            else:
                preference = 1.0 if value > 0 else 0.0
                errors += (1 + confidence * value) * (preference - product) ** 2
                squares += product**2
    return errors, squares


@kernel(
    _signatures(
        lambda t, vector, matrix, result: types.float64(
            _U32, _U32, vector, _ORDER, result, result, t, t, vector, vector, types.boolean, types.int64, types.int64,
            _STATE,
        )
    )
)  # fmt: skip
def descend(rows, columns, values, order, p, q, mean, rate, row_weights, column_weights, biased, first, last, state):
    """Take a gradient step for each of some entries, and return the sum of their squared errors before it.

    Gemulla et al., "Large-Scale Matrix Factorization with Distributed Stochastic Gradient Descent", KDD 2011, section
    3: the factors of row and column move along e·(factor of the other) − λ·(their own).

    Args:
        rows: The row of each entry.
        columns: Its column.
        values: Its value.
        order: The order of the entries; those from ``first`` on are shuffled as they are taken.
        p: Factors of rows, N×K, with a bias in the last column if ``biased``; changes.
        q: Factors of columns, M×K, likewise; changes.
        mean: What all predictions have in common.
        rate: The length of a step.
        row_weights: λ of each row.
        column_weights: λ of each column.
        biased: Whether there are biases.
        first: The first place of ``order`` to take.
        last: The place behind the last one.
        state: The stream of random numbers, one element, which changes.
    """
    size = p.shape[1] - (1 if biased else 0)
    total = 0.0
    for place in range(first, last):
        other = place + np.int64(bits(state) % np.uint64(order.size - place))
        entry, order[other] = order[other], order[place]
        order[place] = entry
        row, column = rows[entry], columns[entry]
        x, y = p[row], q[column]
        error = values[entry] - mean - _dot(x, y, size)
        strength, other_strength = row_weights[row], column_weights[column]
        if biased:
            error -= x[size] + y[size]
            x[size] += rate * (error - strength * x[size])
            y[size] += rate * (error - other_strength * y[size])
        total += float(error) ** 2
        _step(x, y, rate, error, strength, other_strength, size)
    return total
