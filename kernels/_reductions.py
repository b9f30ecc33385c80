"""Sums over elements and over rows."""

import numpy as np
from numba import types

from sfb.kernels._blocks import matrix, signatures
from sfb.kernels._compile import kernel
from sfb.kernels._vectors import flat

__all__ = ["inner_product", "reduce"]


@kernel(signatures(lambda t: types.float64(matrix(t, readonly=True), matrix(t, readonly=True))))
def inner_product(a, b):
    """Return Σ aᵢⱼ·bᵢⱼ in float64: four sums of every fourth term, so that additions need not wait for each other."""
    x, y = flat(a), flat(b)
    first = second = third = fourth = 0.0
    whole = x.size // 4 * 4
    for i in range(0, whole, 4):
        first += np.float64(x[i]) * np.float64(y[i])
        second += np.float64(x[i + 1]) * np.float64(y[i + 1])
        third += np.float64(x[i + 2]) * np.float64(y[i + 2])
        fourth += np.float64(x[i + 3]) * np.float64(y[i + 3])
    for i in range(whole, x.size):
        first += np.float64(x[i]) * np.float64(y[i])
    return (first + second) + (third + fourth)


@kernel(signatures(lambda t: types.void(matrix(t), types.int64, types.int64)))
def reduce(parts, start, stop):
    """Set elements of the first row of ``parts`` to the sums of those of all rows, in the order of rows."""
    block = 4096 // parts.itemsize
    for left in range(start, stop, block):
        right = min(left + block, stop)
        total = parts[0, left:right]
        for r in range(1, parts.shape[0]):
            term = parts[r, left:right]
            for c in range(right - left):
                total[c] += term[c]
