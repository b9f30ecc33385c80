"""Compiled loops; imported on first use, so that Numba is loaded only when a kernel runs."""

import numpy as np
from numba import njit, types

# Columns of V worked at a time by the streaming loops: 8 rows of them stay in a 48 KiB L1 cache.
_COLUMNS = 1024

# Contraction lets a·b + c become one FMA; nothing is reordered, and NaN and Inf keep their meaning.
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def _signatures(build):
    return [build(t) for t in (types.float32, types.float64)]


def _input(t):
    return types.Array(t, 2, "C", readonly=True)


def _output(t):
    return types.Array(t, 2, "C")


@njit(**_OPTIONS)
def _stream_row(u, v, k, row):
    """Row ← Σ_j u[j, k] · v[j], four samples a pass."""
    depth, width = v.shape
    for left in range(0, width, _COLUMNS):
        right = min(left + _COLUMNS, width)
        out = row[left:right]
        head = depth % 4
        if head == 0:
            out[:] = 0
        elif head == 1:
            a0 = u[0, k]
            v0 = v[0, left:right]
            for c in range(right - left):
                out[c] = a0 * v0[c]
        elif head == 2:
            a0, a1 = u[0, k], u[1, k]
            v0, v1 = v[0, left:right], v[1, left:right]
            for c in range(right - left):
                out[c] = a0 * v0[c] + a1 * v1[c]
        else:
            a0, a1, a2 = u[0, k], u[1, k], u[2, k]
            v0, v1, v2 = v[0, left:right], v[1, left:right], v[2, left:right]
            for c in range(right - left):
                out[c] = a0 * v0[c] + a1 * v1[c] + a2 * v2[c]
        for j in range(head, depth, 4):
            a0, a1, a2, a3 = u[j, k], u[j + 1, k], u[j + 2, k], u[j + 3, k]
            v0, v1 = v[j, left:right], v[j + 1, left:right]
            v2, v3 = v[j + 2, left:right], v[j + 3, left:right]
            for c in range(right - left):
                out[c] += a0 * v0[c] + a1 * v1[c] + a2 * v2[c] + a3 * v3[c]


@njit(**_OPTIONS)
def _panel(u, v, start, stop, columns, out):
    """Out ← u[:, start:stop]ᵀ v, one GEMM; ``columns`` holds the transposed slice of u."""
    depth = u.shape[0]
    rows = stop - start
    left = columns[: rows * depth].reshape(rows, depth)
    for j in range(depth):
        for k in range(rows):
            left[k, j] = u[j, start + k]
    np.dot(left, v, out)


@njit(
    _signatures(lambda t: types.void(_input(t), _input(t), _output(t), types.int64, types.int64, types.int64)),
    **_OPTIONS,
)
def rebuild(u, v, g, start, stop, height):
    if height == 1:
        for k in range(start, stop):
            _stream_row(u, v, k, g[k])
        return
    columns = np.empty(height * u.shape[0], u.dtype)
    for low in range(start, stop, height):
        high = min(low + height, stop)
        _panel(u, v, low, high, columns, g[low:high])


@njit(**_OPTIONS)
def _sgd_row(w, buffer, g, lr, momentum, decay, nesterov):
    """One row of SGD; with momentum, ``buffer`` is that row's velocity."""
    if momentum == 0:
        for c in range(w.size):
            w[c] -= lr * (g[c] + decay * w[c])
    elif nesterov:
        for c in range(w.size):
            d = g[c] + decay * w[c]
            b = momentum * buffer[c] + d
            buffer[c] = b
            w[c] -= lr * (d + momentum * b)
    else:
        for c in range(w.size):
            b = momentum * buffer[c] + (g[c] + decay * w[c])
            buffer[c] = b
            w[c] -= lr * b


@njit(
    _signatures(
        lambda t: types.void(
            _input(t),
            _input(t),
            _output(t),
            _output(t),
            types.int64,
            types.int64,
            types.int64,
            t,
            t,
            t,
            types.boolean,
        )
    ),
    **_OPTIONS,
)
def sgd(u, v, w, buffer, start, stop, height, lr, momentum, decay, nesterov):
    kept = 0 if momentum == 0 else 1
    scratch = np.empty((height, w.shape[1]), w.dtype)
    columns = np.empty(height * u.shape[0] if height > 1 else 0, u.dtype)
    for low in range(start, stop, height):
        high = min(low + height, stop)
        if height == 1:
            _stream_row(u, v, low, scratch[0])
        else:
            _panel(u, v, low, high, columns, scratch[: high - low])
        for k in range(low, high):
            _sgd_row(w[k], buffer[k * kept], scratch[k - low], lr, momentum, decay, nesterov)


@njit(
    _signatures(
        lambda t: types.void(_output(t), _output(t), _input(t), types.int64, types.int64, t, t, t, types.boolean)
    ),
    **_OPTIONS,
)
def sgd_dense(w, buffer, g, start, stop, lr, momentum, decay, nesterov):
    kept = 0 if momentum == 0 else 1
    for k in range(start, stop):
        _sgd_row(w[k], buffer[k * kept], g[k], lr, momentum, decay, nesterov)


@njit(_signatures(lambda t: types.void(_output(t), types.int64, types.int64)), **_OPTIONS)
def reduce(parts, start, stop):
    for left in range(start, stop, _COLUMNS):
        right = min(left + _COLUMNS, stop)
        total = parts[0, left:right]
        for r in range(1, parts.shape[0]):
            term = parts[r, left:right]
            for c in range(right - left):
                total[c] += term[c]
